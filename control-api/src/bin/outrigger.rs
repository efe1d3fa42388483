//! `outrigger`: the command-line client.
fn main() {}
