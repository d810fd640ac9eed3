//! Which keys a run does not have, in ten to twenty bits a key: of absent keys about one in a hundred is taken to be there. Its
//! hash is part of what is stored. Knows no file.

use std::io;

/// Words of the piece of memory that all of a key's bits are in: one line of the processor's cache.
const LINE: usize = 8;
const BITS_OF_KEY: usize = 10;
/// The bits that a key sets.
const PROBES: u32 = 6;
/// Of a place in a line.
const PLACE: u32 = 9;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Words that are read or written at once.
const PIECE: usize = 1024;
/// So often a filter can be halved.
const FOLDS: u32 = 3;

/// How many lines so many keys need.
fn lines(keys: u64) -> usize {
    (keys as usize * BITS_OF_KEY).div_ceil(LINE * 64).max(1)
}

/// A Bloom filter in lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter(Vec<u64>);

/// A key's hash, the same in every process and build.
pub(super) fn hash(key: &[u8]) -> u64 {
    let mut hash = key.len() as u64 ^ MIX;
    let (words, rest) = key.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for word in words.iter().chain([&last]) {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(MIX);
        hash ^= hash >> 29;
    }
    hash
}

impl Filter {
    /// Empty, for so many keys.
    pub(super) fn new(keys: u64) -> Self {
        Self(vec![0; lines(keys).next_multiple_of(1 << FOLDS) * LINE])
    }

    /// Of a run that may have any key.
    pub(super) fn of_all() -> Self {
        Self(vec![u64::MAX; LINE])
    }

    /// Takes less memory where it turned out to be for fewer keys.
    pub(super) fn fold(&mut self, keys: u64) {
        // a key's line in half as many is half of its line's number
        while self.0.len().is_multiple_of(2 * LINE) && self.0.len() / LINE / 2 >= lines(keys) {
            let half = self.0.len() / LINE / 2;
            for line in 0..half {
                for word in 0..LINE {
                    self.0[line * LINE + word] = self.0[2 * line * LINE + word] | self.0[(2 * line + 1) * LINE + word];
                }
            }
            self.0.truncate(half * LINE);
        }
        self.0.shrink_to_fit();
    }

    /// What it takes of memory, in bytes.
    pub(super) fn size(&self) -> usize {
        8 * self.0.capacity()
    }

    /// As it was stored, in so many bytes, which are read piece by piece; `None` where that is no filter.
    pub(super) fn read(bytes: u64, mut next: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Option<Self>> {
        let lines = usize::try_from(bytes / (8 * LINE as u64)).unwrap_or(usize::MAX);
        if lines == 0 || !bytes.is_multiple_of(8 * LINE as u64) {
            return Ok(None);
        }
        let mut words = Vec::with_capacity(lines * LINE);
        let mut piece = [0; 8 * PIECE];
        while words.len() < lines * LINE {
            let piece = &mut piece[..8 * PIECE.min(lines * LINE - words.len())];
            next(piece)?;
            words.extend(piece.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
        Ok(Some(Self(words)))
    }

    /// What is stored, piece by piece.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.chunks(PIECE).map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    pub(super) fn add(&mut self, hash: u64) {
        let (line, places) = self.places(hash);
        for place in places {
            self.0[line + place / 64] |= 1 << (place % 64);
        }
    }

    /// Whether the key with this hash may be there.
    pub(super) fn may_have(&self, hash: u64) -> bool {
        let (line, places) = self.places(hash);
        places.into_iter().all(|place| self.0[line + place / 64] & 1 << (place % 64) != 0)
    }

    /// Reads of what [`Self::may_have`] reads.
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.0[self.line(hash)]
    }

    fn line(&self, hash: u64) -> usize {
        let lines = self.0.len() / LINE;
        ((u128::from(hash) * lines as u128) >> 64) as usize * LINE
    }

    fn places(&self, hash: u64) -> (usize, [usize; PROBES as usize]) {
        let line = self.line(hash);
        let mut bits = hash.wrapping_mul(MIX);
        let places = std::array::from_fn(|_| {
            bits = bits.rotate_left(PLACE);
            (bits & ((1 << PLACE) - 1)) as usize
        });
        (line, places)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn key(number: u64) -> Vec<u8> {
        format!("a prefix that all share, entity {number}").into_bytes()
    }

    #[test]
    fn what_is_there_is_never_missed_and_what_is_not_seldom_found() {
        const KEYS: u64 = 20_000;
        for expected in [KEYS, 2 * KEYS, 5 * KEYS, 20 * KEYS] {
            let mut filter = Filter::new(expected);
            (0..KEYS).for_each(|number| filter.add(hash(&key(number))));
            filter.fold(KEYS);
            let bytes: Vec<u8> = filter.pieces().flatten().collect();
            let most = if expected == KEYS { 10 } else { 25 };
            assert!(bytes.len() as u64 <= KEYS * most / 8 + 512);
            let mut rest = bytes.as_slice();
            let filter =
                Filter::read(bytes.len() as u64, |piece| rest.read_exact(piece)).expect("reads").expect("is one");
            assert!(rest.is_empty());
            assert_eq!(filter.pieces().flatten().collect::<Vec<_>>(), bytes);
            assert!((0..KEYS).all(|number| filter.may_have(hash(&key(number)))));
            let wrong = (KEYS..3 * KEYS).filter(|number| filter.may_have(hash(&key(*number)))).count();
            assert!(wrong < 2 * KEYS as usize / 40, "{wrong} of {} found", 2 * KEYS);
        }
    }

    #[test]
    fn what_has_another_length_is_no_filter() {
        for bytes in [0, 1, 8, 63, 65, 72, 127] {
            let read = Filter::read(bytes, |_| panic!("{bytes} bytes are read"));
            assert_eq!(read.expect("nothing fails"), None);
        }
    }

    #[test]
    fn the_hash_is_what_it_was() {
        // stored filters depend on it: another one is another format
        let hashes = [hash(b""), hash(b"entity"), hash(b"entity 1")];
        assert_eq!(hashes, [0xdf44_2d24_3469_30af, 0xcd26_bdfe_ad11_4468, 0xfbed_30c5_086d_bce8]);
    }
}
