//! The window states of the streams that this process reads: kept in memory, changed the moment an event comes, read
//! by the serving path at once, written down at checkpoints. Knows no Kafka and no store's layout.
//!
//! A table of live states has one owner, which alone changes it: it applies events, asks for what changed, writes that
//! with its positions, and then settles. Until then a reader sees what a crash would take back and the stream would
//! bring again. What is not here is in the store, as the last checkpoint left it.
//!
//! An entity that rests for a checkpoint is packed: its state is kept as its bytes, a tenth of what its tiles take, and
//! read from them. One that did not change between the two checkpoints before is taken to rest again, and is packed with
//! the bytes that its checkpoint writes: of many entities most come once in a while.
//!
//! An event goes to one of many entities, whose memory is not in a cache: what is read first is read for several events,
//! one after the other, so that the waits go on at the same time.

mod shard;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use model::ports::{Before, OnlineStore, Read, StateWrite, Table};
use model::registry::View;
use model::{EntityKey, Error, Kind, Result, Timestamp};
use window::{Outcome, Spec, State};

use super::Windowed;
use super::fold::{Event, FoldError};
use shard::{Entry, Held, Shard};

const SHARDS: usize = 64;
/// For so many events at a time memory is waited for together: what they need fits the nearest cache.
const TOGETHER: usize = 32;
/// So many states are written down under one lock, and readers of their shard wait.
const LOCKED: usize = 64;
/// What an entity costs beside its state: a map's slot, the key. An estimate, on the high side.
const OVERHEAD: usize = 128;
/// States of more bytes stay as they are: to unpack them for each event that comes now and then would cost more.
const PACKED_MOST: usize = 4096;

/// All live states of the process.
#[derive(Default)]
pub struct Live(RwLock<HashMap<(String, String), Arc<States>>>);

/// The live states of one view.
pub struct States {
    view: Arc<View>,
    spec: Spec,
    shards: Vec<RwLock<Shard>>,
    hasher: RandomState,
    /// Whether other processes write such states, too: what is not changed here is then read from the store.
    shared: bool,
}

/// Events by the shards of their entities, in their order within one.
struct ByShard {
    /// Places among the events.
    places: Vec<u32>,
    /// Where each shard's end.
    ends: [u32; SHARDS],
    /// The hashes of the events' keys.
    hashes: Vec<u64>,
}

/// Where an entity is: its shard, and the place there, which it keeps as long as it is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    shard: u8,
    place: u32,
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
    changed: Vec<Spot>,
    /// Those that changed before it and are live: packed at the next, if they rest by then. (Where one is gone, another may
    /// be there.)
    cooling: Vec<Spot>,
    /// How many checkpoints were settled; goes round.
    round: u8,
    /// What all states take, about.
    bytes: usize,
    /// The tags of what the last checkpoint writes, in the order of `changed`.
    tags: Vec<Before>,
    /// For a state's bytes.
    buffer: Vec<u8>,
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

impl Applied {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied => self.applied += 1,
            Outcome::LateDropped => self.late_dropped += 1,
        }
    }
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
        let (changed, cooling, tags, buffer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Owner { live: Arc::clone(self), states, changed, cooling, round: 0, bytes: 0, tags, buffer }
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

impl States {
    /// The view's features of an entity at a time, as [`super::answer`] gives them; `None` where the store must be
    /// asked for its state. `view` and `spec` are the reader's: features renamed or in another order may be asked of
    /// states that still grow under the definition before.
    ///
    /// Errors: a value that its feature's type cannot hold.
    pub fn answer(&self, key: &EntityKey, spec: &Spec, view: &View, at: Timestamp) -> Option<Result<Windowed>> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shards[shard_of(hash)].read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.get(shard.find(hash, key)?).filter(|entry| entry.dirty || !self.shared)?;
        Some(match &entry.held {
            Held::Live(state) => super::answer_of(state, spec, view, at),
            Held::Packed(bytes) => super::answer(key, bytes, spec, view, at),
        })
    }

    fn by_shard(&self, events: &[Event<'_>]) -> ByShard {
        let hashes: Vec<u64> = events.iter().map(|event| self.hasher.hash_one(event.key)).collect();
        let mut ends = [0u32; SHARDS];
        for hash in &hashes {
            ends[shard_of(*hash)] += 1;
        }
        let mut before = 0;
        for end in &mut ends {
            before += std::mem::replace(end, before);
        }
        let mut places = vec![0; events.len()];
        for (place, hash) in (0..).zip(&hashes) {
            let end = &mut ends[shard_of(*hash)];
            places[*end as usize] = place;
            *end += 1;
        }
        ByShard { places, ends, hashes }
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes through entities under the locks of their shards, some at a time.
    fn each(&self, spots: &[Spot], mut then: impl FnMut(&mut Shard, Spot)) {
        for spots in spots.chunk_by(|a, b| a.shard == b.shard).flat_map(|of_one| of_one.chunks(LOCKED)) {
            let Some(first) = spots.first() else { continue };
            let mut shard = self.write(usize::from(first.shard));
            for spot in spots {
                then(&mut shard, *spot);
            }
        }
    }
}

/// By bits that the shard's own table does not go by.
fn shard_of(hash: u64) -> usize {
    (hash >> 48) as usize % SHARDS
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
        // an entity's events keep their order
        let order = states.by_shard(events);
        let found = self.fetch(store, events, &order).await?;
        let mut done = Applied::default();
        for (at, places) in order.chunks() {
            let mut shard = states.write(at);
            for places in places.chunks(TOGETHER) {
                let held =
                    places.iter().filter_map(|place| shard.get(found[*place as usize]?)).map(|entry| &entry.held);
                let live = held.filter_map(|held| if let Held::Live(state) = held { Some(state) } else { None });
                live.clone().for_each(|state| state.touch());
                live.for_each(|state| state.touch_last());
                for &place in places {
                    let event = &events[place as usize];
                    let (hash, key) = (order.hashes[place as usize], event.key);
                    let Some(spot) = found[place as usize].or_else(|| shard.find(hash, key)) else {
                        done.count(self.begin(&mut shard, at as u8, hash, event, now)?);
                        continue;
                    };
                    done.count(self.take(&mut shard, Spot { shard: at as u8, place: spot }, event, now)?);
                }
            }
        }
        Ok(done)
    }

    /// Takes in an entity with its first event. Many have no other for long, so its state is packed at once: what it grew in
    /// is free again while it is in a cache.
    fn begin(
        &mut self,
        shard: &mut Shard,
        at: u8,
        hash: u64,
        event: &Event<'_>,
        now: Timestamp,
    ) -> Result<Outcome, FoldError> {
        let (spec, view) = (&self.states.spec, &self.states.view);
        let mut state = State::new(spec);
        let taken = window::Event { ts_us: event.time.micros(), columns: event.columns };
        let outcome = state.apply(spec, taken, now.micros());
        let outcome = outcome.map_err(|e| FoldError::State(super::state_error(view, e)))?;
        self.buffer.clear();
        state.encode(spec, &mut self.buffer);
        let packs = !state.is_empty() && self.buffer.len() <= PACKED_MOST;
        let (held, bytes) = if packs {
            (Held::Packed(self.buffer.as_slice().into()), self.buffer.len())
        } else {
            (Held::Live(Box::new(state)), 0)
        };
        let mut entry = Entry::new(event.key.clone(), held, bytes, Before::Absent);
        (entry.dirty, entry.round) = (true, self.round);
        self.bytes += entry.cost();
        let place = shard.insert(hash, entry);
        self.changed.push(Spot { shard: at, place });
        Ok(outcome)
    }

    /// Applies an event to an entity that is there.
    fn take(&mut self, shard: &mut Shard, spot: Spot, event: &Event<'_>, now: Timestamp) -> Result<Outcome, FoldError> {
        let (spec, view) = (&self.states.spec, &self.states.view);
        let gone = || FoldError::State(Error::new(Kind::Internal, "an entity's state is not where it was put"));
        let entry = shard.get_mut(spot.place).ok_or_else(gone)?;
        if let Held::Packed(bytes) = &entry.held {
            let state = super::decode(event.key, bytes, spec, view).map_err(FoldError::State)?;
            self.bytes -= entry.cost();
            entry.held = Held::Live(Box::new(state));
            self.bytes += entry.cost();
        }
        let Held::Live(state) = &mut entry.held else { return Err(gone()) };
        let taken = window::Event { ts_us: event.time.micros(), columns: event.columns };
        let outcome = state.apply(spec, taken, now.micros());
        let outcome = outcome.map_err(|e| FoldError::State(super::state_error(view, e)))?;
        entry.used = true;
        if !entry.dirty {
            entry.dirty = true;
            entry.hot = entry.round == self.round.wrapping_sub(1);
            self.changed.push(spot);
        }
        entry.round = self.round;
        Ok(outcome)
    }

    /// Where the events' entities are; those that are not here come from the store. `None` for who is in neither.
    async fn fetch(
        &mut self,
        store: &dyn OnlineStore,
        events: &[Event<'_>],
        order: &ByShard,
    ) -> Result<Vec<Option<u32>>, FoldError> {
        let states = Arc::clone(&self.states);
        let mut places = vec![None; events.len()];
        let mut missing: Vec<(u64, &EntityKey)> = Vec::new();
        for (shard, of_shard) in order.chunks() {
            let shard = states.shards[shard].read().unwrap_or_else(PoisonError::into_inner);
            for &at in of_shard {
                let at = at as usize;
                places[at] = shard.find(order.hashes[at], events[at].key);
                if places[at].is_none() {
                    missing.push((order.hashes[at], events[at].key));
                }
            }
        }
        if missing.is_empty() {
            return Ok(places);
        }
        // each once: keys are compared only where their hashes are one
        missing.sort_unstable();
        missing.dedup();
        let keys = missing.into_iter().map(|(_, key)| key.clone()).collect();
        let read = Read { table: Arc::clone(&states.view.table), keys };
        let found = store.read_states(std::slice::from_ref(&read)).await.map_err(FoldError::Store)?;
        let found = found.into_iter().next().unwrap_or_default();
        let mut fetched = Vec::new();
        for (key, bytes) in read.keys.into_iter().zip(found) {
            let Some(bytes) = bytes else { continue };
            let state = super::decode(&key, &bytes, &states.spec, &states.view).map_err(FoldError::State)?;
            let before = store.tag(&bytes).map_or(Before::Any, Before::Tagged);
            fetched.push(Entry::new(key, Held::Live(Box::new(state)), bytes.len(), before));
        }
        for entry in fetched {
            self.bytes += entry.cost();
            let hash = states.hasher.hash_one(&entry.key);
            states.write(shard_of(hash)).insert(hash, entry);
        }
        Ok(places)
    }

    /// How many entities changed since the last [`Owner::settle`].
    pub fn changes(&self) -> usize {
        self.changed.len()
    }

    /// What changed since the last [`Owner::settle`], to be written to `store`.
    pub fn checkpoint(&mut self, store: &dyn OnlineStore, now: Timestamp) -> Checkpoint {
        let states = Arc::clone(&self.states);
        let mut writes = Vec::with_capacity(self.changed.len());
        let mut replaced = Vec::new();
        self.tags.clear();
        let tagged = store.tag(&[]).is_some();
        let (mut buffer, mut bytes) = (Vec::new(), BytesMut::new());
        // neighbours in memory one after the other
        self.changed.sort_unstable();
        states.each(&self.changed, |shard, spot| {
            // what changed is here
            let Some(entry) = shard.get_mut(spot.place) else { return };
            let state = match &mut entry.held {
                Held::Live(state) => {
                    state.evict(&states.spec, now.micros());
                    (!state.is_empty()).then(|| {
                        buffer.clear();
                        state.encode(&states.spec, &mut buffer);
                        // many share a piece of memory
                        bytes.extend_from_slice(&buffer);
                        bytes.split().freeze()
                    })
                }
                // at its first event, or by a checkpoint that was not written
                Held::Packed(packed) => {
                    bytes.extend_from_slice(packed);
                    Some(bytes.split().freeze())
                }
            };
            self.bytes -= entry.cost();
            entry.set_bytes(state.as_ref().map_or(0, Bytes::len));
            let packs = matches!(entry.held, Held::Live(_)) && !entry.hot;
            if let Some(state) = state.as_ref().filter(|state| packs && state.len() <= PACKED_MOST) {
                entry.held = Held::Packed(state.as_ref().into());
            }
            self.bytes += entry.cost();
            if tagged {
                replaced.push(entry.before);
                let tag = |state: &Bytes| store.tag(state).map_or(Before::Any, Before::Tagged);
                self.tags.push(state.as_ref().map_or(Before::Absent, tag));
            }
            writes.push(StateWrite { table: Arc::clone(&states.view.table), key: entry.key.clone(), state });
        });
        Checkpoint { states: writes, before: replaced }
    }

    /// The last checkpoint is in the store. Lets go of entities that rest, where all take more than `budget` bytes (an
    /// estimate).
    pub fn settle(&mut self, budget: usize) {
        let states = Arc::clone(&self.states);
        self.pack();
        let mut tags = std::mem::take(&mut self.tags).into_iter();
        let mut cooling = Vec::new();
        states.each(&self.changed, |shard, spot| {
            let Some(entry) = shard.get_mut(spot.place) else { return };
            entry.dirty = false;
            entry.before = tags.next().unwrap_or_default();
            let Held::Live(state) = &entry.held else { return };
            if state.is_empty() {
                shard.remove(spot.place, &states.hasher);
            } else {
                cooling.push(spot);
            }
        });
        self.changed.clear();
        self.cooling = cooling;
        self.round = self.round.wrapping_add(1);
        let len = |shard: &RwLock<Shard>| shard.read().unwrap_or_else(PoisonError::into_inner).len();
        let mut entities: usize = states.shards.iter().map(len).sum();
        // first those that rested for a while, then any
        for all in [false, true] {
            for at in 0..SHARDS {
                if entities * OVERHEAD + self.bytes <= budget {
                    return;
                }
                let mut shard = states.write(at);
                let before = shard.len();
                shard.retain(&states.hasher, |entry| {
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
        let cooling = std::mem::take(&mut self.cooling);
        states.each(&cooling, |shard, spot| {
            let Some(entry) = shard.get_mut(spot.place) else { return };
            let rests = !entry.dirty && entry.round != self.round && entry.bytes() <= PACKED_MOST;
            let Held::Live(state) = &entry.held else { return };
            let bytes = rests.then(|| super::encode_with(state, &states.spec, &mut buffer)).flatten();
            let Some(bytes) = bytes else { return };
            self.bytes -= entry.cost();
            entry.held = Held::Packed(bytes.as_ref().into());
            entry.set_bytes(bytes.len());
            self.bytes += entry.cost();
        });
    }

    /// Lets go of all: somebody else may change them in the store from now on. Nothing may have changed since the last
    /// [`Owner::settle`], or what did is lost and must come again.
    pub fn clear(&mut self) {
        self.changed.clear();
        self.cooling.clear();
        self.bytes = 0;
        for shard in 0..SHARDS {
            *self.states.write(shard) = Shard::default();
        }
    }
}
