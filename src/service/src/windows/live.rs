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
//!
//! Views that take the same events, if not the same columns of them, can be [joined](Owner::join): an entity is then looked for once, and its windows of all
//! views are one state ([`window::Joint`]), changed once. Each view's part is written as if it were alone, so joining and
//! parting change nothing that is stored.

mod core;
mod owner;
mod shard;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use foldhash::fast::RandomState;
use model::ports::{Before, StateWrite, Table};
use model::registry::View;
use model::{EntityKey, Result, Timestamp};
use window::{Joint, Outcome, Spec};

use super::Windowed;
use super::fold::Event;
pub use owner::Owner;
use shard::{Held, Shard};

const SHARDS: usize = 64;
/// So many states are written down under one lock, and readers of their shard wait.
const LOCKED: usize = 64;

/// All live states of the process.
#[derive(Default)]
pub struct Live(RwLock<HashMap<(String, String), Seen>>);

/// The live states of one view, to be read.
#[derive(Clone)]
pub struct Seen {
    states: Arc<States>,
    /// Which of the joined views it is.
    part: usize,
}

/// The live states of a view, or of views that are joined.
struct States {
    views: Vec<Arc<View>>,
    joint: Joint,
    shards: Vec<RwLock<Shard>>,
    hasher: RandomState,
    /// Whether other processes write such states, too: what is not changed here is then read from the store.
    shared: bool,
}

/// A batch of events that several views take, each of them all of it, but not the same columns.
#[derive(Debug)]
pub struct Together {
    /// The tables of the views, each with the list of the events that has its columns.
    pub tables: Vec<(Arc<Table>, usize)>,
}

impl Together {
    /// The list of the events that a view takes, if it takes them.
    pub fn list_of(&self, table: &Arc<Table>) -> Option<usize> {
        self.tables.iter().find(|(other, _)| Arc::ptr_eq(other, table)).map(|(_, list)| *list)
    }
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
        Owner::new(self, view, spec, shared)
    }

    /// The live states of a table, if it has any, built under this definition.
    pub fn get(&self, table: &Table, spec: &Spec) -> Option<Seen> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // most servers read no stream: no name is made for them
        if tables.is_empty() {
            return None;
        }
        tables.get(&name(table)).filter(|seen| seen.spec().fingerprint() == spec.fingerprint()).cloned()
    }

    fn tables(&self) -> RwLockWriteGuard<'_, HashMap<(String, String), Seen>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this is what is read of a view, where it was `before`, if anything was.
    fn show(&self, seen: Seen, before: Option<&Arc<States>>) {
        let name = name(&seen.states.views[seen.part].table);
        let mut tables = self.tables();
        let is = |known: &Seen| before.is_some_and(|before| Arc::ptr_eq(&known.states, before));
        if before.is_none() || tables.get(&name).is_some_and(is) {
            tables.insert(name, seen);
        }
    }

    /// A view's states are not live any more, if they are those.
    fn hide(&self, states: &Arc<States>, part: usize) {
        let mut tables = self.tables();
        let name = name(&states.views[part].table);
        if tables.get(&name).is_some_and(|seen| Arc::ptr_eq(&seen.states, states)) {
            tables.remove(&name);
        }
    }
}

fn name(table: &Table) -> (String, String) {
    (table.project.clone(), table.view.clone())
}

impl Seen {
    fn spec(&self) -> &Spec {
        self.states.joint.parts()[self.part].spec()
    }

    /// The view's features of an entity at a time, as [`super::answer`] gives them; `None` where the store must be
    /// asked for its state. `view` and `spec` are the reader's: features renamed or in another order may be asked of
    /// states that still grow under the definition before.
    ///
    /// Errors: a value that its feature's type cannot hold.
    pub fn answer(&self, key: &EntityKey, spec: &Spec, view: &View, at: Timestamp) -> Option<Result<Windowed>> {
        let Self { states, part } = self;
        let hash = states.hasher.hash_one(key);
        let shard = states.shards[shard_of(hash)].read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.get(shard.find(hash, key)?).filter(|entry| entry.dirty != 0 || !states.shared)?;
        let decoded;
        let state = match &entry.held {
            Held::Live(state) => &**state,
            Held::Packed(bytes) => match super::decode(key, bytes, states.joint.spec(), view) {
                Ok(state) => {
                    decoded = state;
                    &decoded
                }
                Err(error) => return Some(Err(error)),
            },
        };
        let answer = state.evaluate_part(&states.joint, *part, spec, at.micros());
        Some(super::valued(answer, spec, view))
    }
}

impl States {
    fn new(views: Vec<Arc<View>>, joint: Joint, shared: bool) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Arc::new(Self { views, joint, shards, hasher: RandomState::default(), shared })
    }

    /// Whose name errors have.
    fn view(&self) -> &View {
        &self.views[0]
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
