//! `outrigger-control`: the control plane server.
fn main() {}
