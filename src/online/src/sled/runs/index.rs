//! Where a run's blocks begin, and with which keys: held in memory, in few bytes a block. Knows no file.
//!
//! As it is stored: `varint` tables; of each `varint` length of its prefix, prefix, `varint` blocks, and of each of these
//! `varint` bytes, `varint` length of the first key without the prefix, that key. In the first version of runs: of each block
//! `u64` place, `u32` bytes, `u32` length of its first key, that key, all little-endian. Blocks follow one another.

use std::ops::Range;

use super::super::layout;
use super::block::{Version, common, put_number, take, take_length, take_number, take_word};

/// The blocks of a run, in their order.
#[derive(Debug)]
pub(super) struct Index {
    tables: Vec<Table>,
    /// Where each block begins, and where the last one ends.
    places: Vec<u64>,
}

/// The blocks of one table.
#[derive(Debug, Default)]
struct Table {
    /// What every key of the table begins with.
    prefix: Box<[u8]>,
    /// The number of its first block.
    from: usize,
    /// How the first keys of all its blocks go on.
    common: Box<[u8]>,
    /// The rest of each block's first key, one behind the other, and where each ends.
    keys: Vec<u8>,
    ends: Vec<u32>,
}

impl Default for Index {
    fn default() -> Self {
        Self { tables: Vec::new(), places: vec![0] }
    }
}

impl Table {
    fn key(&self, at: usize) -> &[u8] {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[from as usize..self.ends[at] as usize]
    }

    /// How many of its blocks begin with keys up to this one, which is given without the prefix.
    fn up_to(&self, entity: &[u8]) -> usize {
        let Some(rest) = entity.strip_prefix(&*self.common) else {
            return if *entity < *self.common { 0 } else { self.ends.len() };
        };
        let (mut from, mut to) = (0, self.ends.len());
        while from < to {
            let middle = from.midpoint(to);
            if self.key(middle) <= rest {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }

    /// Keeps once what all keys begin with.
    fn shorten(&mut self) {
        let Some(last) = self.ends.len().checked_sub(1) else { return };
        let length = common(self.key(0), self.key(last));
        let mut keys = Vec::with_capacity(self.keys.len() - length * self.ends.len());
        let mut ends = Vec::with_capacity(self.ends.len());
        for at in 0..self.ends.len() {
            keys.extend_from_slice(&self.key(at)[length..]);
            ends.push(keys.len() as u32);
        }
        self.common = self.keys[..length].into();
        (self.keys, self.ends) = (keys, ends);
    }
}

impl Index {
    /// Adds a block behind the others, by its first key and its bytes; `None` where they are too many.
    pub(super) fn push(&mut self, first: &[u8], bytes: u64) -> Option<()> {
        let (prefix, entity) = layout::split(first);
        if self.tables.last().is_none_or(|table| *table.prefix != *prefix) {
            self.tables.push(Table { prefix: prefix.into(), from: self.len(), ..Table::default() });
        }
        let table = self.tables.last_mut()?;
        table.keys.extend_from_slice(entity);
        table.ends.push(u32::try_from(table.keys.len()).ok()?);
        self.places.push(self.end().checked_add(bytes)?);
        Some(())
    }

    /// As it is stored, while blocks are added.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_number(&mut bytes, self.tables.len() as u64);
        for table in &self.tables {
            put_bytes(&mut bytes, &table.prefix);
            put_number(&mut bytes, table.ends.len() as u64);
            for at in 0..table.ends.len() {
                let place = self.place(table.from + at);
                put_number(&mut bytes, place.end - place.start);
                put_bytes(&mut bytes, table.key(at));
            }
        }
        bytes
    }

    /// Takes a stored index off; `None` where that is none.
    pub(super) fn take(version: Version, rest: &mut &[u8]) -> Option<Self> {
        let mut index = Self::default();
        match version {
            Version::First => {
                while !rest.is_empty() {
                    let at = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
                    let (bytes, key) = (take_word(rest)?, take_word(rest)?);
                    index.push(take(rest, key)?, bytes as u64).filter(|()| at == index.places[index.len() - 1])?;
                }
            }
            Version::Second => {
                let mut first = Vec::new();
                for _ in 0..take_number(rest)? {
                    let prefix = take_bytes(rest)?;
                    for _ in 0..take_number(rest)? {
                        let bytes = take_number(rest)?;
                        first.clear();
                        first.extend_from_slice(prefix);
                        first.extend_from_slice(take_bytes(rest)?);
                        index.push(&first, bytes)?;
                    }
                }
            }
        }
        index.tables.iter_mut().for_each(Table::shorten);
        index.tables.shrink_to_fit();
        index.places.shrink_to_fit();
        Some(index)
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.places.len() - 1
    }

    /// Where the last block ends.
    pub(super) fn end(&self) -> u64 {
        self.places[self.len()]
    }

    /// Where a block stands in the file.
    pub(super) fn place(&self, block: usize) -> Range<u64> {
        self.places[block]..self.places[block + 1]
    }

    /// The first key of a block.
    pub(super) fn first(&self, block: usize) -> Vec<u8> {
        let table = self.tables.partition_point(|table| table.from <= block).checked_sub(1);
        let table = table.map(|table| &self.tables[table]);
        table.map(|table| [&*table.prefix, &*table.common, table.key(block - table.from)].concat()).unwrap_or_default()
    }

    /// The block in which a key is, if the run has it.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let table = self.table(key)?;
        let entity = key.strip_prefix(&*table.prefix)?;
        Some(table.from + table.up_to(entity).checked_sub(1)?)
    }

    /// The first block that may have this key or a greater one.
    pub(super) fn from(&self, key: &[u8]) -> usize {
        let Some(table) = self.table(key) else { return 0 };
        match key.strip_prefix(&*table.prefix) {
            Some(entity) => table.from + table.up_to(entity).saturating_sub(1),
            None => table.from + table.ends.len(),
        }
    }

    /// The blocks of the table whose keys begin with this.
    pub(super) fn blocks(&self, prefix: &[u8]) -> Range<usize> {
        let table = self.table(prefix).filter(|table| *table.prefix == *prefix);
        table.map_or(0..0, |table| table.from..table.from + table.ends.len())
    }

    /// What it takes of memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of = |table: &Table| {
            size_of::<Table>()
                + table.prefix.len()
                + table.common.len()
                + table.keys.capacity()
                + 4 * table.ends.capacity()
        };
        self.tables.iter().map(of).sum::<usize>() + 8 * self.places.capacity()
    }

    /// The last table whose prefix is not behind this key. (Prefixes do not run into one another.)
    fn table(&self, key: &[u8]) -> Option<&Table> {
        let at = self.tables.partition_point(|table| *table.prefix <= *key).checked_sub(1)?;
        self.tables.get(at)
    }
}

fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    put_number(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(rest)?;
    take(rest, length)
}

#[cfg(test)]
mod tests {
    use model::ports::Table;
    use proptest::prelude::*;

    use super::super::super::layout::{Kind, table_prefix};
    use super::*;

    fn key(table: usize, entity: &[u8]) -> Vec<u8> {
        let kind = if table < 3 { Kind::Row } else { Kind::State };
        [&table_prefix(kind, &Table::new("p", ["a", "ab", "b"][table % 3]))[..], entity].concat()
    }

    fn keys(most: usize) -> impl Strategy<Value = std::collections::BTreeSet<Vec<u8>>> {
        let one = (0..6usize, proptest::collection::vec(0..3u8, 0..5)).prop_map(|(table, entity)| key(table, &entity));
        proptest::collection::btree_set(one, 0..most)
    }

    proptest! {
        /// Every key is looked for where a search of all first keys says.
        #[test]
        fn a_key_is_looked_for_in_the_right_block(firsts in keys(60), asked in keys(40)) {
            let mut index = Index::default();
            for (at, first) in firsts.iter().enumerate() {
                index.push(first, at as u64 + 1).expect("few");
            }
            let stored = index.encode();
            let mut rest = stored.as_slice();
            let index = Index::take(Version::Second, &mut rest).expect("is one");
            prop_assert!(rest.is_empty());
            let firsts: Vec<_> = firsts.into_iter().collect();
            prop_assert_eq!((0..index.len()).map(|block| index.first(block)).collect::<Vec<_>>(), firsts.clone());
            let lengths = (0..index.len()).map(|block| index.place(block)).map(|place| place.end - place.start);
            prop_assert!(lengths.eq(1..=firsts.len() as u64));
            for key in asked.iter().chain(&firsts) {
                let before = firsts.partition_point(|first| first <= key);
                let same = |block: &usize| layout::split(&firsts[*block]).0 == layout::split(key).0;
                prop_assert_eq!(index.find(key), before.checked_sub(1).filter(same));
                let from = index.from(key);
                prop_assert!(from <= before && before <= from + 1, "{} of {}", from, before);
            }
            for table in 0..6 {
                let prefix = key(table, &[]);
                let there = index.blocks(&prefix).map(|block| firsts[block].clone()).collect::<Vec<_>>();
                prop_assert_eq!(there, firsts.iter().filter(|first| first.starts_with(&prefix)).cloned().collect::<Vec<_>>());
            }
        }
    }
}
