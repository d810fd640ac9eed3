//! The [`JobStore`] port: a directory with a file for each job. Knows no job: a record is bytes.
//!
//! A record is written beside its file and renamed into its place, both synced: a reader finds the old or the new one.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use model::ports::{BoxFuture, JobStore};
use model::{Error, Kind, Result};

const SUFFIX: &str = "job";
/// Held while the directory is in use.
const LOCK: &str = "lock";

/// The records of one server.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens a directory, or makes it. `None` where another process has it open. Blocks.
    ///
    /// Errors: `Unavailable` where it cannot be written.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let unusable = |e| unavailable("open", path, e);
        std::fs::create_dir_all(path).map_err(unusable)?;
        let lock = File::create(path.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            // not every file system has locks
            Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Unsupported => return Err(unusable(e)),
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        Ok(Some(Self { path: path.to_path_buf(), _lock: lock }))
    }

    fn file(&self, id: &str) -> PathBuf {
        self.path.join(format!("{id}.{SUFFIX}"))
    }

    async fn blocking<T, F>(&self, what: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Path) -> io::Result<T> + Send + 'static,
    {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || work(&path).map_err(|e| unavailable(what, &path, e)))
            .await
            .map_err(|e| Error::internal("the disk work for a job was cut off", e))?
    }
}

impl JobStore for Directory {
    fn load(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>>> {
        Box::pin(self.blocking("read", |path| {
            let mut records = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let file = entry?.path();
                let id = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                if let Some(id) = id
                    && file.extension().is_some_and(|e| e == SUFFIX)
                {
                    records.push((id, Bytes::from(std::fs::read(&file)?)));
                }
            }
            Ok(records)
        }))
    }

    fn put<'a>(&'a self, id: &'a str, record: Bytes) -> BoxFuture<'a, Result<()>> {
        let (target, part) = (self.file(id), self.path.join(format!("{id}.part")));
        Box::pin(self.blocking("write", move |path| {
            let written = File::create(&part)
                .and_then(|mut file| file.write_all(&record).and_then(|()| file.sync_all()))
                .and_then(|()| std::fs::rename(&part, &target));
            if let Err(e) = written {
                // best effort: the failure that matters is the one returned
                let _ = std::fs::remove_file(&part);
                return Err(e);
            }
            File::open(path)?.sync_all()
        }))
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let target = self.file(id);
        Box::pin(self.blocking("write", move |path| {
            match std::fs::remove_file(&target) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            File::open(path)?.sync_all()
        }))
    }
}

fn unavailable(what: &str, path: &Path, cause: io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("cannot {what} the jobs in {}: {cause}", path.display())).with_cause(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_outlive_who_wrote_them_and_only_one_may_have_them_open() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("jobs");
        let store = Directory::open(&path).expect("opens").expect("is free");
        assert!(Directory::open(&path).expect("opens").is_none());
        for (id, record) in [("a", "one"), ("b", "two"), ("a", "three"), ("c", "")] {
            store.put(id, Bytes::from(record)).await.expect("is written");
        }
        store.delete("b").await.expect("is removed");
        store.delete("b").await.expect("is gone already");
        drop(store);
        // what a crash leaves
        std::fs::write(path.join("d.part"), "ha").expect("is written");
        let store = Directory::open(&path).expect("opens").expect("is free");
        let mut records = store.load().await.expect("is read");
        records.sort();
        assert_eq!(records, [("a".to_owned(), Bytes::from("three")), ("c".to_owned(), Bytes::new())]);
        std::fs::remove_dir_all(&path).expect("is removed");
        let error = store.put("a", Bytes::new()).await.expect_err("there is no directory");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("jobs"), "{}", error.message());
    }
}
