//! The point-in-time join as a pure kernel: one pass over two sides that are sorted by (key, time), over a build side as
//! it comes ([`unsorted`]), or over entity rows as they come ([`index`]). A side that is sorted in memory is a [`Sorted`].
//!
//! The probe side is the entity frame, the build side a view's history, which arrives in chunks.
//! What a build row means is a [`Fold`]'s to say: [`Latest`] keeps the last row not later than the
//! probe's time and within the ttl, `window_fold` keeps window states. Knows no files, no plan, no I/O.

mod groups;
pub(crate) mod index;
mod sorted;
pub(crate) mod unsorted;

use arrow::row::{Row, Rows};
use model::Result;

use crate::keys::KeyRows;

pub(crate) use sorted::{Keys, Sorted};

/// What is made of the build rows of one key.
pub(crate) trait Fold {
    /// The next build rows belong to another key.
    fn new_key(&mut self);
    /// A build row of the key, in the order of time; `row` counts within the chunk.
    fn add(&mut self, row: usize, time: i64) -> Result<()>;
    /// The answer for an entity row of this key at `time`: all rows added so far are not later.
    fn settle(&mut self, probe: u32, time: i64);
}

/// The state of one merge between chunks.
pub(crate) struct Merge<'a> {
    probe: &'a Sorted,
    rows: &'a KeyRows,
    /// The next place to settle, and the number of its key.
    cursor: usize,
    at_key: usize,
    /// The keys from this one on in the comparable form.
    keys: (usize, Rows),
    /// The key that build rows were added for.
    key: Option<usize>,
}

impl<'a> Merge<'a> {
    /// A merge before its first chunk; `rows` is the probe's converter.
    pub(crate) fn new(probe: &'a Sorted, rows: &'a KeyRows) -> Result<Self> {
        Ok(Self { probe, rows, cursor: 0, at_key: 0, keys: (0, probe.keys(0, rows)?), key: None })
    }

    /// Takes the next chunk of the build side: keys (by the same converter as the probe's) and times
    /// in µs, sorted by (key, time, …) across all chunks.
    pub(crate) fn push(&mut self, keys: &Rows, times: &[i64], fold: &mut impl Fold) -> Result<()> {
        for (i, &time) in times.iter().enumerate() {
            let key = keys.row(i);
            while let Some((probe_key, probe_time)) = self.next() {
                if (probe_key, probe_time) >= (key, time) {
                    break;
                }
                self.settle(fold)?;
            }
            let Some((probe_key, _)) = self.next() else { return Ok(()) };
            if probe_key != key {
                continue;
            }
            if self.key != Some(self.at_key) {
                self.key = Some(self.at_key);
                fold.new_key();
            }
            fold.add(i, time)?;
        }
        Ok(())
    }

    /// Settles what is left: no build row comes any more.
    pub(crate) fn finish(&mut self, fold: &mut impl Fold) -> Result<()> {
        while !self.is_done() {
            self.settle(fold)?;
        }
        Ok(())
    }

    /// Whether every entity row has its answer: the rest of the build side need not be read.
    pub(crate) fn is_done(&self) -> bool {
        self.cursor >= self.probe.places()
    }

    /// Key and time of the next place.
    fn next(&self) -> Option<(Row<'_>, i64)> {
        (!self.is_done()).then(|| (self.keys.1.row(self.at_key - self.keys.0), self.probe.place(self.cursor).1))
    }

    fn settle(&mut self, fold: &mut impl Fold) -> Result<()> {
        let (row, time) = self.probe.place(self.cursor);
        if self.key == Some(self.at_key) {
            fold.settle(row as u32, time);
        }
        self.cursor += 1;
        if self.cursor == self.probe.end(self.at_key) {
            self.at_key += 1;
            if self.at_key == self.keys.0 + self.keys.1.num_rows() {
                self.keys = (self.at_key, self.probe.keys(self.at_key, self.rows)?);
            }
        }
        Ok(())
    }
}

/// A build row that some entity row matched: the one carried over from earlier chunks, or one of
/// the chunk at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    /// The carried row.
    Carried,
    /// A row of the chunk.
    Row(usize),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    at: Pick,
    time: i64,
    slot: Option<u32>,
}

/// Feast's point-in-time rule: the last row not later than t and, with a ttl, not before t - ttl.
///
/// Matched rows are given out once each by [`Latest::drain`], chunk by chunk; [`Latest::slots`] says
/// for every entity row which of them (counted over all chunks) is its own.
#[derive(Debug)]
pub(crate) struct Latest {
    ttl_us: i64,
    candidate: Option<Candidate>,
    picks: Vec<Pick>,
    next_slot: u32,
    slots: Vec<Option<u32>>,
}

impl Latest {
    /// For `rows` entity rows; a ttl of 0 µs is none.
    pub(crate) fn new(rows: usize, ttl_us: i64) -> Self {
        Self { ttl_us, candidate: None, picks: Vec::new(), next_slot: 0, slots: vec![None; rows] }
    }

    /// Ends a chunk: the rows to keep of it, in the order of their slots, and the row of the chunk
    /// to carry over, if the carried one changes.
    pub(crate) fn drain(&mut self) -> (Vec<Pick>, Option<usize>) {
        let carry = match &mut self.candidate {
            Some(candidate) => match std::mem::replace(&mut candidate.at, Pick::Carried) {
                Pick::Row(row) if candidate.slot.is_none() => Some(row),
                _ => None,
            },
            None => None,
        };
        (std::mem::take(&mut self.picks), carry)
    }

    /// Each entity row's slot among the kept rows.
    pub(crate) fn slots(self) -> Vec<Option<u32>> {
        self.slots
    }
}

impl Fold for Latest {
    fn new_key(&mut self) {
        self.candidate = None;
    }

    fn add(&mut self, row: usize, time: i64) -> Result<()> {
        self.candidate = Some(Candidate { at: Pick::Row(row), time, slot: None });
        Ok(())
    }

    fn settle(&mut self, probe: u32, time: i64) {
        let Some(candidate) = &mut self.candidate else { return };
        if self.ttl_us > 0 && candidate.time < time.saturating_sub(self.ttl_us) {
            return;
        }
        let slot = *candidate.slot.get_or_insert_with(|| {
            self.picks.push(candidate.at);
            self.next_slot += 1;
            self.next_slot - 1
        });
        self.slots[probe as usize] = Some(slot);
    }
}

#[cfg(test)]
#[path = "asof/tests.rs"]
mod tests;
