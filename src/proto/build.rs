//! Compiles `proto/` at the root of the workspace with protox (there is no protoc on the machine).
//!
//! Two passes: everything but the registry service as plain prost messages, then `feast.registry`
//! with every `feast.core` message replaced by [`Raw`](src/raw.rs), so that fields that a newer
//! SDK added survive the way through the registry server.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.display());

    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    files.sort();
    let is_registry = |file: &Path| file.starts_with("feast/registry");

    let all = protox::compile(&files, [&root])?;
    std::fs::write(out.join("descriptors.bin"), all.encode_to_vec())?;

    let plain: Vec<_> = files.iter().filter(|f| !is_registry(f)).collect();
    prost_build::Config::new()
        .btree_map(["."])
        .include_file("plain.rs")
        .compile_fds(protox::compile(plain, [&root])?)?;

    let registry: Vec<_> = files.iter().filter(|f| is_registry(f)).collect();
    let registry_out = out.join("registry");
    std::fs::create_dir_all(&registry_out)?;
    prost_build::Config::new()
        .btree_map(["."])
        .extern_path(".feast.core", "crate::raw")
        .extern_path(".feast.types", "crate::feast::types")
        .out_dir(&registry_out)
        .compile_fds(protox::compile(registry, [&root])?)?;
    Ok(())
}

/// All `.proto` files below `dir`, as paths relative to `root`.
fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path.strip_prefix(root)?.to_path_buf());
        }
    }
    Ok(())
}
