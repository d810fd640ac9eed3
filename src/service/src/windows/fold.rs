//! Events folded into the stored states of their entities: read, apply in order, encode. The one way
//! in which state grows, for events from Kafka and for pushed ones.
//!
//! It only reads: the caller writes what comes out, together with whatever must be atomic with it,
//! and sees to it that no other writer has the same entities meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use model::ports::{Before, OnlineStore, Read, StateWrite};
use model::registry::View;
use model::{EntityKey, Error, Timestamp};
use window::{Outcome, Scalar, Spec, State};

/// One event: whose, when, and the columns of [`super::columns`].
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Whose event.
    pub key: &'a EntityKey,
    /// When it happened.
    pub time: Timestamp,
    /// The aggregated columns' values.
    pub columns: &'a [Scalar],
}

/// What came out.
#[derive(Debug, Default)]
pub struct Folded {
    /// The states to write: one per entity; without bytes where nothing is left in it.
    pub states: Vec<StateWrite>,
    /// What each of them replaces; empty where nobody else writes them.
    pub before: Vec<Before>,
    /// Events that are in the states now.
    pub applied: usize,
    /// Events that were too old for every window.
    pub late_dropped: usize,
}

/// Why nothing came out.
#[derive(Debug)]
pub enum FoldError {
    /// The states could not be read: the store's own error.
    Store(Error),
    /// A state was built for another definition or is damaged, or an event does not fit.
    State(Error),
}

/// Folds events, in their order, into the states that `store` has for their entities, at `now`.
pub async fn fold(
    view: &View,
    spec: &Spec,
    store: &dyn OnlineStore,
    events: &[Event<'_>],
    now: Timestamp,
) -> Result<Folded, FoldError> {
    let mut place: HashMap<&EntityKey, usize> = HashMap::new();
    let mut keys: Vec<EntityKey> = Vec::new();
    for event in events {
        place.entry(event.key).or_insert_with(|| {
            keys.push(event.key.clone());
            keys.len() - 1
        });
    }
    if keys.is_empty() {
        return Ok(Folded::default());
    }
    let read = Read { table: Arc::clone(&view.table), keys };
    let stored = store.read_states(std::slice::from_ref(&read)).await.map_err(FoldError::Store)?;
    let mut states = Vec::with_capacity(read.keys.len());
    let mut before = Vec::new();
    for (key, bytes) in read.keys.iter().zip(stored.into_iter().next().unwrap_or_default()) {
        if store.tag(&[]).is_some() {
            let tag = |bytes: &bytes::Bytes| store.tag(bytes).map_or(Before::Any, Before::Tagged);
            before.push(bytes.as_ref().map_or(Before::Absent, tag));
        }
        states.push(match bytes {
            Some(bytes) => super::decode(key, &bytes, spec, view).map_err(FoldError::State)?,
            None => State::new(spec),
        });
    }
    states.resize_with(read.keys.len(), || State::new(spec));
    let mut folded = Folded { before, ..Folded::default() };
    for event in events {
        let taken = window::Event { ts_us: event.time.micros(), columns: event.columns };
        match states[place[event.key]].apply(spec, taken, now.micros()) {
            Ok(Outcome::Applied) => folded.applied += 1,
            Ok(Outcome::LateDropped) => folded.late_dropped += 1,
            Err(e) => return Err(FoldError::State(super::state_error(view, e))),
        }
    }
    let writes = read.keys.into_iter().zip(states).map(|(key, mut state)| {
        state.evict(spec, now.micros());
        StateWrite { table: Arc::clone(&view.table), key, state: super::encode(&state, spec) }
    });
    folded.states = writes.collect();
    Ok(folded)
}
