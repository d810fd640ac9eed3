//! The registry in a sled database of its own. Knows no Feast message.
//!
//! One entry per object. Key: a byte for the kind, the project's length (`u32`, big-endian), the
//! project, the name. Value: the CRC32 (`u32`, little-endian) of key and object, the object's bytes.
//! Durable means: sled's `flush`, then `sync_data` on its log file (sled alone leaves pages to the
//! kernel; measured in shared/STORAGE.md).

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use model::ports::{BoxFuture, Change, Object, ObjectKind, RegistryStore};
use model::{Error, Kind, Result};

use super::{blocking, unavailable};

/// Room for the registry in memory, bytes: more than any registry, for sled thrashes below its data.
const CACHE: u64 = 64 << 20;
const CHECKSUM: usize = 4;

/// A registry that only this process writes.
#[derive(Clone, Debug)]
pub struct Store {
    db: ::sled::Db,
    path: PathBuf,
}

impl Store {
    /// Opens the database in `directory`, or creates it. Blocks.
    ///
    /// Errors: `Unavailable` where the directory cannot be written or another process has it open.
    pub fn open(directory: &Path) -> Result<Self> {
        let fresh = !directory.join("db").exists();
        let db = ::sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE)
            .open()
            .map_err(|e| unavailable("open (is another larder running on it?)", directory, e))?;
        let store = Self { db, path: directory.to_path_buf() };
        if fresh {
            store.flush()?;
            let parent = directory.parent().filter(|p| !p.as_os_str().is_empty());
            for path in [Some(directory.join("conf").as_path()), Some(directory), parent].into_iter().flatten() {
                File::open(path).and_then(|file| file.sync_all()).map_err(|e| unavailable("sync", directory, e))?;
            }
        }
        Ok(store)
    }

    fn load_all(&self) -> Result<Vec<Object>> {
        self.db.iter().map(|entry| self.object(&entry.map_err(|e| self.failed(e))?)).collect()
    }

    fn object(&self, (key, value): &(::sled::IVec, ::sled::IVec)) -> Result<Object> {
        let (kind, project, name) = read_key(key).ok_or_else(|| self.damaged("a key", key))?;
        let (sum, bytes) = value
            .split_first_chunk::<CHECKSUM>()
            .ok_or_else(|| self.damaged(&format!("{} '{name}' of project '{project}'", kind.class()), value))?;
        if u32::from_le_bytes(*sum) != checksum(key, bytes) {
            return Err(self.damaged(&format!("{} '{name}' of project '{project}'", kind.class()), value));
        }
        Ok(Object { kind, project, name, bytes: Bytes::copy_from_slice(bytes) })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<()> {
        let mut batch = ::sled::Batch::default();
        for change in changes {
            match change {
                Change::Put(object) => {
                    let key = key(object.kind, &object.project, &object.name);
                    let mut value = checksum(&key, &object.bytes).to_le_bytes().to_vec();
                    value.extend_from_slice(&object.bytes);
                    batch.insert(key, value);
                }
                Change::Delete { kind, project, name } => batch.remove(key(kind, &project, &name)),
            }
        }
        crate::space::check(&self.path)?;
        self.db.apply_batch(batch).map_err(|e| self.failed(e))?;
        self.flush()
    }

    fn flush(&self) -> Result<()> {
        self.db.flush().map_err(|e| self.failed(e))?;
        File::open(self.path.join("db")).and_then(|log| log.sync_data()).map_err(|e| unavailable("sync", &self.path, e))
    }

    fn failed(&self, cause: ::sled::Error) -> Error {
        unavailable("reach", &self.path, cause)
    }

    fn damaged(&self, what: &str, bytes: &[u8]) -> Error {
        let at = self.path.display();
        Error::new(
            Kind::Internal,
            format!("{what} in the registry {at} is damaged ({} bytes): restore a backup", bytes.len()),
        )
    }
}

impl RegistryStore for Store {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>> {
        let store = self.clone();
        Box::pin(blocking(move || store.load_all()))
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<()>> {
        let store = self.clone();
        Box::pin(blocking(move || store.apply(changes)))
    }

    fn stamp(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Ok(0) })
    }
}

/// The kind's byte on disk: these numbers must never change their meaning.
fn code(kind: ObjectKind) -> u8 {
    match kind {
        ObjectKind::Project => 1,
        ObjectKind::Entity => 2,
        ObjectKind::DataSource => 3,
        ObjectKind::FeatureView => 4,
        ObjectKind::StreamFeatureView => 5,
        ObjectKind::OnDemandFeatureView => 6,
        ObjectKind::LabelView => 7,
        ObjectKind::FeatureService => 8,
        ObjectKind::SavedDataset => 9,
        ObjectKind::ValidationReference => 10,
        ObjectKind::Permission => 11,
        ObjectKind::Infra => 12,
        ObjectKind::ProjectMetadata => 13,
        ObjectKind::FeatureViewVersion => 14,
        ObjectKind::ClearedTable => 15,
        ObjectKind::DatasetJob => 16,
        ObjectKind::StreamReading => 17,
    }
}

fn key(kind: ObjectKind, project: &str, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + project.len() + name.len());
    out.push(code(kind));
    out.extend_from_slice(&(project.len() as u32).to_be_bytes());
    out.extend_from_slice(project.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

fn read_key(key: &[u8]) -> Option<(ObjectKind, String, String)> {
    let (first, rest) = key.split_first()?;
    let kind = ObjectKind::ALL.into_iter().find(|kind| code(*kind) == *first)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (project, name) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    Some((kind, String::from_utf8(project.to_vec()).ok()?, String::from_utf8(name.to_vec()).ok()?))
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::holds(|path| Box::new(Store::open(&path.join("registry")).expect("opens"))).await;
    }

    #[tokio::test]
    async fn a_flipped_bit_is_reported_with_the_object_s_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("opens");
        store.commit(vec![Change::Put(contract::entity("p", "driver", "d"))]).await.expect("commits");
        let (key, value) = store.db.first().expect("reads").expect("one entry");
        for at in 0..value.len() {
            let mut bad = value.to_vec();
            bad[at] ^= 1;
            store.db.insert(&key, bad).expect("writes");
            let error = store.load().await.expect_err("the damage is seen");
            assert_eq!(error.kind(), Kind::Internal);
            assert!(error.message().contains("Entity 'driver' of project 'p'"), "{error}");
        }
        // the key is under the checksum too: an entry that moved is not another object
        let mut moved = key.to_vec();
        *moved.last_mut().expect("a name") = b'R';
        store.db.remove(&key).expect("removes");
        store.db.insert(moved, value).expect("writes");
        assert_eq!(store.load().await.expect_err("the damage is seen").kind(), Kind::Internal);
    }

    #[test]
    fn a_second_process_is_told_that_the_directory_is_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = Store::open(directory.path()).expect("opens");
        let error = Store::open(directory.path()).expect_err("locked");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("another larder"), "{error}");
    }

    #[test]
    fn every_kind_has_a_byte_of_its_own() {
        for kind in ObjectKind::ALL {
            let key = key(kind, "project", "name");
            assert_eq!(read_key(&key), Some((kind, "project".to_owned(), "name".to_owned())));
        }
        assert_eq!(read_key(&[200, 0, 0, 0, 0]), None);
        assert_eq!(read_key(&[1, 0, 0, 0, 9, b'x']), None);
    }
}
