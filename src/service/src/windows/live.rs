//! The window states of the streams that this process reads: kept in memory, changed the moment an event comes, read
//! by the serving path at once, written down at checkpoints. Knows no Kafka and no store's layout.
//!
//! A table of live states has one owner, which alone changes it: it applies events, asks for what changed, writes that
//! with its positions, and then settles. Until then a reader sees what a crash would take back and the stream would
//! bring again. What is not here is in the store, as the last checkpoint left it.
//!
//! An entity that rests for a checkpoint is packed: its state is kept as its bytes, a tenth of what its tiles take, and
//! read from them.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;
use model::ports::{Before, OnlineStore, Read, StateWrite, Table};
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
/// States of more bytes stay as they are: to unpack them for each event that comes now and then would cost more.
const PACKED_MOST: usize = 4096;

/// All live states of the process.
#[derive(Default)]
pub struct Live(RwLock<HashMap<(String, String), Arc<States>>>);

/// The live states of one view.
pub struct States {
    view: Arc<View>,
    spec: Spec,
    shards: Vec<RwLock<HashMap<EntityKey, Entry, RandomState>>>,
    hasher: RandomState,
    /// Whether other processes write such states, too: what is not changed here is then read from the store.
    shared: bool,
}

struct Entry {
    held: Held,
    /// The state's bytes, as they were last written.
    bytes: u32,
    /// The tag of what the store has, where others write there too.
    before: Before,
    /// The checkpoint behind which it last changed.
    round: u16,
    dirty: bool,
    /// Changed since the last sweep of those that rest.
    used: bool,
}

/// A state in memory.
enum Held {
    /// As it grows.
    Live(Box<State>),
    /// As it is stored, until the next event.
    Packed(Box<[u8]>),
}

/// Events by the shards of their entities, in their order within one.
struct ByShard {
    /// Places among the events.
    places: Vec<u32>,
    /// Where each shard's end.
    ends: [u32; SHARDS],
}

impl ByShard {
    /// The shards that have any, with the places of their events.
    fn chunks(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let start = |shard: usize| if shard == 0 { 0 } else { self.ends[shard - 1] as usize };
        let chunk = move |shard| (shard, &self.places[start(shard)..self.ends[shard] as usize]);
        (0..SHARDS).map(chunk).filter(|(_, places)| !places.is_empty())
    }
}

/// The one who changes a view's states. Dropped, it takes them with it: the store answers again.
pub struct Owner {
    live: Arc<Live>,
    states: Arc<States>,
    /// The entities that changed since the last checkpoint.
    changed: Vec<EntityKey>,
    /// Those that changed before it: packed at the next, if they still rest.
    cooling: Vec<EntityKey>,
    /// How many checkpoints were settled; goes round.
    round: u16,
    /// What all states take, about.
    bytes: usize,
    /// The tags of what the last checkpoint writes, in the order of `changed`.
    tags: Vec<Before>,
}

/// What a checkpoint writes.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// The states that changed: without bytes where nothing is left of an entity.
    pub states: Vec<StateWrite>,
    /// What each replaces; empty where nobody else writes them.
    pub before: Vec<Before>,
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
    /// Makes a view's states live. Of two owners of one view the later is read. `shared`: other processes write such
    /// states to the store, too.
    pub fn own(self: &Arc<Self>, view: &Arc<View>, spec: Spec, shared: bool) -> Owner {
        let states = Arc::new(States {
            view: Arc::clone(view),
            spec,
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::default(),
            shared,
        });
        self.tables().insert(name(&view.table), Arc::clone(&states));
        let (changed, cooling, tags) = (Vec::new(), Vec::new(), Vec::new());
        Owner { live: Arc::clone(self), states, changed, cooling, round: 0, bytes: 0, tags }
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
        let entry = shard.get(key).filter(|entry| entry.dirty || !self.shared)?;
        Some(match &entry.held {
            Held::Live(state) => super::answer_of(state, spec, view, at),
            Held::Packed(bytes) => super::answer(key, bytes, spec, view, at),
        })
    }

    fn place(&self, key: &EntityKey) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    fn shard(&self, key: &EntityKey) -> &RwLock<Shard> {
        &self.shards[self.place(key)]
    }

    fn by_shard(&self, events: &[Event<'_>]) -> ByShard {
        let shards: Vec<u8> = events.iter().map(|event| self.place(event.key) as u8).collect();
        let mut ends = [0u32; SHARDS];
        for shard in &shards {
            ends[usize::from(*shard)] += 1;
        }
        let mut before = 0;
        for end in &mut ends {
            before += std::mem::replace(end, before);
        }
        let mut places = vec![0; events.len()];
        for (place, shard) in (0..).zip(&shards) {
            let end = &mut ends[usize::from(*shard)];
            places[*end as usize] = place;
            *end += 1;
        }
        ByShard { places, ends }
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
        let states = Arc::clone(&self.states);
        // an entity's events keep their order, and no shard is locked twice
        let order = states.by_shard(events);
        self.fetch(store, events, &order).await?;
        let mut done = Applied::default();
        for (shard, places) in order.chunks() {
            let mut shard = states.shards[shard].write().unwrap_or_else(PoisonError::into_inner);
            for event in places.iter().map(|place| &events[*place as usize]) {
                let entry = match shard.get_mut(event.key) {
                    Some(entry) => entry,
                    None => shard
                        .entry(event.key.clone())
                        .or_insert_with(|| Entry::new(State::new(&states.spec), 0, Before::Absent)),
                };
                if let Held::Packed(bytes) = &entry.held {
                    let state =
                        super::decode(event.key, bytes, &states.spec, &states.view).map_err(FoldError::State)?;
                    self.bytes -= entry.cost();
                    entry.held = Held::Live(Box::new(state));
                    self.bytes += entry.cost();
                }
                let Held::Live(state) = &mut entry.held else { continue };
                let taken = window::Event { ts_us: event.time.micros(), columns: event.columns };
                let outcome = state.apply(&states.spec, taken, now.micros());
                match outcome.map_err(|e| FoldError::State(super::state_error(&states.view, e)))? {
                    Outcome::Applied => done.applied += 1,
                    Outcome::LateDropped => done.late_dropped += 1,
                }
                entry.used = true;
                entry.round = self.round;
                if !entry.dirty {
                    entry.dirty = true;
                    self.changed.push(event.key.clone());
                }
            }
        }
        Ok(done)
    }

    /// Looks for the entities' states: those that are here are touched, for the waits for memory of many then go on at
    /// the same time, and the others come from the store.
    async fn fetch(&mut self, store: &dyn OnlineStore, events: &[Event<'_>], order: &ByShard) -> Result<(), FoldError> {
        let states = Arc::clone(&self.states);
        let mut keys: Vec<EntityKey> = Vec::new();
        for (shard, places) in order.chunks() {
            let shard = states.shards[shard].read().unwrap_or_else(PoisonError::into_inner);
            for event in places.iter().map(|place| &events[*place as usize]) {
                match shard.get(event.key).map(|entry| &entry.held) {
                    Some(Held::Live(state)) => state.touch(),
                    Some(Held::Packed(_)) => {}
                    None => keys.push(event.key.clone()),
                }
            }
        }
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
            let before = store.tag(&bytes).map_or(Before::Any, Before::Tagged);
            fetched.push((key, Entry::new(state, bytes.len(), before)));
        }
        for (key, entry) in fetched {
            self.bytes += entry.cost();
            states.write(&key).insert(key, entry);
        }
        Ok(())
    }

    /// How many entities changed since the last [`Owner::settle`].
    pub fn changes(&self) -> usize {
        self.changed.len()
    }

    /// What changed since the last [`Owner::settle`], to be written to `store`.
    pub fn checkpoint(&mut self, store: &dyn OnlineStore, now: Timestamp) -> Checkpoint {
        let states = &self.states;
        let mut writes = Vec::with_capacity(self.changed.len());
        let mut replaced = Vec::new();
        self.tags.clear();
        let tagged = store.tag(&[]).is_some();
        let mut buffer = Vec::new();
        for key in &self.changed {
            let mut shard = states.write(key);
            // what changed is here, and live
            let Some(Entry { held: Held::Live(_), .. }) = shard.get(key) else {
                self.tags.push(Before::Any);
                continue;
            };
            let Some(entry) = shard.get_mut(key) else { continue };
            let Held::Live(state) = &mut entry.held else { continue };
            state.evict(&states.spec, now.micros());
            let state = super::encode_with(state, &states.spec, &mut buffer);
            self.bytes -= entry.cost();
            entry.bytes = size(state.as_ref().map_or(0, bytes::Bytes::len));
            self.bytes += entry.cost();
            if tagged {
                replaced.push(entry.before);
                let tag = |state: &bytes::Bytes| store.tag(state).map_or(Before::Any, Before::Tagged);
                self.tags.push(state.as_ref().map_or(Before::Absent, tag));
            }
            writes.push(StateWrite { table: Arc::clone(&states.view.table), key: key.clone(), state });
        }
        Checkpoint { states: writes, before: replaced }
    }

    /// The last checkpoint is in the store. Lets go of entities that rest, where all take more than `budget` bytes (an
    /// estimate).
    pub fn settle(&mut self, budget: usize) {
        let states = Arc::clone(&self.states);
        self.pack();
        let mut tags = std::mem::take(&mut self.tags).into_iter();
        for key in &self.changed {
            let mut shard = states.write(key);
            let empty = shard.get_mut(key).is_some_and(|entry| {
                entry.dirty = false;
                entry.before = tags.next().unwrap_or_default();
                matches!(&entry.held, Held::Live(state) if state.is_empty())
            });
            if empty {
                shard.remove(key);
            }
        }
        self.cooling = std::mem::take(&mut self.changed);
        self.round = self.round.wrapping_add(1);
        let mut entities: usize = states.shards.iter().map(len).sum();
        // first those that rested for a while, then any
        for all in [false, true] {
            for shard in &states.shards {
                if entities * OVERHEAD + self.bytes <= budget {
                    return;
                }
                let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
                let before = shard.len();
                shard.retain(|_, entry| {
                    let stays = std::mem::take(&mut entry.used) && !all;
                    self.bytes -= if stays { 0 } else { entry.cost() };
                    stays
                });
                entities -= before - shard.len();
            }
        }
    }

    /// Packs what changed before the last checkpoint and not since.
    fn pack(&mut self) {
        let states = Arc::clone(&self.states);
        let mut buffer = Vec::new();
        for key in std::mem::take(&mut self.cooling) {
            let mut shard = states.write(&key);
            let Some(entry) = shard.get_mut(&key) else { continue };
            let rests = !entry.dirty && entry.round != self.round && entry.bytes as usize <= PACKED_MOST;
            let Held::Live(state) = &entry.held else { continue };
            let bytes = rests.then(|| super::encode_with(state, &states.spec, &mut buffer)).flatten();
            let Some(bytes) = bytes else { continue };
            self.bytes -= entry.cost();
            entry.held = Held::Packed(bytes.as_ref().into());
            entry.bytes = size(bytes.len());
            self.bytes += entry.cost();
        }
    }

    /// Lets go of all: somebody else may change them in the store from now on. Nothing may have changed since the last
    /// [`Owner::settle`], or what did is lost and must come again.
    pub fn clear(&mut self) {
        self.changed.clear();
        self.cooling.clear();
        self.bytes = 0;
        for shard in &self.states.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl Entry {
    fn new(state: State, bytes: usize, before: Before) -> Self {
        Self { held: Held::Live(Box::new(state)), bytes: size(bytes), before, round: 0, dirty: false, used: true }
    }

    /// What the state takes, about.
    fn cost(&self) -> usize {
        let factor = if matches!(self.held, Held::Live(_)) { DECODED } else { 1 };
        self.bytes as usize * factor
    }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn len(shard: &RwLock<Shard>) -> usize {
    shard.read().unwrap_or_else(PoisonError::into_inner).len()
}
