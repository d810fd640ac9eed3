//! The house rules that a machine can hold: who imports whom, how long a file is, how it opens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom, directly: the lower layers, never a sibling (DESIGN.md of the house).
fn allowed(krate: &str) -> Option<&'static [&'static str]> {
    Some(match krate {
        "proto" | "window" => &[],
        "model" => &["proto"],
        "service" | "online" => &["proto", "model", "window"],
        "ingest" => &["proto", "model", "window", "service"],
        "rpc" => &["proto", "model"],
        "server" | "offline" => &["proto", "model", "window", "service", "rpc"],
        "app" | "bench" => &["proto", "model", "window", "service", "online", "ingest", "rpc", "server", "offline"],
        _ => return None,
    })
}

const LONGEST: usize = 500;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("src").to_path_buf()
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn files() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    rust_files(&src(), &mut paths);
    assert!(paths.len() > 50, "the files of the workspace are found");
    paths.into_iter().map(|p| (p.clone(), fs::read_to_string(&p).expect("readable"))).collect()
}

/// The names in a manifest's `[dependencies]` (not its dev or build ones).
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
    section.lines().filter(|l| !l.starts_with('#')).map(name).filter(|n| !n.is_empty()).collect()
}

#[test]
fn imports_go_downwards_only() {
    let mut crates = BTreeMap::new();
    for entry in fs::read_dir(src()).expect("src") {
        let dir = entry.expect("an entry").path();
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        crates.insert(name, fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest"));
    }
    for (name, manifest) in &crates {
        let allowed = allowed(name).unwrap_or_else(|| panic!("{name}: say in this test whom it may import"));
        for dependency in dependencies(manifest).iter().filter(|d| crates.contains_key(*d)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} may not import {dependency}");
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = files().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(p, _)| p).collect();
    assert!(silent.is_empty(), "these do not open with //!: {silent:#?}");
}

#[test]
fn files_are_short() {
    let is_test = |path: &Path| path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "tests.rs")));
    let long: Vec<_> = files()
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| (path, text.lines().take_while(|l| *l != "#[cfg(test)]").count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .collect();
    assert!(long.is_empty(), "split these: {long:#?}");
}

/// Foreign names that only one crate may name.
#[test]
fn each_engine_has_one_home() {
    for (name, home) in [("sled", "online"), ("rdkafka", "ingest"), ("datafusion", "offline"), ("arrow", "offline")] {
        for entry in fs::read_dir(src()).expect("src") {
            let dir = entry.expect("an entry").path();
            let krate = dir.file_name().expect("a name").to_string_lossy().into_owned();
            let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest");
            assert!(krate == home || !dependencies(&manifest).iter().any(|d| d == name), "{krate} may not name {name}");
        }
    }
}
