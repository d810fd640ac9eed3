//! The entity rows of a request that names a span of time instead of them: every key with a row in it, at its end. Keys
//! are told apart in a set where they fit into memory; else each view's are sorted, which spills, and merged with those of
//! the views before, which wait on disk. Knows no features.
//!
//! Source: `compute_non_entity_date_range` in `feast/utils.py`.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use model::{Error, Result};

use crate::convert::{arrow_type, strict_cast, timestamps, utc_micros};
use crate::engine::{Cut, Engine, Order, blocking};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::frame::{Batches, Frame};
use crate::history::Ready;
use crate::keys::KeyType;

const DAY: i64 = 86_400_000_000;

/// The entity rows of a request without an entity frame: every key with a row in the span, at its end; with a row that
/// was known by then, where that is asked for.
///
/// Errors (`InvalidArgument`): views with different join keys, for whose combinations there is no rule.
pub(crate) async fn entity_rows(engine: &Engine, parts: &[Ready], from: Option<i64>, to: i64) -> Result<Frame> {
    let widest = parts.iter().map(|p| p.part.view.ttl_us).max().filter(|ttl| *ttl > 0).unwrap_or(30 * DAY);
    let keys = Keys::new(engine, parts, from.unwrap_or(to - widest), to)?;
    let mut rows = EntityRows::new(engine, &keys, to);
    if keys.columns.is_empty() {
        rows.push(&[], 1).await?;
        return Ok(rows.frame);
    }
    if let Some(found) = keys.in_memory().await? {
        let mut found = found.iter().map(OwnedRow::row);
        loop {
            let some = found.by_ref().take(engine.batch_rows().max(1));
            let some = keys.converter.convert_rows(some).map_err(arrow_error)?;
            let count = some.first().map_or(0, |column| column.len());
            rows.push(&some, count).await?;
            if count < engine.batch_rows().max(1) {
                return Ok(rows.frame);
            }
        }
    }
    tracing::info!("the keys of a span of time do not fit into memory: sorting");
    let mut stored = Stored::of(Some(keys.sorted().await?))?;
    while let Some(some) = stored.next().await? {
        rows.push(some.columns(), some.num_rows()).await?;
    }
    Ok(rows.frame)
}

/// The keys of all views.
struct Keys<'a> {
    engine: &'a Engine,
    /// The entity rows' columns.
    columns: Vec<&'a str>,
    /// Their types there.
    targets: Vec<DataType>,
    /// The form in which they are compared.
    types: Vec<KeyType>,
    converter: RowConverter,
    /// What is read of each view: the key columns in this order.
    views: Vec<(&'a Ready, Cut)>,
}

impl<'a> Keys<'a> {
    fn new(engine: &'a Engine, parts: &'a [Ready], from: i64, to: i64) -> Result<Self> {
        let first = parts.first().map(|p| p.part.keys()).unwrap_or_default();
        let columns: Vec<&str> = first.iter().map(|(_, column)| *column).collect();
        let types: Vec<KeyType> = parts.first().iter().flat_map(|p| &p.cut.keys).map(|(_, t)| *t).collect();
        let mut views = Vec::with_capacity(parts.len());
        for ready in parts {
            let theirs = ready.part.keys();
            let places = columns.iter().map(|column| theirs.iter().position(|(_, c)| c == column));
            let (Some(order), true) = (places.collect::<Option<Vec<usize>>>(), theirs.len() == columns.len()) else {
                return Err(Error::invalid(format!(
                    "without an entity dataframe all feature views need the same join keys: {} has others than {}; pass an \
                     entity_df",
                    ready.part.view.name, parts[0].part.view.name
                )));
            };
            let cut = Cut {
                keys: order.iter().map(|&place| ready.cut.keys[place].clone()).collect(),
                values: Vec::new(),
                from: Some(from),
                to: Some(to),
                only_keyed: true,
                ..ready.cut.clone()
            };
            views.push((ready, cut));
        }
        let targets = first.iter().zip(&types).map(|((key, _), t)| arrow_type(key.value_type, Some(&t.arrow())));
        let fields = types.iter().map(|t| SortField::new(t.arrow())).collect();
        let converter = RowConverter::new(fields).map_err(arrow_error)?;
        Ok(Self { engine, targets: targets.collect(), columns, types, converter, views })
    }

    /// A chunk's keys.
    fn of_chunk(&self, cut: &Cut, chunk: &RecordBatch) -> Result<Rows> {
        let keys = cut.keys.iter().zip(&self.columns).zip(chunk.columns());
        let keys = keys.map(|(((_, t), name), column)| t.of_source(name, column)).collect::<Result<Vec<_>>>()?;
        self.converter.convert_columns(&keys).map_err(arrow_error)
    }

    /// All keys, each once; `None` where they take more memory than there is for it.
    async fn in_memory(&self) -> Result<Option<BTreeSet<OwnedRow>>> {
        let mut seen: BTreeSet<OwnedRow> = BTreeSet::new();
        let memory = self.engine.reservation("entity rows");
        for (ready, cut) in &self.views {
            let mut chunks = self.engine.read(&ready.table, cut, Order::File).await?;
            while let Some(chunk) = chunks.next().await {
                for row in &self.of_chunk(cut, &chunk.map_err(engine_error)?)? {
                    let row = row.owned();
                    let size = row.as_ref().len() + 2 * size_of::<OwnedRow>();
                    if !seen.insert(row) {
                        continue;
                    }
                    let fits = memory.size() + size <= self.engine.hash_bytes();
                    if !fits || memory.try_grow(size).is_err() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(seen))
    }

    /// All keys, each once, in their order and in the form in which they are compared.
    async fn sorted(&self) -> Result<Frame> {
        let mut before = None;
        for (ready, cut) in &self.views {
            let chunks = self.engine.read(&ready.table, cut, Order::KeyTime).await?;
            before = Some(self.merged(before, cut, chunks).await?);
        }
        before.ok_or_else(|| Error::new(model::Kind::Internal, "a request without a view"))
    }

    /// The keys of the views before, and those of one more, which come sorted.
    async fn merged(&self, before: Option<Frame>, cut: &Cut, chunks: SendableRecordBatchStream) -> Result<Frame> {
        let mut chunks = chunks.fuse();
        let (mut stored, mut merged) = (Stored::of(before)?, Distinct::new(self));
        let (mut old, mut new): (Option<Side>, Option<Side>) = (None, None);
        loop {
            if old.as_ref().is_none_or(Side::is_spent) {
                let next = stored.next().await?;
                let rows = next.map(|batch| self.converter.convert_columns(batch.columns())).transpose();
                old = rows.map_err(arrow_error)?.map(Side::new);
            }
            while new.as_ref().is_none_or(Side::is_spent) {
                let Some(chunk) = chunks.next().await else {
                    new = None;
                    break;
                };
                new = Some(Side::new(self.of_chunk(cut, &chunk.map_err(engine_error)?)?));
            }
            // Until one of them must read on.
            loop {
                let least = match (&mut old, &mut new) {
                    (None, None) => return merged.finish().await,
                    (Some(one), None) | (None, Some(one)) => one,
                    (Some(old), Some(new)) if old.row() <= new.row() => old,
                    (Some(_), Some(new)) => new,
                };
                merged.push(least.row());
                least.at += 1;
                if least.is_spent() || merged.is_full() {
                    break;
                }
            }
            merged.flush(false).await?;
        }
    }
}

/// Sorted keys, up to one of them.
struct Side {
    rows: Rows,
    at: usize,
}

impl Side {
    fn new(rows: Rows) -> Self {
        Self { rows, at: 0 }
    }

    fn is_spent(&self) -> bool {
        self.at >= self.rows.num_rows()
    }

    fn row(&self) -> Row<'_> {
        self.rows.row(self.at)
    }
}

/// Keys that wait in a frame.
struct Stored {
    /// The frame is there for as long as it is read.
    frame: Option<Frame>,
    batches: Option<Batches>,
}

impl Stored {
    fn of(frame: Option<Frame>) -> Result<Self> {
        let batches = frame.as_ref().map(Frame::batches).transpose()?;
        Ok(Self { frame, batches })
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(mut batches) = self.batches.take() else { return Ok(None) };
        let (batches, next) = blocking(move || {
            let next = batches.find(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0)).transpose()?;
            Ok((batches, next))
        })
        .await?;
        match next {
            Some(_) => self.batches = Some(batches),
            None => self.frame = None,
        }
        Ok(next)
    }
}

/// Sorted keys on their way into a frame, each once.
struct Distinct<'a> {
    keys: &'a Keys<'a>,
    schema: SchemaRef,
    frame: Frame,
    last: Option<OwnedRow>,
    waiting: Rows,
}

impl<'a> Distinct<'a> {
    fn new(keys: &'a Keys<'a>) -> Self {
        let fields = keys.columns.iter().zip(&keys.types).map(|(name, t)| Field::new(*name, t.arrow(), false));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let memory = keys.engine.reservation("keys of a span");
        let frame = Frame::new(schema.clone(), memory, Some(keys.engine.room()));
        let waiting = keys.converter.empty_rows(keys.engine.batch_rows(), 0);
        Self { keys, schema, frame, last: None, waiting }
    }

    fn push(&mut self, row: Row<'_>) {
        if self.last.as_ref().is_none_or(|last| last.row() != row) {
            self.last = Some(row.owned());
            self.waiting.push(row);
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.num_rows() >= self.keys.engine.batch_rows()
    }

    /// Writes what waits, if it is enough or the `last`.
    async fn flush(&mut self, last: bool) -> Result<()> {
        if !last && !self.is_full() {
            return Ok(());
        }
        let columns = self.keys.converter.convert_rows(&self.waiting).map_err(arrow_error)?;
        self.waiting.clear();
        self.frame.push(RecordBatch::try_new(self.schema.clone(), columns).map_err(arrow_error)?).await
    }

    async fn finish(mut self) -> Result<Frame> {
        self.flush(true).await?;
        Ok(self.frame)
    }
}

/// The entity rows as they are made of keys.
struct EntityRows {
    schema: SchemaRef,
    targets: Vec<DataType>,
    to: i64,
    frame: Frame,
}

impl EntityRows {
    fn new(engine: &Engine, keys: &Keys<'_>, to: i64) -> Self {
        let mut fields = vec![Field::new("event_timestamp", utc_micros(), false)];
        fields.extend(keys.columns.iter().zip(&keys.targets).map(|(name, t)| Field::new(*name, t.clone(), false)));
        let schema = Arc::new(Schema::new(fields));
        let frame = Frame::new(schema.clone(), engine.reservation("entity rows"), Some(engine.room()));
        Self { schema, targets: keys.targets.clone(), to, frame }
    }

    async fn push(&mut self, keys: &[ArrayRef], rows: usize) -> Result<()> {
        let mut columns = vec![timestamps(Int64Array::from(vec![self.to; rows]), &utc_micros())];
        for (key, target) in keys.iter().zip(&self.targets) {
            columns.push(match target {
                DataType::Timestamp(..) => timestamps(key.as_primitive().clone(), target),
                _ => strict_cast(key, target)?,
            });
        }
        self.frame.push(RecordBatch::try_new(self.schema.clone(), columns).map_err(arrow_error)?).await
    }
}
