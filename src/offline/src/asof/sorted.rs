//! One side of a join in the order (key, time), and how the other side's keys are found in it. Knows no other side.

use arrow::array::{Array, ArrayRef, Int64Array, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::take;
use arrow::row::Rows;
use model::Result;

use super::groups::{Groups, Lookup, NONE, STEP};
use crate::error::arrow as arrow_error;
use crate::keys::KeyRows;

pub(crate) use super::groups::Keys;

/// The rows that have a key and a time, in the order (key, time); those of one time in the order in which they came.
/// The entity rows, but for [`super::index`].
#[derive(Debug)]
pub(crate) struct Sorted {
    rows: usize,
    /// Rows as they came.
    order: Vec<u32>,
    /// Their times, µs.
    times: Vec<i64>,
    /// Where each key's rows begin in that order, and the end of them all.
    starts: Vec<u32>,
    /// The keys' parts, each key once, in their order.
    columns: Vec<ArrayRef>,
    lookup: Lookup,
}

impl Sorted {
    /// Sorts rows. `keys` are their key parts in the comparable form, `times` are µs; rows of which one of them is null
    /// match nothing.
    pub(crate) fn new(keys: &[ArrayRef], times: &Int64Array, rows: &KeyRows) -> Result<Self> {
        let nulls =
            keys.iter().map(|k| k.nulls()).fold(times.nulls().cloned(), |a, b| NullBuffer::union(a.as_ref(), b));
        let (groups, mut lookup) = Groups::new(keys, nulls, times.len(), rows)?;
        let ranks = groups.rank(keys, &lookup);
        lookup.renumber(&ranks);
        let mut firsts = vec![0; groups.firsts.len()];
        for (first, rank) in groups.firsts.iter().zip(&ranks) {
            firsts[*rank as usize] = *first;
        }
        let firsts = UInt32Array::from(firsts);
        let columns: Vec<ArrayRef> =
            keys.iter().map(|key| take(key, &firsts, None).map_err(arrow_error)).collect::<Result<_>>()?;
        let (starts, order) = groups.order(&ranks);
        let mut sorted = Self { rows: times.len(), times: Vec::new(), order, starts, columns, lookup };
        sorted.sort(times);
        Ok(sorted)
    }

    /// Puts each key's rows, which stand as they came, into the order of their times.
    fn sort(&mut self, times: &Int64Array) {
        self.times = self.order.iter().map(|row| times.value(*row as usize)).collect();
        let mut scratch = Scratch::default();
        for bounds in self.starts.windows(2) {
            let run = bounds[0] as usize..bounds[1] as usize;
            let (times, order) = (&mut self.times[run.clone()], &mut self.order[run]);
            if !times.is_sorted() && !scratch.sort_packed(times, order) {
                scratch.sort(times, order);
            }
        }
    }

    /// The number of rows, with those that match nothing.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The number of rows that can match: their places are counted from 0.
    pub(crate) fn places(&self) -> usize {
        self.order.len()
    }

    /// Which of the rows has a place, and its time.
    pub(crate) fn place(&self, place: usize) -> (usize, i64) {
        (self.order[place] as usize, self.times[place])
    }

    /// Each key's places.
    pub(crate) fn runs(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.starts.windows(2).map(|bounds| bounds[0] as usize..bounds[1] as usize)
    }

    /// The keys from this one on in the comparable form, as many as are made at a time.
    pub(crate) fn keys(&self, from: usize, rows: &KeyRows) -> Result<Rows> {
        let count = STEP.min(self.starts.len() - 1 - from);
        let part: Vec<ArrayRef> = self.columns.iter().map(|column| column.slice(from, count)).collect();
        rows.rows(&part, count)
    }

    /// Where the places of the key behind this one begin.
    pub(crate) fn end(&self, key: usize) -> usize {
        self.starts[key + 1] as usize
    }

    /// The key parts of all keys, each key once.
    pub(crate) fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// The least and the greatest time among the rows that can match, µs.
    pub(crate) fn time_range(&self) -> Option<(i64, i64)> {
        let first = self.runs().map(|run| self.times[run.start]).min()?;
        let last = self.runs().map(|run| self.times[run.end - 1]).max()?;
        Some((first, last))
    }

    /// What is held of the keys, bytes. The order of the rows and their times are counted with the rows.
    pub(crate) fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(Array::get_array_memory_size).sum();
        self.lookup.bytes() + columns + self.starts.len() * size_of::<u32>()
    }

    /// The keys' numbers among those of this side, [`NONE`] of those that are not there.
    pub(super) fn numbers(&self, keys: &Keys<'_>, count: usize) -> Vec<u32> {
        self.lookup.numbers(keys, count)
    }

    /// How many keys there are.
    pub(super) fn key_count(&self) -> usize {
        self.starts.len() - 1
    }

    /// A key's places, and the times at them.
    pub(super) fn run(&self, key: u32) -> (usize, &[i64]) {
        let (start, end) = (self.starts[key as usize] as usize, self.starts[key as usize + 1] as usize);
        (start, &self.times[start..end])
    }

    /// The places of build rows, for each row that some entity row may match: `(row, place)`. A build row's place is
    /// that of the first entity row of its key that is not earlier; `reach` (µs, 0 is without end) is how far back
    /// an entity row sees. Rows of which `nulls` says that they have no key or no time have no place.
    pub(crate) fn locate(
        &self,
        keys: &Keys<'_>,
        micros: &Int64Array,
        nulls: Option<&NullBuffer>,
        reach: i64,
    ) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        // the place of the row before, for rows of one key come often one behind the other in the order of time
        let (mut last_key, mut last) = (NONE, 0);
        for (row, (&key, &time)) in self.numbers(keys, micros.len()).iter().zip(micros.values()).enumerate() {
            if key == NONE || nulls.is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            let (start, end) = (self.starts[key as usize] as usize, self.starts[key as usize + 1] as usize);
            let place = if key == last_key { self.near(start, end, last, time) } else { None };
            let place = place.unwrap_or_else(|| start + self.times[start..end].partition_point(|t| *t < time));
            (last_key, last) = (key, place);
            // whom it does not reach, it does not reach later
            if place < end && (reach == 0 || time >= self.times[place].saturating_sub(reach)) {
                found.push((row as u32, place as u32));
            }
        }
        found
    }

    /// The place of `time` within `start..end`, if it is `last` or shortly behind it.
    fn near(&self, start: usize, end: usize, last: usize, time: i64) -> Option<usize> {
        const STEPS: usize = 4;
        if last > start && self.times[last - 1] >= time {
            return None;
        }
        (last..end.min(last + STEPS)).find(|&place| self.times[place] >= time)
    }
}

/// Room to sort a key's rows in.
#[derive(Default)]
struct Scratch {
    pairs: Vec<(i64, u32)>,
    packed: Vec<u64>,
    order: Vec<u32>,
}

impl Scratch {
    /// Sorts rows by time, those of one time in their order, as numbers of a time and a place; says whether these fit.
    fn sort_packed(&mut self, times: &mut [i64], order: &mut [u32]) -> bool {
        let bits = usize::BITS - times.len().leading_zeros();
        let (least, greatest) = times.iter().fold((i64::MAX, i64::MIN), |(a, b), t| (a.min(*t), b.max(*t)));
        if greatest.wrapping_sub(least) as u64 > u64::MAX >> bits {
            return false;
        }
        self.packed.clear();
        self.packed.extend((0_u64..).zip(&*times).map(|(at, time)| (time.wrapping_sub(least) as u64) << bits | at));
        self.packed.sort_unstable();
        self.order.clear();
        self.order.extend_from_slice(order);
        for ((packed, time), row) in self.packed.iter().zip(times).zip(order) {
            *time = least.wrapping_add((packed >> bits) as i64);
            *row = self.order[(packed & ((1 << bits) - 1)) as usize];
        }
        true
    }

    fn sort(&mut self, times: &mut [i64], order: &mut [u32]) {
        self.pairs.clear();
        self.pairs.extend(times.iter().copied().zip(order.iter().copied()));
        self.pairs.sort_by_key(|(time, _)| *time);
        for ((time, row), (sorted_time, sorted_row)) in times.iter_mut().zip(order).zip(&self.pairs) {
            (*time, *row) = (*sorted_time, *sorted_row);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Both ways to sort are the stable one, wherever the times are.
        #[test]
        fn rows_are_sorted_by_time_and_keep_their_order(
            mut times in proptest::collection::vec(prop_oneof![-3i64..3, any::<i64>(), Just(i64::MIN), Just(i64::MAX)], 1..50),
            near: bool,
        ) {
            if near {
                times = times.iter().map(|time| i64::MAX - time.rem_euclid(5)).collect();
            }
            let order: Vec<u32> = (0..times.len() as u32).map(|row| row ^ 1).collect();
            let mut wanted: Vec<(i64, u32)> = times.iter().copied().zip(order.iter().copied()).collect();
            wanted.sort_by_key(|(time, _)| *time);
            let mut scratch = Scratch::default();
            for packed in [true, false] {
                let (mut times, mut order) = (times.clone(), order.clone());
                if packed && !scratch.sort_packed(&mut times, &mut order) {
                    prop_assert!(!near);
                    continue;
                }
                if !packed {
                    scratch.sort(&mut times, &mut order);
                }
                prop_assert_eq!(times.into_iter().zip(order).collect::<Vec<_>>(), wanted.clone());
            }
        }
    }
}
