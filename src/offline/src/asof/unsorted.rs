//! The point-in-time join of a build side in the order of its files: no sort of it, one pass.
//!
//! The entity rows of a key, sorted by time, cut the time before them into slots, one per row: a build row falls into the
//! slot of the first entity row that is not earlier. Of each slot the greatest row by (event time, created time, file
//! order) is kept; in the end it is the answer for its entity row and for the later ones of the key until the next slot
//! with a row. Memory: a slot for each entity row, and the kept rows, which are never more than the slots but for those
//! that were superseded since the last [compaction](Unsorted::compact). Knows no files, no plan, no I/O.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::Int64Type;
use arrow::row::Rows;
use foldhash::fast::RandomState;
use model::Result;

use super::Probe;
use crate::error::arrow as arrow_error;

/// The entity rows of one key: where they stand in the probe's order.
type Run = (u32, u32);

/// Finds a key's entity rows.
enum Lookup {
    /// By one integer, which most keys are.
    Int(HashMap<i64, Run, RandomState>),
    /// By the comparable bytes.
    Bytes(HashMap<Box<[u8]>, Run, RandomState>),
}

/// What is kept of a slot; `batch` is [`NOTHING`] where nothing is.
#[derive(Clone, Copy)]
struct Slot {
    micros: i64,
    time: i64,
    created: i64,
    batch: u32,
    row: u32,
}

const NOTHING: u32 = u32::MAX;
const EMPTY: Slot = Slot { micros: 0, time: 0, created: 0, batch: NOTHING, row: 0 };

/// The ranks of a chunk's rows, which compare as the source's own times do.
pub(crate) struct Ranks<'a> {
    /// Times in µs, to be held against those of entity rows.
    pub(crate) micros: &'a Int64Array,
    /// Event times in the source's unit.
    pub(crate) times: &'a Int64Array,
    /// Created times in the source's unit, if it has any.
    pub(crate) created: Option<&'a Int64Array>,
}

/// The keys of a chunk's rows.
pub(crate) enum Keys<'a> {
    /// One integer each.
    Int(&'a Int64Array),
    /// In comparable form.
    Rows(&'a Rows),
}

/// The join between chunks.
pub(crate) struct Unsorted<'a> {
    probe: &'a Probe,
    /// The entity rows' times in the probe's order.
    times: Vec<i64>,
    lookup: Lookup,
    slots: Vec<Slot>,
    /// How many slots have a row.
    live: usize,
    ttl_us: i64,
    /// Chunks are copied from when they take more than this, bytes.
    room: usize,
    /// The columns of kept rows; those from `raw` on are chunks as they came.
    batches: Vec<RecordBatch>,
    raw: usize,
    /// The slots that were filled since the last compaction, some of them several times.
    touched: Vec<u32>,
    settled_bytes: usize,
    raw_bytes: usize,
}

/// What the join found.
pub(crate) struct Found {
    /// The kept rows.
    pub(crate) batches: Vec<RecordBatch>,
    /// For each entity row of the frame, which of the kept rows (counted over all batches) is its own.
    pub(crate) index: Vec<Option<u32>>,
}

impl<'a> Unsorted<'a> {
    /// Before the first chunk. `keys` are the probe's key parts; a ttl of 0 µs is none; chunks may take `room` bytes
    /// before their live rows are copied.
    pub(crate) fn new(probe: &'a Probe, keys: &[ArrayRef], ttl_us: i64, room: usize) -> Self {
        let int = match keys {
            [only] => only.as_primitive_opt::<Int64Type>(),
            _ => None,
        };
        let order = &probe.order;
        let runs = order.chunk_by(|a, b| probe.keys.row(*a as usize) == probe.keys.row(*b as usize));
        let mut start = 0;
        let runs = runs.map(|run| {
            let first = start;
            start += run.len() as u32;
            (run[0] as usize, (first, start))
        });
        let lookup = match int {
            Some(keys) => Lookup::Int(runs.map(|(row, run)| (keys.value(row), run)).collect()),
            None => Lookup::Bytes(runs.map(|(row, run)| (probe.keys.row(row).as_ref().into(), run)).collect()),
        };
        let times: Vec<i64> = order.iter().map(|row| probe.times.value(*row as usize)).collect();
        let slots = vec![EMPTY; times.len()];
        Self {
            probe,
            times,
            lookup,
            slots,
            live: 0,
            ttl_us,
            room,
            batches: Vec::new(),
            raw: 0,
            touched: Vec::new(),
            settled_bytes: 0,
            raw_bytes: 0,
        }
    }

    /// Whether keys are looked up as integers.
    pub(crate) fn by_int(&self) -> bool {
        matches!(self.lookup, Lookup::Int(_))
    }

    /// What a join of these entity rows takes at least, before anything of it is made, bytes.
    pub(crate) fn least_bytes(probe: &Probe) -> usize {
        probe.order.len() * (size_of::<Slot>() + size_of::<i64>())
    }

    /// What the join takes of memory, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let keys = match &self.lookup {
            Lookup::Int(runs) => runs.capacity() * size_of::<(i64, Run)>(),
            Lookup::Bytes(runs) => runs.capacity() * (size_of::<(Box<[u8]>, Run)>() + 32),
        };
        keys + Self::least_bytes(self.probe)
            + self.touched.len() * size_of::<u32>()
            + self.settled_bytes
            + self.raw_bytes
    }

    /// Takes the next chunk: the keys and ranks of its rows, and the columns that are kept of them.
    pub(crate) fn push(&mut self, keys: &Keys<'_>, ranks: &Ranks<'_>, columns: RecordBatch) -> Result<()> {
        let batch = self.batches.len() as u32;
        let before = self.touched.len();
        for row in 0..columns.num_rows() {
            let run = match (&self.lookup, keys) {
                (Lookup::Int(runs), Keys::Int(keys)) => runs.get(&keys.value(row)),
                (Lookup::Bytes(runs), Keys::Rows(keys)) => runs.get(keys.row(row).as_ref()),
                _ => None,
            };
            let Some(&(start, end)) = run else { continue };
            let micros = ranks.micros.value(row);
            let times = &self.times[start as usize..end as usize];
            let at = times.partition_point(|time| *time < micros);
            let Some(next) = times.get(at) else { continue };
            // whom it does not reach, it does not reach later
            if self.ttl_us > 0 && micros < next.saturating_sub(self.ttl_us) {
                continue;
            }
            let created = ranks.created.filter(|created| created.is_valid(row));
            let found = Slot {
                micros,
                time: ranks.times.value(row),
                created: created.map_or(i64::MIN, |created| created.value(row)),
                batch,
                row: row as u32,
            };
            let place = start as usize + at;
            let slot = &mut self.slots[place];
            self.live += usize::from(slot.batch == NOTHING);
            if slot.batch == NOTHING || (found.time, found.created) >= (slot.time, slot.created) {
                *slot = found;
                self.touched.push(place as u32);
            }
        }
        if self.touched.len() > before {
            self.raw_bytes += columns.get_array_memory_size();
            self.batches.push(columns);
        }
        if self.raw_bytes > self.room { self.compact() } else { Ok(()) }
    }

    /// Copies the live rows of the chunks since the last time, and lets go of the chunks; copies all live rows where
    /// more than half of the kept ones are not.
    pub(crate) fn compact(&mut self) -> Result<()> {
        let raw = self.raw as u32;
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        self.gather(&touched, raw)?;
        let kept: usize = self.batches.iter().map(RecordBatch::num_rows).sum();
        if kept > 2 * self.live && self.settled_bytes > self.room {
            let all: Vec<u32> = (0..self.slots.len() as u32).collect();
            self.gather(&all, 0)?;
        }
        Ok(())
    }

    /// Copies what these slots have in batches from `first` on into one new batch in the place of those.
    fn gather(&mut self, slots: &[u32], first: u32) -> Result<()> {
        let mut from = Vec::new();
        for &place in slots {
            let slot = &mut self.slots[place as usize];
            if slot.batch != NOTHING && slot.batch >= first {
                from.push(((slot.batch - first) as usize, slot.row as usize));
                (slot.batch, slot.row) = (first, from.len() as u32 - 1);
            }
        }
        let old = self.batches.split_off(first as usize);
        if !from.is_empty() {
            let old: Vec<&RecordBatch> = old.iter().collect();
            self.batches.push(interleave_record_batch(&old, &from).map_err(arrow_error)?);
        }
        self.raw = self.batches.len();
        self.settled_bytes = self.batches.iter().map(RecordBatch::get_array_memory_size).sum();
        self.raw_bytes = 0;
        Ok(())
    }

    /// The answers: no build row comes any more.
    pub(crate) fn finish(mut self) -> Result<Found> {
        self.compact()?;
        let mut base = Vec::with_capacity(self.batches.len());
        let mut rows = 0;
        for batch in &self.batches {
            base.push(rows);
            rows += batch.num_rows() as u32;
        }
        let mut index = vec![None; self.probe.rows()];
        let runs: Vec<Run> = match &self.lookup {
            Lookup::Int(runs) => runs.values().copied().collect(),
            Lookup::Bytes(runs) => runs.values().copied().collect(),
        };
        for (start, end) in runs {
            let mut last: Option<(i64, u32)> = None;
            for place in start as usize..end as usize {
                let slot = self.slots[place];
                if slot.batch != NOTHING {
                    last = Some((slot.micros, base[slot.batch as usize] + slot.row));
                }
                let reached = |micros: i64| self.ttl_us == 0 || micros >= self.times[place].saturating_sub(self.ttl_us);
                index[self.probe.order[place] as usize] =
                    last.filter(|(micros, _)| reached(*micros)).map(|(_, row)| row);
            }
        }
        Ok(Found { batches: self.batches, index })
    }
}
