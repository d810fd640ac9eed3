//! Live window states through checkpoints: grown, packed while they rest, let go and fetched again, an entity answers
//! as a state does that was never touched.

use std::collections::HashMap;
use std::sync::Arc;

use model::ports::{OnlineStore as _, WriteBatch};
use model::{EntityKey, Timestamp};
use proptest::prelude::*;
use service::windows::FoldEvent;
use service::windows::live::{Live, Owner};
use window::{Event, Scalar, State};

use crate::support::{MemoryStore, SECOND, Stream, T0, entity};

#[derive(Clone, Debug)]
enum Step {
    /// An event of an entity, so many seconds ago.
    Event(u8, i64),
    /// Time goes on, what changed is written, and states beyond so many bytes are let go.
    Checkpoint(i64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let budget = prop_oneof![3 => Just(usize::MAX), 1 => Just(600), 1 => Just(0)];
    prop_oneof![
        3 => (0..5u8, 0..70i64).prop_map(|(key, age)| Step::Event(key, age)),
        2 => (0..30i64, budget).prop_map(|(seconds, budget)| Step::Checkpoint(seconds, budget)),
    ]
}

proptest! {
    #[test]
    fn an_entity_answers_the_same_however_its_state_is_kept(steps in prop::collection::vec(step(), 1..40)) {
        let stream = Stream::windowed("v", "localhost:9092", "t");
        let view = stream.view();
        let spec = service::windows::spec_of(&view).expect("a good definition");
        let live = Arc::new(Live::default());
        let mut owner: Owner = live.own(&view, spec.clone(), false);
        let store = MemoryStore::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut plain: HashMap<EntityKey, State> = HashMap::new();
        let mut now = T0;
        for step in steps {
            match step {
                Step::Event(key, age) => {
                    let (key, columns) = (entity("user", &key.to_string()), [Scalar::Int(age)]);
                    let time = Timestamp(now - age * SECOND);
                    let event = FoldEvent { key: &key, time, columns: &columns };
                    runtime.block_on(owner.apply(&store, &[vec![event]], Timestamp(now), None)).expect("applied");
                    let state = plain.entry(key).or_insert_with(|| State::new(&spec));
                    state.apply(&spec, Event { ts_us: time.micros(), columns: &columns }, now).expect("fits");
                }
                Step::Checkpoint(seconds, budget) => {
                    now += seconds * SECOND;
                    let states = owner.checkpoint(&store, Timestamp(now)).expect("whole").states;
                    runtime.block_on(store.write(WriteBatch { states, ..WriteBatch::default() })).expect("written");
                    owner.settle(budget);
                }
            }
            let states = live.get(&view.table, &spec).expect("owned");
            for (key, state) in &plain {
                let stored = || {
                    let stored = store.content().states.get(&((*view.table).clone(), key.clone())).cloned();
                    stored.map(|bytes| service::windows::answer(key, &bytes, &spec, &view, Timestamp(now)))
                };
                let found = states.answer(key, &spec, &view, Timestamp(now)).or_else(stored);
                let found = found.and_then(|answer| answer.expect("readable"));
                let want = state.evaluate(&spec, now).map(|answer| {
                    let values = service::windows::values(answer.values, &spec, &view).expect("values");
                    (Timestamp(answer.event_ts_us), values)
                });
                prop_assert_eq!(found, want);
            }
        }
    }
}
