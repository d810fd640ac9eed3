//! The point-in-time join the other way round: a build side that is held in memory in the order (key, time), and entity
//! rows that are looked up in it as they come, in any number of chunks. Knows no files, no plan, no I/O.

use arrow::array::{ArrayRef, Int64Array, UInt32Array};
use arrow::buffer::NullBuffer;
use model::Result;

use super::groups::NONE;
use super::unsorted::{Ranks, matches};
use super::{Keys, Sorted};
use crate::keys::KeyRows;

/// The build rows of a view.
#[derive(Debug)]
pub(crate) struct Index {
    sorted: Sorted,
    /// For each place the row that counts: of those of its key and time up to it the greatest.
    best: Vec<u32>,
}

/// Where each key's entity rows were found last: the next of them is mostly near.
#[derive(Debug, Default)]
pub(crate) struct Cursors(Vec<u32>);

impl Index {
    /// About what is kept of a row beside the row itself and its key, bytes.
    pub(crate) const EACH: usize = 2 * size_of::<u32>() + size_of::<i64>();

    /// `keys` are the rows' key parts in the comparable form, `micros` their event times in µs; rows of which one of
    /// them is null match nothing.
    pub(crate) fn new(keys: &[ArrayRef], micros: &Int64Array, ranks: &Ranks<'_>, rows: &KeyRows) -> Result<Self> {
        let sorted = Sorted::new(keys, micros, rows)?;
        let mut best: Vec<u32> = Vec::with_capacity(sorted.places());
        for run in sorted.runs() {
            let mut last: Option<(i64, u32)> = None;
            for place in run {
                let (row, time) = sorted.place(place);
                let row = row as u32;
                let before = last.filter(|(at, _)| *at == time).map(|(_, row)| row);
                let counts = before.filter(|before| ranks.of(*before) > ranks.of(row)).unwrap_or(row);
                last = Some((time, counts));
                best.push(counts);
            }
        }
        Ok(Self { sorted, best })
    }

    /// What is kept beside the rows themselves, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.sorted.bytes() + self.sorted.places() * Self::EACH
    }

    /// For each of some entity rows the build row that is its answer: the last one that is not later and, with a ttl
    /// (µs, 0 is none), not before it. Rows of which `nulls` says that they have no key or no time have none.
    pub(crate) fn find(
        &self,
        keys: &Keys<'_>,
        micros: &Int64Array,
        nulls: Option<&NullBuffer>,
        ttl_us: i64,
        cursors: &mut Cursors,
    ) -> UInt32Array {
        cursors.0.resize(self.sorted.key_count(), 0);
        let numbers = self.sorted.numbers(keys, micros.len());
        let found = numbers.into_iter().zip(micros.values()).enumerate().map(|(row, (key, &time))| {
            if key == NONE || nulls.is_some_and(|nulls| nulls.is_null(row)) {
                return NONE;
            }
            let (start, times) = self.sorted.run(key);
            let cursor = &mut cursors.0[key as usize];
            let behind = later(times, *cursor as usize, time);
            *cursor = behind as u32;
            match behind.checked_sub(1) {
                Some(at) if ttl_us == 0 || times[at] >= time.saturating_sub(ttl_us) => self.best[start + at],
                _ => NONE,
            }
        });
        matches(found.collect())
    }
}

/// The place of the first of the ascending `times` that is later than `time`, looked for from a place on, in steps that
/// double.
fn later(times: &[i64], from: usize, time: i64) -> usize {
    let (mut low, mut high, mut step) = (from, from, 1);
    if times.get(from).is_some_and(|t| *t <= time) {
        while times.get(high).is_some_and(|t| *t <= time) {
            low = high + 1;
            high += step;
            step *= 2;
        }
        high = high.min(times.len());
    } else {
        loop {
            if low == 0 {
                break;
            }
            low = low.saturating_sub(step);
            if times[low] <= time {
                low += 1;
                break;
            }
            high = low;
            step *= 2;
        }
    }
    low + times[low..high].partition_point(|t| *t <= time)
}
