//! The entity rows of a join by key and time, and how a build row's key is found among them. Knows no build side.

use std::collections::HashMap;

use arrow::array::{Array, ArrayAccessor, ArrayRef, AsArray, Int64Array, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::take;
use arrow::datatypes::Int64Type;
use arrow::row::Rows;
use foldhash::fast::RandomState;
use model::Result;

use crate::error::arrow as arrow_error;
use crate::keys::KeyRows;

/// Keys are brought into comparable form so many at a time.
const STEP: usize = 1 << 14;
/// A range of which less than one in so many numbers is a key is not looked up by distance.
const SPARSE: usize = 16;
/// A key's number, or a row's, that is none.
const NONE: u32 = u32::MAX;

/// The entity rows that have a key and a time, in the order (key, time).
#[derive(Debug)]
pub(crate) struct Probe {
    rows: usize,
    /// Rows of the entity frame.
    order: Vec<u32>,
    /// Their times, µs.
    times: Vec<i64>,
    /// Where each key's rows begin in that order, and the end of them all.
    starts: Vec<u32>,
    /// The keys' parts, each key once, in their order.
    columns: Vec<ArrayRef>,
    lookup: Lookup,
}

/// Finds a key's number.
#[derive(Debug)]
enum Lookup {
    /// Of one integer out of a narrow range: by its distance from the least.
    Near { least: i64, keys: Vec<u32> },
    /// Of one integer, which most keys are.
    Int(HashMap<i64, u32, RandomState>),
    /// By the comparable bytes.
    Bytes(HashMap<Box<[u8]>, u32, RandomState>),
}

/// The keys of some build rows.
pub(crate) enum Keys<'a> {
    /// One integer each, where [`Probe::by_int`] says so.
    Int(&'a Int64Array),
    /// In comparable form.
    Rows(&'a Rows),
}

impl Probe {
    /// Sorts the entity rows. `keys` are their key parts in the comparable form, `times` are µs; rows of which one of
    /// them is null match nothing.
    pub(crate) fn new(keys: &[ArrayRef], times: &Int64Array, rows: &KeyRows) -> Result<Self> {
        let nulls =
            keys.iter().map(|k| k.nulls()).fold(times.nulls().cloned(), |a, b| NullBuffer::union(a.as_ref(), b));
        let mut groups = Groups { ids: vec![NONE; times.len()], firsts: Vec::new(), nulls };
        let mut lookup = groups.fill(keys, rows)?;
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

    /// Puts each key's rows, which stand in the frame's order, into that of their times.
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

    /// The number of entity rows, matched or not.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The number of entity rows that can match: their places are counted from 0.
    pub(crate) fn places(&self) -> usize {
        self.order.len()
    }

    /// The row of the entity frame that has a place, and its time.
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

    /// Whether keys are looked up as integers.
    pub(crate) fn by_int(&self) -> bool {
        !matches!(self.lookup, Lookup::Bytes(_))
    }

    /// What is held of the keys, bytes. The order of the rows and their times are counted with the entity frame.
    pub(crate) fn bytes(&self) -> usize {
        let lookup = match &self.lookup {
            Lookup::Near { keys, .. } => keys.len() * size_of::<u32>(),
            Lookup::Int(keys) => keys.capacity() * size_of::<(i64, u32)>(),
            Lookup::Bytes(keys) => {
                keys.capacity() * size_of::<(Box<[u8]>, u32)>() + keys.keys().map(|key| key.len()).sum::<usize>()
            }
        };
        let columns: usize = self.columns.iter().map(Array::get_array_memory_size).sum();
        lookup + columns + self.starts.len() * size_of::<u32>()
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
        let build = Build { micros: micros.values(), nulls, reach };
        match (&self.lookup, keys) {
            (Lookup::Near { least, keys }, Keys::Int(ints)) => self.each(&build, |row| {
                let distance = ints.value(row).wrapping_sub(*least) as u64;
                usize::try_from(distance).ok().and_then(|at| keys.get(at).copied()).unwrap_or(NONE)
            }),
            (Lookup::Int(keys), Keys::Int(ints)) => {
                self.each(&build, |row| keys.get(&ints.value(row)).copied().unwrap_or(NONE))
            }
            (Lookup::Bytes(keys), Keys::Rows(rows)) => {
                self.each(&build, |row| keys.get(rows.row(row).as_ref()).copied().unwrap_or(NONE))
            }
            // integers among texts, or the other way round: there is no such key
            _ => Vec::new(),
        }
    }

    fn each(&self, build: &Build<'_>, key: impl Fn(usize) -> u32) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        // the place of the row before, for rows of one key come often one behind the other in the order of time
        let (mut last_key, mut last) = (NONE, 0);
        for (row, &time) in build.micros.iter().enumerate() {
            if build.nulls.is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            let key = key(row);
            if key == NONE {
                continue;
            }
            let (start, end) = (self.starts[key as usize] as usize, self.starts[key as usize + 1] as usize);
            let place = if key == last_key { self.near(start, end, last, time) } else { None };
            let place = place.unwrap_or_else(|| start + self.times[start..end].partition_point(|t| *t < time));
            (last_key, last) = (key, place);
            // whom it does not reach, it does not reach later
            if place < end && (build.reach == 0 || time >= self.times[place].saturating_sub(build.reach)) {
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

/// Build rows to be located.
struct Build<'a> {
    micros: &'a [i64],
    nulls: Option<&'a NullBuffer>,
    reach: i64,
}

impl Lookup {
    fn renumber(&mut self, ranks: &[u32]) {
        let keys: &mut dyn Iterator<Item = &mut u32> = match self {
            Self::Near { keys, .. } => &mut keys.iter_mut().filter(|key| **key != NONE),
            Self::Int(keys) => &mut keys.values_mut(),
            Self::Bytes(keys) => &mut keys.values_mut(),
        };
        for key in keys {
            *key = ranks[*key as usize];
        }
    }
}

/// The entity rows by key, keys numbered as they come.
struct Groups {
    /// Each row's key.
    ids: Vec<u32>,
    /// A row of each key.
    firsts: Vec<u32>,
    nulls: Option<NullBuffer>,
}

impl Groups {
    fn fill(&mut self, keys: &[ArrayRef], rows: &KeyRows) -> Result<Lookup> {
        let int = match keys {
            [only] => only.as_primitive_opt::<Int64Type>(),
            _ => None,
        };
        let Some(ints) = int else {
            return match keys {
                [only] if let Some(texts) = only.as_string_opt::<i32>() => self.by_one(only, texts, rows),
                [only] if let Some(bytes) = only.as_binary_opt::<i32>() => self.by_one(only, bytes, rows),
                _ => self.by_bytes(keys, rows),
            };
        };
        let nulls = self.nulls.clone();
        let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let (mut least, mut greatest) = (i64::MAX, i64::MIN);
        for (row, &key) in ints.values().iter().enumerate() {
            if valid(row) {
                (least, greatest) = (least.min(key), greatest.max(key));
            }
        }
        let span = i128::from(greatest) - i128::from(least) + 1;
        match usize::try_from(span) {
            Ok(span) if span <= 2 * self.ids.len() => {
                let mut near = vec![NONE; span];
                for (row, &key) in ints.values().iter().enumerate() {
                    if valid(row) {
                        let id = &mut near[key.wrapping_sub(least) as usize];
                        if *id == NONE {
                            *id = self.firsts.len() as u32;
                            self.firsts.push(row as u32);
                        }
                        self.ids[row] = *id;
                    }
                }
                if self.firsts.len() * SPARSE >= span {
                    return Ok(Lookup::Near { least, keys: near });
                }
                let ids = self.firsts.iter().zip(0..);
                Ok(Lookup::Int(ids.map(|(row, id)| (ints.value(*row as usize), id)).collect()))
            }
            _ => {
                let mut known: HashMap<i64, u32, RandomState> = HashMap::default();
                for (row, &key) in ints.values().iter().enumerate() {
                    if valid(row) {
                        self.ids[row] = *known.entry(key).or_insert_with(|| {
                            self.firsts.push(row as u32);
                            self.firsts.len() as u32 - 1
                        });
                    }
                }
                Ok(Lookup::Int(known))
            }
        }
    }

    /// By one part of variable length: each key is brought into comparable form once, not each row.
    fn by_one<'a, A, V>(&mut self, column: &ArrayRef, values: A, rows: &KeyRows) -> Result<Lookup>
    where
        A: ArrayAccessor<Item = &'a V> + Copy,
        V: AsRef<[u8]> + ?Sized + 'a,
    {
        let mut numbers: HashMap<&[u8], u32, RandomState> = HashMap::default();
        for row in 0..self.ids.len() {
            if self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                self.ids[row] = *numbers.entry(values.value(row).as_ref()).or_insert_with(|| {
                    self.firsts.push(row as u32);
                    self.firsts.len() as u32 - 1
                });
            }
        }
        let mut known = HashMap::with_capacity_and_hasher(self.firsts.len(), RandomState::default());
        for (step, firsts) in self.firsts.chunks(STEP).enumerate() {
            let part = take(column, &UInt32Array::from(firsts.to_vec()), None).map_err(arrow_error)?;
            let part = rows.rows(&[part], firsts.len())?;
            known.extend(part.iter().zip((step * STEP) as u32..).map(|(key, id)| (key.as_ref().into(), id)));
        }
        Ok(Lookup::Bytes(known))
    }

    fn by_bytes(&mut self, keys: &[ArrayRef], rows: &KeyRows) -> Result<Lookup> {
        let mut known: HashMap<Box<[u8]>, u32, RandomState> = HashMap::default();
        for start in (0..self.ids.len()).step_by(STEP) {
            let count = STEP.min(self.ids.len() - start);
            let part: Vec<ArrayRef> = keys.iter().map(|key| key.slice(start, count)).collect();
            let part = rows.rows(&part, count)?;
            for row in start..start + count {
                if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    continue;
                }
                let key = part.row(row - start);
                self.ids[row] = if let Some(id) = known.get(key.as_ref()) {
                    *id
                } else {
                    let id = self.firsts.len() as u32;
                    self.firsts.push(row as u32);
                    known.insert(key.as_ref().into(), id);
                    id
                };
            }
        }
        Ok(Lookup::Bytes(known))
    }

    /// Each key's number in the order of keys.
    fn rank(&self, keys: &[ArrayRef], lookup: &Lookup) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..self.firsts.len() as u32).collect();
        match lookup {
            Lookup::Bytes(known) => {
                let mut bytes: Vec<&[u8]> = vec![&[]; sorted.len()];
                for (key, id) in known {
                    bytes[*id as usize] = key;
                }
                sorted.sort_unstable_by_key(|id| bytes[*id as usize]);
            }
            Lookup::Near { .. } | Lookup::Int(_) => {
                let ints = keys[0].as_primitive::<Int64Type>();
                sorted.sort_unstable_by_key(|id| ints.value(self.firsts[*id as usize] as usize));
            }
        }
        let mut ranks = vec![0; sorted.len()];
        for (rank, id) in sorted.into_iter().enumerate() {
            ranks[id as usize] = rank as u32;
        }
        ranks
    }

    /// Where each key's rows begin, and the rows by key.
    fn order(&self, ranks: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0u32; ranks.len() + 1];
        for id in self.ids.iter().filter(|id| **id != NONE) {
            starts[ranks[*id as usize] as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0; starts[ranks.len()] as usize];
        for (row, id) in self.ids.iter().enumerate().filter(|(_, id)| **id != NONE) {
            let next = &mut next[ranks[*id as usize] as usize];
            order[*next as usize] = row as u32;
            *next += 1;
        }
        (starts, order)
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
