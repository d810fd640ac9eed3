//! What every registry store must do. Knows no store.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use model::ports::{Change, Object, ObjectKind, RegistryStore};
use prost::Message;
use proto::{feast::core, raw};

/// An entity; its bytes hold a field that nobody knows.
pub(crate) fn entity(project: &str, name: &str, description: &str) -> Object {
    let spec = core::EntitySpecV2 {
        name: name.into(),
        project: project.into(),
        description: description.into(),
        ..Default::default()
    };
    let mut bytes = core::Entity { spec: Some(spec), meta: None }.encode_to_vec();
    raw::push(&mut bytes, 500, b"unknown");
    Object { kind: ObjectKind::Entity, project: project.into(), name: name.into(), bytes: bytes.into() }
}

/// A project's infra with one object.
pub(crate) fn infra(project: &str, table: &[u8]) -> Object {
    let object = core::InfraObject { infra_object_class_type: "x".into(), ..Default::default() };
    let mut bytes = core::Infra { infra_objects: vec![object] }.encode_to_vec();
    raw::push(&mut bytes, 7, table);
    Object { kind: ObjectKind::Infra, project: project.into(), name: String::new(), bytes: bytes.into() }
}

fn source(project: &str, name: &str) -> Object {
    let message = core::DataSource { name: name.into(), project: project.into(), ..Default::default() };
    let bytes = Bytes::from(message.encode_to_vec());
    Object { kind: ObjectKind::DataSource, project: project.into(), name: name.into(), bytes }
}

fn project(name: &str) -> Object {
    let spec = core::ProjectSpec { name: name.into(), ..Default::default() };
    let bytes = core::Project { spec: Some(spec), meta: None }.encode_to_vec();
    Object { kind: ObjectKind::Project, project: name.into(), name: name.into(), bytes: bytes.into() }
}

fn delete(object: &Object) -> Change {
    Change::Delete { kind: object.kind, project: object.project.clone(), name: object.name.clone() }
}

fn keyed(objects: Vec<Object>) -> BTreeMap<(ObjectKind, String, String), Object> {
    objects.into_iter().map(|o| ((o.kind, o.project.clone(), o.name.clone()), o)).collect()
}

/// Runs the suite on the store that `open` opens; called again on the same directory, it must find
/// what the store before it was given.
pub(crate) async fn holds(open: impl Fn(&Path) -> Box<dyn RegistryStore>) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    assert_eq!(store.load().await.expect("loads"), [], "it starts empty");

    // what is put is what is loaded, unknown fields and odd names included
    let objects = vec![
        project("p"),
        project("ab"),
        entity("p", "driver", "first"),
        entity("a", "bc", ""),
        entity("ab", "c", ""),
        entity("p", "füller \u{0} /", ""),
        entity("", "without project", ""),
        source("p", "driver"),
    ];
    store.commit(objects.iter().cloned().map(Change::Put).collect()).await.expect("commits");
    let mut expected = keyed(objects);
    assert_eq!(keyed(store.load().await.expect("loads")), expected);

    // replaced, deleted and added in one commit; the later of two changes to an object wins
    let changes = vec![
        Change::Put(entity("p", "driver", "second")),
        delete(&source("p", "driver")),
        delete(&entity("p", "not there", "")),
        Change::Put(source("p", "passing")),
        delete(&source("p", "passing")),
        delete(&entity("ab", "c", "")),
        Change::Put(entity("ab", "c", "again")),
    ];
    store.commit(changes).await.expect("commits");
    expected.remove(&(ObjectKind::DataSource, "p".into(), "driver".into()));
    for object in [entity("p", "driver", "second"), entity("ab", "c", "again")] {
        expected.insert((object.kind, object.project.clone(), object.name.clone()), object);
    }
    let loaded = store.load().await.expect("loads");
    assert_eq!(loaded.len(), expected.len(), "no object is kept twice");
    assert_eq!(keyed(loaded), expected);

    // nothing to do is nothing done
    let stamp = store.stamp().await.expect("a stamp");
    assert_eq!(store.stamp().await.expect("a stamp"), stamp);

    // and it is all there after a restart
    drop(store);
    let store = open(directory.path());
    assert_eq!(keyed(store.load().await.expect("loads")), expected);
    store.commit(expected.values().map(delete).collect()).await.expect("commits");
    assert_eq!(store.load().await.expect("loads"), [], "everything can be deleted");
}
