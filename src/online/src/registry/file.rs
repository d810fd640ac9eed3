//! A Feast registry file (`registry.db`): one serialized `feast.core.Registry`, which Feast itself
//! may write beside us. Knows which field holds which kind of object, and nothing else of them.
//!
//! It is read and edited on the wire level: fields that we do not know survive. As with Feast's own
//! file registry the last writer wins; a commit reads the file anew, edits that, and renames a synced
//! copy into its place, so that a reader sees the old or the new file, never a part.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use model::ports::{BoxFuture, Change, Object, ObjectKind, RegistryStore};
use model::{Error, Kind, Result};
use prost::Message;
use proto::{feast::core, raw};

use super::{blocking, unavailable};

/// Field numbers of `feast.core.Registry` that stand for no object.
const SCHEMA_VERSION: u32 = 3;
const VERSION_ID: u32 = 4;
const LAST_UPDATED: u32 = 5;
/// In `FeatureViewVersionHistory`.
const RECORDS: u32 = 1;

/// Feast empties the file before it writes it: a file that is empty or broken is looked at again
/// this often, at this distance.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// A registry in a file that may change behind our back, or not be there yet.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The registry in the file `path`; a file that does not exist is an empty registry.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file's bytes; none where it does not exist. Waits a moment while somebody writes it.
    fn read(&self) -> Result<Vec<u8>> {
        let mut attempt = 1;
        loop {
            let bytes = match std::fs::read(&self.path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(unavailable("read", &self.path, e)),
            };
            let broken = core::Registry::decode(bytes.as_slice()).err();
            match broken {
                None if !bytes.is_empty() || attempt == ATTEMPTS => return Ok(bytes),
                Some(e) if attempt == ATTEMPTS => {
                    let path = self.path.display();
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!("the file {path} is no Feast registry (a serialized feast.core.Registry): {e}"),
                    )
                    .with_cause(e));
                }
                // Feast is writing it: there is nothing to wait on but time, and ATTEMPTS bounds it
                _ => std::thread::sleep(PAUSE),
            }
            attempt += 1;
        }
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        let mut bytes = self.read()?;
        for kind in ObjectKind::ALL {
            let mut mine = changes.iter().filter(|c| kind_of(c) == kind).peekable();
            if mine.peek().is_some() {
                bytes = edit(&bytes, kind, mine)?;
            }
        }
        if raw::get(&bytes, SCHEMA_VERSION).map_err(damaged)?.is_empty() {
            raw::push(&mut bytes, SCHEMA_VERSION, b"1");
        }
        let version = uuid::Uuid::new_v4().to_string();
        bytes = raw::set(&bytes, VERSION_ID, Some(version.as_bytes())).map_err(damaged)?;
        let now = prost_types::Timestamp::from(SystemTime::now()).encode_to_vec();
        bytes = raw::set(&bytes, LAST_UPDATED, Some(&now)).map_err(damaged)?;
        self.replace(&bytes).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::of_class(
                Kind::Unsupported,
                "ReadOnlyRegistryException",
                format!("Registry implementation is read-only: {}: {e}", self.path.display()),
            ),
            _ => unavailable("write", &self.path, e),
        })
    }

    /// Writes a synced copy beside the file and renames it into its place.
    fn replace(&self, bytes: &[u8]) -> std::io::Result<()> {
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let copy = directory.join(format!(".registry-{}.tmp", uuid::Uuid::new_v4()));
        let written = File::create(&copy)
            .and_then(|mut file| {
                if let Ok(old) = std::fs::metadata(&target) {
                    file.set_permissions(old.permissions())?;
                }
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&copy, &target));
        if let Err(e) = written {
            // best effort: the failure that matters is the one returned
            let _ = std::fs::remove_file(&copy);
            return Err(e);
        }
        File::open(directory)?.sync_all()
    }
}

impl RegistryStore for Store {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>> {
        let store = self.clone();
        Box::pin(blocking(move || split(&store.read()?)))
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<()>> {
        let store = self.clone();
        Box::pin(blocking(move || store.apply(&changes)))
    }

    fn stamp(&self) -> BoxFuture<'_, Result<u64>> {
        let path = self.path.clone();
        Box::pin(blocking(move || match std::fs::metadata(&path) {
            Ok(metadata) => Ok(stamp_of(&metadata)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(unavailable("look at", &path, e)),
        }))
    }
}

/// Time of change, length and, where there is one, the file's number on its device.
fn stamp_of(metadata: &Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    metadata.len().hash(&mut hasher);
    if let Ok(changed) = metadata.modified() {
        changed.hash(&mut hasher);
    }
    #[cfg(unix)]
    std::os::unix::fs::MetadataExt::ino(metadata).hash(&mut hasher);
    hasher.finish()
}

fn kind_of(change: &Change) -> ObjectKind {
    match change {
        Change::Put(object) => object.kind,
        Change::Delete { kind, .. } => *kind,
    }
}

/// All objects of a registry's bytes. Feast's file has one infra for all projects: each is given it.
fn split(bytes: &[u8]) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for kind in ObjectKind::ALL {
        if kind != ObjectKind::Infra {
            for item in items(bytes, kind)? {
                objects.push(Object::read(kind, item)?);
            }
        }
    }
    // of two objects with one name, Feast finds the first
    let mut seen = std::collections::BTreeSet::new();
    objects.retain(|o| seen.insert((o.kind, o.project.clone(), o.name.clone())));
    let infra = raw::get(bytes, ObjectKind::Infra.layout().registry).map_err(damaged)?;
    if !infra.is_empty() {
        let bytes = Bytes::from(infra.concat());
        let projects: std::collections::BTreeSet<String> = seen.into_iter().map(|(_, p, _)| p).collect();
        objects.extend(projects.into_iter().map(|project| Object {
            kind: ObjectKind::Infra,
            project,
            name: String::new(),
            bytes: bytes.clone(),
        }));
    }
    Ok(objects)
}

/// A registry's bytes after the changes to one kind: replaced objects stay in their place, new ones
/// go behind the others. The infra, which all projects share, is set but not deleted with one of them.
fn edit<'a>(bytes: &[u8], kind: ObjectKind, changes: impl Iterator<Item = &'a Change>) -> Result<Vec<u8>> {
    let number = kind.layout().registry;
    let mut items: Vec<(String, String, Bytes)> = Vec::new();
    for item in self::items(bytes, kind)? {
        let object = Object::read(kind, item)?;
        items.push((object.project, object.name, object.bytes));
    }
    for change in changes {
        match change {
            Change::Put(object) if kind == ObjectKind::Infra => {
                items = vec![(String::new(), String::new(), object.bytes.clone())];
            }
            Change::Put(object) => {
                let new = (object.project.clone(), object.name.clone(), object.bytes.clone());
                match items.iter_mut().find(|(p, n, _)| *p == new.0 && *n == new.1) {
                    Some(old) => *old = new,
                    None => items.push(new),
                }
            }
            Change::Delete { project, name, .. } => items.retain(|(p, n, _)| p != project || n != name),
        }
    }
    let mut out = raw::set(bytes, number, None).map_err(damaged)?;
    if kind == ObjectKind::FeatureViewVersion {
        let mut history = Vec::new();
        for (_, _, item) in &items {
            raw::push(&mut history, RECORDS, item);
        }
        raw::push(&mut out, number, &history);
        return Ok(out);
    }
    for (_, _, item) in &items {
        raw::push(&mut out, number, item);
    }
    Ok(out)
}

/// The messages of a kind in a registry's bytes. Versions of views stand together in one message.
fn items(bytes: &[u8], kind: ObjectKind) -> Result<Vec<Bytes>> {
    let found = raw::get(bytes, kind.layout().registry).map_err(damaged)?;
    if kind == ObjectKind::FeatureViewVersion {
        let history = found.concat();
        let records = raw::get(&history, RECORDS).map_err(damaged)?;
        return Ok(records.into_iter().map(Bytes::copy_from_slice).collect());
    }
    Ok(found.into_iter().map(Bytes::copy_from_slice).collect())
}

fn damaged(cause: prost::DecodeError) -> Error {
    Error::new(Kind::Unavailable, format!("the registry file is damaged: {cause}")).with_cause(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::holds(|path| Box::new(Store::new(path.join("data/registry.db")))).await;
    }

    #[tokio::test]
    async fn what_we_do_not_know_survives_a_commit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("registry.db");
        let mut bytes = core::Registry {
            feature_tables: vec![core::FeatureTable::default()],
            registry_schema_version: "1".into(),
            version_id: "theirs".into(),
            ..Default::default()
        }
        .encode_to_vec();
        raw::push(&mut bytes, 900, b"from the future");
        raw::push(&mut bytes, ObjectKind::Entity.layout().registry, &contract::entity("p", "a", "").bytes);
        raw::push(&mut bytes, ObjectKind::Entity.layout().registry, &contract::entity("p", "b", "").bytes);
        std::fs::write(&path, &bytes).expect("writes");

        let store = Store::new(&path);
        store.commit(vec![Change::Put(contract::entity("p", "a", "new"))]).await.expect("commits");
        let after = std::fs::read(&path).expect("reads");
        assert_eq!(raw::get(&after, 900).expect("whole"), [b"from the future"]);
        let registry = core::Registry::decode(after.as_slice()).expect("a registry");
        assert_eq!(registry.feature_tables.len(), 1);
        assert_ne!(registry.version_id, "theirs");
        assert!(registry.last_updated.is_some());
        let names: Vec<_> = registry.entities.iter().filter_map(|e| e.spec.as_ref()).map(|s| &s.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 1, "no copy is left behind");
    }

    #[tokio::test]
    async fn the_stamp_tells_every_change_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::new(directory.path().join("registry.db"));
        let mut stamps = vec![store.stamp().await.expect("a stamp")];
        for description in ["x", "y", "z"] {
            store.commit(vec![Change::Put(contract::entity("p", "a", description))]).await.expect("commits");
            let stamp = store.stamp().await.expect("a stamp");
            assert!(!stamps.contains(&stamp), "{stamps:?} has {stamp}");
            stamps.push(stamp);
        }
        assert_eq!(store.stamp().await.expect("a stamp"), stamps[3]);
    }

    #[tokio::test]
    async fn infra_is_every_project_s() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::new(directory.path().join("registry.db"));
        let infra = contract::infra("p", b"table");
        let changes = [contract::entity("p", "a", ""), contract::entity("q", "a", ""), infra.clone()];
        store.commit(changes.map(Change::Put).into()).await.expect("commits");
        let mut loaded = store.load().await.expect("loads");
        loaded.retain(|o| o.kind == ObjectKind::Infra);
        assert_eq!(loaded, [infra.clone(), Object { project: "q".into(), ..infra }]);
    }

    #[tokio::test]
    async fn a_file_that_is_no_registry_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("registry.db");
        std::fs::write(&path, b"not a registry").expect("writes");
        let error = Store::new(&path).load().await.expect_err("no registry");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("registry.db"), "{error}");
    }

    /// Feast truncates the file and then writes it: a reader must not take that for an empty registry.
    #[tokio::test]
    async fn a_file_in_the_middle_of_a_write_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("registry.db");
        let mut bytes = Vec::new();
        raw::push(&mut bytes, ObjectKind::Entity.layout().registry, &contract::entity("p", "a", "").bytes);
        std::fs::write(&path, b"").expect("truncates");
        let store = Store::new(&path);
        let (loaded, ()) = tokio::join!(store.load(), async {
            // the time that the writer takes, within what a reader waits
            tokio::time::sleep(PAUSE * 3).await;
            std::fs::write(&path, &bytes).expect("writes");
        });
        assert_eq!(loaded.expect("loads"), [contract::entity("p", "a", "")]);
    }
}
