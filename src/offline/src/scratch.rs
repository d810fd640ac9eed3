//! A directory of this process, for what goes when it ends; what killed processes left goes with the next start. Knows no
//! query and no worker.
//!
//! Who uses one has it locked: one that nobody holds is of a process that was killed.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

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
    /// A new one that only this user can enter, under a name that begins with `prefix` and that nobody can guess, with what
    /// `fill` puts into it. Those of the prefix that killed processes of this user left are removed. Blocks.
    ///
    /// Errors: a directory that cannot be made, with the path.
    pub(crate) fn below(
        parent: &Path,
        prefix: &str,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<Self, (PathBuf, io::Error)> {
        // Before room is asked for: what was left may be why there is none.
        remove_stale(parent, prefix);
        let name = format!("{prefix}{}", uuid::Uuid::new_v4().simple());
        let (new, path) = (parent.join(format!("{NEW}{name}")), parent.join(name));
        let make = || {
            fs::create_dir_all(parent)?;
            DirBuilder::new().mode(0o700).create(&new)?;
            let lock = File::open(&new)?;
            match lock.try_lock() {
                // Not every file system has locks; on such a one nothing is removed, either.
                Err(TryLockError::Error(e)) if e.kind() != io::ErrorKind::Unsupported => return Err(e),
                _ => {}
            }
            fill(&new)?;
            fs::rename(&new, &path)?;
            Ok(lock)
        };
        match make() {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir_all(&new);
                Err((path, error))
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // what cannot be removed goes with the next start, and others may remove it first
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What cannot be looked at is left alone.
fn remove_stale(parent: &Path, prefix: &str) {
    // a process is its user's
    let (Ok(found), Ok(process)) = (fs::read_dir(parent), fs::metadata("/proc/self")) else { return };
    for path in found.filter_map(|entry| Some(entry.ok()?.path())) {
        let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(prefix));
        let is_ours = named.is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
            && path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == process.uid());
        let Some(lock) = is_ours.then(|| File::open(&path).ok()).flatten() else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what a killed process had left"),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what a killed process had left cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "scratch-";

    fn below(parent: &Path) -> Directory {
        Directory::below(parent, PREFIX, |_| Ok(())).expect("starts")
    }

    fn there(parent: &Path) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(parent).expect("reads").map(|e| e.expect("an entry").path()).collect();
        found.sort();
        found
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_start() {
        let parent = tempfile::tempdir().expect("a directory");
        // A killed process lets go of its locks and removes nothing.
        let killed = parent.path().join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(killed.join("datafusion-1")).expect("creates");
        fs::write(killed.join("datafusion-1/run"), "rows").expect("writes");
        let foreign = parent.path().join(format!("{PREFIX}of-mine"));
        fs::create_dir(&foreign).expect("creates");

        let first = below(parent.path());
        fs::write(first.path().join("run"), "rows").expect("writes");
        let second = below(parent.path());
        let mut expected = vec![foreign.clone(), first.path.clone(), second.path.clone()];
        expected.sort();
        assert_eq!(there(parent.path()), expected, "those in use stay, and what is none of ours");
        assert!(first.path().join("run").exists());
        drop((first, second));
        assert_eq!(there(parent.path()), [foreign]);
    }

    #[test]
    fn a_link_is_not_followed_to_what_is_removed() {
        let (parent, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let kept = other.path().join("kept");
        fs::write(&kept, "rows").expect("writes");
        let link = parent.path().join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        std::os::unix::fs::symlink(other.path(), &link).expect("links");
        drop(below(parent.path()));
        assert!(kept.exists());
        assert_eq!(there(parent.path()), [link]);
    }

    #[test]
    fn only_its_user_enters_and_what_it_is_filled_with_is_there() {
        let parent = tempfile::tempdir().expect("a directory");
        let filled = Directory::below(&parent.path().join("deep/er"), PREFIX, |path| fs::write(path.join("a"), "b"));
        let filled = filled.expect("starts");
        assert_eq!(fs::read(filled.path().join("a")).expect("reads"), b"b");
        assert_eq!(fs::metadata(filled.path()).expect("is there").mode() & 0o777, 0o700);
        let (path, error) = Directory::below(parent.path(), PREFIX, |_| Err(io::ErrorKind::StorageFull.into()))
            .map(|_| ())
            .expect_err("it cannot be filled");
        assert_eq!((path.parent(), error.kind()), (Some(parent.path()), io::ErrorKind::StorageFull));
        assert_eq!(there(parent.path()), [parent.path().join("deep")], "nothing half made is left");
    }
}
