//! Who changes a view's states; how views are joined, and parted again. Knows nothing of how events are applied.
//!
//! The owners of joined views share one [`Core`]. A batch of events that they all take ([`Together`]) is applied by the first
//! of them that is given it; the others only hear of it. Whatever is not so – a batch that not all of them take, a view that
//! starts again, states of an entity that cannot be one – parts them: each view has states of its own then, which are what
//! it would have had: of entities that wait for a checkpoint, for the others are in the store. Nothing stored changes by
//! that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::ports::OnlineStore;
use model::registry::View;
use model::{Error, Kind, Timestamp};
use window::{Joint, Spec, State};

use super::core::{Core, Last, PACKED_MOST};
use super::shard::Held;
use super::{Applied, Checkpoint, Live, Seen, States, Together};
use crate::windows::fold::{Event, FoldError};

/// So many views are joined at most: an entity has a bit for each.
const MOST: usize = 64;
/// Views that were parted so often wait no longer than others before they are joined again: a thousand checkpoints.
const PATIENT: u32 = 10;

/// Where each part is, once the views were parted.
pub(super) type Parted = Vec<Option<Arc<Mutex<Core>>>>;

/// The one who changes a view's states. Dropped, it takes them with it: the store answers again.
pub struct Owner {
    live: Arc<Live>,
    core: Arc<Mutex<Core>>,
    part: usize,
}

impl Owner {
    pub(super) fn new(live: &Arc<Live>, view: &Arc<View>, spec: Spec, shared: bool) -> Self {
        let states = States::new(vec![Arc::clone(view)], Joint::from(spec), shared);
        live.show(Seen { states: Arc::clone(&states), part: 0 }, None);
        Self { live: Arc::clone(live), core: Core::new(states).shared(), part: 0 }
    }

    /// Its states, which may be elsewhere since it last looked, and which part of them is its own.
    fn core(&mut self) -> (MutexGuard<'_, Core>, usize) {
        let own = lock(&self.core).parted.get_mut(self.part).and_then(Option::take);
        if let Some(own) = own {
            (self.core, self.part) = (own, 0);
        }
        (lock(&self.core), self.part)
    }

    /// Applies events in their order, at `now`. The states of entities that are not here come from `store` first: where
    /// it fails, nothing was applied. `lists` are the events, or, where they are a batch that other views take, too
    /// (`together`), its lists: the same events, each with other columns.
    ///
    /// Errors: after [`FoldError::State`] some events may have been applied: the owner must be given up.
    pub async fn apply(
        &mut self,
        store: &dyn OnlineStore,
        lists: &[Vec<Event<'_>>],
        now: Timestamp,
        together: Option<&Arc<Together>>,
    ) -> Result<Applied, FoldError> {
        loop {
            let (missing, lists) = {
                let (mut core, part) = self.core();
                if core.torn {
                    return Err(FoldError::State(torn()));
                }
                let Some(taken) = core.taken(together) else {
                    drop(core);
                    self.leave(false);
                    continue;
                };
                if let Some(applied) = core.hear(part, together) {
                    return Ok(applied);
                }
                let lists: Vec<&[Event<'_>]> =
                    taken.into_iter().filter_map(|at| Some(lists.get(at)?.as_slice())).collect();
                let Some(first) = lists.first().filter(|events| !events.is_empty()) else {
                    return Ok(Applied::default());
                };
                (core.missing(first), lists)
            };
            if !missing.reads.is_empty() {
                let found = store.read_states(&missing.reads).await.map_err(FoldError::Store)?;
                let taken_in = self.core().0.take_in(store, &missing, found);
                // what is wrong with one view's state is no matter of the others
                if matches!(taken_in, Ok(false)) || (taken_in.is_err() && self.is_joined()) {
                    self.leave(true);
                    continue;
                }
                taken_in?;
            }
            let (mut core, part) = self.core();
            // until all of them are applied, for all views that are joined
            core.torn = true;
            let applied = core.apply(&lists, &missing, now)?;
            core.torn = false;
            let mine = applied.get(part).copied().unwrap_or_default();
            core.last = together.filter(|_| !core.is_single()).map(|batch| Last {
                batch: Arc::clone(batch),
                applied,
                heard: 1 << part,
            });
            return Ok(mine);
        }
    }

    /// Whether those events were applied already, on behalf of a view that is joined with this one.
    pub fn applied(&mut self, together: Option<&Arc<Together>>) -> Option<Applied> {
        let (mut core, part) = self.core();
        if core.is_single() { None } else { core.hear(part, together) }
    }

    /// Whether it is joined with others.
    pub fn is_joined(&mut self) -> bool {
        !self.core().0.is_single()
    }

    /// Keeps the states of these views as one from now on, where nothing of them waits for a checkpoint; says whether it
    /// does. Beside each stands which list of columns it reads, from 0 on. What they had in memory is read from the store
    /// again.
    pub fn join(owners: &mut [(&mut Self, usize)]) -> bool {
        if !(2..=MOST).contains(&owners.len()) {
            return false;
        }
        let (mut views, mut specs) = (Vec::with_capacity(owners.len()), Vec::with_capacity(owners.len()));
        for (owner, list) in owners.iter_mut() {
            let (core, part) = owner.core();
            if core.states.shared || core.torn || core.alone || !core.changed.is_empty() {
                return false;
            }
            views.push(Arc::clone(&core.states.views[part]));
            specs.push((core.states.joint.parts()[part].spec().clone(), *list));
        }
        let first = Arc::clone(&owners[0].0.core);
        let same = owners.iter().all(|(owner, _)| Arc::ptr_eq(&owner.core, &first));
        // views that left leave room behind
        if same && lock(&first).states.views.len() == owners.len() {
            return true;
        }
        let (mut waits, mut partings) = (0, 0);
        for (owner, _) in owners.iter_mut() {
            let (mut core, _) = owner.core();
            waits = waits.max(core.waits);
            core.waits = core.waits.saturating_sub(1);
            partings = partings.max(core.partings);
        }
        if waits > 0 {
            return false;
        }
        let Some(joint) = Joint::new(&specs) else { return false };
        tracing::debug!(project = views[0].project, views = ?names(&views), "the views' window states are kept together");
        let states = States::new(views, joint, false);
        let mut core = Core::new(Arc::clone(&states));
        core.partings = partings;
        let core = core.shared();
        for (part, (owner, _)) in owners.iter_mut().enumerate() {
            if owner.is_joined() {
                owner.leave(false);
            }
            let before = Arc::clone(&owner.core().0.states);
            owner.live.show(Seen { states: Arc::clone(&states), part }, Some(&before));
            (owner.core, owner.part) = (Arc::clone(&core), part);
        }
        true
    }

    /// Parts the views that are joined with this one; `for_good`: their states cannot be one.
    fn leave(&mut self, for_good: bool) {
        let live = Arc::clone(&self.live);
        self.core().0.part(&live, for_good);
    }

    /// How many entities changed since the last [`Owner::settle`].
    pub fn changes(&self) -> usize {
        let core = lock(&self.core);
        match core.parted.get(self.part) {
            Some(Some(own)) => lock(own).changed.len(),
            _ => core.changed.len(),
        }
    }

    /// What changed since the last [`Owner::settle`], to be written to `store`.
    ///
    /// Errors: the states have events of a batch that this view was not told of: they would be written without their
    /// positions.
    pub fn checkpoint(&mut self, store: &dyn OnlineStore, now: Timestamp) -> model::Result<Checkpoint> {
        let (mut core, part) = self.core();
        if core.torn || core.last.as_ref().is_some_and(|last| last.heard >> part & 1 == 0) {
            return Err(torn());
        }
        Ok(core.checkpoint(part, store, now))
    }

    /// The last checkpoint is in the store. Lets go of entities that rest, where all take more than `budget` bytes (an
    /// estimate), together with those of each view that it is joined with.
    pub fn settle(&mut self, budget: usize) {
        let (mut core, part) = self.core();
        let budget = budget.saturating_mul(core.states.views.len());
        core.settle(part, budget);
    }

    /// Lets go of all: somebody else may change them in the store from now on. Nothing may have changed since the last
    /// [`Owner::settle`], or what did is lost and must come again.
    pub fn clear(&mut self) {
        if self.is_joined() {
            self.leave(false);
        }
        let (mut core, _) = self.core();
        core.clear();
        core.torn = false;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let live = Arc::clone(&self.live);
        let (mut core, part) = self.core();
        core.owned &= !(1 << part);
        live.hide(&core.states, part);
    }
}

impl Core {
    /// The lists of the batch that the joined views' columns come from, in their order; `None` where not all of them take it.
    fn taken(&self, together: Option<&Arc<Together>>) -> Option<Vec<usize>> {
        if self.is_single() {
            // its own list, where it is given those of others, too
            let own = together.and_then(|together| together.list_of(&self.states.view().table));
            return Some(vec![own.unwrap_or_default()]);
        }
        let (together, parts) = (together?, self.states.joint.parts());
        let mut lists = vec![None; parts.iter().map(|part| part.list() + 1).max().unwrap_or_default()];
        for (at, (part, view)) in parts.iter().zip(&self.states.views).enumerate() {
            if self.owned >> at & 1 == 1 {
                lists[part.list()] = Some(together.list_of(&view.table)?);
            }
        }
        lists.into_iter().collect()
    }

    /// What became of the batch, where it was the last one to be applied: the part has heard of it then.
    fn hear(&mut self, part: usize, together: Option<&Arc<Together>>) -> Option<Applied> {
        let last = self.last.as_mut().filter(|last| together.is_some_and(|batch| Arc::ptr_eq(batch, &last.batch)))?;
        last.heard |= 1 << part;
        last.applied.get(part).copied()
    }

    /// Gives each view states of its own.
    fn part(&mut self, live: &Live, for_good: bool) {
        let states = Arc::clone(&self.states);
        let (project, views) = (&states.view().project, names(&states.views));
        tracing::debug!(project, ?views, for_good, "the views' window states are kept apart");
        let mut buffer = Vec::new();
        let owned = |part: &usize| self.owned >> part & 1 == 1;
        let heard = self.last.as_ref().map_or(u64::MAX, |last| last.heard);
        let mut parted = Parted::new();
        for (part, view) in states.views.iter().enumerate() {
            if !owned(&part) {
                parted.push(None);
                continue;
            }
            let spec = states.joint.parts()[part].spec();
            let own = States::new(vec![Arc::clone(view)], Joint::from(spec.clone()), false);
            let mut core = Core::new(Arc::clone(&own));
            (core.round, core.alone) = (self.round, for_good);
            core.partings = (self.partings + 1).min(PATIENT);
            core.waits = (1 << core.partings) - 1;
            core.torn = self.torn || heard >> part & 1 == 0;
            states.each(&self.changed, |shard, spot| {
                // the store has the others
                let Some(entry) = shard.get(spot.place).filter(|entry| entry.dirty >> part & 1 == 1) else { return };
                // what is to be written in parts is not packed
                let Held::Live(state) = &entry.held else {
                    core.torn = true;
                    return;
                };
                let held = if state.is_part_empty(&states.joint, part) {
                    Held::Live(Box::new(State::new(spec)))
                } else {
                    buffer.clear();
                    state.encode_part(&states.joint, part, &mut buffer);
                    match State::decode(spec, &buffer) {
                        Ok(state) if buffer.len() > PACKED_MOST => Held::Live(Box::new(state)),
                        _ => Held::Packed(buffer.as_slice().into()),
                    }
                };
                core.adopt(entry.with(held, buffer.len(), 1));
            });
            live.show(Seen { states: own, part: 0 }, Some(&states));
            parted.push(Some(core.shared()));
        }
        self.parted = parted;
    }
}

fn names(views: &[Arc<View>]) -> Vec<&str> {
    views.iter().map(|view| view.name.as_str()).collect()
}

fn torn() -> Error {
    Error::new(
        Kind::Internal,
        "the states have events that the view's positions do not cover: they are given up and come again from the stored ones",
    )
}

fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}
