//! The memory tier: what was written or read lately, bounded in bytes, read without a lock. Knows no
//! disk; whoever owns the disk tells it when a write begins and ends.
//!
//! It must never answer with something older than a finished write. Two parties put entries in: the
//! one writer, and any reader that missed and fetched from disk (a fill). A fill that was fetched
//! before a write must not land after it. So each key belongs to a stripe, and each stripe has a
//! generation: the writer makes it odd before it touches the disk and even again once the new entries
//! are in. A reader notes the generation before it fetches, and its fill counts only if that was even
//! and is the same still, checked under the stripe's lock. A write so voids the fills of its stripe's
//! other keys too, which costs a miss.
//!
//! Absence is an entry as well. Eviction is CLOCK (second chance), per stripe.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::Entry;

/// What an entry costs beside its key and payload, in bytes (map slot, queue slot, two reference
/// counted headers): an estimate, on the high side.
const OVERHEAD: usize = 160;
const STRIPES: usize = 64;
/// A stripe smaller than this holds too few entries to choose among.
const STRIPE_BYTES: u64 = 64 * 1024;

/// A key in the tree, shared by the map and the queue.
pub(crate) type Key = Arc<[u8]>;

struct Slot {
    entry: Entry,
    used: AtomicBool,
}

#[derive(Default)]
struct Clock {
    bytes: usize,
    /// Every key of this stripe that is in the map, once.
    queue: VecDeque<Key>,
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
    map: papaya::HashMap<Key, Slot>,
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
            map: papaya::HashMap::new(),
            stripe_bytes: (capacity as usize).checked_div(stripes).unwrap_or(0),
            stripes: std::iter::repeat_with(Stripe::default).take(stripes).collect(),
            bytes: AtomicUsize::new(0),
            hasher: RandomState::new(),
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
        let map = self.map.pin();
        let slot = map.get(key)?;
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(slot.entry.clone())
    }

    /// To be taken before a key is fetched from disk.
    pub(crate) fn ticket(&self, key: &[u8]) -> Option<Ticket> {
        let stripe = self.stripe(key)?;
        Some(Ticket { stripe, generation: self.stripes[stripe].generation.load(Ordering::Acquire) })
    }

    /// Keeps what was fetched, unless a write came between. Gives whether it is kept.
    pub(crate) fn fill(&self, ticket: Ticket, key: &[u8], entry: Entry) -> bool {
        let stripe = &self.stripes[ticket.stripe];
        // Somebody else is at this stripe: keeping an entry is not worth waiting.
        let Ok(mut clock) = stripe.clock.try_lock() else {
            return false;
        };
        let quiet = ticket.generation.is_multiple_of(2);
        if !quiet || stripe.generation.load(Ordering::Acquire) != ticket.generation {
            return false;
        }
        self.put(&mut clock, &Key::from(key), entry);
        true
    }

    /// A write of these keys begins: nothing of it is on disk yet.
    pub(crate) fn begin<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Write {
        let mut stripes: Vec<usize> = keys.filter_map(|key| self.stripe(key)).collect();
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
                    self.put(&mut self.stripes[stripe].lock(), &key, entry);
                }
            }
        }
        self.turn(&stripes);
    }

    /// The write may be on disk or not, or it removed every key that meets the condition: forgets
    /// those keys, so that the disk is asked.
    pub(crate) fn end_forgetting(&self, write: Write, forget: impl Fn(&[u8]) -> bool) {
        let Write(stripes) = write;
        for &index in &stripes {
            let mut clock = self.stripes[index].lock();
            let mut queue = std::mem::take(&mut clock.queue);
            queue.retain(|key| {
                let goes = forget(key);
                if goes {
                    self.remove(&mut clock, key);
                }
                !goes
            });
            clock.queue = queue;
        }
        self.turn(&stripes);
    }

    fn stripe(&self, key: &[u8]) -> Option<usize> {
        (self.hasher.hash_one(key) as usize).checked_rem(self.stripes.len())
    }

    /// Moves generations on, under the lock, so that no fill is between its check and its insertion.
    fn turn(&self, stripes: &[usize]) {
        for &index in stripes {
            let stripe = &self.stripes[index];
            let _clock = stripe.lock();
            stripe.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn put(&self, clock: &mut Clock, key: &Key, entry: Entry) {
        let cost = cost(key, &entry);
        let map = self.map.pin();
        let old = map.get(key).map(|slot| (cost_of(key, slot), slot.used.load(Ordering::Relaxed)));
        if cost > self.stripe_bytes {
            if old.is_some() {
                self.remove(clock, key);
                clock.queue.retain(|other| other != key);
            }
            return;
        }
        let used = old.is_some_and(|(_, used)| used);
        map.insert(Key::clone(key), Slot { entry, used: AtomicBool::new(used) });
        match old {
            Some((old, _)) => self.account(clock, old, 0),
            None => clock.queue.push_back(Key::clone(key)),
        }
        self.account(clock, 0, cost);
        self.evict(clock);
    }

    fn evict(&self, clock: &mut Clock) {
        let map = self.map.pin();
        // After one round every entry has had its chance, however busy the readers are.
        let mut chances = clock.queue.len();
        while clock.bytes > self.stripe_bytes {
            let Some(key) = clock.queue.pop_front() else {
                return;
            };
            let used = map.get(&key).is_some_and(|slot| slot.used.swap(false, Ordering::Relaxed));
            if used && chances > 0 {
                chances -= 1;
                clock.queue.push_back(key);
            } else {
                self.remove(clock, &key);
            }
        }
    }

    fn remove(&self, clock: &mut Clock, key: &Key) {
        let map = self.map.pin();
        if let Some(slot) = map.remove(key) {
            self.account(clock, cost_of(key, slot), 0);
        }
    }

    fn account(&self, clock: &mut Clock, less: usize, more: usize) {
        clock.bytes = clock.bytes - less + more;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

fn cost(key: &Key, entry: &Entry) -> usize {
    OVERHEAD + key.len() + entry.payload().map_or(0, bytes::Bytes::len)
}

fn cost_of(key: &Key, slot: &Slot) -> usize {
    cost(key, &slot.entry)
}

#[cfg(test)]
mod tests;
