//! A block of a run: entries of one table in the order of their keys. Knows no file and no checksum.
//!
//! `varint` length and bytes of what all its keys begin with; then for each entry `varint` length of the rest of its key,
//! `varint` length of its value and one, or 0 for what is removed, the rest of the key, the value. A varint has seven bits
//! a byte, the lowest first. In the first version of runs a block has entries alone, with whole keys and with `u32`,
//! little-endian, in place of each varint.

use std::cmp::Ordering;

/// How a run's blocks and index are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    First,
    Second,
}

/// A block that is filled.
#[derive(Debug, Default)]
pub(super) struct Filling {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where each entry's key ends, and its value, if it has one.
    ends: Vec<(usize, Option<usize>)>,
    /// How many bytes all keys have in common.
    shared: usize,
}

impl Filling {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key of the first entry.
    pub(super) fn first(&self) -> &[u8] {
        self.ends.first().map_or(&[], |(end, _)| &self.keys[..*end])
    }

    /// About what it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        const LENGTHS: usize = 3;
        self.keys.len() + self.values.len() + self.ends.len() * LENGTHS
            - self.ends.len().saturating_sub(1) * self.shared
    }

    /// Adds an entry; keys ascend.
    pub(super) fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        // the first and the last of ascending keys have in common what all have
        self.shared = if self.is_empty() { key.len() } else { common(self.first(), key).min(self.shared) };
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value.unwrap_or_default());
        self.ends.push((self.keys.len(), value.map(|_| self.values.len())));
    }

    /// Begins another block.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.ends.clear();
    }

    /// Puts the block behind what is there.
    pub(super) fn write(&self, block: &mut Vec<u8>) {
        put_number(block, self.shared as u64);
        block.extend_from_slice(&self.keys[..self.shared]);
        let (mut key_at, mut value_at) = (0, 0);
        for &(key, value) in &self.ends {
            let rest = &self.keys[key_at + self.shared..key];
            let value = value.map(|end| &self.values[value_at..end]);
            put_number(block, rest.len() as u64);
            put_number(block, value.map_or(0, |value| value.len() as u64 + 1));
            block.extend_from_slice(rest);
            block.extend_from_slice(value.unwrap_or_default());
            (key_at, value_at) = (key, value_at + value.map_or(0, <[u8]>::len));
        }
    }
}

/// How many bytes two keys begin with in common.
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What all keys of a block begin with; takes it off.
pub(super) fn take_shared<'a>(version: Version, block: &mut &'a [u8]) -> Option<&'a [u8]> {
    match version {
        Version::First => Some(&[]),
        Version::Second => {
            let length = take_length(block)?;
            take(block, length)
        }
    }
}

/// The next entry: the rest of its key, and its value unless it is removed.
pub(super) fn take_entry<'a>(version: Version, rest: &mut &'a [u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let number = match version {
        Version::First => take_word,
        Version::Second => take_length,
    };
    let (key, value) = (number(rest)?, number(rest)?);
    let key = take(rest, key)?;
    let value = match value.checked_sub(1) {
        Some(length) => Some(take(rest, length)?),
        None => None,
    };
    Some((key, value))
}

/// What a block says of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Nothing,
    Removed,
    Value(&'a [u8]),
}

/// Looks for a key in a block.
pub(super) fn find<'a>(version: Version, mut block: &'a [u8], key: &[u8]) -> Found<'a> {
    let wanted = take_shared(version, &mut block).and_then(|shared| key.strip_prefix(shared));
    let Some(wanted) = wanted else { return Found::Nothing };
    while let Some((found, value)) = take_entry(version, &mut block) {
        match found.cmp(wanted) {
            Ordering::Less => {}
            Ordering::Equal => return value.map_or(Found::Removed, Found::Value),
            Ordering::Greater => break,
        }
    }
    Found::Nothing
}

pub(super) fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

pub(super) fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

pub(super) fn take_length(rest: &mut &[u8]) -> Option<usize> {
    take_number(rest).and_then(|number| usize::try_from(number).ok())
}

pub(super) fn take_word(rest: &mut &[u8]) -> Option<usize> {
    let (number, behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    Some(u32::from_le_bytes(*number) as usize)
}

pub(super) fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_gives_what_was_put_in(
            entries in proptest::collection::btree_map(
                proptest::collection::vec(0u8..3, 0..6),
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
                1..40,
            ),
            prefix in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let entries: BTreeMap<Vec<u8>, _> =
                entries.into_iter().map(|(key, value)| ([&prefix[..], &key].concat(), value)).collect();
            let mut filling = Filling::default();
            for (key, value) in &entries {
                filling.push(key, value.as_deref());
            }
            let about = filling.bytes();
            let mut block = Vec::new();
            filling.write(&mut block);
            prop_assert!(block.len().abs_diff(about) <= 4 + 2 * entries.len());
            for (key, value) in &entries {
                prop_assert_eq!(find(Version::Second, &block, key), value.as_deref().map_or(Found::Removed, Found::Value));
                let longer = [key, &[9][..]].concat();
                prop_assert_eq!(find(Version::Second, &block, &longer), Found::Nothing);
            }
            let mut rest = block.as_slice();
            let shared = take_shared(Version::Second, &mut rest).expect("is there");
            let mut found = BTreeMap::new();
            while let Some((key, value)) = take_entry(Version::Second, &mut rest) {
                found.insert([shared, key].concat(), value.map(<[u8]>::to_vec));
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn numbers_come_back(number: u64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            let mut rest = bytes.as_slice();
            prop_assert_eq!((take_number(&mut rest), rest.len()), (Some(number), 0));
            bytes.pop();
            prop_assert_eq!(take_number(&mut bytes.as_slice()), None);
        }
    }
}
