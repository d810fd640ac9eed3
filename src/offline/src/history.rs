//! Historical retrieval: every view of a request is joined to the entity frame, one after the other,
//! and the result is given out in batches in the frame's order.
//!
//! A history that is small beside the frame is held in memory, and entity rows go out as they come ([`held`]). Else the
//! frame is worked off in parts of as many rows as fit into memory with what is joined to them ([`parts`]). For each
//! part a view's history is read once, cut in time, and joined as it comes; where it must be in order (windows), it is
//! sorted with spill and merged with the entity rows.

mod held;
mod locator;
mod parts;
mod unsorted;

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt32Array, new_empty_array};
use arrow::compute::{concat, interleave_record_batch};
use arrow::datatypes::{Field as ArrowField, Schema, SchemaRef};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::registry::{AsOf, View};
use model::{Error, Result};
use proto::feast::core::{DataSource, data_source::Options};
use window::Spec;

use crate::asof::{Latest, Merge, Pick, Sorted};
use crate::convert::{arrow_type, from_values, in_column, micros, to_registered};
use crate::engine::{Cut, Engine, Order, Table};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::frame::{Frame, Rows};
use crate::key_filter;
use crate::keys::{KeyRows, KeyType};
use crate::known::Known;
use crate::metrics;
use crate::plan::Part;
use crate::source::{column, time_column};
use crate::window_fold::Windows;

/// The part of the memory limit that a sort leaves to the rows that are kept of it.
const KEPT: usize = 16;

/// A result: its schema, and its rows batch by batch. Dropping it stops the work.
pub(crate) struct Export {
    /// The columns.
    pub(crate) schema: SchemaRef,
    /// The rows.
    pub(crate) batches: BoxStream<'static, Result<RecordBatch>>,
}

/// A part with its source open and its columns found.
#[derive(Clone)]
pub(crate) struct Ready {
    pub(crate) part: Part,
    pub(crate) table: Table,
    pub(crate) cut: Cut,
    spec: Option<Spec>,
}

/// A view's features for all entity rows: either one value per row, or matched rows and who has which.
struct Joined {
    columns: Vec<ArrayRef>,
    index: Option<UInt32Array>,
    _memory: Arc<MemoryReservation>,
}

/// The sorted entity rows of the parts before: views with the same keys share them.
#[derive(Default)]
struct Probes {
    last: Option<Keyed>,
}

/// Entity rows that are sorted by keys.
#[derive(Clone)]
struct Keyed {
    /// The frame's columns, and the form in which they are compared.
    by: Vec<(String, KeyType)>,
    rows: Arc<KeyRows>,
    probe: Arc<Sorted>,
    _memory: Arc<MemoryReservation>,
}

impl Probes {
    fn of(&mut self, engine: &Engine, frame: &Rows, times: &Int64Array, ready: &Ready) -> Result<Keyed> {
        let columns = ready.part.keys().into_iter().map(|(_, column)| column.to_owned());
        let by: Vec<(String, KeyType)> = columns.zip(ready.cut.keys.iter().map(|(_, t)| *t)).collect();
        if let Some(last) = self.last.as_ref().filter(|last| last.by == by) {
            return Ok(last.clone());
        }
        self.last = None;
        let types: Vec<KeyType> = by.iter().map(|(_, t)| *t).collect();
        let rows = Arc::new(KeyRows::new(&types)?);
        let keys = by.iter().map(|(name, t)| t.of_frame(name, &frame.column(name)?));
        let probe = Arc::new(Sorted::new(&keys.collect::<Result<Vec<_>>>()?, times, &rows)?);
        let memory = engine.reservation("keys of entity rows");
        memory.try_grow(probe.bytes()).map_err(engine_error)?;
        let keyed = Keyed { by, rows, probe, _memory: Arc::new(memory) };
        self.last = Some(keyed.clone());
        Ok(keyed)
    }
}

/// Opens a part's source and finds its columns. `known`: whether rows count only from when they became known on
/// ([`Table::known`]); where the request does not say it the view does.
///
/// Errors: a view without a batch source, a source without files or with columns missing.
pub(crate) async fn ready(engine: &Engine, part: Part, known: Option<bool>) -> Result<Ready> {
    let (table, mut cut) = open_with(engine, &part.view, true).await?;
    cut.wanted.extend(engine.seam(&table, &cut.time, &part.view)?);
    let spec = if part.view.is_windowed() { Some(service::windows::spec_of(&part.view)?) } else { None };
    let named: Vec<&str> = match &spec {
        Some(spec) => spec.columns().iter().map(String::as_str).collect(),
        None => part.features.iter().map(|f| f.name.as_str()).collect(),
    };
    cut.values = named.into_iter().map(|n| column(&table.source, &table.schema, n)).collect::<Result<_>>()?;
    if known.unwrap_or(part.view.as_of == AsOf::Known) {
        cut.known = table.known(&cut.time, cut.created.as_deref())?;
    }
    if spec.is_some() {
        cut.created = None;
    }
    Ok(Ready { part, table, cut, spec })
}

/// Opens a view's batch source and finds its key and time columns.
pub(crate) async fn open(engine: &Engine, view: &View) -> Result<(Table, Cut)> {
    open_with(engine, view, false).await
}

/// The same, with the event log of the view's stream, where one is kept.
async fn open_with(engine: &Engine, view: &View, logged: bool) -> Result<(Table, Cut)> {
    let is_file = |s: &&Arc<DataSource>| matches!(s.options, Some(Options::FileOptions(_)));
    // A label view has its file where others have their stream.
    let source = view.batch_source.as_ref().or(view.stream_source.as_ref().filter(is_file)).ok_or_else(|| {
        Error::invalid(format!(
            "Feature view '{}' has no batch_source and cannot be queried: give it, or its push or stream source, one",
            view.name
        ))
    })?;
    let table = engine.open_history(source, view, logged).await?;
    // the result of a view's SQL has the view's own column
    let of_view = view.sql.is_some() && view.is_windowed() || source.timestamp_field.is_empty();
    let time = if of_view { view.event_time_column() } else { &source.timestamp_field };
    let time = time_column(source, &table.schema, time)?
        .ok_or_else(|| Error::invalid(format!("data source '{}' has no timestamp_field", source.name)))?;
    // and no created time: what the source says of it is in what its rows are known from
    let created = if view.sql.is_some() && view.is_windowed() { "" } else { &source.created_timestamp_column };
    let created = time_column(source, &table.schema, created)?;
    let mut keys = Vec::new();
    if !view.is_entityless() {
        for key in &view.join_keys {
            let name = column(source, &table.schema, &key.name)?;
            let field = table.schema.field_with_name(&name).map_err(arrow_error)?;
            let key_type = KeyType::of(&key.name, key.value_type, field.data_type())?;
            keys.push((name, key_type));
        }
    }
    Ok((table, Cut { keys, time, created, ..Cut::default() }))
}

/// Joins all parts to the frame. The schema is known at once, the work begins in the background.
///
/// Errors: a join key that the frame lacks, a feature with the name of one of the frame's columns.
pub(crate) fn retrieve(engine: Arc<Engine>, frame: Frame, parts: Vec<Ready>, batch_rows: usize) -> Result<Export> {
    let time = frame.time_column()?.to_owned();
    let mut expected = vec![time.as_str()];
    for part in &parts {
        for (_, column) in part.part.keys() {
            if !expected.contains(&column) {
                expected.push(column);
            }
        }
    }
    frame.expect(&expected)?;
    let mut fields: Vec<Arc<ArrowField>> = frame.schema().fields().iter().cloned().collect();
    for ready in &parts {
        for (i, (feature, output)) in ready.part.features.iter().zip(&ready.part.outputs).enumerate() {
            if frame.schema().index_of(output).is_ok() {
                return Err(Error::invalid(format!(
                    "the feature {output} of feature view {} has the name of a column of the entity dataframe: rename \
                     the column, or set full_feature_names=True",
                    ready.part.view.name
                )));
            }
            fields.push(Arc::new(ArrowField::new(output, ready.output_type(i, feature.value_type)?, true)));
        }
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, frame.schema().metadata().clone()));
    Ok(parts::stream(parts::Work { engine, parts, schema, time, batch_rows }, frame))
}

impl Ready {
    fn output_type(&self, value: usize, value_type: model::ValueType) -> Result<arrow::datatypes::DataType> {
        if self.spec.is_some() {
            return Ok(arrow_type(value_type, None));
        }
        let field = self.table.schema.field_with_name(&self.cut.values[value]).map_err(arrow_error)?;
        Ok(match field.data_type() {
            arrow::datatypes::DataType::Dictionary(_, values) => arrow_type(value_type, Some(values)),
            other => arrow_type(value_type, Some(other)),
        })
    }
}

async fn join(engine: &Engine, keyed: Keyed, ready: &Ready, last_resort: bool) -> Result<Joined> {
    let mut ready = ready.clone();
    let view = ready.part.view.clone();
    let Keyed { probe, rows, .. } = &keyed;
    let memory = Arc::new(engine.reservation("joined rows"));
    let (first, last) = probe.time_range().unwrap_or((0, i64::MIN));
    ready.cut.to = Some(last);
    ready.cut.from = match &ready.spec {
        Some(spec) => Some(spec.window_start(first)).filter(|s| *s != i64::MIN),
        None => (view.ttl_us > 0).then(|| first.saturating_sub(view.ttl_us)),
    };
    ready.cut.only_keyed = true;
    for ((name, key_type), values) in ready.cut.keys.iter().zip(probe.columns()) {
        let column = ready.table.schema.field_with_name(name).map_err(arrow_error)?;
        ready.cut.wanted.extend(key_filter::of(name, *key_type, column.data_type(), values));
    }
    let joined = match &ready.spec {
        Some(spec) => windows(engine, &ready, spec, probe, rows, memory).await,
        None => as_of(engine, &ready, probe, rows, memory, last_resort).await,
    };
    joined.map_err(|error| of_view(&view.name, error))
}

/// The caller's fault with the view's name before it.
fn of_view(view: &str, error: Error) -> Error {
    match error.kind() {
        model::Kind::InvalidArgument => {
            Error::of_class(error.kind(), error.class(), format!("feature view {view}: {}", error.message()))
        }
        _ => error,
    }
}

/// The last row for each entity row. What an entity row was to know by then is found in the order in which rows became
/// known; else the files are read as they are. Where what is kept of them does not fit into memory, they are sorted as
/// the `last_resort`; before that the entity rows are too many (`TooLarge`).
async fn as_of(
    engine: &Engine,
    ready: &Ready,
    probe: &Arc<Sorted>,
    rows: &Arc<KeyRows>,
    memory: Arc<MemoryReservation>,
    last_resort: bool,
) -> Result<Joined> {
    let (cut, view) = (&ready.cut, &ready.part.view);
    let unsorted =
        if cut.known.is_some() { None } else { unsorted::as_of(engine, ready, probe, rows, &memory).await? };
    let found = if let Some(found) = unsorted {
        found
    } else if !last_resort && cut.known.is_none() {
        return Err(parts::too_many());
    } else {
        metrics::sorted(&view.name);
        sorted(engine, ready, probe, rows, &memory).await?
    };
    let mut columns = Vec::with_capacity(cut.values.len());
    // A column's chunks go when they are one.
    for (i, (feature, chunks)) in ready.part.features.iter().zip(found.columns).enumerate() {
        let column: ArrayRef = if chunks.is_empty() {
            new_empty_array(&ready.output_type(i, feature.value_type)?)
        } else {
            let chunks: Vec<&dyn arrow::array::Array> = chunks.iter().map(AsRef::as_ref).collect();
            concat(&chunks).map_err(arrow_error)?
        };
        columns.push(to_registered(&cut.values[i], &column, feature.value_type)?);
    }
    let kept: usize = columns.iter().map(|column| column.get_array_memory_size()).sum();
    memory.try_resize(kept).map_err(engine_error)?;
    metrics::scanned(&view.name, found.scanned);
    let matched = found.index.len() - arrow::array::Array::null_count(&found.index);
    metrics::joined(&view.name, probe.rows() as u64, matched as u64);
    Ok(Joined { columns, index: Some(found.index), _memory: memory })
}

/// The rows of a view that some entity row matched.
struct Found {
    /// Of each value its chunks.
    columns: Vec<Vec<ArrayRef>>,
    /// Which of the rows each entity row has.
    index: UInt32Array,
    /// How many rows were read.
    scanned: u64,
}

async fn sorted(
    engine: &Engine,
    ready: &Ready,
    probe: &Sorted,
    rows: &KeyRows,
    memory: &MemoryReservation,
) -> Result<Found> {
    let (cut, view) = (&ready.cut, &ready.part.view);
    // The sort takes whatever there is; some of it is for the rows that are kept meanwhile, unless there is not so much.
    let _ = memory.try_resize(engine.memory_limit() / KEPT);
    let mut latest = Known::new(Latest::new(probe.rows(), view.ttl_us));
    let mut merge = Merge::new(probe, rows)?;
    let mut kept = Kept::default();
    let mut carry: Option<RecordBatch> = None;
    let mut scanned = 0;
    if !merge.is_done() {
        let mut chunks = engine.read(&ready.table, cut, cut.order(Order::KeyTimeCreated)).await?;
        while !merge.is_done()
            && let Some(chunk) = chunks.next().await
        {
            let chunk = chunk.map_err(engine_error)?;
            scanned += chunk.num_rows() as u64;
            let (keys, times) = sides(&chunk, cut, rows)?;
            latest.chunk(&chunk, cut)?;
            merge.push(&keys, times.values(), &mut latest)?;
            keep(&mut latest, &chunk, &mut carry, &mut kept, memory)?;
            tokio::task::yield_now().await;
        }
        merge.finish(&mut latest)?;
        if let Some(last) = carry.clone() {
            keep(&mut latest, &last, &mut carry, &mut kept, memory)?;
        }
    }
    let mut columns = vec![Vec::with_capacity(kept.batches.len()); cut.values.len()];
    for rows in &kept.batches {
        for (all, column) in columns.iter_mut().zip(&rows.columns()[cut.values_at()..]) {
            all.push(column.clone());
        }
    }
    // One column is copied at a time.
    let peak = kept.bytes + kept.bytes / cut.values.len().max(1);
    memory.try_resize(memory.size().max(peak)).map_err(engine_error)?;
    Ok(Found { columns, index: UInt32Array::from(latest.slots()), scanned })
}

/// Rows that were matched.
#[derive(Default)]
struct Kept {
    batches: Vec<RecordBatch>,
    bytes: usize,
}

/// Keeps the rows of a chunk that were matched, and the row that later entity rows may still match.
fn keep(
    latest: &mut Known,
    chunk: &RecordBatch,
    carry: &mut Option<RecordBatch>,
    kept: &mut Kept,
    memory: &MemoryReservation,
) -> Result<()> {
    let (picks, next) = latest.drain();
    if !picks.is_empty() {
        let before = carry.as_ref().unwrap_or(chunk);
        let at: Vec<(usize, usize)> = picks
            .iter()
            .map(|p| match p {
                Pick::Carried => (0, 0),
                Pick::Row(row) => (1, *row),
            })
            .collect();
        let rows = interleave_record_batch(&[before, chunk], &at).map_err(arrow_error)?;
        kept.bytes += rows.get_array_memory_size();
        kept.batches.push(rows);
        memory.try_resize(memory.size().max(kept.bytes)).map_err(engine_error)?;
    }
    if let Some(row) = next {
        *carry = Some(interleave_record_batch(&[chunk], &[(0, row)]).map_err(arrow_error)?);
    }
    Ok(())
}

async fn windows(
    engine: &Engine,
    ready: &Ready,
    spec: &Spec,
    probe: &Sorted,
    rows: &KeyRows,
    memory: Arc<MemoryReservation>,
) -> Result<Joined> {
    let (cut, view) = (&ready.cut, &ready.part.view);
    let per_row = size_of::<model::Value>() * ready.part.features.len();
    memory.try_grow(per_row * probe.rows()).map_err(engine_error)?;
    let mut fold = Windows::new(view, spec, &ready.part.features, probe.rows());
    let mut merge = Merge::new(probe, rows)?;
    let mut scanned = 0;
    if !merge.is_done() {
        let mut chunks = engine.read(&ready.table, cut, cut.order(Order::KeyTime)).await?;
        while !merge.is_done()
            && let Some(chunk) = chunks.next().await
        {
            let chunk = chunk.map_err(engine_error)?;
            scanned += chunk.num_rows() as u64;
            let (keys, times) = sides(&chunk, cut, rows)?;
            let first = cut.values_at();
            let at = cut.known.as_ref().map(|_| micros(&cut.time, chunk.column(cut.time_at()))).transpose()?;
            fold.chunk(&chunk.columns()[first..first + cut.values.len()], at)?;
            merge.push(&keys, times.values(), &mut fold)?;
            tokio::task::yield_now().await;
        }
        merge.finish(&mut fold)?;
    }
    let (answers, matched) = fold.finish()?;
    let columns = answers
        .iter()
        .zip(&ready.part.features)
        .map(|(values, f)| from_values(values, &arrow_type(f.value_type, None)).map_err(|e| in_column(&f.name, &e)))
        .collect::<Result<_>>()?;
    metrics::scanned(&view.name, scanned);
    metrics::joined(&view.name, probe.rows() as u64, matched);
    Ok(Joined { columns, index: None, _memory: memory })
}

/// A chunk's keys in comparable form, and the times in µs that it is merged at.
pub(crate) fn sides(chunk: &RecordBatch, cut: &Cut, rows: &KeyRows) -> Result<(arrow::row::Rows, Int64Array)> {
    let mut keys = Vec::with_capacity(cut.keys.len());
    for (i, (name, key_type)) in cut.keys.iter().enumerate() {
        keys.push(key_type.of_source(name, chunk.column(i))?);
    }
    let times = micros(&cut.time, chunk.column(cut.merged_at()))?;
    Ok((rows.rows(&keys, chunk.num_rows())?, times))
}
