//! The states of a view, or of views that are joined, in the hands of who changes them: events are applied, what changed is
//! written down and settled. Knows nothing of who is joined when.

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use model::ports::{Before, OnlineStore, Read, StateWrite};
use model::registry::View;
use model::{EntityKey, Error, Kind, Timestamp};
use window::{Outcome, State};

use super::owner::Parted;
use super::shard::{Entry, Held, Shard};
use super::{Applied, ByShard, Checkpoint, SHARDS, Spot, States, Together, shard_of};
use crate::windows::fold::{Event, FoldError};
use crate::windows::{decode, encode_with, state_error};

/// For so many events at a time memory is waited for together: what they need fits the nearest cache.
const TOGETHER: usize = 32;
/// What an entity costs beside its state: a map's slot, the key. An estimate, on the high side.
const OVERHEAD: usize = 128;
/// States of more bytes stay as they are: to unpack them for each event that comes now and then would cost more.
pub(super) const PACKED_MOST: usize = 4096;

/// The states and what of them is to be written.
pub(super) struct Core {
    pub(super) states: Arc<States>,
    /// The parts that have an owner, a bit each.
    pub(super) owned: u64,
    /// The entities that changed since the last checkpoint of any part.
    pub(super) changed: Vec<Spot>,
    /// Those that changed before it and are live: packed at the next, if they rest by then. (Where one is gone, another may
    /// be there.)
    cooling: Vec<Spot>,
    /// Those that were settled since.
    settled: Vec<Spot>,
    /// How many checkpoints were settled; goes round.
    pub(super) round: u8,
    /// What all states take, about.
    pub(super) bytes: usize,
    /// The tags of what the last checkpoint writes, in the order of `changed`.
    tags: Vec<Before>,
    /// For a state's bytes.
    buffer: Vec<u8>,
    /// The last batch that was applied to joined views, what became of it for each, and who has heard of that.
    pub(super) last: Option<Last>,
    /// Where each part is now, once they were parted.
    pub(super) parted: Parted,
    /// What the states hold has no positions: they must be given up.
    pub(super) torn: bool,
    /// It is not to be joined: some entity's states could not be one.
    pub(super) alone: bool,
    /// How often its views were parted, and so many times more they could be joined and are not: what parts them may come
    /// often, and to join them takes reading all their states again.
    pub(super) partings: u32,
    pub(super) waits: u32,
}

pub(super) struct Last {
    pub(super) batch: Arc<Together>,
    pub(super) applied: Vec<Applied>,
    pub(super) heard: u64,
}

/// What is to be read from the store before events can be applied.
pub(super) struct Missing {
    pub(super) order: ByShard,
    pub(super) places: Vec<Option<u32>>,
    /// For each part, the same keys.
    pub(super) reads: Vec<Read>,
}

impl Core {
    pub(super) fn new(states: Arc<States>) -> Self {
        let owned = u64::MAX >> (64 - states.views.len().clamp(1, 64));
        let (changed, cooling, settled, tags, buffer) = Default::default();
        let (last, parted, torn, alone, partings, waits) = Default::default();
        Self {
            states,
            owned,
            changed,
            cooling,
            settled,
            round: 0,
            bytes: 0,
            tags,
            buffer,
            last,
            parted,
            torn,
            alone,
            partings,
            waits,
        }
    }

    pub(super) fn shared(self) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(self))
    }

    /// Applies events in their order, at `now`; those of entities that are neither here nor in the store are their first. Each
    /// list has the same events with other columns.
    pub(super) fn apply(
        &mut self,
        lists: &[&[Event<'_>]],
        found: &Missing,
        now: Timestamp,
    ) -> Result<Vec<Applied>, FoldError> {
        let states = Arc::clone(&self.states);
        let parts = states.joint.parts();
        let mut done = Applied::default();
        // where some windows are wider than others, what is late is not late for all
        let starts: Vec<i64> = parts.iter().map(|part| part.spec().window_start(now.micros())).collect();
        let start = starts.iter().copied().max().unwrap_or(i64::MIN);
        let mut late = vec![0; if parts.len() > 1 { parts.len() } else { 0 }];
        let mut columns = Vec::new();
        // an entity's events keep their order
        for (at, places) in found.order.chunks() {
            let mut shard = states.write(at);
            for places in places.chunks(TOGETHER) {
                let held = places.iter().filter_map(|place| shard.get(found.places[*place as usize]?));
                let held = held.map(|entry| &entry.held);
                let live = held.filter_map(|held| if let Held::Live(state) = held { Some(state) } else { None });
                live.clone().for_each(|state| state.touch());
                live.for_each(|state| state.touch_last());
                for &place in places {
                    let mut event = lists[0][place as usize];
                    if lists.len() > 1 {
                        columns.clear();
                        for events in lists {
                            columns.extend_from_slice(events[place as usize].columns);
                        }
                        event.columns = &columns;
                    }
                    let event = &event;
                    let (hash, key) = (found.order.hashes[place as usize], event.key);
                    let spot = found.places[place as usize].or_else(|| shard.find(hash, key));
                    let outcome = match spot {
                        None => self.begin(&mut shard, at as u8, hash, event, now)?,
                        Some(place) => self.take(&mut shard, Spot { shard: at as u8, place }, event, now)?,
                    };
                    done.count(outcome);
                    if !late.is_empty() && outcome == Outcome::Applied && event.time.micros() < start {
                        for (late, start) in late.iter_mut().zip(&starts) {
                            *late += usize::from(event.time.micros() < *start);
                        }
                    }
                }
            }
        }
        let of_part = |late: &usize| Applied { applied: done.applied - late, late_dropped: done.late_dropped + late };
        Ok(if late.is_empty() { vec![done] } else { late.iter().map(of_part).collect() })
    }

    /// Takes in an entity with its first event. Many have no other for long, so its state is packed at once: what it grew in
    /// is free again while it is in a cache. (That of joined views is to be written in parts: it is packed afterwards.)
    fn begin(
        &mut self,
        shard: &mut Shard,
        at: u8,
        hash: u64,
        event: &Event<'_>,
        now: Timestamp,
    ) -> Result<Outcome, FoldError> {
        let spec = self.states.joint.spec();
        let mut state = State::new(spec);
        let outcome = state.apply(spec, taken(event), now.micros()).map_err(|e| self.refused(e))?;
        self.buffer.clear();
        let mut packs = self.is_single() && !state.is_empty();
        if packs {
            state.encode(spec, &mut self.buffer);
            packs = self.buffer.len() <= PACKED_MOST;
        }
        let (held, bytes) = if packs {
            (Held::Packed(self.buffer.as_slice().into()), self.buffer.len())
        } else {
            (Held::Live(Box::new(state)), 0)
        };
        let mut entry = Entry::new(event.key.clone(), held, bytes, Before::Absent);
        (entry.dirty, entry.round) = (self.owned, self.round);
        self.bytes += entry.cost();
        let place = shard.insert(hash, entry);
        self.changed.push(Spot { shard: at, place });
        Ok(outcome)
    }

    /// Applies an event to an entity that is there.
    fn take(&mut self, shard: &mut Shard, spot: Spot, event: &Event<'_>, now: Timestamp) -> Result<Outcome, FoldError> {
        let spec = self.states.joint.spec();
        let gone = || FoldError::State(Error::new(Kind::Internal, "an entity's state is not where it was put"));
        let entry = shard.get_mut(spot.place).ok_or_else(gone)?;
        if let Held::Packed(bytes) = &entry.held {
            let state = decode(event.key, bytes, spec, self.states.view()).map_err(FoldError::State)?;
            self.bytes -= entry.cost();
            entry.held = Held::Live(Box::new(state));
            self.bytes += entry.cost();
        }
        let Held::Live(state) = &mut entry.held else { return Err(gone()) };
        let outcome = state.apply(spec, taken(event), now.micros()).map_err(|e| self.refused(e))?;
        entry.used = true;
        if entry.dirty == 0 {
            entry.hot = entry.round == self.round.wrapping_sub(1);
            self.changed.push(spot);
        }
        entry.dirty = self.owned;
        entry.round = self.round;
        Ok(outcome)
    }

    fn refused(&self, error: window::Error) -> FoldError {
        FoldError::State(state_error(self.states.view(), error))
    }

    /// Whether it is of one view.
    pub(super) fn is_single(&self) -> bool {
        self.states.views.len() == 1
    }

    /// Where the events' entities are, and what must come from the store for those that are not here.
    pub(super) fn missing(&self, events: &[Event<'_>]) -> Missing {
        let states = &self.states;
        let order = states.by_shard(events);
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
        // each once: keys are compared only where their hashes are one
        missing.sort_unstable();
        missing.dedup();
        let keys: Vec<EntityKey> = missing.into_iter().map(|(_, key)| key.clone()).collect();
        let read = |view: &Arc<View>| Read { table: Arc::clone(&view.table), keys: keys.clone() };
        let reads = if keys.is_empty() { Vec::new() } else { states.views.iter().map(read).collect() };
        Missing { order, places, reads }
    }

    /// Takes in what the store has; says whether the parts of each entity could be joined: else nothing was taken in.
    pub(super) fn take_in(
        &mut self,
        store: &dyn OnlineStore,
        missing: &Missing,
        mut found: Vec<Vec<Option<Bytes>>>,
    ) -> Result<bool, FoldError> {
        let states = Arc::clone(&self.states);
        let Some(keys) = missing.reads.first().map(|read| &read.keys) else { return Ok(true) };
        let mut fetched = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let mut stored = found.iter_mut().map(|found| found.get_mut(at).and_then(Option::take));
            if self.is_single() {
                let Some(bytes) = stored.next().flatten() else { continue };
                let state = decode(key, &bytes, states.joint.spec(), states.view()).map_err(FoldError::State)?;
                let before = store.tag(&bytes).map_or(Before::Any, Before::Tagged);
                fetched.push(Entry::new(key.clone(), Held::Live(Box::new(state)), bytes.len(), before));
                continue;
            }
            let (mut parts, mut bytes) = (Vec::with_capacity(states.views.len()), 0);
            for ((part, view), stored) in states.joint.parts().iter().zip(&states.views).zip(stored) {
                bytes += stored.as_ref().map_or(0, Bytes::len);
                parts.push(match stored {
                    Some(stored) => decode(key, &stored, part.spec(), view).map_err(FoldError::State)?,
                    None => State::new(part.spec()),
                });
            }
            if bytes == 0 {
                continue;
            }
            let Some(state) = states.joint.join(parts).map_err(|e| self.refused(e))? else { return Ok(false) };
            fetched.push(Entry::new(key.clone(), Held::Live(Box::new(state)), bytes, Before::Any));
        }
        for entry in fetched {
            self.adopt(entry);
        }
        Ok(true)
    }

    /// Takes in an entity as it is.
    pub(super) fn adopt(&mut self, entry: Entry) {
        let hash = self.states.hasher.hash_one(&entry.key);
        self.bytes += entry.cost();
        let (shard, dirty) = (shard_of(hash), entry.dirty);
        let place = self.states.write(shard).insert(hash, entry);
        if dirty != 0 {
            self.changed.push(Spot { shard: shard as u8, place });
        }
    }

    /// What changed of a part since its last [`Core::settle`], to be written to `store`.
    pub(super) fn checkpoint(&mut self, part: usize, store: &dyn OnlineStore, now: Timestamp) -> Checkpoint {
        let states = Arc::clone(&self.states);
        let (spec, single) = (states.joint.spec(), self.is_single());
        let mut writes = Vec::with_capacity(self.changed.len());
        let mut replaced = Vec::new();
        self.tags.clear();
        let tagged = store.tag(&[]).is_some();
        let mut bytes = BytesMut::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        // neighbours in memory one after the other
        self.changed.sort_unstable();
        states.each(&self.changed, |shard, spot| {
            // what changed is here
            let Some(entry) = shard.get_mut(spot.place).filter(|entry| entry.dirty >> part & 1 == 1) else { return };
            let state = match &mut entry.held {
                Held::Live(state) => {
                    state.evict(spec, now.micros());
                    (!state.is_part_empty(&states.joint, part)).then(|| {
                        buffer.clear();
                        if single {
                            state.encode(spec, &mut buffer);
                        } else {
                            state.encode_part(&states.joint, part, &mut buffer);
                        }
                        // many share a piece of memory
                        bytes.extend_from_slice(&buffer);
                        bytes.split().freeze()
                    })
                }
                // at its first event, when views were parted, or by a checkpoint that was not written
                Held::Packed(packed) => {
                    bytes.extend_from_slice(packed);
                    Some(bytes.split().freeze())
                }
            };
            self.bytes -= entry.cost();
            entry.set_bytes(state.as_ref().map_or(0, Bytes::len) * states.views.len());
            let packs = single && matches!(entry.held, Held::Live(_)) && !entry.hot;
            if let Some(state) = state.as_ref().filter(|state| packs && state.len() <= PACKED_MOST) {
                entry.held = Held::Packed(state.as_ref().into());
            }
            self.bytes += entry.cost();
            if tagged {
                replaced.push(entry.before);
                let tag = |state: &Bytes| store.tag(state).map_or(Before::Any, Before::Tagged);
                self.tags.push(state.as_ref().map_or(Before::Absent, tag));
            }
            writes.push(StateWrite { table: Arc::clone(&states.views[part].table), key: entry.key.clone(), state });
        });
        self.buffer = buffer;
        Checkpoint { states: writes, before: replaced }
    }

    /// The last checkpoint of a part is in the store. Lets go of entities that rest, where all take more than `budget` bytes
    /// (an estimate).
    pub(super) fn settle(&mut self, part: usize, budget: usize) {
        let states = Arc::clone(&self.states);
        let mut tags = std::mem::take(&mut self.tags).into_iter();
        let (changed, mut left) = (std::mem::take(&mut self.changed), Vec::new());
        let mut buffer = std::mem::take(&mut self.buffer);
        states.each(&changed, |shard, spot| {
            let Some(entry) = shard.get_mut(spot.place) else { return };
            entry.dirty &= self.owned & !(1 << part);
            entry.before = tags.next().unwrap_or_default();
            if entry.dirty != 0 {
                left.push(spot);
                return;
            }
            let Held::Live(state) = &entry.held else { return };
            if state.is_empty() {
                self.bytes -= entry.cost();
                shard.remove(spot.place, &states.hasher);
            } else if states.views.len() == 1 || entry.hot || !pack(entry, &states, &mut self.bytes, &mut buffer) {
                self.settled.push(spot);
            }
        });
        (self.changed, self.buffer) = (left, buffer);
        // once for all parts: mostly they are settled one behind the other
        if self.changed.is_empty() || self.owned.checked_ilog2() == Some(part as u32) {
            self.cool();
            self.round = self.round.wrapping_add(1);
            self.shrink(budget);
        }
    }

    /// Packs what changed before the last checkpoint and not since.
    fn cool(&mut self) {
        let states = Arc::clone(&self.states);
        let mut buffer = std::mem::take(&mut self.buffer);
        let cooling = std::mem::replace(&mut self.cooling, std::mem::take(&mut self.settled));
        states.each(&cooling, |shard, spot| {
            let round = self.round;
            if let Some(entry) = shard.get_mut(spot.place).filter(|entry| entry.dirty == 0 && entry.round != round) {
                pack(entry, &states, &mut self.bytes, &mut buffer);
            }
        });
        self.buffer = buffer;
    }

    /// Lets go of entities until all take no more than that.
    fn shrink(&mut self, budget: usize) {
        let states = Arc::clone(&self.states);
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
                    let stays = (std::mem::take(&mut entry.used) && !all) || entry.dirty != 0;
                    self.bytes -= if stays { 0 } else { entry.cost() };
                    stays
                });
                entities -= before - shard.len();
            }
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.changed.clear();
        self.cooling.clear();
        self.settled.clear();
        self.bytes = 0;
        for shard in 0..SHARDS {
            *self.states.write(shard) = Shard::default();
        }
    }
}

/// Packs a live state, where that is worth it; says whether it did.
fn pack(entry: &mut Entry, states: &States, total: &mut usize, buffer: &mut Vec<u8>) -> bool {
    let Held::Live(state) = &entry.held else { return false };
    if entry.bytes() > PACKED_MOST {
        return false;
    }
    let Some(bytes) = encode_with(state, states.joint.spec(), buffer) else { return false };
    *total -= entry.cost();
    entry.held = Held::Packed(bytes.as_ref().into());
    entry.set_bytes(bytes.len());
    *total += entry.cost();
    true
}

fn taken<'a>(event: &Event<'a>) -> window::Event<'a> {
    window::Event { ts_us: event.time.micros(), columns: event.columns }
}
