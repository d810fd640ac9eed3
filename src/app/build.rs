//! Puts the commit that the binary is built from into `larder --version`, where the source is a git checkout.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // what a commit, a checkout or a rebase writes
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12"]).map(|commit| format!(" ({commit})"));
    println!("cargo::rustc-env=LARDER_VERSION={version}{}", commit.unwrap_or_default());
}
