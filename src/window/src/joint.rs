//! Several definitions over the same events, whose states of an entity are kept as one: an event is entered once, into
//! tiles in which the definitions' partial results lie side by side. Each definition's part is read, and written, as if it
//! were alone. Knows no store and no clock.

use std::collections::VecDeque;
use std::ops::Range;

use crate::error::Error;
use crate::partial::PartialKind;
use crate::scalar::Scalar;
use crate::spec::{Read, Slot, Spec, TileSet};
use crate::state::{Answer, Pending, State};
use crate::tiles::{distinct_among, distinct_slots};

/// The definitions, and what is kept of them together. Of one alone it is that definition.
#[derive(Clone, Debug)]
pub struct Joint {
    spec: Spec,
    parts: Vec<Part>,
}

/// One of the definitions: where the tile sets of its own stand in those that are kept.
#[derive(Clone, Debug)]
pub struct Part {
    spec: Spec,
    places: Vec<Place>,
    /// Which of the lists of columns it reads.
    list: usize,
    /// Where they stand among all columns.
    columns: Range<usize>,
}

/// Where a tile set stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The set that is kept.
    pub(crate) set: usize,
    /// The slot of it that is this set's first.
    pub(crate) slot: usize,
    /// The first of its slots of distinct values, among such.
    pub(crate) distinct: usize,
}

impl Joint {
    /// Of definitions, each with the number of the list of columns that it reads, from 0 on: an event has the values of the
    /// first list, then those of the next. `None` if two say that they read the same list and do not.
    pub fn new(specs: &[(Spec, usize)]) -> Option<Self> {
        if let [(alone, _)] = specs {
            return Some(alone.clone().into());
        }
        let lists = specs.iter().map(|(_, list)| list + 1).max()?;
        let of_list = |list: usize| specs.iter().find(|(_, other)| *other == list).map(|(spec, _)| spec);
        let (mut columns, mut types, mut ranges) = (Vec::new(), Vec::new(), Vec::with_capacity(lists));
        for list in 0..lists {
            let spec = of_list(list)?;
            ranges.push(columns.len()..columns.len() + spec.columns().len());
            columns.extend_from_slice(spec.columns());
            types.extend_from_slice(spec.types());
        }
        let mut sets: Vec<(i64, i64, Vec<Slot>)> = Vec::new();
        let mut parts = Vec::with_capacity(specs.len());
        for (spec, list) in specs {
            let range = ranges[*list].clone();
            if spec.columns() != &columns[range.clone()] || spec.types() != &types[range.clone()] {
                return None;
            }
            let mut places = Vec::with_capacity(spec.sets().len());
            for set in spec.sets() {
                let known = sets.iter().position(|(hop_us, ..)| *hop_us == set.hop_us);
                let at = known.unwrap_or_else(|| {
                    sets.push((set.hop_us, 0, Vec::new()));
                    sets.len() - 1
                });
                let (_, window_us, slots) = &mut sets[at];
                *window_us = set.window_us.max(*window_us);
                let distinct = distinct_among(slots);
                places.push(Place { set: at, slot: slots.len(), distinct });
                let moved = |slot: &Slot| Slot { column: slot.column.map(|column| range.start + column), ..*slot };
                slots.extend(set.slots.iter().map(moved));
            }
            parts.push(Part { spec: spec.clone(), places, list: *list, columns: range });
        }
        Some(Self { spec: Spec::of_sets(columns, types, sets), parts })
    }

    /// What is kept, as one definition: states are made, changed and written by it. It has no features.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The definitions.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The state of one entity that its states under each of the definitions are together, in their order. `None` where
    /// they differ in the latest event or in what lies in the future, so that they cannot be one.
    ///
    /// # Errors
    /// [`Error::Fingerprint`] if one belongs to another definition.
    pub fn join(&self, mut states: Vec<State>) -> Result<Option<State>, Error> {
        let now_us = states.iter().map(|state| state.now_us).max().unwrap_or(i64::MIN);
        for (state, part) in states.iter_mut().zip(&self.parts) {
            if state.fingerprint != part.spec.fingerprint() {
                return Err(Error::Fingerprint { expected: part.spec.fingerprint(), found: state.fingerprint });
            }
            state.evict(&part.spec, now_us);
        }
        let Some(pending) = self.pending(&states) else { return Ok(None) };
        // of the latest event all know, but those whose windows do not reach it
        let latest_us = states.iter().filter_map(|state| state.latest_us).max();
        let knows = |(state, part): (&State, &Part)| {
            state.latest_us == latest_us.filter(|latest_us| *latest_us >= part.spec.window_start(now_us))
        };
        if !states.iter().zip(&self.parts).all(knows) {
            return Ok(None);
        }
        let mut joined = State::new(&self.spec);
        joined.now_us = now_us;
        joined.latest_us = latest_us;
        joined.pending = pending;
        for (at, (set, tiles)) in self.spec.sets().iter().zip(joined.sets.iter_mut()).enumerate() {
            let mut sources = Vec::new();
            for (state, part) in states.iter().zip(&self.parts) {
                let of_set = part.places.iter().enumerate().filter(|(_, place)| place.set == at);
                sources.extend(of_set.map(|(own, place)| (&part.spec.sets()[own], state.sets.get(own), *place)));
            }
            let mut indexes: Vec<i64> = sources.iter().flat_map(|(_, tiles, _)| tiles.indexes()).collect();
            indexes.sort_unstable();
            indexes.dedup();
            for index in indexes {
                tiles.push(set, index);
                for (own, source, place) in &sources {
                    let Some(found) = source.position(index) else { continue };
                    for slot in 0..own.slots.len() {
                        if own.slots[slot].kind != PartialKind::Distinct {
                            tiles.put(set, place.slot + slot, source.part(own, found, slot).into_owned());
                        }
                    }
                }
            }
            for (own, source, place) in &sources {
                for (nth, (slot, _)) in distinct_slots(own).enumerate() {
                    for (value, index) in &source.latest()[nth] {
                        if source.position(*index).is_some() {
                            tiles.see(set, place.slot + slot, place.distinct + nth, &value.0, *index);
                        }
                    }
                }
            }
        }
        Ok(Some(joined))
    }

    /// What lies in the future, where it is the same for all.
    fn pending(&self, states: &[State]) -> Option<VecDeque<Pending>> {
        // NaN is NaN here
        let same = |(a, b): (&Scalar, &Scalar)| a == b || (a.order(b).is_eq() && a.is_nan());
        let mut all = VecDeque::new();
        for at in 0..states.first()?.pending.len() {
            let ts_us = states[0].pending[at].ts_us;
            let mut columns = vec![Scalar::Null; self.spec.columns().len()];
            let mut filled = vec![false; columns.len()];
            for (state, part) in states.iter().zip(&self.parts) {
                let event = state.pending.get(at).filter(|event| event.ts_us == ts_us)?;
                let (columns, filled) = (&mut columns[part.columns.clone()], &mut filled[part.columns.clone()]);
                if filled.iter().all(|filled| *filled) && !columns.iter().zip(&event.columns).all(same) {
                    return None;
                }
                columns.clone_from_slice(&event.columns);
                filled.fill(true);
            }
            all.push_back(Pending { ts_us, columns: columns.into() });
        }
        states.iter().all(|state| state.pending.len() == all.len()).then_some(all)
    }
}

impl From<Spec> for Joint {
    fn from(spec: Spec) -> Self {
        let places = (0..spec.sets().len()).map(|set| Place { set, slot: 0, distinct: 0 }).collect();
        let columns = 0..spec.columns().len();
        Self { parts: vec![Part { spec: spec.clone(), places, list: 0, columns }], spec }
    }
}

impl Part {
    /// The definition.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Which of the lists of columns it reads.
    pub fn list(&self) -> usize {
        self.list
    }

    /// Where its columns stand among all.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Its tile sets, with where they stand.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (&TileSet, Place)> {
        self.spec.sets().iter().zip(self.places.iter().copied())
    }

    fn read(&self, read: Read) -> Read {
        let place = self.places[read.set];
        Read { set: place.set, slot: place.slot + read.slot, ..read }
    }
}

impl State {
    /// What one of the definitions answers, as [`State::evaluate`] does. `spec` is that definition, or one of its
    /// fingerprint: features may be renamed, or stand in another order.
    pub fn evaluate_part(&self, joint: &Joint, part: usize, spec: &Spec, t_us: i64) -> Option<Answer> {
        let part = joint.parts.get(part).filter(|part| part.spec.fingerprint() == spec.fingerprint())?;
        self.answer(&joint.spec, spec, |read| part.read(read), t_us)
    }

    /// Whether nothing is kept that this definition's windows reach: after [`State::evict`], its part can be forgotten.
    pub fn is_part_empty(&self, joint: &Joint, part: usize) -> bool {
        let reached = |part: &Part| self.latest_us.is_some_and(|ts_us| ts_us >= part.spec.window_start(self.now_us));
        self.pending.is_empty() && !joint.parts.get(part).is_some_and(reached)
    }
}
