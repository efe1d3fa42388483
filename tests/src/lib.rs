//! Harness for tests that need more than one crate.

pub mod netns;

use std::path::PathBuf;

/// A binary of this workspace.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("OUTRIGGER_BIN_DIR").map_or_else(
        || {
            // target/debug/deps/mesh-… → target/debug
            let own = std::env::current_exe().expect("own path");
            let dir = own.ancestors().nth(2).expect("a target folder");
            dir.to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not there; build it first: cargo build --workspace --bins",
        path.display()
    );
    path
}
