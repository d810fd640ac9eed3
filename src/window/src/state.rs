//! What is kept of one entity: tiles of the past, the few events whose time has not come, and how
//! both answer at a time. Knows no store and no clock.

use std::collections::VecDeque;

use crate::error::Error;
use crate::partial::Partial;
use crate::read;
use crate::scalar::Scalar;
use crate::sets::Sets;
use crate::spec::{Read, Spec};
use crate::tiles::Tiles;

/// One event of one entity.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Event time in microseconds since the epoch.
    pub ts_us: i64,
    /// One value per name in [`Spec::columns`], in that order.
    pub columns: &'a [Scalar],
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the state.
    Applied,
    /// It is older than every window reaches: it can change no answer, the state is as before.
    LateDropped,
}

/// The features of an entity at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The timestamp of the latest event in the entity's windows, in microseconds.
    pub event_ts_us: i64,
    /// One value per feature, in the order of [`Spec::features`]; `Null` if its window holds none.
    pub values: Vec<Scalar>,
    /// Whether an integer was beyond 64 bits and had to be clamped: worth a log line.
    pub saturated: bool,
}

/// An event that lies after `now_us`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pending {
    pub(crate) ts_us: i64,
    pub(crate) columns: Box<[Scalar]>,
}

/// The state of one entity under one [`Spec`]: always use it with a spec of the same fingerprint.
///
/// Time only goes forward in it: a `now_us` or `t_us` older than one seen before counts as that
/// one. Events after `now_us` are kept as they are and enter their tiles when their time has come,
/// so an answer at any `t_us` from then on is exact, whatever lies in its future.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub(crate) fingerprint: u64,
    /// All events up to here are in tiles, all later ones are in `pending`.
    pub(crate) now_us: i64,
    /// The latest timestamp that entered a tile and may still be in a window.
    pub(crate) latest_us: Option<i64>,
    /// The tiles of each tile set of the spec.
    pub(crate) sets: Sets,
    /// Ascending by timestamp, then by arrival; all after `now_us`.
    pub(crate) pending: VecDeque<Pending>,
}

impl State {
    /// Of an entity without events.
    pub fn new(spec: &Spec) -> Self {
        Self {
            fingerprint: spec.fingerprint(),
            now_us: i64::MIN,
            latest_us: None,
            sets: spec.sets().iter().map(Tiles::new).collect(),
            pending: VecDeque::new(),
        }
    }

    /// Takes an event. `now_us` is the wall clock online, the time the replay has reached offline.
    /// How far an event may lie in the future is the caller's to bound.
    ///
    /// # Errors
    /// [`Error::EventWidth`] and [`Error::EventType`] if the event does not fit the definition,
    /// [`Error::Fingerprint`] if the state belongs to another one. The state is then as before.
    pub fn apply(&mut self, spec: &Spec, event: Event<'_>, now_us: i64) -> Result<Outcome, Error> {
        if self.fingerprint != spec.fingerprint() {
            return Err(Error::Fingerprint { expected: spec.fingerprint(), found: self.fingerprint });
        }
        spec.check(event.columns)?;
        self.advance(spec, now_us);
        if event.ts_us > self.now_us {
            let at = self.pending.partition_point(|earlier| earlier.ts_us <= event.ts_us);
            self.pending.insert(at, Pending { ts_us: event.ts_us, columns: event.columns.into() });
        } else if spec.is_late(event.ts_us, self.now_us) {
            return Ok(Outcome::LateDropped);
        } else {
            self.add(spec, event.ts_us, event.columns);
        }
        Ok(Outcome::Applied)
    }

    /// Reads what the next event needs first and changes nothing: done for many states before their events are applied,
    /// the waits for memory go on at the same time.
    pub fn touch(&self) {
        std::hint::black_box((self.now_us, self.latest_us, self.pending.len(), self.sets.get(0).touch_here()));
    }

    /// The same of what it is to change, to be read once [`Self::touch`] was done for all.
    pub fn touch_last(&self) {
        for tiles in self.sets.iter() {
            std::hint::black_box(tiles.touch());
        }
    }

    /// The features at `t_us`; `None` if the entity is unknown then: it has no event that is in any
    /// window. A `t_us` before the latest `now_us` answers for that `now_us`.
    pub fn evaluate(&self, spec: &Spec, t_us: i64) -> Option<Answer> {
        self.answer(spec, spec, |read| read, t_us)
    }

    /// The features of `spec`, whose reads stand in what is kept, `kept`, where `place` says.
    pub(crate) fn answer(&self, kept: &Spec, spec: &Spec, place: impl Fn(Read) -> Read, t_us: i64) -> Option<Answer> {
        if !self.belongs_to(kept) {
            return None;
        }
        let t_us = t_us.max(self.now_us);
        let due = self.pending.partition_point(|event| event.ts_us <= t_us);
        let latest_us = match due.checked_sub(1) {
            Some(last) => self.pending[last].ts_us,
            None => self.latest_us?,
        };
        if latest_us < spec.window_start(t_us) {
            return None;
        }
        let part = |read: &Read| {
            let read = place(*read);
            read::read(kept, read, self.sets.get(read.set), t_us, self.pending.range(..due))
        };
        let parts: Vec<Partial> = spec.reads().iter().map(part).collect();
        let mut saturated = false;
        let mut wanted: Vec<&Partial> = Vec::with_capacity(4);
        let mut values = Vec::with_capacity(spec.features().len());
        for feature in spec.features() {
            wanted.clear();
            wanted.extend(feature.reads().iter().map(|&i| &parts[i]));
            let (value, clamped) = feature.function().finish(&wanted, t_us);
            values.push(value);
            saturated |= clamped;
        }
        Some(Answer { event_ts_us: latest_us, values, saturated })
    }

    /// Drops what no window reaches at `now_us` or later. Changes no answer from then on.
    pub fn evict(&mut self, spec: &Spec, now_us: i64) {
        if !self.belongs_to(spec) {
            return;
        }
        self.advance(spec, now_us);
        for (set, tiles) in spec.sets().iter().zip(self.sets.iter_mut()) {
            tiles.evict(set, set.first_index(self.now_us));
        }
        let start_us = spec.window_start(self.now_us);
        self.latest_us = self.latest_us.filter(|&ts_us| ts_us >= start_us);
    }

    /// Whether nothing is kept: after [`Self::evict`], the entity can be forgotten.
    pub fn is_empty(&self) -> bool {
        self.latest_us.is_none() && self.pending.is_empty() && self.sets.iter().all(Tiles::is_empty)
    }

    /// [`Self::apply`] and [`Self::decode`] refuse the state of another definition; what cannot
    /// refuse leaves it alone, so that a mix-up is no panic in production.
    fn belongs_to(&self, spec: &Spec) -> bool {
        let same = self.fingerprint == spec.fingerprint();
        debug_assert!(same, "state of another definition");
        same
    }

    /// Lets the time come to `now_us`: events that lay in the future until then enter their tiles.
    fn advance(&mut self, spec: &Spec, now_us: i64) {
        self.now_us = self.now_us.max(now_us);
        while let Some(event) = self.pending.pop_front_if(|event| event.ts_us <= self.now_us) {
            self.add(spec, event.ts_us, &event.columns);
        }
    }

    /// Enters an event that is not after `now_us` into every tile set where it can matter.
    fn add(&mut self, spec: &Spec, ts_us: i64, columns: &[Scalar]) {
        self.latest_us = Some(self.latest_us.map_or(ts_us, |latest| latest.max(ts_us)));
        for (set, tiles) in spec.sets().iter().zip(self.sets.iter_mut()) {
            if set.slots.iter().any(|slot| slot.column.is_none_or(|i| !columns[i].is_null())) {
                tiles.add(set, spec.types(), ts_us, columns, self.now_us);
            }
        }
    }
}
