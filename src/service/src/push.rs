//! The verbs "push" and "write to online store": a frame of columns becomes rows, checked whole
//! before anything is written. Knows no protocol and no DataFrame.
//!
//! Sources: `push`, `write_to_online_store` in `feast/feature_store.py`;
//! `_convert_arrow_fv_to_proto` in `feast/utils.py`.

mod events;
mod frame;
mod on_demand;

use std::collections::HashSet;
use std::sync::Arc;

use model::ports::{AppendRows, Clock, NamedColumn, OfflineLog, OnlineStore, RowWrite, Transformer};
use model::registry::{Project, Registry, View};
use model::row::{Version, column_id};
use model::{EntityKey, Error, Kind, Result, Row, Timestamp, Value};
use proto::feast::core::data_source::SourceType;

use crate::catalog::Catalog;
use crate::metrics;
use events::{Folder, ViewEvents};
use frame::Encoded;
pub use frame::{Cell, Cells, Frame, Texts};
use on_demand::Computer;

/// Where a push goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// To the online store.
    pub online: bool,
    /// To the views' batch sources.
    pub offline: bool,
}

impl Destination {
    /// Reads Feast's `to`.
    pub fn parse(to: &str) -> Result<Self> {
        let (online, offline) = match to {
            "online" => (true, false),
            "offline" => (false, true),
            "online_and_offline" => (true, true),
            _ => {
                return Err(Error::invalid(format!(
                    "{to} is not a supported push format. Please specify one of these ['online', 'offline', \
                     'online_and_offline']."
                )));
            }
        };
        Ok(Self { online, offline })
    }
}

/// How a frame is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Whether the registry's snapshot will do; else it is read anew.
    pub allow_registry_cache: bool,
    /// Whether on-demand views that are written are computed; else a frame has their features already.
    pub transform_on_write: bool,
}

/// Writes for one project.
pub struct Pusher {
    catalog: Arc<Catalog>,
    log: Option<Arc<dyn OfflineLog>>,
    folder: Arc<Folder>,
    computer: Computer,
    project: String,
    max_value_bytes: usize,
}

/// A feature's values, one per row.
struct Feature {
    id: u32,
    name: String,
    values: Encoded,
}

/// A frame read as one view's rows.
struct ViewRows {
    view: Arc<View>,
    keys: Vec<EntityKey>,
    versions: Vec<Version>,
    /// The view's columns that the frame has, in the order of their ids; no id twice.
    features: Vec<Feature>,
    join_keys: Columns,
}

impl Pusher {
    /// Writes to `store`, and to `log` where a push goes offline.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<dyn OnlineStore>,
        log: Option<Arc<dyn OfflineLog>>,
        clock: Arc<dyn Clock>,
        project: String,
    ) -> Self {
        let folder = Arc::new(Folder::new(store, clock.clone()));
        let computer = Computer { transformer: None, clock, project: project.clone() };
        let max_value_bytes = crate::retrieve::Limits::default().max_value_bytes;
        Self { catalog, log, folder, computer, project, max_value_bytes }
    }

    /// With another limit for the bytes of one value (`limits.max_value_bytes` in the configuration).
    #[must_use]
    pub fn with_max_value_bytes(mut self, limit: usize) -> Self {
        self.max_value_bytes = limit;
        self
    }

    /// The same for another project.
    #[must_use]
    pub fn of_project(&self, project: &str) -> Self {
        let project = project.to_owned();
        let computer = Computer { project: project.clone(), ..self.computer.clone() };
        Self {
            catalog: self.catalog.clone(),
            log: self.log.clone(),
            folder: self.folder.clone(),
            computer,
            project,
            max_value_bytes: self.max_value_bytes,
        }
    }

    /// With what runs the functions of on-demand views.
    #[must_use]
    pub fn with_transformer(mut self, transformer: Option<Arc<dyn Transformer>>) -> Self {
        self.computer.transformer = transformer;
        self
    }

    /// Pushes to every view whose stream source is the push source: rows to plain views, raw events to
    /// windowed ones. All or nothing: a value that does not fit refuses the whole request.
    pub async fn push(&self, source: &str, frame: &Frame, to: Destination, how: How) -> Result<()> {
        frame.check_values(self.max_value_bytes)?;
        let _until_written = self.catalog.writing_rows().await;
        let registry = self.registry(how.allow_registry_cache).await?;
        let project = registry.project(&self.project)?;
        let views: Vec<_> = project.views.values().filter(|v| is_push_source(v, source)).cloned().collect();
        if views.is_empty() {
            return Err(Error::push_source_not_found(source));
        }
        let (windowed, plain): (Vec<_>, Vec<_>) = views.into_iter().partition(|v| v.is_windowed());
        let now = self.folder.now();
        let events = windowed.into_iter().map(|v| ViewEvents::read(v, frame, now)).collect::<Result<Vec<_>>>()?;
        let computable = self.computer.computable(project, &plain, frame)?;
        let mut batches = plain.into_iter().map(|v| read_rows(v, frame)).collect::<Result<Vec<_>>>()?;
        let mut computed = Vec::new();
        for view in computable.into_iter().filter(|_| to.online && how.transform_on_write) {
            if let Some(frame) = self.computer.written(project, &view, frame, true).await? {
                computed.push(read_rows(view, &frame)?);
            }
        }
        if to.offline {
            self.append(&batches, !events.is_empty()).await?;
        }
        if to.online {
            batches.extend(computed);
            self.folder.write(writes(&batches), events).await?;
        }
        metrics::pushed(&self.project, "push", frame.rows, ignored_columns(frame, &batches));
        Ok(())
    }

    /// Writes one view's rows to the online store.
    pub async fn write_to_online_store(&self, view: &str, frame: &Frame, how: How) -> Result<()> {
        frame.check_values(self.max_value_bytes)?;
        let _until_written = self.catalog.writing_rows().await;
        let registry = self.registry(how.allow_registry_cache).await?;
        let project = registry.project(&self.project)?;
        let view = self.view(project, view)?;
        if view.is_windowed() {
            return Err(Error::invalid(format!(
                "Feature view {} is computed from its stream: push its raw events to the stream source instead of \
                 writing rows",
                view.name
            )));
        }
        let computed = self.computer.written(project, &view, frame, how.transform_on_write).await?;
        let batches = [read_rows(view, computed.as_ref().unwrap_or(frame))?];
        self.folder.write(writes(&batches), Vec::new()).await?;
        metrics::pushed(&self.project, "write_to_online_store", frame.rows, ignored_columns(frame, &batches));
        Ok(())
    }

    async fn registry(&self, allow_cache: bool) -> Result<Arc<Registry>> {
        if allow_cache { Ok(self.catalog.snapshot()) } else { self.catalog.refreshed().await }
    }

    fn view(&self, project: &Project, name: &str) -> Result<Arc<View>> {
        project.view(name, &self.project).cloned()
    }

    /// Appends to each distinct batch source once, however many views share it.
    async fn append(&self, batches: &[ViewRows], has_events: bool) -> Result<()> {
        if has_events {
            return Err(Error::new(
                Kind::Unsupported,
                "raw events cannot be pushed offline yet: push them to=online, and write their batch source yourself",
            ));
        }
        let log = self.log.as_ref().ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                "this server has no offline side: start it with the service 'offline', or push to=online",
            )
        })?;
        let mut seen = HashSet::new();
        for batch in batches {
            let source = batch.view.batch_source.as_ref().ok_or_else(|| {
                Error::invalid(format!("Feature view {} has no batch source to push offline to", batch.view.name))
            })?;
            if !seen.insert(source.name.clone()) {
                continue;
            }
            let mut rows = AppendRows { columns: Vec::new(), versions: batch.versions.clone() };
            let sharing =
                batches.iter().filter(|b| b.view.batch_source.as_ref().is_some_and(|s| s.name == source.name));
            for sharing in sharing {
                for column in sharing.named()? {
                    if !rows.columns.iter().any(|c| c.name == column.name) {
                        rows.columns.push(column);
                    }
                }
            }
            log.append(&batch.view, rows).await?;
        }
        Ok(())
    }
}

impl ViewRows {
    fn writes(&self) -> impl Iterator<Item = RowWrite> {
        let ids: Vec<_> = self.features.iter().map(|f| f.id).collect();
        self.keys.iter().zip(&self.versions).enumerate().map(move |(row, (key, version))| RowWrite {
            table: self.view.table.clone(),
            key: key.clone(),
            row: Row::pack_shared(*version, &ids, self.features.iter().map(|f| f.values.at(row))),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.features.iter().any(|f| f.name == name) || self.join_keys.iter().any(|(n, _)| n == name)
    }

    /// Its join keys and features, for the batch source.
    fn named(&self) -> Result<Vec<NamedColumn>> {
        let keys = self.join_keys.iter().map(|(name, values)| Ok((name, values.clone())));
        let features = self.features.iter().map(|f| Ok((&f.name, f.values.values()?)));
        keys.chain(features).map(|c| c.map(|(name, values)| NamedColumn { name: name.clone(), values })).collect()
    }
}

fn writes(batches: &[ViewRows]) -> Vec<RowWrite> {
    batches.iter().flat_map(ViewRows::writes).collect()
}

fn is_push_source(view: &View, name: &str) -> bool {
    view.stream_source.as_ref().is_some_and(|s| s.name == name && s.r#type() == SourceType::PushSource)
}

/// Columns that no view of the request uses: Feast's clients may send them, so they are counted
/// and not refused.
fn ignored_columns(frame: &Frame, batches: &[ViewRows]) -> usize {
    let used = |name: &String| {
        batches.iter().any(|b| {
            let mapped = mapped_name(&b.view, name);
            b.has(mapped)
                || [b.view.event_time_column(), b.view.created_time_column().unwrap_or_default()]
                    .contains(&name.as_str())
                || ["event_timestamp", "created"].contains(&name.as_str())
        })
    };
    frame.columns.iter().filter(|(name, _)| !used(name)).count()
}

/// A column's name in the view: the batch source's field mapping renames source columns.
fn mapped_name<'a>(view: &'a View, name: &'a str) -> &'a str {
    view.batch_source.as_ref().and_then(|s| s.field_mapping.get(name)).map_or(name, String::as_str)
}

/// The frame's column that a view knows by this name.
fn column<'a>(view: &View, frame: &'a Frame, name: &str) -> Option<&'a (String, Cells)> {
    frame.columns.iter().find(|(n, _)| mapped_name(view, n) == name || n == name)
}

/// Each row's event and created time: under the source's names, or under the names that the SDK's
/// remote online store always sends (`event_timestamp`, `created`).
fn read_versions(view: &View, frame: &Frame) -> Result<Vec<Version>> {
    let named = |name: &str| column(view, frame, name);
    let (name, times) = named(view.event_time_column()).or_else(|| named("event_timestamp")).ok_or_else(|| {
        Error::invalid(format!(
            "Missing the event timestamp column '{}' of feature view {}",
            view.event_time_column(),
            view.name
        ))
    })?;
    let created = view.created_time_column().and_then(named).or_else(|| named("created"));
    let events =
        times.times(name, |row| Err(Error::invalid(format!("row {row}: the event timestamp '{name}' is null"))))?;
    let created = created.map(|(name, cells)| cells.times(name, |_| Ok(Timestamp::default()))).transpose()?;
    Ok(frame::versions(events, created))
}

type Columns = Vec<(String, Vec<Value>)>;

/// The join key columns and each row's entity key.
fn read_keys(view: &View, frame: &Frame) -> Result<(Columns, Vec<EntityKey>)> {
    if view.is_entityless() {
        return Ok((Vec::new(), vec![EntityKey::dummy(); frame.rows]));
    }
    let columns = view
        .join_keys
        .iter()
        .map(|key| {
            let (_, cells) = column(view, frame, &key.name).ok_or_else(|| {
                Error::invalid(format!("Missing the join key column '{}' of feature view {}", key.name, view.name))
            })?;
            let values = cells.values(key.value_type).map_err(|e| misfit(view, &key.name, e))?;
            Ok((key.name.clone(), values))
        })
        .collect::<Result<Columns>>()?;
    let keys = (0..frame.rows)
        .map(|row| {
            let parts: Vec<_> = columns.iter().map(|(name, values)| (name.as_str(), &values[row])).collect();
            EntityKey::encode(&parts).map_err(|e| Error::invalid(format!("row {row}: {}", e.message())))
        })
        .collect::<Result<_>>()?;
    Ok((columns, keys))
}

/// Why a value is refused, with its place.
fn misfit(view: &View, name: &str, (row, error): (usize, Error)) -> Error {
    Error::new(error.kind(), format!("row {row}, column '{name}' of {}: {}", view.name, error.message()))
}

/// The view's features that the frame has, in the order of their ids.
fn read_features(view: &View, frame: &Frame) -> Result<Vec<Feature>> {
    let mut features = Vec::with_capacity(view.features.len());
    for field in &view.features {
        if let Some((_, cells)) = column(view, frame, &field.name) {
            let values = cells.encode(field.value_type).map_err(|e| misfit(view, &field.name, e))?;
            features.push(Feature { id: column_id(&field.name), name: field.name.clone(), values });
        }
    }
    features.sort_by_key(|f| f.id);
    if let Some(pair) = features.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Error::invalid(format!(
            "the features '{}' and '{}' of {} cannot be told apart in a row: rename one",
            pair[0].name, pair[1].name, view.name
        )));
    }
    Ok(features)
}

/// Reads a frame as a view's rows, coercing every value to its registered type. A disabled view is
/// written like any other, as in Feast: disabling stops serving and materialization.
fn read_rows(view: Arc<View>, frame: &Frame) -> Result<ViewRows> {
    let versions = read_versions(&view, frame)?;
    let (join_keys, keys) = read_keys(&view, frame)?;
    let features = read_features(&view, frame)?;
    if features.is_empty() && !view.features.is_empty() {
        let names: Vec<_> = view.features.iter().map(|f| f.name.as_str()).collect();
        return Err(Error::invalid(format!(
            "no column of the request is a feature of {}: it has [{}]",
            view.name,
            names.join(", ")
        )));
    }
    Ok(ViewRows { view, keys, versions, features, join_keys })
}
