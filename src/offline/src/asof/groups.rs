//! Rows by key: each key has a number, and is found again by its value. Knows no time.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::Rows;
use foldhash::fast::RandomState;
use model::Result;

use crate::keys::KeyRows;

/// Keys are brought into comparable form so many at a time.
pub(super) const STEP: usize = 1 << 14;
/// A range of which less than one in so many numbers is a key is not looked up by distance.
const SPARSE: usize = 16;
/// A key's number, or a row's, that is none.
pub(super) const NONE: u32 = u32::MAX;

/// The keys of some rows; those of rows with a null are anything.
pub(crate) enum Keys<'a> {
    /// One integer each, which most keys are.
    Int(&'a Int64Array),
    /// One text each.
    Text(&'a StringArray),
    /// One string of bytes each.
    Bytes(&'a BinaryArray),
    /// Anything else, in comparable form.
    Rows(Rows),
}

impl<'a> Keys<'a> {
    /// `columns` are the keys' parts in the comparable form, each `count` long.
    pub(crate) fn of(columns: &'a [ArrayRef], rows: &KeyRows, count: usize) -> Result<Self> {
        match Self::of_one(columns) {
            Some(one) => Ok(one),
            None => Ok(Self::Rows(rows.rows(columns, count)?)),
        }
    }

    /// Of one part that needs no other form.
    fn of_one(columns: &'a [ArrayRef]) -> Option<Self> {
        let [only] = columns else { return None };
        match only.data_type() {
            DataType::Int64 => only.as_primitive_opt().map(Self::Int),
            DataType::Utf8 => only.as_string_opt().map(Self::Text),
            DataType::Binary => only.as_binary_opt().map(Self::Bytes),
            _ => None,
        }
    }
}

/// Finds a key's number.
#[derive(Debug)]
pub(super) enum Lookup {
    /// Of one integer out of a narrow range: by its distance from the least.
    Near { least: i64, keys: Vec<u32> },
    /// Of one integer.
    Int(HashMap<i64, u32, RandomState>),
    /// By the one part's bytes, or by the comparable ones.
    Bytes(HashMap<Box<[u8]>, u32, RandomState>),
}

impl Lookup {
    /// The numbers of the first `count` rows' keys, [`NONE`] of those that are not there; those of rows with a null are
    /// anything. Rows come in the form that this was made from.
    pub(super) fn numbers(&self, keys: &Keys<'_>, count: usize) -> Vec<u32> {
        let by_bytes = |known: &HashMap<Box<[u8]>, u32, RandomState>, key: &[u8]| known.get(key).copied();
        match (self, keys) {
            (Self::Near { least, keys }, Keys::Int(ints)) => {
                let near = |int: &i64| usize::try_from(int.wrapping_sub(*least) as u64).ok();
                let number = |int| near(int).and_then(|at| keys.get(at).copied()).unwrap_or(NONE);
                ints.values().iter().map(number).collect()
            }
            (Self::Int(known), Keys::Int(ints)) => {
                ints.values().iter().map(|int| known.get(int).copied().unwrap_or(NONE)).collect()
            }
            (Self::Bytes(known), Keys::Text(texts)) => {
                (0..count).map(|row| by_bytes(known, texts.value(row).as_bytes()).unwrap_or(NONE)).collect()
            }
            (Self::Bytes(known), Keys::Bytes(bytes)) => {
                (0..count).map(|row| by_bytes(known, bytes.value(row)).unwrap_or(NONE)).collect()
            }
            (Self::Bytes(known), Keys::Rows(rows)) => {
                rows.iter().map(|key| by_bytes(known, key.as_ref()).unwrap_or(NONE)).collect()
            }
            // integers among texts, or the other way round: there is no such key
            _ => vec![NONE; count],
        }
    }

    /// What it takes, bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Near { keys, .. } => keys.len() * size_of::<u32>(),
            Self::Int(keys) => keys.capacity() * size_of::<(i64, u32)>(),
            Self::Bytes(keys) => {
                keys.capacity() * size_of::<(Box<[u8]>, u32)>() + keys.keys().map(|key| key.len()).sum::<usize>()
            }
        }
    }

    /// Each number becomes the rank that it has.
    pub(super) fn renumber(&mut self, ranks: &[u32]) {
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

/// Rows by key, keys numbered as they come.
pub(super) struct Groups {
    /// Each row's key, [`NONE`] of those with a null.
    ids: Vec<u32>,
    /// A row of each key.
    pub(super) firsts: Vec<u32>,
    nulls: Option<NullBuffer>,
}

impl Groups {
    /// Numbers the keys of `count` rows; those with a null have none.
    pub(super) fn new(
        keys: &[ArrayRef],
        nulls: Option<NullBuffer>,
        count: usize,
        rows: &KeyRows,
    ) -> Result<(Self, Lookup)> {
        let mut groups = Self { ids: vec![NONE; count], firsts: Vec::new(), nulls };
        let lookup = match Keys::of_one(keys) {
            Some(Keys::Int(ints)) => groups.by_int(ints.values()),
            Some(Keys::Text(texts)) => {
                let mut known = HashMap::default();
                groups.by_bytes(0..count, |row| texts.value(row).as_bytes(), &mut known);
                Lookup::Bytes(known)
            }
            Some(Keys::Bytes(bytes)) => {
                let mut known = HashMap::default();
                groups.by_bytes(0..count, |row| bytes.value(row), &mut known);
                Lookup::Bytes(known)
            }
            Some(Keys::Rows(_)) | None => groups.by_rows(keys, rows)?,
        };
        Ok((groups, lookup))
    }

    fn by_int(&mut self, ints: &[i64]) -> Lookup {
        let nulls = self.nulls.clone();
        let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let (mut least, mut greatest) = (i64::MAX, i64::MIN);
        for (row, &key) in ints.iter().enumerate() {
            if valid(row) {
                (least, greatest) = (least.min(key), greatest.max(key));
            }
        }
        let span = i128::from(greatest) - i128::from(least) + 1;
        let narrow = usize::try_from(span).ok().filter(|span| *span <= 2 * self.ids.len());
        let Some(span) = narrow else {
            let mut known: HashMap<i64, u32, RandomState> = HashMap::default();
            for (row, &key) in ints.iter().enumerate() {
                if valid(row) {
                    self.ids[row] = *known.entry(key).or_insert_with(|| {
                        self.firsts.push(row as u32);
                        self.firsts.len() as u32 - 1
                    });
                }
            }
            return Lookup::Int(known);
        };
        let mut near = vec![NONE; span];
        for (row, &key) in ints.iter().enumerate() {
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
            return Lookup::Near { least, keys: near };
        }
        let ids = self.firsts.iter().zip(0..);
        Lookup::Int(ids.map(|(row, id)| (ints[*row as usize], id)).collect())
    }

    fn by_bytes<'k>(
        &mut self,
        rows: std::ops::Range<usize>,
        key: impl Fn(usize) -> &'k [u8],
        known: &mut HashMap<Box<[u8]>, u32, RandomState>,
    ) {
        for row in rows {
            if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            let key = key(row);
            self.ids[row] = if let Some(id) = known.get(key) {
                *id
            } else {
                let id = self.firsts.len() as u32;
                self.firsts.push(row as u32);
                known.insert(key.into(), id);
                id
            };
        }
    }

    fn by_rows(&mut self, keys: &[ArrayRef], rows: &KeyRows) -> Result<Lookup> {
        let mut known = HashMap::default();
        for start in (0..self.ids.len()).step_by(STEP) {
            let count = STEP.min(self.ids.len() - start);
            let part: Vec<ArrayRef> = keys.iter().map(|key| key.slice(start, count)).collect();
            let part = rows.rows(&part, count)?;
            self.by_bytes(start..start + count, |row| part.row(row - start).data(), &mut known);
        }
        Ok(Lookup::Bytes(known))
    }

    /// Each key's number in the order of keys.
    pub(super) fn rank(&self, keys: &[ArrayRef], lookup: &Lookup) -> Vec<u32> {
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
    pub(super) fn order(&self, ranks: &[u32]) -> (Vec<u32>, Vec<u32>) {
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
