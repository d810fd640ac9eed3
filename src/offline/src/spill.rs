//! The directory that this process spills to: one of its own below the configured one, which goes when it ends. What killed
//! processes left goes with the next start. Knows no query.
//!
//! Who uses a directory has it locked: one that nobody holds is of a process that was killed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use model::Result;

use crate::error::io as io_error;

const PREFIX: &str = "spill-";
/// What a directory is called until it is locked.
const NEW: &str = "new-";

/// The directory; removed when dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Directory {
    /// A new one; those of processes that were killed are removed. Blocks.
    ///
    /// Errors: a directory that cannot be made.
    pub(crate) fn below(parent: &Path) -> Result<Self> {
        // Before room is asked for: what was left may be why there is none.
        remove_stale(parent);
        let path = parent.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        let lock = make(parent, &path).map_err(|e| io_error("creating", &path, e))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // what cannot be removed goes with the next start
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn make(parent: &Path, path: &Path) -> io::Result<File> {
    let new = parent.join(format!("{NEW}{}", path.file_name().unwrap_or_default().to_string_lossy()));
    fs::create_dir_all(&new)?;
    let lock = File::open(&new)?;
    match lock.try_lock() {
        // Not every file system has locks; on such a one nothing is removed, either.
        Err(TryLockError::Error(e)) if e.kind() != io::ErrorKind::Unsupported => return Err(e),
        _ => {}
    }
    fs::rename(&new, path)?;
    Ok(lock)
}

/// What cannot be looked at is left alone.
fn remove_stale(parent: &Path) {
    let Ok(found) = fs::read_dir(parent) else { return };
    for path in found.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let Some(lock) = is_ours.then(|| File::open(&path).ok()).flatten() else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what a killed process had spilled"),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what a killed process had spilled cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_start() {
        let parent = tempfile::tempdir().expect("a directory");
        let there = || {
            let mut found: Vec<_> =
                fs::read_dir(parent.path()).expect("reads").map(|e| e.expect("an entry").path()).collect();
            found.sort();
            found
        };
        // A killed process lets go of its locks and removes nothing.
        let killed = parent.path().join(format!("{PREFIX}0"));
        fs::create_dir_all(killed.join("datafusion-1")).expect("creates");
        fs::write(killed.join("datafusion-1/run"), "rows").expect("writes");
        let foreign = parent.path().join("other");
        fs::create_dir(&foreign).expect("creates");

        let first = Directory::below(parent.path()).expect("starts");
        fs::write(first.path().join("run"), "rows").expect("writes");
        let second = Directory::below(parent.path()).expect("starts");
        let mut expected = vec![foreign.clone(), first.path.clone(), second.path.clone()];
        expected.sort();
        assert_eq!(there(), expected, "those in use stay, and what is none of ours");
        assert!(first.path().join("run").exists());
        drop((first, second));
        assert_eq!(there(), [foreign]);
    }
}
