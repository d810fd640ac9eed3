//! The versions of a view: which number an apply gives it, which earlier definition it goes back to,
//! and what is kept of it. Decides from values alone.
//!
//! Source: `apply_feature_view` of `feast/infra/registry/registry.py`. Three differences, all wanted: a
//! registry without history (an older Larder's, an older Feast's) keeps the definition that it has as
//! its first version; a change of description or tags does not set the number back to 0; and to
//! apply a pinned definition again is no conflict, as long as the definition is one that is kept.

use model::ports::{Change, Object, ObjectKind};
use model::registry::Registry;
use model::registry::object::{of_version, version_name};
use model::{Error, Result, Timestamp};
use prost::Message;
use proto::feast::core;

use super::conflict;
use super::same::{self, Difference};

/// What an apply of a view comes to.
pub(super) struct Versioned {
    /// The object to register: the one sent, or the one that it goes back to.
    pub(super) object: Object,
    /// Its version number.
    pub(super) number: i32,
    /// Whether the definition is kept under that number from now on.
    pub(super) keep: bool,
    /// The version that was never kept and is replaced now.
    pub(super) replaced: Option<i32>,
}

/// Works out the version of the view `sent` from what is registered under its name.
///
/// Errors: a version that is none; `FeatureViewPinConflict` for an earlier version under which
/// another definition is sent.
pub(super) fn version(registry: &Registry, sent: Object, existing: Option<(&Object, i32)>) -> Result<Versioned> {
    let history = history(registry, &sent.project, &sent.name)?;
    // what the registry has although no history says so
    let replaced = existing.filter(|_| history.is_empty()).map(|(_, number)| number);
    let known = |number| history.iter().find(|r| r.version_number == number);
    let Some(pinned) = pin(&sent)? else {
        let number = match existing {
            None => 0,
            Some((old, number)) if same::compare(old, &sent)? != Difference::Schema => {
                return Ok(Versioned { object: sent, number, keep: false, replaced: None });
            }
            Some((_, number)) => history.iter().map(|r| r.version_number).max().unwrap_or(number) + 1,
        };
        return Ok(Versioned { object: sent, number, keep: true, replaced });
    };
    if let Some((old, number)) = existing
        && replaced == Some(pinned)
    {
        // the one version there is, under its own number
        return match same::compare(&unpinned(old)?, &unpinned(&sent)?)? {
            Difference::Schema => Err(pin_conflict(&sent.name, pinned)),
            _ => Ok(Versioned { object: sent, number, keep: false, replaced: None }),
        };
    }
    let Some(record) = known(pinned) else {
        return Ok(Versioned { object: sent, number: pinned, keep: true, replaced });
    };
    if let Some((old, number)) = existing {
        let sent = unpinned(&sent)?;
        let differs = |from: &Object| same::compare(&unpinned(from)?, &sent);
        let mut kept = differs(old)? == Difference::None;
        for record in &history {
            let found = differs(&of_version(record.clone())?)?;
            kept |= found == Difference::None || (number == pinned && found != Difference::Schema);
        }
        if !kept {
            return Err(pin_conflict(&sent.name, pinned));
        }
    }
    let number = version_field(sent.kind);
    let spec = proto::raw::set(&of_version(record.clone())?.spec()?, number, Some(sent.text(number)?.as_bytes()));
    let object = of_version(record.clone())?.with_spec(&spec.map_err(super::apply::malformed)?)?;
    Ok(Versioned { object, number: pinned, keep: false, replaced: None })
}

/// The change that keeps a view's definition under a number.
pub(super) fn record(view: &Object, number: i32, now: Timestamp) -> Change {
    let record = core::FeatureViewVersionRecord {
        feature_view_name: view.name.clone(),
        project_id: view.project.clone(),
        version_number: number,
        feature_view_type: view.kind.record_type().to_owned(),
        feature_view_proto: view.bytes.to_vec(),
        created_timestamp: Some(now.to_proto()),
        description: String::new(),
        version_id: uuid::Uuid::new_v4().to_string(),
    };
    Change::Put(Object {
        kind: ObjectKind::FeatureViewVersion,
        project: view.project.clone(),
        name: version_name(&view.name, number),
        bytes: record.encode_to_vec().into(),
    })
}

/// The kept versions of a view, in the order of their numbers.
///
/// Errors: a record that is damaged.
pub fn history(registry: &Registry, project: &str, view: &str) -> Result<Vec<core::FeatureViewVersionRecord>> {
    let Some(project) = registry.projects.get(project) else { return Ok(Vec::new()) };
    let first = (ObjectKind::FeatureViewVersion, format!("{view}@v"));
    let mut records = Vec::new();
    for ((kind, name), object) in project.objects.range(first.clone()..) {
        if *kind != ObjectKind::FeatureViewVersion || !name.starts_with(&first.1) {
            break;
        }
        records.push(
            core::FeatureViewVersionRecord::decode(object.bytes.clone())
                .map_err(|e| Error::internal(format!("the kept version {name} is damaged"), e))?,
        );
    }
    records.sort_by_key(|r| r.version_number);
    Ok(records)
}

/// A view of whatever kind, as it is now or, as `view@v2`, as that version was kept.
///
/// Errors: `FeatureViewNotFoundException`, `FeatureViewVersionNotFound`; a record that is damaged.
pub fn any_object(registry: &Registry, project: &str, name: &str) -> Result<Object> {
    if name.contains('@') {
        return version_object(registry, project, name);
    }
    super::view_object(registry, project, name).cloned()
}

/// A kept version's view, its number set in it.
///
/// Errors: `FeatureViewVersionNotFound`; a record that is damaged.
pub fn version_object(registry: &Registry, project: &str, name: &str) -> Result<Object> {
    let object = registry.object(ObjectKind::FeatureViewVersion, project, name)?;
    let record = core::FeatureViewVersionRecord::decode(object.bytes.clone())
        .map_err(|e| Error::internal(format!("the kept version {name} is damaged"), e))?;
    let number = record.version_number;
    super::apply::numbered(of_version(record)?, number)
}

/// The number that a view's definition holds on to; `None` is the latest.
fn pin(object: &Object) -> Result<Option<i32>> {
    let text = object.text(version_field(object.kind))?;
    parse(&text).ok_or_else(|| {
        Error::invalid(format!(
            "Invalid version string '{text}' of feature view '{}'. Expected 'latest', 'vN', or 'versionN' (e.g. 'v2', \
             'version3').",
            object.name
        ))
    })
}

/// Reads a version: `Some(None)` is the latest, `None` is no version (`parse_version` of Feast).
pub fn parse(text: &str) -> Option<Option<i32>> {
    let lower = text.to_lowercase();
    if lower.is_empty() || lower == "latest" {
        return Some(None);
    }
    let digits = lower.strip_prefix("version").or_else(|| lower.strip_prefix('v'))?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok().map(Some)).flatten()
}

/// The view without what it holds on to.
fn unpinned(object: &Object) -> Result<Object> {
    let number = version_field(object.kind);
    if number == 0 {
        return Ok(object.clone());
    }
    let spec = proto::raw::set(&object.spec()?, number, None).map_err(super::apply::malformed)?;
    object.clone().with_spec(&spec)
}

/// Where the definition of a view says its version; a label view does not.
fn version_field(kind: ObjectKind) -> u32 {
    match kind {
        ObjectKind::FeatureView => 18,
        ObjectKind::StreamFeatureView => 21,
        ObjectKind::OnDemandFeatureView => 17,
        _ => 0,
    }
}

fn pin_conflict(name: &str, pinned: i32) -> Error {
    conflict(
        "FeatureViewPinConflict",
        format!(
            "Cannot pin feature view '{name}' to v{pinned} because the definition has also been modified. To pin to \
             an older version, only change the 'version' parameter — do not modify other fields. To apply a new \
             definition, use version='latest' or omit the version parameter."
        ),
    )
}
