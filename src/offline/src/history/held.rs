//! A view's history in memory, for views with far fewer rows than the entity frame has: it is read and sorted once, and
//! entity rows are looked up in it as they come, so that they need no order and go out at once. Knows no frame's end.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, new_empty_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use model::Result;

use super::{Joined, Ready, of_view};
use crate::asof::Keys;
use crate::asof::index::{Cursors, Index};
use crate::asof::unsorted::Ranks;
use crate::convert::{micros, to_registered};
use crate::engine::{Engine, Order};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::frame::Rows;
use crate::keys::{KeyRows, KeyType};
use crate::metrics;

/// A view's history is held where the entity frame has so many times as many rows.
const TIMES: usize = 4;
/// And where it takes about one in so many bytes of the memory limit.
const PART: usize = 8;

/// A history in memory.
pub(super) struct Held {
    index: Index,
    /// Its features, row by row as in the files.
    columns: Vec<ArrayRef>,
    rows: KeyRows,
    cursors: Cursors,
    memory: Arc<MemoryReservation>,
}

impl Ready {
    /// How many rows an entity frame has to have that this view's history is held for; `None` where it never is.
    pub(super) fn held_for(&self, engine: &Engine) -> Option<usize> {
        let rows = self.table.rows();
        let bytes = rows.saturating_mul(self.width() + Index::EACH);
        let fits = self.spec.is_none() && self.cut.known.is_none() && bytes <= engine.memory_limit() / PART;
        fits.then(|| rows.saturating_mul(TIMES).max(1))
    }
}

impl Held {
    /// Reads a history; `None` where it does not fit into memory after all.
    pub(super) async fn read(engine: &Engine, ready: &Ready) -> Result<Option<Self>> {
        Self::try_read(engine, ready).await.map_err(|error| of_view(&ready.part.view.name, error))
    }

    async fn try_read(engine: &Engine, ready: &Ready) -> Result<Option<Self>> {
        let mut cut = ready.cut.clone();
        cut.only_keyed = true;
        let memory = Arc::new(engine.reservation("a history in memory"));
        let mut chunks = engine.read(&ready.table, &cut, Order::File).await?;
        let schema = chunks.schema();
        let mut read: Vec<RecordBatch> = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(engine_error)?;
            // One column is copied at a time, and the keys and times are kept beside.
            if memory.try_grow(2 * chunk.get_array_memory_size() + chunk.num_rows() * Index::EACH).is_err() {
                return Ok(None);
            }
            read.push(chunk);
        }
        let count: usize = read.iter().map(RecordBatch::num_rows).sum();
        let whole = |at: usize| -> Result<ArrayRef> {
            let chunks: Vec<&dyn Array> = read.iter().map(|batch| batch.column(at).as_ref()).collect();
            if chunks.is_empty() {
                return Ok(new_empty_array(schema.field(at).data_type()));
            }
            concat(&chunks).map_err(arrow_error)
        };
        let types: Vec<KeyType> = cut.keys.iter().map(|(_, key)| *key).collect();
        let rows = KeyRows::new(&types)?;
        let keys = cut.keys.iter().enumerate().map(|(at, (name, key))| key.of_source(name, &whole(at)?));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let time = whole(cut.time_at())?;
        let times = raw(&cut.time, &time)?;
        let created = match (&cut.created, cut.created_at()) {
            (Some(name), Some(at)) => Some(raw(name, &whole(at)?)?),
            _ => None,
        };
        let ranks = Ranks { times: &times, created: created.as_ref(), order: 0 };
        let index = Index::new(&keys, &micros(&cut.time, &time)?, &ranks, &rows)?;
        let mut columns = Vec::with_capacity(cut.values.len());
        for (i, feature) in ready.part.features.iter().enumerate() {
            let column = whole(cut.values_at() + i)?;
            columns.push(to_registered(&cut.values[i], &column, feature.value_type)?);
        }
        metrics::scanned(&ready.part.view.name, count as u64);
        let kept: usize = columns.iter().map(Array::get_array_memory_size).sum();
        if memory.try_resize(kept + index.bytes()).is_err() {
            return Ok(None);
        }
        Ok(Some(Self { index, columns, rows, cursors: Cursors::default(), memory }))
    }

    /// The features of some entity rows with these times (µs).
    pub(super) fn join(&mut self, frame: &Rows, times: &Int64Array, ready: &Ready) -> Result<Joined> {
        let named = ready.part.keys().into_iter().zip(&ready.cut.keys);
        let keys = named.map(|((_, column), (_, key))| key.of_frame(column, &frame.column(column)?));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let nulls = keys.iter().map(|key| key.nulls());
        let nulls = nulls.fold(times.nulls().cloned(), |a, b| NullBuffer::union(a.as_ref(), b));
        let view = &ready.part.view;
        let keys = Keys::of(&keys, &self.rows, times.len())?;
        let index = self.index.find(&keys, times, nulls.as_ref(), view.ttl_us, &mut self.cursors);
        metrics::joined(&view.name, index.len() as u64, (index.len() - index.null_count()) as u64);
        Ok(Joined { columns: self.columns.clone(), index: Some(index), _memory: self.memory.clone() })
    }
}

/// Times in their own unit, which order as they do; in µs where they are no numbers.
pub(super) fn raw(name: &str, column: &ArrayRef) -> Result<Int64Array> {
    match column.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            let numbers = cast(column, &DataType::Int64).map_err(arrow_error)?;
            Ok(numbers.as_primitive::<Int64Type>().clone())
        }
        _ => micros(name, column),
    }
}
