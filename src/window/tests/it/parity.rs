//! The fast path against the naive one: random definitions, random histories, random restarts.

use proptest::prelude::*;
use window::{Event, Outcome, Scalar, State, oracle, sweep};

use crate::support::{MS, S, assert_same, columns, definitions, project, row, spec};

/// What happens to one entity.
#[derive(Clone, Debug)]
enum Step {
    /// An event arrives, with its timestamp relative to the clock.
    Event {
        offset_us: i64,
        row: Vec<Scalar>,
    },
    /// The clock moves on.
    Tick(i64),
    /// A read, relative to the clock.
    Query(i64),
    Evict,
    Restart,
}

fn offset() -> impl Strategy<Value = i64> {
    let jitter = prop_oneof![6 => Just(0i64), 1 => Just(1), 1 => Just(-1)];
    let offset = prop_oneof![
        3 => Just(0i64),
        6 => -60i64..=0,
        3 => 0i64..=100,
        2 => -600i64..0,
        1 => -40_000i64..0,
    ];
    // steps of 50 ms: equal timestamps and edges of tiles are common
    (offset, jitter).prop_map(|(steps, jitter)| steps * 50 * MS + jitter)
}

fn step() -> impl Strategy<Value = Step> {
    let tick = prop_oneof![6 => (0i64..20).prop_map(|n| n * 50 * MS), 2 => 0..5 * S, 1 => 0..30 * S, 1 => 0..2_400 * S];
    let query = prop_oneof![3 => Just(0i64), 3 => 0..6 * S, 2 => (0i64..200).prop_map(|n| n * 50 * MS), 1 => 0..2_000 * S, 1 => -9 * S..0];
    prop_oneof![
        10 => (offset(), row()).prop_map(|(offset_us, row)| Step::Event { offset_us, row }),
        4 => tick.prop_map(Step::Tick),
        4 => query.prop_map(Step::Query),
        1 => Just(Step::Evict),
        1 => Just(Step::Restart),
    ]
}

fn clock() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0i64), Just(-3 * S), Just(1_700_000_000 * S), -50 * S..50 * S]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_state_answers_as_the_oracle_does(
        (defs, tiling) in definitions(),
        start in clock(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let spec = spec(&defs, tiling);
        let columns = columns(&spec);
        let mut state = State::new(&spec);
        let mut log: Vec<(i64, Vec<Scalar>)> = Vec::new();
        let (mut clock, mut told) = (start, i64::MIN);
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Event { offset_us, row } => {
                    let (ts_us, values) = (clock + offset_us, project(&spec, &row));
                    told = clock;
                    let outcome = state.apply(&spec, Event { ts_us, columns: &values }, clock).unwrap();
                    // dropped exactly when no window reaches it; the oracle keeps it all the same
                    prop_assert_eq!(outcome == Outcome::LateDropped, ts_us < spec.window_start(clock));
                    log.push((ts_us, values));
                }
                Step::Tick(us) => clock += us,
                Step::Evict => {
                    told = clock;
                    state.evict(&spec, clock);
                    let pending = log.iter().any(|(ts_us, _)| *ts_us > clock);
                    let known = oracle::evaluate(&defs, tiling, &columns, &log, clock).is_some();
                    prop_assert_eq!(state.is_empty(), !known && !pending, "step {}", i);
                }
                Step::Restart => {
                    let mut bytes = vec![7];
                    state.encode(&spec, &mut bytes);
                    let restored = State::decode(&spec, &bytes[1..]).unwrap();
                    let mut again = vec![7];
                    restored.encode(&spec, &mut again);
                    prop_assert_eq!(bytes, again);
                    state = restored;
                }
                Step::Query(offset_us) => {
                    let t_us = clock + offset_us;
                    let want = oracle::evaluate(&defs, tiling, &columns, &log, t_us.max(told));
                    let context = format!("step {i}, t {t_us}, start {}", spec.window_start(t_us));
                    assert_same(&defs, state.evaluate(&spec, t_us).as_ref(), want.as_ref(), &context);
                }
            }
        }
    }

    #[test]
    fn the_sweep_answers_as_the_oracle_does(
        (defs, tiling) in definitions(),
        start in clock(),
        events in prop::collection::vec((offset(), row()), 0..60),
        queries in prop::collection::vec(offset(), 0..30),
    ) {
        let spec = spec(&defs, tiling);
        let mut log: Vec<(i64, Vec<Scalar>)> =
            events.iter().map(|(offset, row)| (start + offset, project(&spec, row))).collect();
        log.sort_by_key(|(ts_us, _)| *ts_us);
        let queries: Vec<i64> = queries.iter().map(|offset| start + offset).collect();
        let sorted = log.iter().map(|(ts_us, values)| Event { ts_us: *ts_us, columns: values });
        let answers = sweep(&spec, sorted, &queries).unwrap();
        prop_assert_eq!(answers.len(), queries.len());
        for (answer, t_us) in answers.iter().zip(&queries) {
            let want = oracle::evaluate(&defs, tiling, &columns(&spec), &log, *t_us);
            assert_same(&defs, answer.as_ref(), want.as_ref(), &format!("t {t_us}"));
        }
    }

    #[test]
    fn online_and_offline_agree_and_arrival_order_does_not_show(
        (mut defs, tiling) in definitions(),
        events in prop::collection::vec((-400i64..0, row()), 0..60).prop_shuffle(),
    ) {
        // first and last alone may go by arrival
        defs.iter_mut().filter(|d| matches!(d.function.as_str(), "first" | "last") || d.function.contains("_last_k")).for_each(|d| d.function = "max".into());
        let spec = spec(&defs, tiling);
        let log: Vec<(i64, Vec<Scalar>)> =
            events.iter().map(|(steps, row)| (steps * 50 * MS, project(&spec, row))).collect();
        let mut online = State::new(&spec);
        for (ts_us, values) in &log {
            online.apply(&spec, Event { ts_us: *ts_us, columns: values }, -S).unwrap();
        }
        let mut sorted = log.clone();
        sorted.sort_by_key(|(ts_us, _)| *ts_us);
        let offline = sweep(&spec, sorted.iter().map(|(ts_us, values)| Event { ts_us: *ts_us, columns: values }), &[0]).unwrap();
        assert_same(&defs, online.evaluate(&spec, 0).as_ref(), offline[0].as_ref(), "t 0");
    }
}

#[test]
fn a_sweep_refuses_events_out_of_order() {
    let spec = spec(&[crate::support::def("n", "count", "", S, 0)], window::Tiling::default());
    let events = [2, 1].map(|ts_us| Event { ts_us, columns: &[] });
    let error = sweep(&spec, events, &[5]).unwrap_err();
    assert_eq!(error, window::Error::Unsorted { previous_us: 2, ts_us: 1 });
}
