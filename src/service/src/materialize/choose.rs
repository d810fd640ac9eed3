//! Which views can be materialized, and from when on. Decides from values alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::registry::{Registry, View, ViewKind};
use model::{Error, Kind, Result, Timestamp};
use proto::feast::core::DataSource;

use crate::catalog::versions;

/// A year, as Feast's default look-back counts it: 52 weeks, in µs.
const YEAR_US: i64 = 52 * 7 * 86_400 * 1_000_000;

/// From when to materialize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From a given time on.
    At(Timestamp),
    /// From the view's last materialization on; else its ttl back; else a year back.
    Incremental,
}

/// The views named (all that can be materialized where none are), or one view's `version` with its number.
///
/// Errors: an unknown view, one that cannot be materialized.
pub(super) fn views(
    registry: &Registry,
    project: &str,
    names: Option<&[String]>,
    version: Option<&str>,
) -> Result<(Vec<Arc<View>>, Option<i32>)> {
    let of_project = registry.project(project)?;
    if let Some(number) = version.map(|v| versioned(registry, names, v)).transpose()?.flatten() {
        let name = names.and_then(<[_]>::first).map_or("", String::as_str);
        of_project.view(name, project)?;
        return Ok((vec![view(registry, project, name, Some(number))?], Some(number)));
    }
    let views = match names {
        // to build a view's windows anew is an intent of its own: with the others it is not meant
        None => of_project.views.values().filter(|v| refusal(v).is_none() && !v.is_windowed()).cloned().collect(),
        Some(names) => names.iter().map(|name| view(registry, project, name, None)).collect::<Result<_>>()?,
    };
    Ok((views, None))
}

/// A view, or a version of it, that can be materialized.
///
/// Errors: there is none, or why it cannot.
pub(super) fn view(registry: &Registry, project: &str, name: &str, version: Option<i32>) -> Result<Arc<View>> {
    let of_project = registry.project(project)?;
    let view = match version {
        Some(number) => of_project.version(name, number, project)?,
        None => of_project.view(name, project)?,
    };
    refusal(view).map_or_else(|| Ok(view.clone()), Err)
}

/// Whether rows that are made for `old` are rows of the view as it is now.
pub(super) fn same_rows(old: &View, now: &View) -> bool {
    // what is said about a source is not what is in it
    let source = |view: &View| {
        view.batch_source.as_deref().map(|source| DataSource {
            description: String::new(),
            owner: String::new(),
            tags: BTreeMap::new(),
            meta: None,
            ..source.clone()
        })
    };
    let made = |view: &View| (view.aggregations.clone(), view.tiling_hop_us);
    (&old.join_keys, &old.features) == (&now.join_keys, &now.features)
        && made(old) == made(now)
        && source(old) == source(now)
        && refusal(now).is_none()
}

/// Whether what was read of the stream for `old` is what the view as it is now would take of it.
pub(crate) fn same_stream(old: &View, now: &View) -> bool {
    let source = |view: &View| {
        let told = |source: &DataSource| DataSource {
            description: String::new(),
            owner: String::new(),
            meta: None,
            ..source.clone()
        };
        view.stream_source.as_deref().map(told)
    };
    (&old.sql, &old.timestamp_field) == (&now.sql, &now.timestamp_field) && source(old) == source(now)
}

/// When a view's interval begins; `None` where there is nothing left to do before `end`.
///
/// Errors: an interval that is empty.
pub(super) fn start(view: &View, start: Start, end: Timestamp, now: Timestamp) -> Result<Option<Timestamp>> {
    let last = view.materialized.iter().map(|(_, end)| Timestamp(*end)).max();
    let start = match start {
        Start::At(start) => {
            reaches(view, start, end)?;
            start
        }
        // the stream goes on where the last one ended: another one is for the whole
        Start::Incremental if view.is_windowed() => last.unwrap_or(Timestamp(0)).min(Timestamp(0)),
        Start::Incremental => last.unwrap_or_else(|| {
            let back = if view.ttl_us > 0 { view.ttl_us } else { YEAR_US };
            Timestamp(now.micros() - back)
        }),
    };
    if start < end {
        return Ok(Some(start));
    }
    if last.is_some_and(|last| last >= end) {
        return Ok(None);
    }
    Err(Error::invalid(format!("start_ts ({start}) must be before end_ts ({end})")))
}

/// Windows that a backfill would leave without events that they span would be wrong, and nobody would see it.
///
/// Errors: a start inside of the widest window at the cut-over.
fn reaches(view: &View, start: Timestamp, cut_over: Timestamp) -> Result<()> {
    if !view.is_windowed() {
        return Ok(());
    }
    let spec = crate::windows::spec_of(view)?;
    let needed = spec.window_start(cut_over.micros());
    if spec.widest_window() > 0 && start.micros() > needed {
        return Err(Error::invalid(format!(
            "feature view {}: its widest window reaches back to {} at {cut_over}, so a backfill from {start} would leave \
             out events: start there or before",
            view.name,
            Timestamp(needed)
        )));
    }
    Ok(())
}

/// The number of the one view's version that is asked for; `None` is the latest.
/// Source: `_validate_materialize_version` in `feast/feature_store.py`.
fn versioned(registry: &Registry, names: Option<&[String]>, version: &str) -> Result<Option<i32>> {
    if names.is_none_or(|names| names.len() != 1) {
        return Err(Error::invalid("--version requires --views with exactly one feature view."));
    }
    if !registry.online_versions {
        return Err(Error::invalid(
            "Version-aware materialization requires 'enable_online_feature_view_versioning: true' under 'registry' in \
             feature_store.yaml.",
        ));
    }
    versions::parse(version).ok_or_else(|| {
        Error::invalid(format!(
            "Invalid version string '{version}'. Expected 'latest', 'vN', or 'versionN' (e.g. 'v2', 'version3')."
        ))
    })
}

/// Why a view cannot be materialized; `None` where it can.
fn refusal(view: &View) -> Option<Error> {
    let name = &view.name;
    if view.kind == ViewKind::Label {
        return Some(Error::invalid(format!(
            "LabelView {name} cannot be materialized via materialize(). Use FeatureStore.push() to write labels."
        )));
    }
    if view.kind == ViewKind::OnDemand {
        return Some(Error::invalid(format!("{name} has no batch source to materialize: it gets its data by push")));
    }
    if !view.online {
        return Some(Error::invalid(format!("FeatureView {name} is not configured to be served online.")));
    }
    if view.disabled {
        return Some(Error::invalid(format!("FeatureView {name} is disabled: enable it before materializing it")));
    }
    if view.batch_source.is_none() {
        return Some(Error::invalid(format!("FeatureView {name} has no batch source")));
    }
    if view.is_windowed() && view.stream_source.as_deref().and_then(model::schema::kafka).is_none() {
        return Some(Error::new(
            Kind::Unsupported,
            format!(
                "{name} is computed from pushed events, which its batch source would have to be put in front of: only a \
                 view with a KafkaSource can be backfilled, since its stream can be read again from a cut-over on"
            ),
        ));
    }
    None
}
