//! Some of a view's live states, by their entities' keys. Knows no event and no store.
//!
//! A state keeps its place as long as it is here, so whoever found it once needs not look for its key again.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use model::EntityKey;
use model::ports::Before;
use window::State;

/// What decoded tiles take more than encoded ones, as a factor: an estimate, on the high side.
const DECODED: usize = 3;

/// A part of the states.
#[derive(Default)]
pub(super) struct Shard {
    /// Places, by the hashes of their keys.
    table: HashTable<u32>,
    entries: Vec<Option<Entry>>,
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
    /// The checkpoint behind which it last changed.
    pub(super) round: u16,
    pub(super) dirty: bool,
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
        let is = |place: &u32| self.get(*place).is_some_and(|entry| entry.key == *key);
        self.table.find(hash, is).copied()
    }

    pub(super) fn get(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)?.as_mut()
    }

    /// Takes in an entity; one of the same key must not be here.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry, hasher: &RandomState) -> u32 {
        let place = if let Some(place) = self.free.pop() {
            self.entries[place as usize] = Some(entry);
            place
        } else {
            if self.entries.len() == self.entries.capacity() {
                // most stay: no more room than a quarter
                self.entries.reserve_exact(4 + self.entries.len() / 4);
            }
            self.entries.push(Some(entry));
            (self.entries.len() - 1) as u32
        };
        let entries = &self.entries;
        let hash_of = |place: &u32| entries[*place as usize].as_ref().map_or(0, |entry| hasher.hash_one(&entry.key));
        self.table.insert_unique(hash, place, hash_of);
        place
    }

    pub(super) fn remove(&mut self, place: u32, hasher: &RandomState) {
        let Some(entry) = self.entries.get_mut(place as usize).and_then(Option::take) else { return };
        if let Ok(found) = self.table.find_entry(hasher.hash_one(&entry.key), |known| *known == place) {
            found.remove();
        }
        self.free.push(place);
    }

    /// Lets go of those that do not stay.
    pub(super) fn retain(&mut self, hasher: &RandomState, mut stays: impl FnMut(&mut Entry) -> bool) {
        for place in 0..self.entries.len() as u32 {
            if self.get_mut(place).is_some_and(|entry| !stays(entry)) {
                self.remove(place, hasher);
            }
        }
        if self.table.is_empty() {
            *self = Self::default();
        }
    }
}

impl Entry {
    pub(super) fn new(key: EntityKey, state: State, bytes: usize, before: Before) -> Self {
        let held = Held::Live(Box::new(state));
        let mut entry = Self { key, held, before, bytes: 0, round: 0, dirty: false, used: true };
        entry.set_bytes(bytes);
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
