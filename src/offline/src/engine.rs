//! The query engine: one DataFusion runtime with a memory limit and a spill directory, and the one
//! query that everything here is made of: a view's history, cut in time, sorted by key and time.

mod pieces;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, SortExpr, cast, lit, when};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext};
use futures::StreamExt;
use model::registry::View;
use model::{Error, Kind, Result};
use proto::feast::core::DataSource;

use crate::Settings;
use crate::convert::utc_micros;
use crate::error::{damage, engine, io, sql as sql_error};
use crate::event_log::{ARRIVED, LOGGED, Log};
use crate::frame::Room;
use crate::keys::KeyType;
use crate::scan::{ParquetFiles, Pieces};
use crate::scratch::Directory;
use crate::source::{Location, missing};
use crate::store::Stores;
use crate::stream_sql::Through;

pub(crate) use pieces::InPieces;

/// A piece of a source that is read on its own has more rows than so many batches.
const BATCHES: usize = 4;

/// How often a source is listed that changes before it is open.
const OPENINGS: usize = 10;

/// DataFusion, set up.
#[derive(Debug)]
pub(crate) struct Engine {
    repo: PathBuf,
    stores: Stores,
    runtime: Arc<RuntimeEnv>,
    config: SessionConfig,
    memory_limit: usize,
    spill: Arc<Directory>,
    log: Option<Log>,
}

/// A source whose files are open.
#[derive(Clone)]
pub(crate) struct Table {
    /// The registered source.
    pub(crate) source: Arc<DataSource>,
    /// Its columns.
    pub(crate) schema: SchemaRef,
    files: Arc<ParquetFiles>,
    /// The SQL that its rows go through, and what stands behind it.
    through: Option<Through>,
}

/// Which part of a source to read, by the source's own column names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut {
    /// The key columns with the form they are compared in.
    pub(crate) keys: Vec<(String, KeyType)>,
    /// The event time column.
    pub(crate) time: String,
    /// The created time column.
    pub(crate) created: Option<String>,
    /// Further columns.
    pub(crate) values: Vec<String>,
    /// The first time, µs, inclusive; `None` is from the beginning.
    pub(crate) from: Option<i64>,
    /// The last time, µs, inclusive; `None` is to the end.
    pub(crate) to: Option<i64>,
    /// Leave out rows with a null key or time (else the caller counts them).
    pub(crate) only_keyed: bool,
    /// When a row became known ([`Table::known`]): it is there only from then on, and not at all where that is null;
    /// [`Order::KeyKnown`] then.
    pub(crate) known: Option<Expr>,
    /// What rows of interest satisfy, over the source's own columns: rows, pages and row groups that
    /// do not are left out.
    pub(crate) wanted: Vec<Expr>,
}

impl Table {
    /// How many rows its files have.
    pub(crate) fn rows(&self) -> usize {
        self.files.rows()
    }

    /// When a row became known, in µs: an event of the log when it was accepted, a row of the source when it was created,
    /// or, where the source does not say that beside a log, when it happened. `None` where nothing says it of any row.
    ///
    /// Errors: the engine's.
    pub(crate) fn known(&self, time: &str, created: Option<&str>) -> Result<Option<Expr>> {
        let micros = |name: &str| cast(ident(name), utc_micros());
        if self.schema.index_of(ARRIVED).is_err() {
            return Ok(created.map(micros));
        }
        if self.through.is_some() {
            return Ok(Some(ident(ARRIVED)));
        }
        // A source may be a copy of a log, or one itself.
        let of_source = micros(created.unwrap_or(time));
        when(ident(ARRIVED).is_not_null(), micros(ARRIVED)).otherwise(of_source).map(Some).map_err(engine)
    }
}

impl Cut {
    /// Where the time column stands in the result: behind the keys.
    pub(crate) fn time_at(&self) -> usize {
        self.keys.len()
    }

    /// Where the created column stands, if there is one.
    pub(crate) fn created_at(&self) -> Option<usize> {
        self.created.as_ref().map(|_| self.keys.len() + 1)
    }

    /// Where the further columns begin; the row number stands last, if sorted.
    pub(crate) fn values_at(&self) -> usize {
        self.keys.len() + 1 + usize::from(self.created.is_some())
    }

    /// The order to merge in: this one, where rows count from their event times on.
    pub(crate) fn order(&self, of_events: Order) -> Order {
        if self.known.is_some() { Order::KeyKnown } else { of_events }
    }

    /// Where the times stand that rows are sorted by and merged at: event times, or, of rows that are known only
    /// from some time on, the later of both.
    pub(crate) fn merged_at(&self) -> usize {
        if self.known.is_some() { self.values_at() + self.values.len() } else { self.time_at() }
    }
}

/// The order in which a cut is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As in the files.
    File,
    /// By key, event time, created time, and then as in the files.
    KeyTimeCreated,
    /// By key, event time, and then as in the files: the order of arrival.
    KeyTime,
    /// By key, the later of event time and the time at which a row became known, and then as in the files.
    KeyKnown,
}

impl Engine {
    /// Sets the runtime up.
    ///
    /// Errors: a spill directory that cannot be made.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let spill = Directory::below(&settings.spill_dir, "spill-", |_| Ok(()));
        let spill = Arc::new(spill.map_err(|(path, e)| io("creating", &path, e))?);
        let disk =
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill.path().to_path_buf()]));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(settings.memory_limit_bytes)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(engine)?;
        // One partition: files are read in order, and ties are broken by it.
        let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(settings.batch_rows);
        let reserve = (settings.memory_limit_bytes / 8).min(10 << 20);
        config.options_mut().execution.sort_spill_reservation_bytes = reserve;
        config.options_mut().execution.parquet.schema_force_view_types = false;
        // It would make one of our pieces, as many as there are partitions.
        config.options_mut().optimizer.repartition_file_scans = false;
        let stores = Stores::new(settings.object_store.clone())?;
        Ok(Self {
            repo: settings.repo_dir.clone(),
            stores,
            runtime,
            config,
            memory_limit: settings.memory_limit_bytes,
            spill,
            log: settings.event_log.clone().map(Log::new),
        })
    }

    /// Memory that is not DataFusion's own, counted against the same limit.
    pub(crate) fn reservation(&self, what: &str) -> MemoryReservation {
        MemoryConsumer::new(what).register(&self.runtime.memory_pool)
    }

    /// What all work may take of memory, bytes.
    pub(crate) fn memory_limit(&self) -> usize {
        self.memory_limit
    }

    /// How much of an entity frame is held in memory: a quarter of the limit.
    pub(crate) fn room(&self) -> Room {
        Room { frame: self.memory_limit / 4, claims: self.memory_limit, dir: self.spill.path().to_path_buf() }
    }

    /// The memory that is taken of the limit, bytes.
    pub(crate) fn reserved(&self) -> usize {
        self.runtime.memory_pool.reserved()
    }

    /// What a hash of keys may take: half of the limit, bytes. What needs more is sorted, which spills.
    pub(crate) fn hash_bytes(&self) -> usize {
        match self.runtime.memory_pool.memory_limit() {
            MemoryLimit::Finite(bytes) => bytes / 2,
            MemoryLimit::Infinite | MemoryLimit::Unknown => usize::MAX,
        }
    }

    /// Rows of a batch.
    pub(crate) fn batch_rows(&self) -> usize {
        self.config.batch_size()
    }

    /// Where relative paths start.
    pub(crate) fn repo(&self) -> &std::path::Path {
        &self.repo
    }

    /// The object stores that sources are in.
    pub(crate) fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The event log, if one is kept.
    pub(crate) fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }

    /// Opens a source.
    ///
    /// Errors: a source that is neither Parquet nor Delta, has no file, or has one that cannot be read.
    pub(crate) async fn open(&self, source: &Arc<DataSource>) -> Result<Table> {
        self.open_with(source, None).await
    }

    /// Opens a view's source, and, where it is asked for, behind it the events that the view's stream brought, where they
    /// are kept. The source of a windowed view with SQL has messages, which go through it.
    ///
    /// Errors: as [`Engine::open`].
    pub(crate) async fn open_history(&self, source: &Arc<DataSource>, view: &View, logged: bool) -> Result<Table> {
        let log = self.log.as_ref().filter(|_| logged).map(|log| (log, view));
        let Some(sql) = view.sql.as_ref().filter(|_| view.is_windowed()) else {
            return self.open_with(source, log).await;
        };
        let mut table = self.open_with(source, None).await?;
        let logged = match log {
            Some((log, view)) => log.open_files(view).await?,
            None => None,
        };
        let logged = logged.map(|files| (files.clone() as Arc<dyn TableProvider>, files.schema()));
        let through = Through::new(&self.context(), view, sql, (source, &table.schema), logged)?;
        table.schema = through.schema();
        table.through = Some(through);
        Ok(table)
    }

    /// What of a history counts, where the view's state was built from its source up to a cut-over: the source before
    /// it, the log from it on.
    pub(crate) fn seam(&self, table: &Table, time: &str, view: &View) -> Result<Option<Expr>> {
        let has_log = self.log.is_some() && table.schema.index_of(LOGGED).is_ok();
        let Some(cut_over) = view.reading.cut_over().filter(|_| has_log) else { return Ok(None) };
        let time_type = table.schema.field_with_name(time).map_err(|e| Error::internal("a column vanished", e))?;
        let from = bound(cut_over.micros(), time_type.data_type(), true);
        let logged = ident(LOGGED).eq(lit(1_i64));
        let before = ident(time).lt(from.clone()).and(ident(LOGGED).eq(lit(0_i64)));
        Ok(Some(before.or(ident(time).gt_eq(from).and(logged))))
    }

    async fn open_with(&self, source: &Arc<DataSource>, log: Option<(&Log, &View)>) -> Result<Table> {
        let location = Location::of(source, &self.repo, &self.stores)?;
        let named = |e: Error| match e.kind() {
            Kind::Internal => e,
            _ => Error::of_class(e.kind(), e.class(), format!("data source '{}': {}", source.name, e.message())),
        };
        let mut tries = OPENINGS;
        // Files of the log that were listed stay until they are open.
        let _unmerged = if let Some((log, _)) = log { Some(log.merging.read().await) } else { None };
        let files = loop {
            let mut listing = location.list().await.map_err(named)?;
            if let Some((log, view)) = log {
                listing.behind(log.files(view)?, LOGGED).map_err(named)?;
            }
            if listing.files.is_empty() && listing.schema.is_none() {
                return Err(missing(source, &location));
            }
            tries -= 1;
            match ParquetFiles::open(listing).await {
                // A writer replaced an object between the two, and nothing was read of it yet.
                Err(e) if e.kind() == Kind::Conflict && tries > 0 => {}
                opened => break Arc::new(opened.map_err(named)?),
            }
        };
        Ok(Table { source: source.clone(), schema: files.schema(), files, through: None })
    }

    /// Reads a cut of a source: keys, time, created, values and, if sorted, the row number.
    pub(crate) async fn read(&self, table: &Table, cut: &Cut, order: Order) -> Result<SendableRecordBatchStream> {
        let rows = self.frame(table, table.files.clone(), cut, order)?.execute_stream().await.map_err(engine)?;
        let (files, source) = (table.files.clone(), table.source.clone());
        Ok(explained(rows, move |what| damaged(&source.name, what, &files.last_read().join(" or "))))
    }

    /// Reads a cut of a source in pieces: keys, time, created and values. `located` is what a row fulfils that is not
    /// read in vain.
    pub(crate) async fn in_pieces(&self, table: &Table, cut: &Cut, located: Expr) -> Result<InPieces> {
        let few = (BATCHES * self.batch_rows()) as u64;
        let tolerant = cut.is_tolerant(&table.schema);
        let pieces = Arc::new(Pieces::new(table.files.clone(), tolerant, few, None));
        let frame = self.frame(table, pieces.clone(), cut, Order::File)?;
        let narrow = Arc::new(Pieces::new(table.files.clone(), tolerant, few, Some(located)));
        let narrow = if tolerant { Some(self.frame(table, narrow, cut, Order::File)?) } else { None };
        InPieces::new(frame, narrow, pieces, table.source.name.clone()).await
    }

    fn frame(&self, table: &Table, files: Arc<dyn TableProvider>, cut: &Cut, order: Order) -> Result<DataFrame> {
        let context = self.context();
        let frames = match &table.through {
            None => vec![context.read_table(files).map_err(engine)?],
            Some(through) => through.frames(&context, files)?,
        };
        let mut all: Option<DataFrame> = None;
        for (behind, frame) in (0_u64..).zip(frames) {
            let mut frame = cut_out(frame, &table.schema, cut)?;
            if order != Order::File {
                frame = frame.window(vec![row_number().alias("row")]).map_err(engine)?;
            }
            if order != Order::File && behind > 0 {
                frame = frame.with_column("row", ident("row") + lit(behind << 62)).map_err(engine)?;
            }
            all = Some(match all {
                None => frame,
                Some(before) => before.union(frame).map_err(engine)?,
            });
        }
        let frame = all.ok_or_else(|| Error::new(Kind::Internal, "a table without rows' source"))?;
        if order == Order::File {
            return Ok(frame);
        }
        let by = |name: &str| -> SortExpr { ident(name).sort(true, true) };
        let mut sort: Vec<SortExpr> = (0..cut.keys.len()).map(|i| by(&format!("k{i}"))).collect();
        sort.push(by(if order == Order::KeyKnown { "a" } else { "t" }));
        if order == Order::KeyTimeCreated && cut.created.is_some() {
            sort.push(by("c"));
        }
        sort.push(by("row"));
        frame.sort(sort).map_err(engine)
    }

    /// Runs a SELECT over tables that it may name: `(name, source)`. Nothing else can be reached.
    pub(crate) async fn sql(&self, text: &str, sources: Vec<(String, Arc<DataSource>)>) -> Result<DataFrame> {
        let context = self.context();
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let statement = state.sql_to_statement(text, &dialect).map_err(sql_error)?;
        let named = state.resolve_table_references(&statement).map_err(sql_error)?;
        for reference in named {
            if let Some((name, source)) = sources.iter().find(|(name, _)| name == reference.table()) {
                let table = self.open(source).await?;
                context
                    .register_table(datafusion::common::TableReference::bare(name.as_str()), table.files)
                    .map_err(engine)?;
            }
        }
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        context.sql_with_options(text, options).await.map_err(sql_error)
    }

    fn context(&self) -> SessionContext {
        SessionContext::new_with_config_rt(self.config.clone(), self.runtime.clone())
    }
}

/// The rows and columns of a cut, of a frame of this schema.
fn cut_out(mut frame: DataFrame, schema: &SchemaRef, cut: &Cut) -> Result<DataFrame> {
    let type_of = |name: &str| -> Result<DataType> {
        let field = schema.field_with_name(name).map_err(|e| Error::internal("a column vanished", e))?;
        Ok(field.data_type().clone())
    };
    let time_type = type_of(&cut.time)?;
    let mut filters = Vec::new();
    if let Some(from) = cut.from {
        filters.push(ident(&cut.time).gt_eq(bound(from, &time_type, true)));
    }
    if let Some(to) = cut.to {
        filters.push(ident(&cut.time).lt_eq(bound(to, &time_type, false)));
    }
    if let Some(in_range) = filters.into_iter().reduce(Expr::and) {
        let kept = if cut.only_keyed { in_range } else { in_range.or(ident(&cut.time).is_null()) };
        frame = frame.filter(kept).map_err(engine)?;
    }
    if cut.only_keyed {
        let not_null = cut.keys.iter().map(|(k, _)| ident(k)).chain([ident(&cut.time)]).map(Expr::is_not_null);
        if let Some(filter) = not_null.reduce(Expr::and) {
            frame = frame.filter(filter).map_err(engine)?;
        }
    }
    if let Some(known) = &cut.known {
        // What nobody knew by the last time that is asked for need not be sorted.
        let by_then = |to: i64| known.clone().lt_eq(bound(to, &utc_micros(), false));
        frame = frame.filter(cut.to.map_or_else(|| known.clone().is_not_null(), by_then)).map_err(engine)?;
    }
    if let Some(wanted) = cut.wanted.iter().cloned().reduce(Expr::and) {
        frame = frame.filter(wanted).map_err(engine)?;
    }
    let mut columns = Vec::new();
    for (i, (name, key)) in cut.keys.iter().enumerate() {
        let from = type_of(name)?;
        let to = key.sort_type(&from);
        let column = if from == to { ident(name) } else { cast(ident(name), to) };
        columns.push(column.alias(format!("k{i}")));
    }
    columns.push(ident(&cut.time).alias("t"));
    columns.extend(cut.created.iter().map(|c| ident(c).alias("c")));
    columns.extend(cut.values.iter().enumerate().map(|(i, v)| ident(v).alias(format!("v{i}"))));
    if let Some(known) = &cut.known {
        let time = cast(ident(&cut.time), utc_micros());
        let later = when(known.clone().gt(time.clone()), known.clone()).otherwise(time).map_err(engine)?;
        columns.push(later.alias("a"));
    }
    frame.select(columns).map_err(engine)
}

/// A stream whose errors about damaged files are told as `tell` makes them of what is wrong.
fn explained(
    rows: SendableRecordBatchStream,
    tell: impl Fn(&str) -> Error + Send + 'static,
) -> SendableRecordBatchStream {
    let explain = move |error: DataFusionError| match damage(&error) {
        None => error,
        Some(what) => DataFusionError::External(Box::new(tell(&what))),
    };
    Box::pin(RecordBatchStreamAdapter::new(rows.schema(), rows.map(move |batch| batch.map_err(&explain))))
}

fn damaged(source: &str, what: &str, files: &str) -> Error {
    Error::invalid(format!(
        "data source '{source}' has a damaged Parquet file ({what}), which is, of those read last, {files}: write it anew"
    ))
}

/// Runs what blocks on the file system off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal("a background task broke off", e)),
    }
}

/// A column by its name, as it is written.
pub(crate) fn ident(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// A bound in µs in the time column's own type, so that it can be held against file statistics. A
/// time finer than µs counts with the µs that it lies in.
fn bound(micros: i64, time_type: &DataType, lower: bool) -> Expr {
    let coarse = |unit: i64| if lower { -(micros.saturating_neg()).div_euclid(unit) } else { micros.div_euclid(unit) };
    let fine = micros.saturating_mul(1000).saturating_add(if lower { 0 } else { 999 });
    match time_type {
        DataType::Timestamp(unit, zone) => {
            let zone = zone.clone();
            lit(match unit {
                TimeUnit::Second => ScalarValue::TimestampSecond(Some(coarse(1_000_000)), zone),
                TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(Some(coarse(1000)), zone),
                TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(Some(micros), zone),
                TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(Some(fine), zone),
            })
        }
        DataType::Date32 => {
            let days = coarse(86_400_000_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            lit(ScalarValue::Date32(Some(days as i32)))
        }
        _ => lit(ScalarValue::Date64(Some(coarse(1000)))),
    }
}
