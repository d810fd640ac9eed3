//! The join of a view's history in the order in which it is read ([`crate::asof::unsorted`]): pieces of the files are
//! decoded by some tasks, and joined by others. Knows no frame and no result.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use model::{Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::held::raw;
use super::locator::Locator;
use super::{Found, Ready};
use crate::asof::Sorted;
use crate::asof::unsorted::{Ranks, Slots, gather};
use crate::engine::{Cut, Engine, InPieces};
use crate::error::engine as engine_error;
use crate::keys::KeyRows;

/// Superseded rows are not let go of before kept ones take more than this, bytes; and as a part of the memory limit.
const ROOM: usize = 32 << 20;
const PART: usize = 16;
/// Chunks that are read ahead.
const AHEAD: usize = 4;
/// The bits of a row's number within its piece.
const ROW_BITS: u32 = 40;

/// A join at work.
struct Join {
    locator: Arc<Locator>,
    cut: Cut,
    room: usize,
    /// With what they take of the limit.
    slots: Mutex<Slots>,
    memory: Arc<MemoryReservation>,
    scanned: AtomicUsize,
}

/// Rows as they were read.
struct Chunk {
    rows: RecordBatch,
    /// Where the first one stands in the files.
    order: u64,
    /// Whether they are only those that some entity row may match.
    located: bool,
}

/// Why a join stopped.
enum Stop {
    /// What must be kept does not fit into the memory limit.
    Full,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Joins; `None` where what must be kept does not fit into the memory limit. `memory` holds what is found, then, and
/// one column more.
pub(super) async fn as_of(
    engine: &Engine,
    ready: &Ready,
    probe: &Arc<Sorted>,
    rows: &Arc<KeyRows>,
    memory: &Arc<MemoryReservation>,
) -> Result<Option<Found>> {
    let (cut, ttl_us) = (&ready.cut, ready.part.view.ttl_us);
    if memory.try_resize(Slots::least_bytes(probe)).is_err() {
        return Ok(None);
    }
    let join = Arc::new(Join {
        locator: Arc::new(Locator::new(probe.clone(), rows.clone(), cut.clone(), ttl_us)),
        cut: cut.clone(),
        room: ROOM.min(engine.memory_limit() / PART),
        slots: Mutex::new(Slots::new(probe, cut.values.len())),
        memory: memory.clone(),
        scanned: AtomicUsize::new(0),
    });
    if probe.time_range().is_some() {
        let located = join.locator.filter(&ready.table)?;
        let pieces = Arc::new(engine.in_pieces(&ready.table, cut, located).await?);
        match run(engine, &join, &pieces).await {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Full) => {
                memory.free();
                return Ok(None);
            }
        }
    }
    let slots = std::mem::take(&mut *join.slots.lock().unwrap_or_else(PoisonError::into_inner));
    let time_type = ready.table.schema.field_with_name(&cut.time).map_err(crate::error::arrow)?.data_type();
    let found = slots.finish(probe, scale(time_type), ttl_us)?;
    let scanned = join.scanned.load(Ordering::Relaxed) as u64;
    Ok(Some(Found { columns: found.columns, index: found.index, scanned }))
}

async fn run(engine: &Engine, join: &Arc<Join>, pieces: &Arc<InPieces>) -> std::result::Result<(), Stop> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // What several readers hold must fit, too; one reads whatever the limit.
    let buffers = engine.reservation("row groups that are read at the same time");
    let fits = |readers: &usize| buffers.try_resize(pieces.bytes().saturating_mul(*readers)).is_ok();
    let readers = (2..=cores.min(pieces.count())).rev().find(fits).unwrap_or(1);
    let (sender, receiver) = mpsc::channel(AHEAD);
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let next = Arc::new(AtomicUsize::new(0));
    // Dropped, it stops them all.
    let mut tasks = JoinSet::new();
    for _ in 0..readers {
        let (join, pieces, next, sender) = (join.clone(), pieces.clone(), next.clone(), sender.clone());
        tasks.spawn(async move {
            read(&join.locator, &pieces, &next, &sender).await;
            Ok(())
        });
    }
    drop(sender);
    for _ in 0..cores {
        let (join, receiver) = (join.clone(), receiver.clone());
        tasks.spawn(async move {
            loop {
                let chunk = receiver.lock().await.recv().await;
                let Some(chunk) = chunk else { return Ok(()) };
                join.take(&chunk?)?;
                tokio::task::yield_now().await;
            }
        });
    }
    let mut outcome = Ok(());
    while let (Ok(()), Some(ended)) = (&outcome, tasks.join_next().await) {
        outcome = ended.unwrap_or_else(|e| Err(Stop::Failed(Error::internal("a task of the join broke off", e))));
    }
    // Nothing of it goes on when memory is given back.
    tasks.shutdown().await;
    outcome
}

/// Reads one piece after the other that no other reader has.
async fn read(locator: &Locator, pieces: &InPieces, next: &AtomicUsize, sender: &mpsc::Sender<Result<Chunk>>) {
    loop {
        let piece = next.fetch_add(1, Ordering::Relaxed);
        if piece >= pieces.count() {
            return;
        }
        let mut order = (piece as u64) << ROW_BITS;
        let located = locator.is_sparse(pieces.rows());
        let mut stream = match pieces.read(piece, located) {
            Ok(stream) => stream,
            Err(error) => {
                // Nobody is left to be told when the send fails.
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        while let Some(rows) = stream.next().await {
            let count = rows.as_ref().map_or(0, |rows| rows.num_rows() as u64);
            if sender.send(rows.map(|rows| Chunk { rows, order, located }).map_err(engine_error)).await.is_err() {
                return;
            }
            order += count;
        }
    }
}

impl Join {
    fn take(&self, chunk: &Chunk) -> std::result::Result<(), Stop> {
        let (rows, cut) = (&chunk.rows, &self.cut);
        self.scanned.fetch_add(rows.num_rows(), Ordering::Relaxed);
        let time = rows.column(cut.time_at());
        let keys = &rows.columns()[..cut.keys.len()];
        let found = if chunk.located { self.locator.locate(keys, time)? } else { self.locator.counted(keys, time)? };
        if found.is_empty() {
            return Ok(());
        }
        let times = raw(&cut.time, time)?;
        let created = match (&cut.created, cut.created_at()) {
            (Some(name), Some(at)) => Some(raw(name, rows.column(at))?),
            _ => None,
        };
        let ranks = Ranks { times: &times, created: created.as_ref(), order: chunk.order };
        let winners = self.slots.lock().unwrap_or_else(PoisonError::into_inner).apply(&found, &ranks);
        let Some(winners) = winners else { return Ok(()) };
        let first = cut.values_at();
        let columns = gather(&winners, &rows.columns()[first..first + cut.values.len()])?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.keep(&winners, columns);
        if slots.is_loose(self.room) {
            slots.compact()?;
        }
        if self.memory.try_resize(slots.bytes()).is_err() {
            slots.compact()?;
            self.memory.try_resize(slots.bytes()).map_err(|_| Stop::Full)?;
        }
        Ok(())
    }
}

/// From [`raw`] to µs; whose times are beyond what µs can say was refused before.
fn scale(time_type: &DataType) -> fn(i64) -> i64 {
    match time_type {
        DataType::Timestamp(TimeUnit::Second, _) => |t| t.saturating_mul(1_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) | DataType::Date64 => |t| t.saturating_mul(1000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => |t| t.div_euclid(1000),
        DataType::Date32 => |t| t.saturating_mul(86_400_000_000),
        _ => |t| t,
    }
}
