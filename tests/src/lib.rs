//! Harness for tests that need more than one crate.

pub mod loopback;
pub mod netns;
pub mod otlp;
pub mod refuser;

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

/// Where `tests/run` keeps the programs that it has fetched.
#[must_use]
pub fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("OUTRIGGER_CACHE") {
        return dir.into();
    }
    let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    caches
        .unwrap_or_else(|| home().join(".cache"))
        .join("outrigger")
}
