//! The window states of the streams that this process reads: kept in memory, changed the moment an event comes, read
//! by the serving path at once, written down at checkpoints. Knows no Kafka and no store's layout.
//!
//! A table of live states has one owner, which alone changes it: it applies events, asks for what changed, writes that
//! with its positions, and then settles. Until then a reader sees what a crash would take back and the stream would
//! bring again. What is not here is in the store, as the last checkpoint left it.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;
use model::ports::{OnlineStore, Read, StateWrite, Table};
use model::registry::View;
use model::{EntityKey, Result, Timestamp};
use window::{Outcome, Spec, State};

use super::Windowed;
use super::fold::{Event, FoldError};

const SHARDS: usize = 64;
/// What an entity costs beside its encoded state: a map's slot, the key, and what decoded tiles take more than encoded
/// ones, as a factor. An estimate, on the high side.
const OVERHEAD: usize = 128;
const DECODED: usize = 3;

/// All live states of the process.
#[derive(Default)]
pub struct Live(RwLock<HashMap<(String, String), Arc<States>>>);

/// The live states of one view.
pub struct States {
    view: Arc<View>,
    spec: Spec,
    shards: Vec<RwLock<HashMap<EntityKey, Entry, RandomState>>>,
    hasher: RandomState,
}

struct Entry {
    state: State,
    dirty: bool,
    /// Changed since the last sweep of those that rest.
    used: bool,
    bytes: usize,
}

/// The one who changes a view's states. Dropped, it takes them with it: the store answers again.
pub struct Owner {
    live: Arc<Live>,
    states: Arc<States>,
    /// The entities that changed since the last checkpoint.
    changed: Vec<EntityKey>,
    bytes: usize,
}

/// What became of some events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Events that are in the states now.
    pub applied: usize,
    /// Events that were too old for every window.
    pub late_dropped: usize,
}

impl Live {
    /// Makes a view's states live. Of two owners of one view the later is read.
    pub fn own(self: &Arc<Self>, view: &Arc<View>, spec: Spec) -> Owner {
        let states = Arc::new(States {
            view: Arc::clone(view),
            spec,
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::default(),
        });
        self.tables().insert(name(&view.table), Arc::clone(&states));
        Owner { live: Arc::clone(self), states, changed: Vec::new(), bytes: 0 }
    }

    /// The live states of a table, if it has any, built under this definition.
    pub fn get(&self, table: &Table, spec: &Spec) -> Option<Arc<States>> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // most servers read no stream: no name is made for them
        if tables.is_empty() {
            return None;
        }
        tables.get(&name(table)).filter(|states| states.spec.fingerprint() == spec.fingerprint()).cloned()
    }

    fn tables(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<(String, String), Arc<States>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(table: &Table) -> (String, String) {
    (table.project.clone(), table.view.clone())
}

type Shard = HashMap<EntityKey, Entry, RandomState>;

impl States {
    /// The view's features of an entity at a time, as [`super::answer`] gives them; `None` where the store must be
    /// asked for its state. `view` and `spec` are the reader's: features renamed or in another order may be asked of
    /// states that still grow under the definition before.
    ///
    /// Errors: a value that its feature's type cannot hold.
    pub fn answer(&self, key: &EntityKey, spec: &Spec, view: &View, at: Timestamp) -> Option<Result<Windowed>> {
        let shard = self.shard(key).read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.get(key)?;
        Some(super::answer_of(&entry.state, spec, view, at))
    }

    fn shard(&self, key: &EntityKey) -> &RwLock<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn write(&self, key: &EntityKey) -> std::sync::RwLockWriteGuard<'_, Shard> {
        self.shard(key).write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut tables = self.live.tables();
        let name = name(&self.states.view.table);
        if tables.get(&name).is_some_and(|states| Arc::ptr_eq(states, &self.states)) {
            tables.remove(&name);
        }
    }
}

impl Owner {
    /// Applies events in their order, at `now`. The states of entities that are not here come from `store` first: where
    /// it fails, nothing was applied.
    ///
    /// Errors: after [`FoldError::State`] some events may have been applied: the owner must be given up.
    pub async fn apply(
        &mut self,
        store: &dyn OnlineStore,
        events: &[Event<'_>],
        now: Timestamp,
    ) -> Result<Applied, FoldError> {
        self.fetch(store, events).await?;
        let states = &self.states;
        let mut done = Applied::default();
        for event in events {
            let mut shard = states.write(event.key);
            let entry = match shard.get_mut(event.key) {
                Some(entry) => entry,
                None => shard.entry(event.key.clone()).or_insert_with(|| Entry::new(State::new(&states.spec), 0)),
            };
            let taken = window::Event { ts_us: event.time.micros(), columns: event.columns };
            let outcome = entry.state.apply(&states.spec, taken, now.micros());
            match outcome.map_err(|e| FoldError::State(super::state_error(&states.view, e)))? {
                Outcome::Applied => done.applied += 1,
                Outcome::LateDropped => done.late_dropped += 1,
            }
            entry.used = true;
            if !entry.dirty {
                entry.dirty = true;
                self.changed.push(event.key.clone());
            }
        }
        Ok(done)
    }

    async fn fetch(&mut self, store: &dyn OnlineStore, events: &[Event<'_>]) -> Result<(), FoldError> {
        let states = Arc::clone(&self.states);
        let here = |key: &EntityKey| states.shard(key).read().unwrap_or_else(PoisonError::into_inner).contains_key(key);
        let mut keys: Vec<EntityKey> = events.iter().map(|e| e.key).filter(|key| !here(key)).cloned().collect();
        if keys.is_empty() {
            return Ok(());
        }
        keys.sort_unstable();
        keys.dedup();
        let read = Read { table: Arc::clone(&states.view.table), keys };
        let found = store.read_states(std::slice::from_ref(&read)).await.map_err(FoldError::Store)?;
        let found = found.into_iter().next().unwrap_or_default();
        let mut fetched = Vec::new();
        for (key, bytes) in read.keys.into_iter().zip(found) {
            let Some(bytes) = bytes else { continue };
            let state = super::decode(&key, &bytes, &states.spec, &states.view).map_err(FoldError::State)?;
            fetched.push((key, Entry::new(state, bytes.len())));
        }
        for (key, entry) in fetched {
            self.bytes += entry.bytes;
            states.write(&key).insert(key, entry);
        }
        Ok(())
    }

    /// How many entities changed since the last [`Owner::settle`].
    pub fn changes(&self) -> usize {
        self.changed.len()
    }

    /// What changed since the last [`Owner::settle`], to be written: without bytes where nothing is left of an entity.
    pub fn checkpoint(&mut self, now: Timestamp) -> Vec<StateWrite> {
        let states = &self.states;
        let mut writes = Vec::with_capacity(self.changed.len());
        for key in &self.changed {
            let mut shard = states.write(key);
            let Some(entry) = shard.get_mut(key) else { continue };
            entry.state.evict(&states.spec, now.micros());
            let state = super::encode(&entry.state, &states.spec);
            self.bytes -= entry.bytes;
            entry.bytes = state.as_ref().map_or(0, bytes::Bytes::len);
            self.bytes += entry.bytes;
            writes.push(StateWrite { table: Arc::clone(&states.view.table), key: key.clone(), state });
        }
        writes
    }

    /// The last checkpoint is in the store. Lets go of entities that rest, where all take more than `budget` bytes (an
    /// estimate).
    pub fn settle(&mut self, budget: usize) {
        let states = Arc::clone(&self.states);
        for key in self.changed.drain(..) {
            let mut shard = states.write(&key);
            let empty = shard.get_mut(&key).is_some_and(|entry| {
                entry.dirty = false;
                entry.state.is_empty()
            });
            if empty {
                shard.remove(&key);
            }
        }
        let mut entities: usize = states.shards.iter().map(len).sum();
        // first those that rested for a while, then any
        for all in [false, true] {
            for shard in &states.shards {
                if entities * OVERHEAD + self.bytes * DECODED <= budget {
                    return;
                }
                let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
                let before = shard.len();
                shard.retain(|_, entry| {
                    let stays = std::mem::take(&mut entry.used) && !all;
                    self.bytes -= if stays { 0 } else { entry.bytes };
                    stays
                });
                entities -= before - shard.len();
            }
        }
    }

    /// Lets go of all: somebody else may change them in the store from now on. Nothing may have changed since the last
    /// [`Owner::settle`], or what did is lost and must come again.
    pub fn clear(&mut self) {
        self.changed.clear();
        self.bytes = 0;
        for shard in &self.states.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl Entry {
    fn new(state: State, bytes: usize) -> Self {
        Self { state, dirty: false, used: true, bytes }
    }
}

fn len(shard: &RwLock<Shard>) -> usize {
    shard.read().unwrap_or_else(PoisonError::into_inner).len()
}
