//! What is in the log and in neither a run nor sled yet, in memory, read without waiting. Knows no file and no thread.
//!
//! Two layers at most: the one that the writer fills, and the frozen one before it that is on its way
//! into a run and sled. A frozen layer is dropped only after these have all of it, so whoever asks the layers first
//! and them after misses nothing.

mod states;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use foldhash::quality::RandomState;
use model::EntityKey;

use super::layout::{self, Entry, Kind};
use super::tier::Key;
use states::States;

/// What an entry costs beside its key and payload, in bytes: an estimate, on the high side.
const OVERHEAD: usize = 160;

/// Positions by their key in the tree.
pub(crate) type Positions = BTreeMap<Vec<u8>, [u8; 16]>;

/// The last entry of each key, among those of some groups.
#[derive(Default)]
pub(crate) struct Layer {
    /// All but window states.
    entries: papaya::HashMap<Key, Entry, RandomState>,
    states: States,
    positions: Mutex<Positions>,
    bytes: AtomicUsize,
}

impl Layer {
    /// Empty, with room for as many entries as another had.
    fn like(other: &Self) -> Self {
        let entries = papaya::HashMap::builder().capacity(other.entries.len()).hasher(RandomState::default()).build();
        Self { entries, states: States::like(&other.states), ..Self::default() }
    }

    /// What is held, in bytes, overhead included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Replaces what is held of a key. One thread at a time.
    pub(crate) fn set(&self, key: Key, entry: Entry) {
        if layout::kind(&key) == Some(Kind::State) {
            let (prefix, entity) = layout::split(&key);
            return self.set_states(prefix, [(EntityKey::from_bytes(entity), entry.payload().cloned())]);
        }
        let more = cost(key.len(), &entry);
        let length = key.len();
        let less = self.entries.pin().insert(key, entry).map_or(0, |old| cost(length, old));
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }

    /// Replaces the states of some entities of a table, by its prefix; without bytes they are removed. One thread at a
    /// time.
    pub(crate) fn set_states(&self, prefix: &[u8], states: impl IntoIterator<Item = (EntityKey, Option<Bytes>)>) {
        let (more, less) = self.states.set(prefix, states);
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }

    /// Replaces a position.
    pub(crate) fn set_position(&self, key: Vec<u8>, payload: [u8; 16]) {
        self.positions().insert(key, payload);
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        match layout::kind(key) {
            Some(Kind::State) => self.states.get(key),
            _ => self.entries.pin().get(key).cloned(),
        }
    }

    /// Whether it has an entry or a position under this key.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.entries.pin().contains_key(key) || self.states.holds(key) || self.positions().contains_key(key)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.states.len()
    }

    /// Hands over all entries in the order of their keys, without a value where there is none any more, until that fails.
    /// Nobody may write meanwhile.
    pub(crate) fn each<E>(&self, mut take: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>) -> Result<(), E> {
        let pin = self.entries.pin();
        let mut rows: Vec<(&Key, &Entry)> = pin.iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        for (key, entry) in rows {
            take(key, entry.payload().map(Bytes::as_ref))?;
        }
        // the keys of states are behind those of rows
        self.states.each(take)
    }

    /// All positions.
    pub(crate) fn positions(&self) -> MutexGuard<'_, Positions> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Layers {
    active: Arc<Layer>,
    frozen: Option<Arc<Layer>>,
}

/// The layers.
#[derive(Default)]
pub(crate) struct Overlay(RwLock<Layers>);

impl Overlay {
    /// An overlay whose frozen layer is there already.
    pub(crate) fn with_frozen(frozen: Arc<Layer>) -> Self {
        Self(RwLock::new(Layers { active: Arc::default(), frozen: Some(frozen) }))
    }

    /// The layer that the writer fills.
    pub(crate) fn active(&self) -> Arc<Layer> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).active)
    }

    /// What is held of a key; `None` where the disk must be asked.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        let layers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        layers.active.get(key).or_else(|| layers.frozen.as_ref().and_then(|frozen| frozen.get(key)))
    }

    /// The keys with entries that meet a condition, each once or twice.
    pub(crate) fn keys(&self, meets: impl Fn(&[u8]) -> bool) -> Vec<Key> {
        let layers = {
            let layers = self.0.read().unwrap_or_else(PoisonError::into_inner);
            [Some(Arc::clone(&layers.active)), layers.frozen.clone()]
        };
        // Not under the lock: they may be large.
        let mut keys = Vec::new();
        for layer in layers.iter().flatten() {
            keys.extend(layer.entries.pin().keys().filter(|key| meets(key)).map(Key::clone));
            keys.extend(layer.states.keys(&meets));
        }
        keys
    }

    /// The positions whose keys begin with the prefix, by key.
    pub(crate) fn positions(&self, prefix: &[u8]) -> Positions {
        let layers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Positions::new();
        for layer in layers.frozen.iter().chain([&layers.active]) {
            let positions = layer.positions();
            let some = positions.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            found.extend(some.map(|(key, payload)| (key.clone(), *payload)));
        }
        found
    }

    /// Freezes the active layer, begins another, and gives that. There must be no frozen one.
    pub(crate) fn freeze(&self) -> Arc<Layer> {
        let next = Arc::new(Layer::like(&self.active()));
        let mut layers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        layers.frozen = Some(std::mem::replace(&mut layers.active, Arc::clone(&next)));
        next
    }

    /// The layer that is on its way to the disk, if there is one.
    pub(crate) fn frozen(&self) -> Option<Arc<Layer>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).frozen.clone()
    }

    /// The disk has all of the frozen layer. Not dropped here, for it may be large.
    pub(crate) fn take_frozen(&self) -> Option<Arc<Layer>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).frozen.take()
    }
}

fn cost(key: usize, entry: &Entry) -> usize {
    OVERHEAD + key + entry.payload().map_or(0, bytes::Bytes::len)
}
