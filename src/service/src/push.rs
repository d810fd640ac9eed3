//! The verbs "push" and "write to online store": a frame of columns becomes rows, checked whole
//! before anything is written. Knows no protocol and no DataFrame.
//!
//! Sources: `push`, `write_to_online_store` in `feast/feature_store.py`;
//! `_convert_arrow_fv_to_proto` in `feast/utils.py`.

mod events;

use std::collections::HashSet;
use std::sync::Arc;

use model::ports::{AppendRows, Clock, NamedColumn, OfflineLog, OnlineStore, RowWrite, WriteBatch};
use model::registry::{Project, Registry, View};
use model::row::{Column, Version, column_id};
use model::{EntityKey, Error, Kind, Result, Row, Timestamp, Value, ValueType, value};
use prost::Message;
use proto::feast::core::data_source::SourceType;

use crate::catalog::Catalog;
use crate::metrics;
use events::{Folder, ViewEvents};

/// One value as a client sent it, to be read as whatever type is registered.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Plain JSON (HTTP).
    Json(serde_json::Value),
    /// Text (`PushRequest.features`).
    Text(String),
    /// A typed value (`PushRequest.typed_features`).
    Typed(Value),
}

/// Columns of one length, by name.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The number of rows.
    pub rows: usize,
    /// The columns.
    pub columns: Vec<(String, Vec<Cell>)>,
}

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

/// Writes for one project.
pub struct Pusher {
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    log: Option<Arc<dyn OfflineLog>>,
    folder: Folder,
    project: String,
}

/// A frame read as one view's rows.
struct ViewRows {
    view: Arc<View>,
    keys: Vec<EntityKey>,
    versions: Vec<Version>,
    /// The view's columns that the frame has: name and one value per row.
    features: Columns,
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
        let folder = Folder::new(store.clone(), clock);
        Self { catalog, store, log, folder, project }
    }

    /// Pushes to every view whose stream source is the push source: rows to plain views, raw events to
    /// windowed ones. All or nothing: a value that does not fit refuses the whole request.
    pub async fn push(&self, source: &str, frame: &Frame, to: Destination, allow_cache: bool) -> Result<()> {
        let registry = self.registry(allow_cache).await?;
        let project = registry.project(&self.project)?;
        let views: Vec<_> = project.views.values().filter(|v| is_push_source(v, source)).cloned().collect();
        if views.is_empty() {
            return Err(Error::push_source_not_found(source));
        }
        let (windowed, plain): (Vec<_>, Vec<_>) = views.into_iter().partition(|v| v.is_windowed());
        let now = self.folder.now();
        let events = windowed.into_iter().map(|v| ViewEvents::read(v, frame, now)).collect::<Result<Vec<_>>>()?;
        let batches = plain.into_iter().map(|v| read_rows(v, frame)).collect::<Result<Vec<_>>>()?;
        if to.offline {
            self.append(&batches, !events.is_empty()).await?;
        }
        if to.online {
            self.write(&batches).await?;
            self.folder.apply(events).await?;
        }
        metrics::pushed("push", frame.rows, ignored_columns(frame, &batches));
        Ok(())
    }

    /// Writes one view's rows to the online store.
    pub async fn write_to_online_store(&self, view: &str, frame: &Frame, allow_cache: bool) -> Result<()> {
        let registry = self.registry(allow_cache).await?;
        let view = self.view(registry.project(&self.project)?, view)?;
        if view.is_windowed() {
            return Err(Error::invalid(format!(
                "Feature view {} is computed from its stream: push its raw events to the stream source instead of \
                 writing rows",
                view.name
            )));
        }
        let batches = [read_rows(view, frame)?];
        self.write(&batches).await?;
        metrics::pushed("write_to_online_store", frame.rows, ignored_columns(frame, &batches));
        Ok(())
    }

    async fn registry(&self, allow_cache: bool) -> Result<Arc<Registry>> {
        if allow_cache { Ok(self.catalog.snapshot()) } else { self.catalog.refreshed().await }
    }

    fn view(&self, project: &Project, name: &str) -> Result<Arc<View>> {
        project.view(name, &self.project).cloned()
    }

    async fn write(&self, batches: &[ViewRows]) -> Result<()> {
        let rows = batches.iter().flat_map(ViewRows::writes).collect();
        self.store.write(WriteBatch { rows, ..WriteBatch::default() }).await?;
        Ok(())
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
            for (name, values) in sharing.flat_map(|b| b.join_keys.iter().chain(&b.features)) {
                if !rows.columns.iter().any(|c| &c.name == name) {
                    rows.columns.push(NamedColumn { name: name.clone(), values: values.clone() });
                }
            }
            log.append(&batch.view, rows).await?;
        }
        Ok(())
    }
}

impl ViewRows {
    fn writes(&self) -> impl Iterator<Item = RowWrite> {
        self.keys.iter().enumerate().map(|(row, key)| {
            let version = self.versions[row];
            let columns = self.features.iter().map(|(name, values)| Column {
                id: column_id(name),
                value: values[row].encode_to_vec().into(),
                version,
            });
            RowWrite { table: self.view.table.clone(), key: key.clone(), row: Row::pack(columns.collect()) }
        })
    }
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
            b.features.iter().chain(&b.join_keys).any(|(n, _)| n == mapped)
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
fn column<'a>(view: &View, frame: &'a Frame, name: &str) -> Option<&'a (String, Vec<Cell>)> {
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
    (0..frame.rows)
        .map(|row| {
            let event = time_of(name, row, &times[row])?
                .ok_or_else(|| Error::invalid(format!("row {row}: the event timestamp '{name}' is null")))?;
            let created = match created {
                Some((name, cells)) => time_of(name, row, &cells[row])?.unwrap_or_default(),
                None => Timestamp::default(),
            };
            Ok(Version { event, created })
        })
        .collect()
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
            read_column(view, &key.name, key.value_type, cells)
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

/// A column in its registered type.
fn read_column(view: &View, name: &str, value_type: ValueType, cells: &[Cell]) -> Result<(String, Vec<Value>)> {
    let values = cells
        .iter()
        .enumerate()
        .map(|(row, cell)| {
            cell.read(value_type).map_err(|e| {
                Error::new(e.kind(), format!("row {row}, column '{name}' of {}: {}", view.name, e.message()))
            })
        })
        .collect::<Result<_>>()?;
    Ok((name.to_owned(), values))
}

/// Reads a frame as a view's rows, coercing every value to its registered type.
fn read_rows(view: Arc<View>, frame: &Frame) -> Result<ViewRows> {
    if view.disabled {
        return Err(Error::new(
            Kind::Conflict,
            format!("Feature view {} is disabled: enable it before writing to it", view.name),
        ));
    }
    let versions = read_versions(&view, frame)?;
    let (join_keys, keys) = read_keys(&view, frame)?;
    let features = view
        .features
        .iter()
        .filter_map(|f| {
            column(&view, frame, &f.name).map(|(_, cells)| read_column(&view, &f.name, f.value_type, cells))
        })
        .collect::<Result<Columns>>()?;
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

impl Cell {
    /// Reads the cell as a registered type.
    fn read(&self, value_type: ValueType) -> Result<Value> {
        match self {
            Self::Json(json) if value_type == ValueType::Invalid => value::guess_json(json),
            Self::Json(json) => value::from_json(json, value_type),
            Self::Text(text) => value::parse_text(text, value_type),
            Self::Typed(typed) => value::coerce(typed.clone(), value_type),
        }
    }
}

/// A timestamp cell; `None` where it is null. Numbers are epoch seconds, milliseconds, microseconds
/// or nanoseconds by their magnitude ([`Timestamp::from_epoch`]); typed timestamps are seconds.
fn time_of(column: &str, row: usize, cell: &Cell) -> Result<Option<Timestamp>> {
    use value::proto_value::Val;
    let bad = |what: String| {
        Error::invalid(format!(
            "row {row}, column '{column}': {what} is not a timestamp: send ISO 8601 text or an epoch"
        ))
    };
    let number = |n: i64| Some(Timestamp::from_epoch(n));
    let text = |text: &str| {
        text.parse()
            .map(Timestamp::from_epoch)
            .or_else(|_| Timestamp::parse(text))
            .map(Some)
            .map_err(|_| bad(format!("{text:?}")))
    };
    match cell {
        Cell::Json(serde_json::Value::Null) => Ok(None),
        Cell::Json(serde_json::Value::String(s)) | Cell::Text(s) => text(s),
        Cell::Json(json) => match (json.as_i64(), json.as_f64()) {
            (Some(n), _) => Ok(number(n)),
            (None, Some(f)) if f.is_finite() => Ok(Some(Timestamp((f * 1e6).round() as i64))),
            _ => Err(bad(json.to_string())),
        },
        Cell::Typed(typed) => match &typed.val {
            None | Some(Val::NullVal(_)) => Ok(None),
            Some(Val::UnixTimestampVal(seconds)) => Ok(Some(Timestamp::from_seconds(*seconds))),
            Some(Val::Int64Val(n)) => Ok(number(*n)),
            Some(Val::Int32Val(n)) => Ok(number(i64::from(*n))),
            Some(Val::DoubleVal(f)) if f.is_finite() => Ok(Some(Timestamp((f * 1e6).round() as i64))),
            Some(Val::StringVal(s)) => text(s),
            Some(_) => Err(bad(format!("a value of type {}", value::type_of(typed).as_str_name()))),
        },
    }
}
