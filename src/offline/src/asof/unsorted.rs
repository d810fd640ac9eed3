//! The point-in-time join of a build side in any order: no sort of it, one pass, from several threads.
//!
//! The entity rows of a key, sorted by time, cut the time before them into slots, one per row: a build row falls into the
//! slot of the first entity row that is not earlier ([`Sorted::locate`]). Of each slot the greatest row by (event time,
//! created time, place in the files) is kept; in the end it is the answer for its entity row and for the later ones of
//! the key until the next slot with a row. Since a row's place in the files is part of its rank, chunks may come in any
//! order. A chunk is taken in three steps, of which only the first and the last, which are short, need the slots for
//! themselves: [`Slots::apply`], [`gather`], [`Slots::keep`]. Memory: a slot for each entity row, and the kept rows, of
//! which at most about half are superseded ones ([`Slots::compact`]). Knows no files, no plan, no I/O.

use arrow::array::{Array, ArrayRef, Int64Array, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::{interleave, take};
use model::Result;

use super::Sorted;
use crate::error::arrow as arrow_error;

/// What is kept of a slot; `batch` is [`NOTHING`] where nothing is. What else a row is ranked by stands with its batch.
#[derive(Clone, Copy, Debug)]
struct Slot {
    time: i64,
    batch: u32,
    row: u32,
}

const NOTHING: u32 = u32::MAX;
const EMPTY: Slot = Slot { time: 0, batch: NOTHING, row: 0 };

/// The ranks of a chunk's rows, which compare as the source's own times do.
pub(crate) struct Ranks<'a> {
    /// Event times in the source's unit.
    pub(crate) times: &'a Int64Array,
    /// Created times in the source's unit, if it has any.
    pub(crate) created: Option<&'a Int64Array>,
    /// Where the chunk's first row stands in the files: each row's number is greater than those before it.
    pub(crate) order: u64,
}

impl Ranks<'_> {
    /// What ranks a row among all.
    pub(super) fn of(&self, row: u32) -> (i64, (i64, u64)) {
        (self.times.value(row as usize), self.tie(row))
    }

    /// What ranks a row among those of its time.
    fn tie(&self, row: u32) -> (i64, u64) {
        let at = row as usize;
        let created = self.created.filter(|created| created.is_valid(at));
        (created.map_or(i64::MIN, |created| created.value(at)), self.order + u64::from(row))
    }
}

/// Rows of chunks.
#[derive(Debug)]
struct Batch {
    columns: Columns,
    /// When each was created, where the source says it.
    created: Option<Vec<i64>>,
    order: Places,
}

#[derive(Debug)]
enum Columns {
    /// On their way.
    Awaited,
    /// Here.
    Kept(Vec<ArrayRef>),
    /// Copied into a later batch.
    Moved,
}

/// Where rows stand in the files.
#[derive(Debug)]
enum Places {
    /// Rows of a chunk that begins there.
    Chunk(u64, UInt32Array),
    /// Of several.
    Many(Vec<u64>),
}

impl Batch {
    /// What ranks a row among those of its time.
    fn tie(&self, row: u32) -> (i64, u64) {
        let at = row as usize;
        let order = match &self.order {
            Places::Chunk(first, rows) => first + u64::from(rows.value(at)),
            Places::Many(places) => places[at],
        };
        (self.created.as_ref().map_or(i64::MIN, |created| created[at]), order)
    }

    /// What is kept of the rows beside their columns, bytes.
    fn bytes(&self) -> usize {
        let places = match &self.order {
            Places::Chunk(_, rows) => rows.len() * size_of::<u32>(),
            Places::Many(places) => places.len() * size_of::<u64>(),
        };
        places + self.created.as_ref().map_or(0, |created| created.len() * size_of::<i64>())
    }
}

/// The slots, and what is kept in them.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    all: Vec<Slot>,
    /// How many of them have a row.
    live: usize,
    batches: Vec<Batch>,
    /// Rows in batches, awaited ones too, and bytes of those that are here.
    rows: usize,
    bytes: usize,
    columns: usize,
}

/// What the join found.
#[derive(Debug)]
pub(crate) struct Found {
    /// The kept rows: of each column its chunks.
    pub(crate) columns: Vec<Vec<ArrayRef>>,
    /// For each entity row of the frame, which of the kept rows (counted over all chunks) is its own.
    pub(crate) index: UInt32Array,
}

/// The rows of a chunk that are to be kept ([`gather`]), under the number of their batch.
#[derive(Debug)]
pub(crate) struct Winners {
    batch: usize,
    rows: UInt32Array,
}

/// Copies these rows out of a chunk's columns.
pub(crate) fn gather(winners: &Winners, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    columns.iter().map(|column| take(column, &winners.rows, None).map_err(arrow_error)).collect()
}

impl Slots {
    /// What an entity row's slot takes, bytes.
    pub(crate) const EACH: usize = size_of::<Slot>();

    /// Before the first chunk, of which `columns` columns are kept.
    pub(crate) fn new(probe: &Sorted, columns: usize) -> Self {
        let all = vec![EMPTY; probe.places()];
        Self { all, live: 0, batches: Vec::new(), rows: 0, bytes: 0, columns }
    }

    /// What the slots for these entity rows take, bytes.
    pub(crate) fn least_bytes(probe: &Sorted) -> usize {
        probe.places() * size_of::<Slot>()
    }

    /// What is taken of memory, bytes: with one more column, for columns are copied one by one.
    pub(crate) fn bytes(&self) -> usize {
        self.all.len() * size_of::<Slot>() + self.bytes + self.bytes / self.columns.max(1)
    }

    /// Holds a chunk's located rows ([`Sorted::locate`]) against the slots: those that stay.
    pub(crate) fn apply(&mut self, found: &[(u32, u32)], ranks: &Ranks<'_>) -> Option<Winners> {
        let batch = self.batches.len() as u32;
        let mut any = false;
        for &(row, place) in found {
            let time = ranks.times.value(row as usize);
            let slot = &mut self.all[place as usize];
            self.live += usize::from(slot.batch == NOTHING);
            let tie = |slot: &Slot| match self.batches.get(slot.batch as usize) {
                Some(before) => before.tie(slot.row),
                None => ranks.tie(slot.row),
            };
            if slot.batch == NOTHING || time > slot.time || (time == slot.time && ranks.tie(row) > tie(slot)) {
                *slot = Slot { time, batch, row };
                any = true;
            }
        }
        if !any {
            return None;
        }
        let mut rows = Vec::new();
        for &(row, place) in found {
            let slot = &mut self.all[place as usize];
            // A row's place among those that stay is not behind its place in the chunk: it is not taken for a later row.
            if slot.batch == batch && slot.row == row {
                slot.row = rows.len() as u32;
                rows.push(row);
            }
        }
        self.rows += rows.len();
        let created = ranks.created.map(|_| rows.iter().map(|row| ranks.tie(*row).0).collect());
        let rows = UInt32Array::from(rows);
        let kept = Batch { columns: Columns::Awaited, created, order: Places::Chunk(ranks.order, rows.clone()) };
        self.bytes += kept.bytes();
        self.batches.push(kept);
        Some(Winners { batch: batch as usize, rows })
    }

    /// Keeps a chunk's winners.
    pub(crate) fn keep(&mut self, winners: &Winners, columns: Vec<ArrayRef>) {
        self.bytes += size(&columns);
        self.batches[winners.batch].columns = Columns::Kept(columns);
    }

    /// Whether more than half of the kept rows are superseded, and they take more than `room` bytes.
    pub(crate) fn is_loose(&self, room: usize) -> bool {
        self.rows > 2 * self.live && self.bytes > room
    }

    /// Copies the rows that are still in slots into one batch, and lets go of the others. Those on their way stay so.
    pub(crate) fn compact(&mut self) -> Result<()> {
        let mut at = vec![0; self.batches.len()];
        let mut old: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.columns];
        let (mut count, mut moved) = (0, 0);
        for (batch, at) in self.batches.iter_mut().zip(&mut at) {
            if let Columns::Kept(columns) = &mut batch.columns {
                *at = count;
                count += 1;
                moved += columns.first().map_or(0, Array::len);
                for (all, column) in old.iter_mut().zip(std::mem::take(columns)) {
                    all.push(column);
                }
                batch.columns = Columns::Moved;
            }
        }
        let next = self.batches.len() as u32;
        let room = self.live.min(moved);
        let (mut from, mut places) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let has_created = self.batches.iter().any(|batch| batch.created.is_some());
        let mut created = Vec::with_capacity(if has_created { room } else { 0 });
        for slot in self.all.iter_mut().filter(|slot| slot.batch != NOTHING) {
            let batch = &self.batches[slot.batch as usize];
            if matches!(batch.columns, Columns::Moved) {
                let (created_at, place) = batch.tie(slot.row);
                places.push(place);
                if has_created {
                    created.push(created_at);
                }
                from.push((at[slot.batch as usize], slot.row as usize));
                (slot.batch, slot.row) = (next, from.len() as u32 - 1);
            }
        }
        let copied = old.into_iter().map(|chunks| {
            let chunks: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
            if chunks.is_empty() || from.is_empty() { Ok(None) } else { interleave(&chunks, &from).map(Some) }
        });
        let copied: Vec<Option<ArrayRef>> = copied.collect::<std::result::Result<_, _>>().map_err(arrow_error)?;
        let copied: Vec<ArrayRef> = copied.into_iter().flatten().collect();
        self.rows = self.rows - moved + from.len();
        self.bytes = size(&copied);
        for batch in self.batches.iter_mut().filter(|batch| matches!(batch.columns, Columns::Moved)) {
            (batch.created, batch.order) = (None, Places::Many(Vec::new()));
        }
        if !from.is_empty() {
            let created = has_created.then_some(created);
            self.batches.push(Batch { columns: Columns::Kept(copied), created, order: Places::Many(places) });
        }
        self.bytes += self.batches.iter().map(Batch::bytes).sum::<usize>();
        Ok(())
    }

    /// The answers: no build row comes any more. `micros` of a time, `reach` as in [`Sorted::locate`].
    pub(crate) fn finish(mut self, probe: &Sorted, micros: impl Fn(i64) -> i64, reach: i64) -> Result<Found> {
        if self.rows > self.live + self.live / 2 {
            self.compact()?;
        }
        let mut base = vec![0; self.batches.len()];
        let mut columns: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.columns];
        let mut rows = 0;
        for (batch, base) in self.batches.into_iter().zip(&mut base) {
            if let Columns::Kept(kept) = batch.columns {
                *base = rows;
                rows += kept.first().map_or(0, |c| c.len() as u32);
                for (all, column) in columns.iter_mut().zip(kept) {
                    all.push(column);
                }
            }
        }
        let mut index = vec![NOTHING; probe.rows()];
        for run in probe.runs() {
            let mut last: Option<(i64, u32)> = None;
            for place in run {
                let slot = self.all[place];
                if slot.batch != NOTHING {
                    last = Some((micros(slot.time), base[slot.batch as usize] + slot.row));
                }
                let (row, time) = probe.place(place);
                if let Some((found, at)) = last
                    && (reach == 0 || found >= time.saturating_sub(reach))
                {
                    index[row] = at;
                }
            }
        }
        Ok(Found { columns, index: matches(index) })
    }
}

/// Rows that were matched, of which [`NOTHING`] is none.
pub(super) fn matches(mut index: Vec<u32>) -> UInt32Array {
    let nulls: NullBuffer = index.iter().map(|row| *row != NOTHING).collect();
    let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
    if nulls.is_some() {
        index.iter_mut().filter(|row| **row == NOTHING).for_each(|row| *row = 0);
    }
    UInt32Array::new(index.into(), nulls)
}

fn size(columns: &[ArrayRef]) -> usize {
    columns.iter().map(Array::get_array_memory_size).sum()
}
