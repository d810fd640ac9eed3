//! The join of a view's history in the order of its files ([`crate::asof::unsorted`]): read on one thread, joined on
//! another. Knows no frame and no result.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use model::Result;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Found, Ready};
use crate::asof::Probe;
use crate::asof::unsorted::{Keys, Ranks, Unsorted};
use crate::convert::micros;
use crate::engine::{Engine, Order};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::keys::KeyRows;

/// The most that chunks may take before their live rows are copied, bytes; and as a part of the memory limit.
const ROOM: usize = 32 << 20;
const PART: usize = 16;
/// Chunks that are read ahead.
const AHEAD: usize = 4;

/// Joins; `None` where what must be kept does not fit into the memory limit.
pub(super) async fn as_of(
    engine: &Engine,
    ready: &Ready,
    probe: &Probe,
    keys: &[ArrayRef],
    rows: &KeyRows,
    memory: &MemoryReservation,
) -> Result<Option<Found>> {
    let (cut, view) = (&ready.cut, &ready.part.view);
    if memory.try_resize(Unsorted::least_bytes(probe)).is_err() {
        return Ok(None);
    }
    let room = ROOM.min(engine.memory_limit() / PART);
    let mut join = Unsorted::new(probe, keys, view.ttl_us, room);
    let mut scanned = 0;
    if probe.time_range().is_some() {
        let mut stream = engine.read(&ready.table, cut, Order::File).await?;
        let (sender, mut chunks) = mpsc::channel(AHEAD);
        let reader = tokio::spawn(async move {
            while let Some(chunk) = stream.next().await {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
        });
        let _reader = AbortOnDropHandle::new(reader);
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(engine_error)?;
            scanned += chunk.num_rows() as u64;
            push(&mut join, &chunk, ready, rows)?;
            if memory.try_resize(join.bytes()).is_err() {
                join.compact()?;
                if memory.try_resize(join.bytes()).is_err() {
                    memory.free();
                    return Ok(None);
                }
            }
            tokio::task::yield_now().await;
        }
    }
    let found = join.finish()?;
    let kept: usize = found.batches.iter().map(RecordBatch::get_array_memory_size).sum();
    if memory.try_resize(kept).is_err() {
        memory.free();
        return Ok(None);
    }
    Ok(Some(Found { kept: found.batches, values_at: 0, index: found.index, scanned }))
}

fn push(join: &mut Unsorted<'_>, chunk: &RecordBatch, ready: &Ready, rows: &KeyRows) -> Result<()> {
    let cut = &ready.cut;
    let time = chunk.column(cut.time_at());
    let micros = micros(&cut.time, time)?;
    let times = raw(&cut.time, time)?;
    let created = match (&cut.created, cut.created_at()) {
        (Some(name), Some(at)) => Some(raw(name, chunk.column(at))?),
        _ => None,
    };
    let ranks = Ranks { micros: &micros, times: &times, created: created.as_ref() };
    let mut keys = Vec::with_capacity(cut.keys.len());
    for (i, (name, key_type)) in cut.keys.iter().enumerate() {
        keys.push(key_type.of_source(name, chunk.column(i))?);
    }
    let values: Vec<usize> = (cut.values_at()..cut.values_at() + cut.values.len()).collect();
    let columns = chunk.project(&values).map_err(arrow_error)?;
    if join.by_int()
        && let [key] = keys.as_slice()
        && let Some(ints) = key.as_primitive_opt::<Int64Type>()
    {
        return join.push(&Keys::Int(ints), &ranks, columns);
    }
    let keys = rows.rows(&keys, chunk.num_rows())?;
    join.push(&Keys::Rows(&keys), &ranks, columns)
}

/// Times in their own unit, which order as they do; in µs where they are no numbers.
fn raw(name: &str, column: &ArrayRef) -> Result<Int64Array> {
    match cast(column, &DataType::Int64) {
        Ok(numbers) if numbers.null_count() == column.null_count() => Ok(numbers.as_primitive::<Int64Type>().clone()),
        _ => micros(name, column),
    }
}
