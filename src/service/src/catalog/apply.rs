//! What an apply makes of the object that is sent and the one that is registered. Decides from values
//! alone; edits on the wire level, so that fields that we do not know survive.
//!
//! Source: `apply_*` of `feast/infra/registry/registry.py`. One difference, wanted: an object that
//! says what is registered already changes nothing at all (Feast touches its timestamp); for versions
//! see [`super::versions`].

use std::collections::HashMap;

use bytes::Bytes;
use model::ports::{Change, Object, ObjectKind, StreamSql};
use model::registry::{KNOWN_AT, Registry};
use model::row::column_id;
use model::{Error, Result, Timestamp};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::feast::core::{self, FeatureViewState};
use proto::raw;

use super::same::{self, Difference};
use super::{conflict, gone, versions};

/// Field numbers in the meta message of views; an on-demand view's differ.
struct ViewMeta {
    intervals: Option<u32>,
    version: u32,
    state: u32,
}

fn view_meta(kind: ObjectKind) -> Option<ViewMeta> {
    match kind {
        ObjectKind::FeatureView | ObjectKind::StreamFeatureView => {
            Some(ViewMeta { intervals: Some(3), version: 4, state: 6 })
        }
        ObjectKind::OnDemandFeatureView => Some(ViewMeta { intervals: None, version: 3, state: 5 }),
        _ => None,
    }
}

/// In `SavedDatasetMeta`: the least and the greatest event timestamp.
const DATASET_RANGE: [u32; 2] = [3, 4];

/// The changes that register `bytes` in `project`; none where that is registered already.
pub(super) fn apply(
    registry: &Registry,
    kind: ObjectKind,
    project: &str,
    bytes: Bytes,
    now: Timestamp,
) -> Result<Vec<Change>> {
    same::check_message(kind, &bytes)?;
    let mut object = Object::read(kind, bytes)?;
    if project.is_empty() {
        return Err(Error::invalid(format!("a {} needs the name of its project", kind.class())));
    }
    check_name(&object)?;
    object = object.in_project(project)?;
    if kind == ObjectKind::FeatureService {
        object = with_projected_features(registry, object)?;
    }
    let existing = registry.object(kind, project, &object.name).ok();
    if kind.is_view() && existing.is_none() {
        check_conflict(registry, &object)?;
    }
    let mut version = None;
    if kind.is_view() {
        if gone::is_pending(registry, project, &object.name) {
            return Err(gone::still_pending(&object.name));
        }
        let old = existing.map(|old| Ok::<_, Error>((old, number_of(old)?))).transpose()?;
        let found = versions::version(registry, object, old)?;
        object = found.object.clone();
        version = Some(found);
    }
    let difference = existing.map_or(Ok(Difference::Schema), |old| same::compare(old, &object))?;
    let mut object = with_meta(object, existing, difference, now)?;
    if let Some(version) = &version {
        object = numbered(object, version.number)?;
        // another version, another table: nothing of it was materialized
        if registry.online_versions
            && let Some(old) = existing
            && number_of(old)? != version.number
            && let Some(ViewMeta { intervals: Some(number), .. }) = view_meta(kind)
        {
            object = object.clone().with_meta(&put_intervals(&object.meta()?, number, Vec::new())?)?;
        }
    }
    if let Some(old) = existing
        && difference == Difference::None
        && same::same_meta(old, &object)?
    {
        return Ok(Vec::new());
    }
    object = touched(object, now)?;
    let mut changes = Vec::new();
    if let Some(version) = &version {
        if let Some((old, number)) = existing.zip(version.replaced) {
            changes.push(versions::record(old, number, now));
        }
        if version.keep {
            changes.push(versions::record(&object, version.number, now));
        }
    }
    if registry.object(ObjectKind::Project, project, project).is_err() && kind != ObjectKind::Project {
        changes.push(Change::Put(new_project(project, now)));
    }
    changes.push(Change::Put(object));
    Ok(changes)
}

fn check_name(object: &Object) -> Result<()> {
    let (kind, name) = (object.kind, &object.name);
    if name.is_empty() && kind != ObjectKind::Infra {
        return Err(Error::invalid(format!("this {} has no name", kind.class())));
    }
    if kind.is_view() && name.contains(['@', ':']) {
        return Err(Error::invalid(format!(
            "the {} name '{name}' must not contain '@' or ':': they separate version and feature in a feature reference",
            kind.class()
        )));
    }
    Ok(())
}

/// Views of all kinds share one namespace (`ConflictingFeatureViewNames`).
fn check_conflict(registry: &Registry, object: &Object) -> Result<()> {
    let (name, new) = (&object.name, object.kind);
    for old in ObjectKind::VIEWS {
        if old != new && registry.object(old, &object.project, name).is_ok() {
            let (old, new) = (old.class(), new.class());
            return Err(conflict(
                "ConflictingFeatureViewNames",
                format!(
                    "Feature view name '{name}' is already used by a {old}. Cannot register a {new} with the same \
                     name. Feature view names must be unique across FeatureView, StreamFeatureView, and \
                     OnDemandFeatureView."
                ),
            ));
        }
    }
    Ok(())
}

/// The object with what the registry keeps about it: taken over from the one that is registered, where
/// the sent one does not say it.
fn with_meta(object: Object, existing: Option<&Object>, difference: Difference, now: Timestamp) -> Result<Object> {
    let layout = object.kind.layout();
    if layout.meta == 0 {
        return Ok(object);
    }
    let mut meta = object.meta()?;
    let old = existing.map_or(Ok(Vec::new()), Object::meta)?;
    let created = match existing.map_or(Ok(None), Object::created)? {
        Some(created) => created,
        None => object.created()?.unwrap_or(now),
    };
    meta = put_time(&meta, layout.created, created)?;
    if let Some(old) = existing
        && let Some(updated) = old.updated()?
    {
        meta = put_time(&meta, layout.updated, updated)?;
    }
    if let Some(fields) = view_meta(object.kind) {
        if let Some(number) = fields.intervals {
            let sent = intervals(&meta, number)?;
            let keep = difference != Difference::Schema || sent.is_empty();
            let kept = if keep && existing.is_some() { intervals(&old, number)? } else { sent };
            meta = put_intervals(&meta, number, kept)?;
        }
        if number_in(&meta, fields.state)? == 0 {
            meta = put_number(&meta, fields.state, number_in(&old, fields.state)?)?;
        }
    }
    if object.kind == ObjectKind::SavedDataset {
        for number in DATASET_RANGE {
            if read(&meta, number)?.is_empty()
                && let Some(time) = read(&old, number)?.last()
            {
                meta = raw::set(&meta, number, Some(time)).map_err(malformed)?;
            }
        }
    }
    object.with_meta(&meta)
}

/// A view's object with its version number in it.
pub(super) fn numbered(object: Object, number: i32) -> Result<Object> {
    let Some(fields) = view_meta(object.kind) else { return Ok(object) };
    let meta = put_number(&object.meta()?, fields.version, u64::try_from(number).unwrap_or(0))?;
    object.with_meta(&meta)
}

/// A view's version number; 0 where it says none.
fn number_of(object: &Object) -> Result<i32> {
    let Some(fields) = view_meta(object.kind) else { return Ok(0) };
    Ok(i32::try_from(number_in(&object.meta()?, fields.version)?).unwrap_or(0))
}

/// A service whose projections name no features means all features of the view.
fn with_projected_features(registry: &Registry, object: Object) -> Result<Object> {
    const PROJECTIONS: u32 = 3;
    const COLUMNS: u32 = 2;
    let spec = object.spec()?;
    let mut edited = false;
    let mut projections = Vec::new();
    for bytes in read(&spec, PROJECTIONS)? {
        let projection = core::FeatureViewProjection::decode(bytes).map_err(|e| {
            Error::invalid(format!("a projection of feature service '{}' is malformed: {e}", object.name))
        })?;
        let mut bytes = bytes.to_vec();
        if projection.feature_columns.is_empty()
            && let Ok(view) = super::view_object(registry, &object.project, &projection.feature_view_name)
        {
            let features = if view.kind == ObjectKind::OnDemandFeatureView { 3 } else { 4 };
            for column in read(&view.spec()?, features)? {
                raw::push(&mut bytes, COLUMNS, column);
                edited = true;
            }
        }
        projections.push(bytes);
    }
    if !edited {
        return Ok(object);
    }
    let mut spec = raw::set(&spec, PROJECTIONS, None).map_err(malformed)?;
    for bytes in &projections {
        raw::push(&mut spec, PROJECTIONS, bytes);
    }
    object.with_spec(&spec)
}

fn new_project(name: &str, now: Timestamp) -> Object {
    let spec = core::ProjectSpec { name: name.to_owned(), ..Default::default() };
    let time = Some(now.to_proto());
    let meta = core::ProjectMeta { created_timestamp: time, last_updated_timestamp: time };
    let bytes = core::Project { spec: Some(spec), meta: Some(meta) }.encode_to_vec().into();
    Object { kind: ObjectKind::Project, project: name.to_owned(), name: name.to_owned(), bytes }
}

/// What Larder will have to compute must be computable.
///
/// Errors: two features of a view under one column id; a tag that says nothing; a window that cannot be kept, SQL that cannot be run, with the
/// reason.
pub(super) fn check(registry: &Registry, changes: &[Change], sql: Option<&dyn StreamSql>) -> Result<()> {
    for change in changes {
        let Change::Put(object) = change else { continue };
        if !object.kind.is_view() {
            continue;
        }
        let view = registry.project(&object.project)?.view(&object.name, &object.project)?;
        let mut seen: HashMap<u32, &str> = HashMap::new();
        for feature in &view.features {
            if let Some(other) = seen.insert(column_id(&feature.name), &feature.name) {
                return Err(Error::invalid(format!(
                    "the features '{other}' and '{}' of view '{}' cannot be stored side by side: {}",
                    feature.name,
                    view.name,
                    if other == feature.name { "the name is there twice" } else { "rename one of them" }
                )));
            }
        }
        if let Some(value) = object.tags()?.get(KNOWN_AT)
            && !["true", "false"].iter().any(|word| value.eq_ignore_ascii_case(word))
        {
            let name = &view.name;
            return Err(Error::invalid(format!("the tag {KNOWN_AT} of view '{name}' is '{value}': say true or false")));
        }
        crate::windows::sql::check(sql, view)?;
        if view.is_windowed() {
            crate::windows::spec_of(view)?;
        }
    }
    Ok(())
}

/// A view's object after a materialization of `[start, end)`.
pub(super) fn materialized(object: &Object, start: Timestamp, end: Timestamp, now: Timestamp) -> Result<Object> {
    let fields = view_meta(object.kind).and_then(|fields| Some((fields.intervals?, fields.state)));
    let Some((number, state)) = fields else {
        return Err(Error::invalid(format!(
            "{} '{}' is not materialized: push to it instead",
            object.kind.class(),
            object.name
        )));
    };
    let mut meta = object.meta()?;
    let mut all = intervals(&meta, number)?;
    all.push((start.micros(), end.micros()));
    meta = put_intervals(&meta, number, all)?;
    meta = put_number(&meta, state, FeatureViewState::AvailableOnline as u64)?;
    touched(object.clone().with_meta(&meta)?, now)
}

/// A view's object in another state; `None` where it is in it already.
pub(super) fn with_state(object: &Object, state: FeatureViewState, now: Timestamp) -> Result<Option<Object>> {
    let Some(fields) = view_meta(object.kind) else {
        return Err(Error::invalid(format!("{} '{}' has no state", object.kind.class(), object.name)));
    };
    let meta = object.meta()?;
    if number_in(&meta, fields.state)? == state as u64 {
        return Ok(None);
    }
    let meta = put_number(&meta, fields.state, state as u64)?;
    Ok(Some(touched(object.clone().with_meta(&meta)?, now)?))
}

/// The object, changed now.
fn touched(object: Object, now: Timestamp) -> Result<Object> {
    let layout = object.kind.layout();
    if layout.meta == 0 {
        return Ok(object);
    }
    let meta = put_time(&object.meta()?, layout.updated, now)?;
    object.with_meta(&meta)
}

/// The materialization intervals in a meta message, µs.
fn intervals(meta: &[u8], number: u32) -> Result<Vec<(i64, i64)>> {
    let micros = |t: Option<prost_types::Timestamp>| t.map_or(0, |t| Timestamp::from_proto(&t).micros());
    read(meta, number)?
        .into_iter()
        .map(|bytes| {
            let interval = core::MaterializationInterval::decode(bytes).map_err(malformed)?;
            Ok((micros(interval.start_time), micros(interval.end_time)))
        })
        .collect()
}

fn put_intervals(meta: &[u8], number: u32, intervals: Vec<(i64, i64)>) -> Result<Vec<u8>> {
    let mut out = raw::set(meta, number, None).map_err(malformed)?;
    for (start, end) in coalesced(intervals) {
        let time = |micros| Some(Timestamp(micros).to_proto());
        let interval = core::MaterializationInterval { start_time: time(start), end_time: time(end) };
        raw::push(&mut out, number, &interval.encode_to_vec());
    }
    Ok(out)
}

/// Intervals in order, those that adjoin or overlap made one.
pub(super) fn coalesced(mut intervals: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    intervals.sort_unstable();
    let mut out: Vec<(i64, i64)> = Vec::new();
    for (start, end) in intervals {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

fn put_time(meta: &[u8], number: u32, time: Timestamp) -> Result<Vec<u8>> {
    raw::set(meta, number, Some(&time.to_proto().encode_to_vec())).map_err(malformed)
}

/// A number (or enum) in a meta message; 0 where it is not set.
fn number_in(meta: &[u8], number: u32) -> Result<u64> {
    let mut rest = meta;
    let mut found = 0;
    while !rest.is_empty() {
        let (field, wire_type) = prost::encoding::decode_key(&mut rest).map_err(malformed)?;
        if field == number && wire_type == WireType::Varint {
            found = prost::encoding::decode_varint(&mut rest).map_err(malformed)?;
        } else {
            prost::encoding::skip_field(wire_type, field, &mut rest, prost::encoding::DecodeContext::default())
                .map_err(malformed)?;
        }
    }
    Ok(found)
}

fn put_number(meta: &[u8], number: u32, value: u64) -> Result<Vec<u8>> {
    let mut out = raw::set(meta, number, None).map_err(malformed)?;
    if value != 0 {
        encode_key(number, WireType::Varint, &mut out);
        encode_varint(value, &mut out);
    }
    Ok(out)
}

fn read(bytes: &[u8], number: u32) -> Result<Vec<&[u8]>> {
    raw::get(bytes, number).map_err(malformed)
}

pub(super) fn malformed(cause: prost::DecodeError) -> Error {
    Error::invalid(format!("the object is no valid message: {cause}")).with_cause(cause)
}
