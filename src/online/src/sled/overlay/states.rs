//! The window states of a layer, by table and entity: many come in one batch, each once, so an entity's key is neither
//! copied nor joined with its table's before it is written to a run. Knows no log and no run.

use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use model::EntityKey;

use super::super::layout::{self, Entry};
use super::super::tier::Key;

/// So many parts of a table have locks of their own: a reader waits for one insertion at most, or for a sixteenth of the
/// table to grow.
const PARTS: usize = 16;
/// For so many states at a time memory is waited for together.
const TOGETHER: usize = 64;
/// What a state costs beside its key and its bytes, in bytes: an estimate, on the high side.
const OVERHEAD: usize = 112;

/// An entity's state, or that it is removed.
type Held = (EntityKey, Option<Bytes>);

/// The last state of each key.
#[derive(Default)]
pub(super) struct States {
    tables: RwLock<Vec<Arc<OfTable>>>,
    hasher: RandomState,
}

/// The states of one table.
struct OfTable {
    /// What its keys begin with in the tree.
    prefix: Box<[u8]>,
    parts: [RwLock<Part>; PARTS],
}

#[derive(Default)]
struct Part {
    /// Halves of hashes, with places among the states.
    places: HashTable<(u32, u32)>,
    states: Vec<Held>,
}

impl OfTable {
    fn with_room(prefix: Box<[u8]>, room: impl Fn(usize) -> usize) -> Self {
        let part = |at| Part { places: HashTable::with_capacity(room(at)), states: Vec::with_capacity(room(at)) };
        Self { prefix, parts: std::array::from_fn(|at| RwLock::new(part(at))) }
    }

    fn read(&self, part: usize) -> RwLockReadGuard<'_, Part> {
        self.parts[part].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, part: usize) -> RwLockWriteGuard<'_, Part> {
        self.parts[part].write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn find(&self, half: u32, entity: &[u8]) -> Option<usize> {
        let is = |(other, place): &(u32, u32)| *other == half && self.states[*place as usize].0.as_bytes() == entity;
        self.places.find(spread(half), is).map(|(_, place)| *place as usize)
    }
}

/// By bits that the part's own table does not go by.
fn part_of(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

/// What a part's table goes by.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

impl States {
    /// None, with room for as many as others are.
    pub(super) fn like(other: &Self) -> Self {
        let room =
            |table: &Arc<OfTable>| Arc::new(OfTable::with_room(table.prefix.clone(), |at| table.read(at).states.len()));
        // a table that nobody writes any more is left out
        let used = |table: &&Arc<OfTable>| (0..PARTS).any(|at| !table.read(at).states.is_empty());
        Self { tables: RwLock::new(other.all().iter().filter(used).map(room).collect()), ..Self::default() }
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<Arc<OfTable>>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, prefix: &[u8]) -> Option<Arc<OfTable>> {
        self.all().iter().find(|table| *table.prefix == *prefix).map(Arc::clone)
    }

    /// Replaces what is held of some entities of a table, by its prefix; gives the bytes that are held more, and less. One
    /// thread at a time.
    pub(super) fn set(&self, prefix: &[u8], states: impl IntoIterator<Item = Held>) -> (usize, usize) {
        let table = self.table(prefix).unwrap_or_else(|| {
            let table = Arc::new(OfTable::with_room(prefix.into(), |_| 0));
            self.tables.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&table));
            table
        });
        let (mut more, mut less) = (0, 0);
        for (entity, state) in states {
            let hash = self.hasher.hash_one(entity.as_bytes());
            let half = hash as u32;
            let mut part = table.write(part_of(hash));
            more += cost(&entity, state.as_ref());
            if let Some(place) = part.find(half, entity.as_bytes()) {
                let old = std::mem::replace(&mut part.states[place], (entity, state));
                less += cost(&old.0, old.1.as_ref());
            } else {
                let place = part.states.len() as u32;
                part.states.push((entity, state));
                part.places.insert_unique(spread(half), (half, place), |(half, _)| spread(*half));
            }
        }
        (more, less)
    }

    /// What is held under a key in the tree.
    pub(super) fn get(&self, key: &[u8]) -> Option<Entry> {
        self.look(key, |state| state.cloned().map_or(Entry::Absent, Entry::State))
    }

    /// Whether anything is.
    pub(super) fn holds(&self, key: &[u8]) -> bool {
        self.look(key, |_| ()).is_some()
    }

    fn look<T>(&self, key: &[u8], take: impl FnOnce(Option<&Bytes>) -> T) -> Option<T> {
        let (prefix, entity) = layout::split(key);
        let tables = self.all();
        let table = tables.iter().find(|table| *table.prefix == *prefix)?;
        let hash = self.hasher.hash_one(entity);
        let part = table.read(part_of(hash));
        part.find(hash as u32, entity).map(|place| take(part.states[place].1.as_ref()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all().iter().map(|table| (0..PARTS).map(|at| table.read(at).states.len()).sum::<usize>()).sum()
    }

    /// The keys in the tree that meet a condition.
    pub(super) fn keys(&self, meets: impl Fn(&[u8]) -> bool) -> Vec<Key> {
        let tables = self.all().clone();
        let mut keys = Vec::new();
        for table in tables {
            let mut key = table.prefix.to_vec();
            for at in 0..PARTS {
                for (entity, _) in &table.read(at).states {
                    key.truncate(table.prefix.len());
                    key.extend_from_slice(entity.as_bytes());
                    if meets(&key) {
                        keys.push(Key::from(key.as_slice()));
                    }
                }
            }
        }
        keys
    }

    /// Hands over all, in the order of their keys in the tree, until that fails.
    pub(super) fn each<E>(&self, mut take: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>) -> Result<(), E> {
        let mut tables = self.all().clone();
        tables.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix));
        for table in tables {
            // nobody writes to a layer that is read whole
            let parts: Vec<_> = (0..PARTS).map(|at| table.read(at)).collect();
            let mut key = table.prefix.to_vec();
            for held in sorted(parts.iter().flat_map(|part| &part.states)).chunks(TOGETHER) {
                touch(held);
                for (_, (entity, state)) in held {
                    key.truncate(table.prefix.len());
                    key.extend_from_slice(entity.as_bytes());
                    take(&key, state.as_deref())?;
                }
            }
        }
        Ok(())
    }
}

/// By their keys, of which most differ in the eight bytes behind what all have in common: these are compared first, and
/// stand beside one another.
fn sorted<'a>(states: impl Iterator<Item = &'a Held> + Clone) -> Vec<(u64, &'a Held)> {
    let mut keys = states.clone().map(|(entity, _)| entity.as_bytes());
    let first = keys.next().unwrap_or_default();
    let common = keys.fold(first.len(), |common, key| {
        first[..common].iter().zip(key).position(|(a, b)| a != b).unwrap_or(common.min(key.len()))
    });
    let head = |held: &'a Held| {
        let mut head = [0; 8];
        let rest = &held.0.as_bytes()[common..];
        let length = rest.len().min(head.len());
        head[..length].copy_from_slice(&rest[..length]);
        (u64::from_be_bytes(head), held)
    };
    let mut heads: Vec<(u64, &Held)> = states.map(head).collect();
    heads.sort_unstable_by(|(a, (x, _)), (b, (y, _))| a.cmp(b).then_with(|| x.cmp(y)));
    heads
}

/// Reads a byte of each key and state: the waits for memory go on at the same time.
fn touch(held: &[(u64, &Held)]) {
    let first = |bytes: &[u8]| bytes.first().copied().unwrap_or_default();
    let touched = held.iter().map(|(_, (key, state))| first(key.as_bytes()) ^ state.as_deref().map_or(0, first));
    std::hint::black_box(touched.fold(0, |all, byte| all ^ byte));
}

fn cost(entity: &EntityKey, state: Option<&Bytes>) -> usize {
    OVERHEAD + entity.as_bytes().len() + state.map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::ports::Table;
    use proptest::prelude::*;

    use super::*;
    use crate::sled::layout::Kind;

    proptest! {
        /// They are what a map of whole keys would be.
        #[test]
        fn as_a_map_in_the_order_of_keys(
            writes in prop::collection::vec(
                (0..3usize, "[ab\0]{0,12}", prop::option::of(prop::collection::vec(any::<u8>(), 0..4))), 0..60,
            ),
            before in prop::collection::vec("[ab\0]{0,12}", 0..4),
        ) {
            let prefixes = ["v", "w", "va"].map(|view| layout::table_prefix(Kind::State, &Table::new("p", view)));
            let entity = |name: &str| EntityKey::from_bytes(name.as_bytes());
            let last = States::default();
            last.set(&prefixes[0], before.iter().map(|name| (entity(name), None)));
            let states = States::like(&last);
            let (mut map, mut bytes) = (BTreeMap::new(), 0);
            for (table, name, state) in &writes {
                let state = state.clone().map(Bytes::from);
                let (more, less) = states.set(&prefixes[*table], [(entity(name), state.clone())]);
                bytes = bytes + more - less;
                map.insert([&prefixes[*table], name.as_bytes()].concat(), state);
            }
            let mut found = Vec::new();
            let done: Result<(), ()> = states.each(|key, state| {
                found.push((key.to_vec(), state.map(Bytes::copy_from_slice)));
                Ok(())
            });
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(states.len(), map.len());
            for (key, state) in &map {
                let entry = state.clone().map_or(Entry::Absent, Entry::State);
                prop_assert_eq!(states.get(key), Some(entry));
                prop_assert!(states.holds(key));
            }
            for name in before.iter().filter(|name| !map.contains_key(&[&prefixes[0], name.as_bytes()].concat())) {
                prop_assert_eq!(states.get(&[&prefixes[0], name.as_bytes()].concat()), None);
            }
            let mut keys: Vec<Vec<u8>> = states.keys(|key| key.starts_with(&prefixes[1])).iter().map(|k| k.to_vec()).collect();
            keys.sort();
            prop_assert_eq!(keys, map.keys().filter(|key| key.starts_with(&prefixes[1])).cloned().collect::<Vec<_>>());
            let expected: usize = map.iter()
                .map(|(key, state)| OVERHEAD + layout::split(key).1.len() + state.as_ref().map_or(0, Bytes::len)).sum();
            prop_assert_eq!(bytes, expected);
            prop_assert_eq!(found, map.into_iter().collect::<Vec<_>>());
        }
    }
}
