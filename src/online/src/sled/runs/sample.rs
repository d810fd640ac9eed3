//! One key of many of a run, chosen by its hash, which the runs agree on: how much of several runs is there once only is
//! known without reading them. Knows no file.

use std::collections::HashSet;

use super::block::{put_number, take, take_number};

/// One of so many hashes is kept.
const OF: u64 = 256;
/// Of fewer keys nothing is said.
const FEW: usize = 64;

/// Hashes of keys, the lowest bit being whether the key is there or removed.
#[derive(Debug, Default)]
pub(super) struct Sample(Vec<u64>);

impl Sample {
    pub(super) fn add(&mut self, hash: u64, is_there: bool) {
        if hash.is_multiple_of(OF) {
            self.0.push(hash | u64::from(is_there));
        }
    }

    /// As it is stored: `varint` keys, and `u64`, little-endian, of each.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        put_number(bytes, self.0.len() as u64);
        bytes.extend(self.0.iter().flat_map(|hash| hash.to_le_bytes()));
    }

    /// Takes a stored sample off; `None` where that is none.
    pub(super) fn take(rest: &mut &[u8]) -> Option<Self> {
        let length = usize::try_from(take_number(rest)?).ok()?.checked_mul(8)?;
        let (hashes, _) = take(rest, length)?.as_chunks::<8>();
        Some(Self(hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect()))
    }

    /// What it takes of memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        8 * self.0.capacity()
    }
}

/// Whether runs, the newest first, hold so many entries for each that is there: an estimate.
pub(super) fn hold<'a>(samples: impl Iterator<Item = &'a Sample> + Clone, times: usize) -> bool {
    let all: usize = samples.clone().map(|sample| sample.0.len()).sum();
    if all < FEW {
        return false;
    }
    let (mut seen, mut there) = (HashSet::with_capacity(all / times), 0);
    for hash in samples.flat_map(|sample| &sample.0) {
        // the newest of a key counts
        if seen.insert(hash / OF) && hash % OF == 1 {
            there += 1;
        }
        if there * times > all {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(keys: std::ops::Range<u64>, is_there: bool) -> Sample {
        let mut sample = Sample::default();
        keys.for_each(|key| sample.add(super::super::filter::hash(&key.to_le_bytes()), is_there));
        let mut bytes = Vec::new();
        sample.encode(&mut bytes);
        let mut rest = bytes.as_slice();
        let taken = Sample::take(&mut rest).expect("is one");
        assert!(rest.is_empty());
        taken
    }

    #[test]
    fn what_runs_hold_more_than_once_is_counted() {
        const KEYS: u64 = 50_000;
        let [one, other, removed] = [sample(0..KEYS, true), sample(KEYS..2 * KEYS, true), sample(0..KEYS, false)];
        assert!((100..400).contains(&one.0.len()), "{}", one.0.len());
        assert!(!hold([&one, &other].into_iter(), 2), "all are there once");
        assert!(hold([&one, &one].into_iter(), 2));
        assert!(!hold([&one, &one].into_iter(), 3));
        assert!(hold([&one, &other, &one, &other, &one, &other].into_iter(), 3));
        assert!(hold([&removed, &one].into_iter(), 100), "nothing of it is there");
        assert!(!hold([&one, &removed].into_iter(), 3), "written anew");
        assert!(!hold([&sample(0..1000, false)].into_iter(), 2), "too few to tell");
    }
}
