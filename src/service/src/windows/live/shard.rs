//! Some of a view's live states, by their entities' keys. Knows no event and no store.
//!
//! A state keeps its place as long as it is here, so whoever found it once needs not look for its key again.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use model::EntityKey;
use model::ports::Before;
use window::State;

/// So many entities' states are one piece of memory.
const PIECE: usize = 128;
/// What decoded tiles take more than encoded ones, as a factor: an estimate, on the high side.
const DECODED: usize = 3;

/// A part of the states.
#[derive(Default)]
pub(super) struct Shard {
    /// Halves of the keys' hashes, with places: a table that grows asks no key for its hash.
    table: HashTable<(u32, u32)>,
    /// In pieces: what is there is not copied when more come.
    entries: Vec<Vec<Option<Entry>>>,
    /// The places that nobody has.
    free: Vec<u32>,
}

/// An entity's state.
pub(super) struct Entry {
    pub(super) key: EntityKey,
    pub(super) held: Held,
    /// The tag of what the store has, where others write there too.
    pub(super) before: Before,
    /// The state's bytes, as they were last written.
    bytes: u32,
    /// The checkpoint behind which it last changed; goes round.
    pub(super) round: u8,
    /// The parts that have not written its last change, a bit each.
    pub(super) dirty: u64,
    /// It changed in the round before its last change, too: it is likely to change in the next.
    pub(super) hot: bool,
    /// Changed since the last sweep of those that rest.
    pub(super) used: bool,
}

/// A state in memory.
pub(super) enum Held {
    /// As it grows.
    Live(Box<State>),
    /// As it is stored, until the next event.
    Packed(Box<[u8]>),
}

impl Shard {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The place of a key with this hash.
    pub(super) fn find(&self, hash: u64, key: &EntityKey) -> Option<u32> {
        let half = hash as u32;
        let is =
            |(other, place): &(u32, u32)| *other == half && self.get(*place).is_some_and(|entry| entry.key == *key);
        self.table.find(spread(half), is).map(|(_, place)| *place)
    }

    pub(super) fn get(&self, place: u32) -> Option<&Entry> {
        let place = place as usize;
        self.entries.get(place / PIECE)?.get(place % PIECE)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Entry> {
        let place = place as usize;
        self.entries.get_mut(place / PIECE)?.get_mut(place % PIECE)?.as_mut()
    }

    /// Takes in an entity whose key has this hash; one of the same key must not be here.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry) -> u32 {
        let place = match self.free.pop() {
            Some(place) => {
                self.entries[place as usize / PIECE][place as usize % PIECE] = Some(entry);
                place
            }
            None => self.push(entry),
        };
        let half = hash as u32;
        self.table.insert_unique(spread(half), (half, place), |(half, _)| spread(*half));
        place
    }

    /// Puts it behind all others.
    fn push(&mut self, entry: Entry) -> u32 {
        if self.entries.last().is_none_or(|last| last.len() == PIECE) {
            self.entries.push(Vec::with_capacity(PIECE));
        }
        let before = (self.entries.len() - 1) * PIECE;
        let last = &mut self.entries[before / PIECE];
        last.push(Some(entry));
        (before + last.len() - 1) as u32
    }

    pub(super) fn remove(&mut self, place: u32, hasher: &RandomState) {
        let Some(key) = self.get(place).map(|entry| &entry.key) else { return };
        let hash = hasher.hash_one(key);
        if let Ok(found) = self.table.find_entry(spread(hash as u32), |(_, known)| *known == place) {
            found.remove();
        }
        self.entries[place as usize / PIECE][place as usize % PIECE] = None;
        self.free.push(place);
    }

    /// Lets go of those that do not stay.
    pub(super) fn retain(&mut self, hasher: &RandomState, mut stays: impl FnMut(&mut Entry) -> bool) {
        for place in 0..(self.entries.len() * PIECE) as u32 {
            if self.get_mut(place).is_some_and(|entry| !stays(entry)) {
                self.remove(place, hasher);
            }
        }
        if self.table.is_empty() {
            *self = Self::default();
        }
    }
}

/// What the table goes by.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

impl Entry {
    /// An entity whose state has so many bytes.
    pub(super) fn new(key: EntityKey, held: Held, bytes: usize, before: Before) -> Self {
        let mut entry = Self { key, held, before, bytes: 0, round: 0, dirty: 0, hot: false, used: true };
        entry.set_bytes(bytes);
        entry
    }

    /// The same entity with another state, to be written or not.
    pub(super) fn with(&self, held: Held, bytes: usize, dirty: u64) -> Self {
        let mut entry = Self::new(self.key.clone(), held, bytes, Before::Any);
        (entry.round, entry.hot, entry.used, entry.dirty) = (self.round, self.hot, self.used, dirty);
        entry
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    pub(super) fn set_bytes(&mut self, bytes: usize) {
        self.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// What the state takes, about.
    pub(super) fn cost(&self) -> usize {
        let factor = if matches!(self.held, Held::Live(_)) { DECODED } else { 1 };
        self.bytes() * factor
    }
}
