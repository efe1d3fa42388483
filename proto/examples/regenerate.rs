//! Rewrites `src/gen` from the `.proto` files: `cargo run -p outrigger-proto --example regenerate`.

use std::error::Error;
use std::fs;

#[path = "../codegen/mod.rs"]
mod codegen;

fn main() -> Result<(), Box<dyn Error>> {
    let generated = codegen::generate()?;
    let dir = codegen::committed_dir();
    fs::create_dir_all(&dir)?;
    for stale in codegen::read_dir(&dir)?
        .keys()
        .filter(|name| !generated.contains_key(*name))
    {
        fs::remove_file(dir.join(stale))?;
    }
    for (name, content) in &generated {
        fs::write(dir.join(name), content)?;
    }
    Ok(())
}
