//! Makes the Rust in `src/gen` and the descriptor set beside it out of every `.proto` file of this
//! crate. Shared by the `regenerate` example, which writes it, and a test, which compares it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

/// Contents by file name.
type Files = BTreeMap<String, Vec<u8>>;

/// Where the generated files are committed.
pub(crate) fn committed_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen")
}

/// Every generated file by name.
pub(crate) fn generate() -> Result<Files, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for package in fs::read_dir(root)? {
        let package = package?.path();
        if package.is_dir() {
            proto_files(&package, &mut sources)?;
        }
    }
    sources.sort();

    let mut compiler = protox::Compiler::new([root])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(sources)?;
    let mut descriptors = compiler.file_descriptor_set();

    let out = tempfile::tempdir()?;
    let mut config = prost_build::Config::new();
    config
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        // Ordered maps encode the same message to the same bytes, so bytes can be compared.
        .btree_map(["."]);
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out.path())
        .include_file("mod.rs")
        .compile_fds_with_config(descriptors.clone(), config)?;

    let mut files = without_raw_identifiers(read_dir(out.path())?)?;
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    files.insert("descriptors.bin".to_owned(), descriptors.encode_to_vec());
    Ok(files)
}

/// prost-build names the file of package `envoy.type.v3` `envoy.r#type.v3.rs`; we want no `r#`
/// there.
fn without_raw_identifiers(files: Files) -> Result<Files, Box<dyn Error>> {
    let mut renamed = BTreeMap::new();
    for (name, content) in files {
        let content = if name == "mod.rs" {
            String::from_utf8(content)?
                .replace(".r#type.", ".type.")
                .into_bytes()
        } else {
            content
        };
        renamed.insert(name.replace(".r#type.", ".type."), content);
    }
    Ok(renamed)
}

/// Every file in `dir` by name.
pub(crate) fn read_dir(dir: &Path) -> Result<Files, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files.insert(
            entry.file_name().to_string_lossy().into_owned(),
            fs::read(entry.path())?,
        );
    }
    Ok(files)
}

fn proto_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            found.push(path);
        }
    }
    Ok(())
}
