//! The memory tier: what was written or read lately, bounded in bytes, read without a lock. Knows no
//! disk; whoever owns the disk tells it when a write begins and ends.
//!
//! It is kept by entity: all that is known of one entity, under whatever tables, is one [`Block`], found
//! by a keyed 64-bit hash of the entity's key. Of two entities with one hash only the last is kept.
//!
//! It must never answer with something older than a finished write. Two parties put entries in: the
//! one writer, and any reader that missed and fetched from disk (a fill). A fill that was fetched
//! before a write must not land after it. So each key belongs to a stripe, and each stripe has a
//! generation: the writer makes it odd before it touches the disk and even again once the new entries
//! are in. A reader notes the generation before it fetches, and its fill counts only if that was even
//! and is the same still, checked under the stripe's lock. A write so voids the fills of its stripe's
//! other keys too, which costs a miss.
//!
//! Absence is an entry as well. Eviction is CLOCK (second chance), per stripe, whole entities.

mod block;
mod numbers;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use super::layout::{self, Entry};
pub(crate) use block::Part;
use block::{Block, Opened, Payload};
use numbers::{Numbers, Pinned};

/// What an entity costs beside its block, in bytes (map slot and entry, queue slot, the allocator's
/// headers): an estimate, on the high side.
const OVERHEAD: usize = 160;
/// A cache line, and how many of a block are touched before it is read.
const LINE: usize = 64;
const TOUCHED: usize = 32;
const STRIPES: usize = 64;
/// With more different sets of columns than this, rows stand in blocks as they are stored.
const SHAPES: usize = 4096;
/// A stripe smaller than this holds too few entries to choose among.
const STRIPE_BYTES: u64 = 64 * 1024;

/// A key in the tree.
pub(crate) type Key = Arc<[u8]>;

/// The map's keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

struct Slot {
    block: Block,
    used: AtomicBool,
}

/// A table that is read: its number, where its part stood in the last block, and the ids of the columns there.
#[derive(Clone, Copy)]
struct Hint<'a> {
    table: Option<u32>,
    position: usize,
    shape: u32,
    ids: Option<&'a [u32]>,
}

impl<'a> Hint<'a> {
    fn of(table: Option<u32>) -> Self {
        Self { table, position: 0, shape: 0, ids: None }
    }

    #[inline]
    fn part(&mut self, block: &Opened<'a>, shapes: &'a Pinned<'_, u32>) -> Option<Part<'a>> {
        self.position = block.position_near(self.table?, self.position)?;
        block.part(self.position, |shape| {
            if self.ids.is_none() || self.shape != shape {
                (self.shape, self.ids) = (shape, shapes.get(shape));
            }
            self.ids
        })
    }
}

#[derive(Default)]
struct Clock {
    bytes: usize,
    /// Every entity of this stripe that is in the map, once.
    queue: VecDeque<u64>,
}

#[derive(Default)]
struct Stripe {
    generation: AtomicU64,
    clock: Mutex<Clock>,
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader notes before it fetches from disk.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    stripe: usize,
    generation: u64,
}

/// A write that has begun: the stripes it touches.
#[must_use]
pub(crate) struct Write(Vec<usize>);

/// The tier; with a capacity of 0 it is never asked and holds nothing.
pub(crate) struct Tier {
    map: papaya::HashMap<u64, Slot, BuildHasherDefault<Identity>>,
    /// The tables, by their prefixes in the tree. They stay for the life of the store: there are as many as
    /// there ever were views.
    tables: Numbers<u8>,
    /// The ids of slim rows' columns.
    shapes: Numbers<u32>,
    stripes: Vec<Stripe>,
    stripe_bytes: usize,
    bytes: AtomicUsize,
    hasher: RandomState,
}

impl Tier {
    /// A tier of at most `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        let stripes = match capacity {
            0 => 0,
            _ => (capacity / STRIPE_BYTES).clamp(1, STRIPES as u64) as usize,
        };
        Self {
            map: papaya::HashMap::default(),
            tables: Numbers::default(),
            shapes: Numbers::default(),
            stripe_bytes: (capacity as usize).checked_div(stripes).unwrap_or(0),
            stripes: std::iter::repeat_with(Stripe::default).take(stripes).collect(),
            bytes: AtomicUsize::new(0),
            hasher: RandomState::default(),
        }
    }

    /// Whether there is a tier at all.
    pub(crate) fn is_on(&self) -> bool {
        !self.stripes.is_empty()
    }

    /// What is held, in bytes, overhead included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What is known of a key; `None` where the disk must be asked.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        let (prefix, entity) = layout::split(key);
        let table = self.tables.known(prefix)?;
        let map = self.map.pin();
        let slot = map.get(&self.hash(entity)).filter(|slot| slot.block.key() == entity)?;
        slot.touch();
        let shapes = self.shapes.pin();
        slot.block.open().get(table, |shape| shapes.get(shape)).map(Part::to_entry)
    }

    /// What is known of some entities under some tables, by their prefixes: for every entity and table
    /// `each` is called in order, with the entity and the table's number, and `None` where the disk
    /// must be asked.
    ///
    /// First all are looked up, then all are touched, then all are read, so that one waits for the
    /// memory of many at a time.
    pub(crate) fn read<'k, E>(
        &self,
        prefixes: &[Vec<u8>],
        entities: impl Iterator<Item = &'k [u8]> + Clone,
        mut each: impl FnMut(&'k [u8], usize, Option<Part<'_>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (map, shapes) = (self.map.pin(), self.shapes.pin());
        let mut hints: Vec<_> = prefixes.iter().map(|prefix| Hint::of(self.tables.known(prefix))).collect();
        let slots: Vec<Option<&Slot>> = entities.clone().map(|entity| map.get(&self.hash(entity))).collect();
        touch(&slots, &mut hints);
        for (entity, slot) in entities.zip(slots) {
            let block = slot.map(|slot| (slot, slot.block.open())).filter(|(_, block)| block.key == entity);
            if let Some((slot, _)) = &block {
                slot.touch();
            }
            for (at, hint) in hints.iter_mut().enumerate() {
                let part = if let Some((_, block)) = &block { hint.part(block, &shapes) } else { None };
                each(entity, at, part)?;
            }
        }
        Ok(())
    }

    /// To be taken before a key is fetched from disk.
    pub(crate) fn ticket(&self, key: &[u8]) -> Option<Ticket> {
        let stripe = self.stripe(key)?;
        Some(Ticket { stripe, generation: self.stripes[stripe].generation.load(Ordering::Acquire) })
    }

    /// Keeps what was fetched, unless a write came between. Gives whether it is kept.
    pub(crate) fn fill(&self, ticket: Ticket, key: &[u8], entry: &Entry) -> bool {
        let stripe = &self.stripes[ticket.stripe];
        // Somebody else is at this stripe: keeping an entry is not worth waiting.
        let Ok(mut clock) = stripe.clock.try_lock() else {
            return false;
        };
        let quiet = ticket.generation.is_multiple_of(2);
        if !quiet || stripe.generation.load(Ordering::Acquire) != ticket.generation {
            return false;
        }
        self.put(&mut clock, key, entry);
        true
    }

    /// A write of rows or states of these entities begins: nothing of it is on disk yet.
    pub(crate) fn begin<'a>(&self, entities: impl Iterator<Item = &'a [u8]>) -> Write {
        let mut stripes: Vec<usize> = entities.filter_map(|entity| self.stripe_of(self.hash(entity))).collect();
        stripes.sort_unstable();
        stripes.dedup();
        self.turn(&stripes);
        Write(stripes)
    }

    /// A write of unknown keys begins.
    pub(crate) fn begin_all(&self) -> Write {
        let stripes: Vec<usize> = (0..self.stripes.len()).collect();
        self.turn(&stripes);
        Write(stripes)
    }

    /// The write is on disk: from now on reads see it.
    pub(crate) fn end(&self, write: Write, entries: impl Iterator<Item = (Key, Entry)>) {
        let Write(stripes) = write;
        if self.is_on() {
            for (key, entry) in entries {
                if let Some(stripe) = self.stripe(&key) {
                    self.put(&mut self.stripes[stripe].lock(), &key, &entry);
                }
            }
        }
        self.turn(&stripes);
    }

    /// The write may be on disk or not, or it removed every key that meets the condition: forgets
    /// those keys, so that the disk is asked.
    pub(crate) fn end_forgetting(&self, write: Write, forget: impl Fn(&[u8]) -> bool) {
        let Write(stripes) = write;
        let (map, tables) = (self.map.pin(), self.tables.pin());
        for &index in &stripes {
            let mut clock = self.stripes[index].lock();
            let mut queue = std::mem::take(&mut clock.queue);
            queue.retain(|hash| {
                let Some(slot) = map.get(hash) else { return false };
                let goes =
                    |table: u32| tables.get(table).is_none_or(|prefix| forget(&[prefix, slot.block.key()].concat()));
                if !slot.block.open().tables().any(goes) {
                    return true;
                }
                if let Some(left) = slot.block.without(goes) {
                    self.replace(&mut clock, *hash, left);
                    true
                } else {
                    self.remove(&mut clock, *hash);
                    false
                }
            });
            clock.queue = queue;
        }
        self.turn(&stripes);
    }

    /// The write removed these keys: what is known of them goes, and their absence is not kept, for nobody
    /// will ask.
    pub(crate) fn end_without<'a>(&self, write: Write, keys: impl Iterator<Item = &'a Key>) {
        self.forget(keys);
        let Write(stripes) = write;
        self.turn(&stripes);
    }

    /// What is known of these keys goes, while a write of them is under way.
    pub(crate) fn forget<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        self.forget_of(keys.map(|key| layout::split(key)));
    }

    /// The same of keys in two, the tables' prefixes and the entities' own.
    pub(crate) fn forget_of<'a>(&self, keys: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut gone: HashMap<usize, HashSet<u64>> = HashMap::new();
        let map = self.map.pin();
        // keys of one table mostly follow one another
        let mut last: Option<(&[u8], Option<u32>)> = None;
        for (prefix, entity) in keys {
            let known = last.filter(|(before, _)| *before == prefix).map(|(_, table)| table);
            let table = known.unwrap_or_else(|| self.tables.known(prefix));
            last = Some((prefix, table));
            let Some(table) = table else { continue };
            let hash = self.hash(entity);
            let Some(stripe) = self.stripe_of(hash) else { continue };
            let mut clock = self.stripes[stripe].lock();
            let known = |block: &Block| block.key() == entity && block.open().tables().any(|other| other == table);
            let Some(slot) = map.get(&hash).filter(|slot| known(&slot.block)) else { continue };
            if let Some(left) = slot.block.without(|other| other == table) {
                self.replace(&mut clock, hash, left);
            } else {
                self.remove(&mut clock, hash);
                gone.entry(stripe).or_default().insert(hash);
            }
        }
        // Nothing was put in since: fills of these stripes do not count before they are turned.
        for (stripe, gone) in gone {
            self.stripes[stripe].lock().queue.retain(|hash| !gone.contains(hash));
        }
    }

    fn hash(&self, entity: &[u8]) -> u64 {
        self.hasher.hash_one(entity)
    }

    fn stripe(&self, key: &[u8]) -> Option<usize> {
        self.stripe_of(self.hash(layout::split(key).1))
    }

    fn stripe_of(&self, hash: u64) -> Option<usize> {
        // The map uses the hash's low bits.
        ((hash >> 32) as usize).checked_rem(self.stripes.len())
    }

    /// Moves generations on, under the lock, so that no fill is between its check and its insertion.
    fn turn(&self, stripes: &[usize]) {
        for &index in stripes {
            let stripe = &self.stripes[index];
            let _clock = stripe.lock();
            stripe.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn put(&self, clock: &mut Clock, key: &[u8], entry: &Entry) {
        let (prefix, entity) = layout::split(key);
        let (hash, table) = (self.hash(entity), self.tables.number(prefix, usize::MAX).unwrap_or_default());
        let payload = Payload::of(entry, |ids| self.shapes.number(ids, SHAPES));
        let map = self.map.pin();
        let old = map.get(&hash);
        let new = match old.filter(|slot| slot.block.key() == entity) {
            Some(slot) => slot.block.with(table, &payload),
            None => Block::of(entity, table, &payload),
        };
        let Some(block) = new.filter(|block| cost(block) <= self.stripe_bytes) else {
            if old.is_some() {
                self.remove(clock, hash);
                clock.queue.retain(|other| *other != hash);
            }
            return;
        };
        if !self.replace(clock, hash, block) {
            clock.queue.push_back(hash);
        }
        self.evict(clock);
    }

    /// Puts a block in; gives whether there was one.
    fn replace(&self, clock: &mut Clock, hash: u64, block: Block) -> bool {
        let map = self.map.pin();
        let old = map.get(&hash);
        let used = old.is_some_and(|slot| slot.used.load(Ordering::Relaxed));
        self.account(clock, old.map_or(0, |slot| cost(&slot.block)), cost(&block));
        map.insert(hash, Slot { block, used: AtomicBool::new(used) }).is_some()
    }

    fn evict(&self, clock: &mut Clock) {
        let map = self.map.pin();
        // After one round every entry has had its chance, however busy the readers are.
        let mut chances = clock.queue.len();
        while clock.bytes > self.stripe_bytes {
            let Some(hash) = clock.queue.pop_front() else {
                return;
            };
            let used = map.get(&hash).is_some_and(|slot| slot.used.swap(false, Ordering::Relaxed));
            if used && chances > 0 {
                chances -= 1;
                clock.queue.push_back(hash);
            } else {
                self.remove(clock, hash);
            }
        }
    }

    fn remove(&self, clock: &mut Clock, hash: u64) {
        let map = self.map.pin();
        if let Some(slot) = map.remove(&hash) {
            self.account(clock, cost(&slot.block), 0);
        }
    }

    fn account(&self, clock: &mut Clock, less: usize, more: usize) {
        clock.bytes = clock.bytes - less + more;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Slot {
    /// Says that it was used, writing to shared memory only where that is news.
    fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// Loads one byte of each cache line that will be read: the lines' loads wait for memory together.
fn touch(slots: &[Option<&Slot>], hints: &mut [Hint<'_>]) {
    let blocks = || slots.iter().flatten().map(|slot| &slot.block);
    let mut touched = blocks().fold(0, |touched, block| touched ^ block.bytes()[0]);
    // The tables mostly stand at the same places in all blocks.
    let Some(first) = blocks().next().map(Block::open) else { return };
    for hint in hints.iter_mut() {
        hint.position = hint.table.and_then(|table| first.position_near(table, hint.position)).unwrap_or_default();
    }
    let positions = || hints.iter().map(|hint| hint.position);
    let (from, to) = (positions().min().unwrap_or_default(), positions().max().unwrap_or_default());
    for block in blocks() {
        for line in block.open().payloads(from, to).chunks(LINE).take(TOUCHED) {
            touched ^= line[0];
        }
    }
    std::hint::black_box(touched);
}

fn cost(block: &Block) -> usize {
    OVERHEAD + block.bytes().len()
}

#[cfg(test)]
mod tests;
