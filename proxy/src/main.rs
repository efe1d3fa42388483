//! `outrigger-proxy`: the sidecar binary.
fn main() {}
