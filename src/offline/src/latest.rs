//! The last row of each key of a source, in batches of an even size: by a hash of the keys where that fits into
//! memory, by sorting (which spills) where it does not. Knows no values and no online store.
//!
//! The hash needs two scans and no sort: the first reads keys and times only and finds the row numbers of the last rows,
//! the second reads everything and keeps those. Both see the same rows in the same order, for a scan has one partition
//! and the files stay open.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, Int64Array, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{BatchCoalescer, cast};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryReservation;
use foldhash::fast::RandomState;
use futures::StreamExt;
use model::{Error, Kind, Result};

use crate::asof::Keys;
use crate::engine::{Cut, Engine, Order, Table};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::keys::{KeyRows, KeyType};
use crate::log::LastPerKey;
use crate::metrics;

/// What a key's bytes take of memory that are allocated, beside themselves.
const ALLOCATION: usize = 16;

/// The last rows, as they come.
pub(crate) struct Latest {
    rows: Rows,
    batches: Option<BatchCoalescer>,
    size: usize,
}

enum Rows {
    Sorted(Box<LastPerKey>),
    Marked(Marked),
}

impl Latest {
    /// Of a cut without [`Cut::only_keyed`]: rows that lack a key or a time are counted. The hash takes at most `memory` bytes;
    /// batches have `size` rows but for the last.
    pub(crate) async fn read(
        engine: &Engine,
        table: &Table,
        cut: Cut,
        view: &str,
        memory: usize,
        size: usize,
    ) -> Result<Self> {
        let rows = if let Some(marked) = Marked::find(engine, table, &cut, view, memory).await? {
            Rows::Marked(marked)
        } else {
            tracing::info!(view, memory, "the keys do not fit into memory: sorting");
            let chunks = engine.read(table, &cut, Order::KeyTimeCreated).await?;
            Rows::Sorted(Box::new(LastPerKey::new(chunks, cut, view)?))
        };
        Ok(Self { rows, batches: None, size })
    }

    /// Rows that were left out so far, for want of a key or a time.
    pub(crate) fn skipped(&self) -> u64 {
        match &self.rows {
            Rows::Sorted(last) => last.skipped(),
            Rows::Marked(marked) => marked.skipped,
        }
    }

    /// The next batch, in the columns of [`Engine::read`]; never an empty one.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.batches.as_mut().and_then(BatchCoalescer::next_completed_batch) {
                return Ok(Some(batch));
            }
            let part = match &mut self.rows {
                Rows::Sorted(last) => last.next().await?.map(|batch| (batch, None)),
                Rows::Marked(marked) => marked.next().await?.map(|(batch, kept)| (batch, Some(kept))),
            };
            let Some((batch, kept)) = part else {
                let Some(batches) = &mut self.batches else { return Ok(None) };
                batches.finish_buffered_batch().map_err(arrow_error)?;
                return Ok(batches.next_completed_batch());
            };
            let size = self.size;
            let batches = self.batches.get_or_insert_with(|| BatchCoalescer::new(batch.schema(), size));
            match kept {
                None => batches.push_batch(batch),
                Some(kept) => batches.push_batch_with_filter(batch, &kept),
            }
            .map_err(arrow_error)?;
        }
    }
}

/// A scan whose rows are marked: the last of each key.
struct Marked {
    chunks: SendableRecordBatchStream,
    marks: BooleanBuffer,
    at: usize,
    view: String,
    skipped: u64,
}

impl Marked {
    /// Scans keys and times. `None` where the keys need more than `memory` bytes, or than there are.
    async fn find(engine: &Engine, table: &Table, cut: &Cut, view: &str, memory: usize) -> Result<Option<Self>> {
        let narrow = Cut { values: Vec::new(), ..cut.clone() };
        let mut chunks = engine.read(table, &narrow, Order::File).await?;
        let mut taken = engine.reservation("the last rows of a view's keys");
        let Some((leaders, rows, skipped)) = leaders(&mut chunks, &narrow, &mut taken, memory).await? else {
            return Ok(None);
        };
        let mut marks = BooleanBufferBuilder::new(rows);
        marks.append_n(rows, false);
        for row in leaders {
            marks.set_bit(row, true);
        }
        drop(taken);
        metrics::skipped(view, skipped);
        let chunks = engine.read(table, cut, Order::File).await?;
        Ok(Some(Self { chunks, marks: marks.finish(), at: 0, view: view.to_owned(), skipped }))
    }

    /// The next rows of the scan, and which of them are the last of their keys.
    async fn next(&mut self) -> Result<Option<(RecordBatch, BooleanArray)>> {
        while let Some(chunk) = self.chunks.next().await {
            let chunk = chunk.map_err(engine_error)?;
            let (start, rows) = (self.at, chunk.num_rows());
            self.at += rows;
            if self.at > self.marks.len() {
                break;
            }
            let kept = self.marks.slice(start, rows);
            if kept.count_set_bits() > 0 {
                return Ok(Some((chunk, BooleanArray::new(kept, None))));
            }
        }
        if self.at != self.marks.len() {
            let (view, rows) = (&self.view, self.marks.len());
            let message = format!("the second scan of view {view} saw {} rows, the first one {rows}", self.at);
            return Err(Error::new(Kind::Internal, message));
        }
        metrics::scanned(&self.view, self.at as u64);
        Ok(None)
    }
}

/// The rows that lead so far, one of each key. What a row is ranked by stands under its key's number.
#[derive(Default)]
struct Leaders {
    /// Of keys of one integer, which most are.
    ints: HashMap<i64, u32, RandomState>,
    /// Of others.
    bytes: HashMap<Box<[u8]>, u32, RandomState>,
    /// Event times in the column's own unit.
    times: Vec<i64>,
    /// Created times in the column's own unit, the least one of rows without; empty where the source has none.
    created: Vec<i64>,
    /// The rows' numbers in the scan.
    rows: Vec<usize>,
    /// Bytes of keys.
    keys: usize,
}

impl Leaders {
    /// What is taken of memory, bytes, were all to double now.
    fn bytes(&self) -> usize {
        let each = size_of::<i64>() + size_of::<usize>() + if self.created.is_empty() { 0 } else { size_of::<i64>() };
        let ints = self.ints.len() * size_of::<(i64, u32)>();
        let bytes = self.bytes.len() * (size_of::<(Box<[u8]>, u32)>() + ALLOCATION);
        self.keys + 2 * (ints + bytes + self.rows.len() * each)
    }

    fn number(&mut self, keys: &Keys<'_>, row: usize) -> u32 {
        let next = self.rows.len() as u32;
        let key = match keys {
            Keys::Int(ints) => return *self.ints.entry(ints.value(row)).or_insert(next),
            Keys::Text(texts) => texts.value(row).as_bytes(),
            Keys::Bytes(bytes) => bytes.value(row),
            Keys::Rows(rows) => rows.row(row).data(),
        };
        if let Some(number) = self.bytes.get(key) {
            return *number;
        }
        self.keys += key.len();
        self.bytes.insert(key.into(), next);
        next
    }

    /// Takes the next row, which leads unless the one before it has a greater (time, created).
    fn take(&mut self, number: u32, time: i64, created: Option<i64>, row: usize) {
        let at = number as usize;
        if at == self.rows.len() {
            self.times.push(time);
            self.created.extend(created);
            self.rows.push(row);
        } else if (self.times[at], self.created.get(at)) <= (time, created.as_ref()) {
            (self.times[at], self.rows[at]) = (time, row);
            if let Some(created) = created {
                self.created[at] = created;
            }
        }
    }
}

/// The leading row of each key of a stream of keys and times, how many rows there were, and how many had no key or time.
/// `None` where that needs too much memory. Of rows with the same times the later one leads.
async fn leaders(
    chunks: &mut SendableRecordBatchStream,
    cut: &Cut,
    taken: &mut MemoryReservation,
    memory: usize,
) -> Result<Option<(Vec<usize>, usize, u64)>> {
    let types: Vec<KeyType> = cut.keys.iter().map(|(_, t)| *t).collect();
    let converter = KeyRows::new(&types)?;
    let mut leaders = Leaders::default();
    let (mut rows, mut skipped) = (0, 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(engine_error)?;
        let mut keys = Vec::with_capacity(types.len());
        for (i, (name, key_type)) in cut.keys.iter().enumerate() {
            keys.push(key_type.of_source(name, chunk.column(i))?);
        }
        let keys = Keys::of(&keys, &converter, chunk.num_rows())?;
        let times = ticks(chunk.column(cut.time_at()))?;
        let created = cut.created_at().map(|at| ticks(chunk.column(at))).transpose()?;
        let needed = &chunk.columns()[..=cut.time_at()];
        let whole = needed.iter().all(|column| column.null_count() == 0);
        for i in 0..chunk.num_rows() {
            if !whole && needed.iter().any(|column| column.is_null(i)) {
                skipped += 1;
                continue;
            }
            let created = created.as_ref().map(|c| if c.is_valid(i) { c.value(i) } else { i64::MIN });
            let number = leaders.number(&keys, i);
            leaders.take(number, times.value(i), created, rows + i);
        }
        rows += chunk.num_rows();
        let needed = leaders.bytes() + rows / 8;
        if needed > memory
            || leaders.rows.len() >= u32::MAX as usize - chunk.num_rows()
            || taken.try_resize(needed).is_err()
        {
            return Ok(None);
        }
    }
    Ok(Some((leaders.rows, rows, skipped)))
}

/// A column of times as numbers in its own unit: what sorting it compares.
fn ticks(column: &ArrayRef) -> Result<Int64Array> {
    let numbers = match column.data_type() {
        DataType::Date32 => cast(&cast(column, &DataType::Int32).map_err(arrow_error)?, &DataType::Int64),
        _ => cast(column, &DataType::Int64),
    };
    Ok(arrow::array::AsArray::as_primitive::<Int64Type>(&numbers.map_err(arrow_error)?).clone())
}
