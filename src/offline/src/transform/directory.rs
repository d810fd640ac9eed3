//! The directory with the workers' script, the registered functions and the sockets. Knows no worker.
//!
//! It stands among the system's temporary files, for a socket's path must be short. Who uses it has its
//! file `lock` locked: one that nobody holds is of a server that was killed, and goes with the next start.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The script's name in the directory.
pub(super) const SCRIPT: &str = "worker.py";
const LOCK: &str = "lock";
const PREFIX: &str = "larder-";
/// What a directory is called until it is locked.
const NEW: &str = "new-larder-";

/// The directory; removed when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Directory {
    /// A new one that only this user can enter, under a name that nobody can guess; those of servers that
    /// were killed are removed.
    pub(super) fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    fn within(parent: &Path) -> io::Result<Self> {
        let id = uuid::Uuid::new_v4().simple();
        let (new, path) = (parent.join(format!("{NEW}{id}")), parent.join(format!("{PREFIX}{id}")));
        DirBuilder::new().mode(0o700).create(&new)?;
        let lock = File::create_new(new.join(LOCK))?;
        lock.try_lock()?;
        fs::write(new.join(SCRIPT), include_str!("worker.py"))?;
        fs::rename(&new, &path)?;
        let directory = Self { path, _lock: lock };
        directory.remove_stale(parent);
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what killed servers of this user left behind. What cannot be looked at is left alone.
    fn remove_stale(&self, parent: &Path) {
        let user = |path: &Path| path.symlink_metadata().ok().filter(fs::Metadata::is_dir).map(|m| m.uid());
        let (Ok(found), mine) = (fs::read_dir(parent), user(&self.path)) else { return };
        for path in found.filter_map(|entry| Some(entry.ok()?.path())) {
            let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
            let ours = named.is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
            if !ours || user(&path) != mine {
                continue;
            }
            let Ok(lock) = File::open(path.join(LOCK)) else { continue };
            if lock.try_lock().is_ok()
                && let Err(error) = fs::remove_dir_all(&path)
            {
                tracing::warn!(%error, path = %path.display(), "a killed server's directory cannot be removed");
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // a worker that ends may do it first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_server_left_goes_with_the_next_start() {
        let parent = tempfile::tempdir().expect("a directory");
        let there = || {
            let mut names: Vec<_> =
                fs::read_dir(parent.path()).expect("reads").map(|e| e.expect("an entry").path()).collect();
            names.sort();
            names
        };
        // A killed process lets go of its locks and removes nothing.
        let killed = parent.path().join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(killed.join("calls")).expect("creates");
        fs::write(killed.join(LOCK), "").expect("writes");
        fs::write(killed.join("calls/a"), "b").expect("writes");
        let foreign = parent.path().join("larder-data");
        fs::create_dir(&foreign).expect("creates");
        fs::write(foreign.join(LOCK), "").expect("writes");

        let first = Directory::within(parent.path()).expect("starts");
        let second = Directory::within(parent.path()).expect("starts");
        let mut expected = vec![foreign.clone(), first.path.clone(), second.path.clone()];
        expected.sort();
        assert_eq!(there(), expected, "those in use stay, and what is none of ours");
        drop((first, second));
        assert_eq!(there(), [foreign]);
    }
}
