//! What Larder asks of the outside, in words of the model: the online store, the registry store, the
//! offline log, the transformer, the clock. Knows none of the things that answer.

mod datasets;
mod event_log;
mod jobs;
mod shared;
mod stream_sql;

use std::cmp::Ordering;
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub use datasets::{DatasetPreview, DatasetRetrieval, DatasetRows, DatasetStore, EntityRows, KeptDataset};
pub use event_log::{EventAppender, EventLog, LogOf, LoggedEvent};
pub use jobs::JobStore;
pub use shared::{Before, FENCED, Fence};
pub use stream_sql::{Query, RowQuery, Selected, StreamSql};

use crate::entity_key::{EntityKey, EntityKeys};
use crate::error::{Error, Kind, Result};
use crate::registry::View;
use crate::row::{Row, RowRef, Version, column_id};
use crate::time::Timestamp;
use crate::value::{Value, ValueType};

/// A boxed future, so that ports are usable as trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the time is.
pub trait Clock: Send + Sync {
    /// Now, UTC.
    fn now(&self) -> Timestamp;
}

/// One view's rows in the online store.
///
/// Two tables are the same where project and view are: the features' names are only there for stores
/// that name columns as Feast does, and do not count.
#[derive(Clone)]
pub struct Table {
    /// The project's name.
    pub project: String,
    /// The view's name (with `_v2` behind it for version 2 of a versioned view).
    pub view: String,
    /// The names behind the column ids of its rows, sorted by id.
    features: Arc<[(u32, Arc<str>)]>,
    /// The table that this is a part of; `None` where it is whole.
    whole: Option<Arc<Table>>,
}

impl Table {
    /// A table whose columns' names nobody asks for: for states, markers and whole tables.
    pub fn new(project: impl Into<String>, view: impl Into<String>) -> Self {
        Self { project: project.into(), view: view.into(), features: Arc::default(), whole: None }
    }

    /// A table with these features.
    pub fn with_features<'a>(
        project: impl Into<String>,
        view: impl Into<String>,
        features: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut named: Vec<_> = features.into_iter().map(|name| (column_id(name), Arc::from(name))).collect();
        named.sort();
        named.dedup();
        Self { project: project.into(), view: view.into(), features: named.into(), whole: None }
    }

    /// This table for reads of the features with these ids alone: a store may leave out all other columns of
    /// its rows, and no more. The table itself, where those are all it has.
    #[must_use]
    pub fn part(self: &Arc<Self>, ids: &[u32]) -> Arc<Self> {
        let features: Arc<[_]> = self.features.iter().filter(|(id, _)| ids.contains(id)).cloned().collect();
        if features.len() == self.features.len() {
            return self.clone();
        }
        let (project, view) = (self.project.clone(), self.view.clone());
        Arc::new(Self { project, view, features, whole: Some(self.clone()) })
    }

    /// The table of which this is a [`Table::part`]; `None` where it is whole.
    pub fn whole(&self) -> Option<&Arc<Self>> {
        self.whole.as_ref()
    }

    /// Its features: [`column_id`] and name, sorted by id.
    pub fn features(&self) -> &[(u32, Arc<str>)] {
        &self.features
    }

    /// The name of the feature with this column id.
    ///
    /// Errors: `Internal` where the view has no such feature.
    pub fn feature(&self, id: u32) -> Result<&str> {
        match self.features.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => Ok(&self.features[at].1),
            Err(_) => Err(Error::new(
                Kind::Internal,
                format!(
                    "view '{}' of project '{}' has no feature with the column id {id:#010x}",
                    self.view, self.project
                ),
            )),
        }
    }

    fn names(&self) -> (&str, &str) {
        (&self.project, &self.view)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("project", &self.project).field("view", &self.view).finish_non_exhaustive()
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.names() == other.names()
    }
}

impl Eq for Table {}

impl PartialOrd for Table {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Table {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(&other.names())
    }
}

impl Hash for Table {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.names().hash(state);
    }
}

/// The keys to read from one table.
#[derive(Clone, Debug)]
pub struct Read {
    /// Where to read.
    pub table: Arc<Table>,
    /// What to read; the answer has one entry for each, in this order.
    pub keys: Vec<EntityKey>,
}

/// A row to merge into a table: applied column by column unless the stored column is newer
/// ([`crate::row::merge`]).
#[derive(Clone, Debug)]
pub struct RowWrite {
    /// Where to write.
    pub table: Arc<Table>,
    /// Whose row.
    pub key: EntityKey,
    /// The columns written, with their times.
    pub row: Row,
}

/// An entity's window state to set (opaque bytes, made by `window`); `None` removes it.
#[derive(Clone, Debug)]
pub struct StateWrite {
    /// The windowed view's table.
    pub table: Arc<Table>,
    /// Whose state.
    pub key: EntityKey,
    /// The encoded state.
    pub state: Option<Bytes>,
}

/// How far a consumer group has read a partition: the next offset to consume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset of the next message that is not yet applied.
    pub offset: i64,
    /// The greatest event time seen in the partition, µs (its watermark before the delay).
    pub max_event: Timestamp,
}

/// Writes that become visible and durable together, or not at all.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    /// Rows to merge, in the order of arrival.
    pub rows: Vec<RowWrite>,
    /// Window states to replace.
    pub states: Vec<StateWrite>,
    /// What each of them replaces: anything else there is a conflict. Empty where it is whatever is there.
    pub before: Vec<Before>,
    /// Consumer positions to set.
    pub positions: Vec<Position>,
    /// What must still be claimed.
    pub fences: Vec<Fence>,
}

/// What a write did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// How many rows were applied, in at least one column.
    pub applied: usize,
    /// The rows that were older than what is stored, in every column: their places in the batch, ascending.
    pub stale: Vec<u32>,
}

/// What takes the rows of [`OnlineStore::read_rows`].
pub trait RowSink: Send {
    /// The next key's row of a table (by its position among the tables), `None` where there is none.
    /// Every table's rows come in the order of the keys; tables may take turns.
    fn push(&mut self, table: usize, row: Option<RowRef<'_>>);
}

/// Where features are read from at serving time. Contract suite: `online::contract`.
///
/// Every error is `Unavailable` (try again) or `Internal` (a row that fails its checksum).
pub trait OnlineStore: Send + Sync {
    /// Reads rows: one inner vector per [`Read`], one entry per key, in order.
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>>;

    /// Reads the rows of the same keys from several tables, and hands them over in place. Keys may
    /// repeat. After an error the sink may have taken some rows.
    ///
    /// A store that keeps rows in memory need not copy them here; for any other this calls
    /// [`OnlineStore::read`].
    fn read_rows<'a>(
        &'a self,
        tables: &'a [Arc<Table>],
        keys: &'a EntityKeys,
        sink: &'a mut dyn RowSink,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (keys, positions) = keys.distinct();
            let reads: Vec<_> = tables.iter().map(|table| Read { table: table.clone(), keys: keys.clone() }).collect();
            for (table, rows) in self.read(&reads).await?.iter().enumerate() {
                for position in &positions {
                    sink.push(table, rows[*position].as_ref().map(Row::borrowed));
                }
            }
            Ok(())
        })
    }

    /// Reads window states, in the same shape as [`OnlineStore::read`].
    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>>;

    /// Applies a batch atomically. Returns once it is as durable as the store is configured to be.
    ///
    /// Errors: `Conflict`, where other processes write the store too: a state is not what it was taken for, or, with the
    /// class [`FENCED`], a partition was claimed by another. Nothing is written then.
    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>>;

    /// All positions of a consumer group.
    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>>;

    /// Whether other processes may write states and positions, too.
    fn is_shared(&self) -> bool {
        false
    }

    /// What tells a stored state from any other; `None` where nobody else writes it.
    fn tag(&self, _state: &[u8]) -> Option<u64> {
        None
    }

    /// Claims partitions for a group's one reader: who claimed them before can no longer write their positions. Gives the
    /// fences to write with; none where no other process can.
    fn claim<'a>(
        &'a self,
        _group: &'a str,
        _topic: &'a str,
        _partitions: &'a [i32],
    ) -> BoxFuture<'a, Result<Vec<Fence>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Removes all rows and states of a table. Gives how many. Of what is written to the table meanwhile,
    /// some may be removed too: the caller sees to it that nobody does.
    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>>;

    /// Makes everything durable and lets go of the files. Nothing may be called after it.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// The kinds of registered objects, as they stand in `feast.core.Registry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `feast.core.Project`; its project is its own name.
    Project,
    /// `feast.core.Entity`.
    Entity,
    /// `feast.core.DataSource`.
    DataSource,
    /// `feast.core.FeatureView`.
    FeatureView,
    /// `feast.core.StreamFeatureView`.
    StreamFeatureView,
    /// `feast.core.OnDemandFeatureView`.
    OnDemandFeatureView,
    /// `feast.core.LabelView`.
    LabelView,
    /// `feast.core.FeatureService`.
    FeatureService,
    /// `feast.core.SavedDataset`.
    SavedDataset,
    /// `feast.core.ValidationReference`.
    ValidationReference,
    /// `feast.core.Permission`.
    Permission,
    /// `feast.core.Infra`; one per project, without a name.
    Infra,
    /// `feast.core.ProjectMetadata` (deprecated in Feast): only what an older registry holds.
    ProjectMetadata,
    /// `feast.core.FeatureViewVersionRecord`: a view's definition under a version; named `view@v2`.
    FeatureViewVersion,
    /// Larder's own: an online table whose rows are still to be removed, named as the table is.
    ClearedTable,
    /// Larder's own: a dataset job, named by its id.
    DatasetJob,
    /// Larder's own: how a view's stream is read ([`crate::registry::Reading`]), named as the view is.
    StreamReading,
}

/// A registered object: its bytes are kept as they came, unknown fields included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// The project it belongs to.
    pub project: String,
    /// Its name, unique in its project and kind.
    pub name: String,
    /// The serialized message.
    pub bytes: Bytes,
}

/// A change to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets an object.
    Put(Object),
    /// Removes an object, if it is there.
    Delete {
        /// What it is.
        kind: ObjectKind,
        /// The project it belongs to.
        project: String,
        /// Its name.
        name: String,
    },
}

/// Where the registry is kept.
pub trait RegistryStore: Send + Sync {
    /// Everything that is registered.
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>>;

    /// Applies changes atomically; durable on return. `Unsupported` where the store is read-only.
    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<()>>;

    /// A number that differs when the content may have changed behind our back (a file's time and
    /// size); constant for a store that only we write.
    fn stamp(&self) -> BoxFuture<'_, Result<u64>>;
}

/// A named column of values, all of one length with its siblings.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedColumn {
    /// The column's name in the source.
    pub name: String,
    /// One value per row.
    pub values: Vec<Value>,
}

/// A row and whose it is.
pub type KeyedRow = (EntityKey, Row);

/// Rows for the online store, batch by batch.
pub trait RowBatches: Send {
    /// The next batch; `None` at the end. Dropping the iterator stops the work.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyedRow>>>>;

    /// Rows of the source that were left out by now, since they have no key or no time. Final at the end.
    fn skipped(&self) -> u64;
}

/// One raw event of a windowed view's batch source.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEvent {
    /// Whose event.
    pub key: EntityKey,
    /// When it happened.
    pub time: Timestamp,
    /// The aggregated columns' values, in the order asked for.
    pub values: Vec<Value>,
}

/// Raw events, batch by batch: those of an entity together, in the order of their times, those of one time in the
/// source's.
pub trait EventBatches: Send {
    /// The next batch; `None` at the end. Dropping the iterator stops the work.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<RawEvent>>>>;

    /// Rows of the source that were left out by now, since they have no key or no time. Final at the end.
    fn skipped(&self) -> u64;
}

/// The history behind the views.
pub trait OfflineLog: Send + Sync {
    /// Appends rows to a view's batch source (columns by their names in the source, timestamps as
    /// UNIX_TIMESTAMP or RFC 3339 text). All or nothing. Gives the number of rows.
    fn append<'a>(&'a self, view: &'a View, rows: AppendRows) -> BoxFuture<'a, Result<u64>>;

    /// The latest row per entity key in `[start, end)` by (event, created) timestamp.
    fn latest<'a>(&'a self, view: &'a View, range: Range<Timestamp>) -> BoxFuture<'a, Result<Box<dyn RowBatches>>>;

    /// The raw events of a windowed view's batch source with a time in `[start, end)`, with these columns.
    fn events<'a>(
        &'a self,
        view: &'a View,
        columns: &'a [String],
        range: Range<Timestamp>,
    ) -> BoxFuture<'a, Result<Box<dyn EventBatches>>>;

    /// What a training set has of a windowed view at one time: per feature of the view one value per key.
    fn windows_at<'a>(
        &'a self,
        view: &'a View,
        keys: &'a [EntityKey],
        at: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Vec<Value>>>>;
}

/// Rows for [`OfflineLog::append`]: join keys and features by name, with a version per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppendRows {
    /// Join keys and features; each as long as `versions`.
    pub columns: Vec<NamedColumn>,
    /// Each row's event and created time.
    pub versions: Vec<Version>,
}

/// A column with its type, which its values alone do not say where all are null.
#[derive(Clone, Debug, PartialEq)]
pub struct TypedColumn {
    /// The name as the function knows it.
    pub name: String,
    /// The registered type; every value is of it, or null.
    pub value_type: ValueType,
    /// One value per row.
    pub values: Vec<Value>,
}

/// One call of an on-demand view's function.
#[derive(Clone, Debug)]
pub struct Transformation {
    /// The view ([`View::on_demand`] is set).
    pub view: Arc<View>,
    /// The number of rows.
    pub rows: usize,
    /// What the function takes.
    pub columns: Vec<TypedColumn>,
    /// Whether rows are written (else features are asked for): then the function may give more or
    /// fewer rows than it takes, and join keys among its columns.
    pub writing: bool,
}

/// Runs the functions of on-demand views.
pub trait Transformer: Send + Sync {
    /// The features that the function gave, in their registered types: one value per row; and the join
    /// keys with them where rows are written. A feature that the function did not give is missing.
    ///
    /// Errors: `InvalidArgument` where the function failed, gave what is not of the registered type,
    /// took too long or brought its process down; `Unsupported` where nothing is configured that runs
    /// it; `Unavailable` where it could not be run now.
    fn transform(&self, call: Transformation) -> BoxFuture<'_, Result<Vec<NamedColumn>>>;

    /// Waits until what runs a view's function has started, for work that can wait longer than one call may.
    ///
    /// Errors: `Unavailable` where it does not start.
    fn ready<'a>(&'a self, _view: &'a View) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_its_columns() {
        let table = Table::with_features("p", "v", ["trips", "rate", "trips"]);
        for name in ["trips", "rate"] {
            assert_eq!(table.feature(column_id(name)).expect("is a feature"), name);
        }
        let error = table.feature(column_id("other")).expect_err("is none");
        assert_eq!(error.kind(), Kind::Internal);
        let id = format!("{:#010x}", column_id("other"));
        assert!(error.message().contains(&id) && error.message().contains("'v'"), "{}", error.message());
        assert_eq!(table, Table::new("p", "v"), "names do not make a table another one");
        assert_ne!(table, Table::new("p", "w"));
    }
}
