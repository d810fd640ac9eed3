//! What the delete of a view or a project removes besides: kept versions at once, and online rows by a
//! note of every table that held them, which stays until they are removed. Decides from values alone.

use std::collections::BTreeSet;

use bytes::Bytes;
use model::ports::{Change, Object, ObjectKind, Table};
use model::registry::Registry;
use model::{Error, Kind, Result, Timestamp};
use prost::Message;

use super::versions;

/// What is noted of a table.
#[derive(Clone, PartialEq, Eq, Message)]
struct Note {
    #[prost(string, tag = "1")]
    table: String,
    #[prost(string, tag = "2")]
    project: String,
    /// Its rows stay until then, µs since 1970, for who does not know yet that another table is read.
    #[prost(int64, tag = "3")]
    stays_until_us: i64,
}

/// The changes that delete a view with all that is kept of it. `note` is whether its online rows are
/// noted for removal.
///
/// Errors: a kept version that is damaged.
pub(super) fn view(registry: &Registry, view: &Object, note: bool) -> Result<Vec<Change>> {
    let Object { kind, project, name, .. } = view.clone();
    let mut changes = Vec::new();
    let mut tables = BTreeSet::from([name.clone()]);
    if let Some(view) = registry.projects.get(&project).and_then(|p| p.views.get(&name)) {
        tables.insert(view.table.view.clone());
    }
    for record in versions::history(registry, &project, &name)? {
        let number = record.version_number;
        let kept = model::registry::object::version_name(&name, number);
        changes.push(Change::Delete { kind: ObjectKind::FeatureViewVersion, project: project.clone(), name: kept });
        if number > 0 {
            tables.insert(format!("{name}_v{number}"));
        }
    }
    let reading = Change::Delete { kind: ObjectKind::StreamReading, project: project.clone(), name: name.clone() };
    if registry.object(ObjectKind::StreamReading, &project, &name).is_ok() {
        changes.push(reading);
    }
    if note {
        changes.extend(tables.into_iter().map(|table| Change::Put(noted(&project, &table, Timestamp(0)))));
    }
    changes.push(Change::Delete { kind, project, name });
    Ok(changes)
}

/// The changes that delete a project with all that is in it.
///
/// Errors: a kept version that is damaged.
pub(super) fn project(registry: &Registry, project: &str, note: bool) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for ((kind, name), object) in registry.projects.get(project).into_iter().flat_map(|p| &p.objects) {
        match kind {
            kind if kind.is_view() => changes.extend(view(registry, object, note)?),
            // a note stays until its rows are removed; a view's reading goes with it
            ObjectKind::ClearedTable | ObjectKind::StreamReading => {}
            kind => changes.push(Change::Delete { kind: *kind, project: project.to_owned(), name: name.clone() }),
        }
    }
    Ok(changes)
}

/// The tables whose rows are still to be removed, each with the time until which they stay.
pub fn pending(registry: &Registry) -> Vec<(Table, Timestamp)> {
    let objects =
        registry.projects.iter().flat_map(|(project, p)| p.objects.iter().map(move |object| (project, object)));
    objects
        .filter(|(_, ((kind, _), _))| *kind == ObjectKind::ClearedTable)
        .map(|(project, ((_, name), object))| (Table::new(project, name), stays_until(object)))
        .collect()
}

/// Until when the rows stay that a note is about.
fn stays_until(note: &Object) -> Timestamp {
    // the name of a note says all that must be known
    Timestamp(Note::decode(note.bytes.clone()).map_or(0, |note| note.stays_until_us))
}

/// Whether a registered view, or a version that can be asked for, has its rows in this table.
pub fn in_use(registry: &Registry, table: &Table) -> bool {
    let project = registry.projects.get(&table.project);
    project.is_some_and(|p| p.views.values().chain(p.versions.values()).any(|v| *v.table == *table))
}

/// Whether rows of a deleted view of this name are still to be removed. (A table that stays for a while is of a state that
/// was replaced: no view is given it again.)
pub(super) fn is_pending(registry: &Registry, project: &str, view: &str) -> bool {
    let of_view = |table: &str| {
        let rest = table.strip_prefix(view);
        rest.is_some_and(|rest| {
            rest.is_empty()
                || rest.starts_with('@')
                || rest.strip_prefix("_v").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    let mut objects = registry.projects.get(project).into_iter().flat_map(|p| &p.objects);
    objects.any(|((kind, name), object)| {
        *kind == ObjectKind::ClearedTable && of_view(name) && stays_until(object) == Timestamp(0)
    })
}

/// What an apply says that comes before the rows are gone.
pub(super) fn still_pending(view: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("the online rows of the deleted feature view '{view}' are still being removed: apply it again later"),
    )
}

/// The note that a table's rows are to be removed, once they have stayed until a time.
pub(super) fn noted(project: &str, table: &str, stays_until: Timestamp) -> Object {
    let (table, project) = (table.to_owned(), project.to_owned());
    let note = Note { table: table.clone(), project: project.clone(), stays_until_us: stays_until.micros() };
    Object { kind: ObjectKind::ClearedTable, project, name: table, bytes: Bytes::from(note.encode_to_vec()) }
}
