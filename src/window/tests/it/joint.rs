//! Several definitions kept as one answer, and are written, as each of them does alone.

use proptest::prelude::*;
use window::{AggregationDef, Event, Joint, Outcome, Scalar, Spec, State, Tiling};

use crate::support::{MS, S, STREAM, assert_same, def, definitions, project, row, spec};

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
    /// All is kept as one state's bytes for a while.
    Pack,
    /// Each part is written and read by itself, and put together again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![3 => Just(0i64), 6 => -60i64..=0, 3 => 0i64..=100, 2 => -600i64..0, 1 => -40_000i64..0];
    let tick = prop_oneof![6 => (0i64..20).prop_map(|n| n * 50 * MS), 2 => 0..5 * S, 1 => 0..30 * S, 1 => 0..2_400 * S];
    prop_oneof![
        12 => (offset, row()).prop_map(|(steps, row)| Step::Event { offset_us: steps * 50 * MS, row }),
        4 => tick.prop_map(Step::Tick),
        4 => prop_oneof![Just(0i64), 0..6 * S, 0..2_000 * S].prop_map(Step::Query),
        1 => Just(Step::Evict),
        1 => Just(Step::Pack),
        2 => Just(Step::Restart),
    ]
}

/// Aggregations over every column, or but for one, so that some definitions read the same.
fn over_all(((mut defs, tiling), all): ((Vec<AggregationDef>, Tiling), bool)) -> (Vec<AggregationDef>, Tiling) {
    defs.retain(|def| all || def.column != "wild");
    let columns = STREAM.iter().filter(|(column, _)| all || *column != "wild");
    defs.extend(columns.map(|(column, _)| def(&format!("of_{column}"), "count", column, S, 0)));
    (defs, tiling)
}

/// Which list of columns each definition reads, and the values of all lists.
fn lists(specs: &[Spec]) -> (Vec<(Spec, usize)>, Vec<usize>) {
    let mut firsts: Vec<usize> = Vec::new();
    let mut listed = Vec::new();
    for (at, spec) in specs.iter().enumerate() {
        let known = firsts.iter().position(|first| specs[*first].columns() == spec.columns());
        listed.push((spec.clone(), known.unwrap_or(firsts.len())));
        if known.is_none() {
            firsts.push(at);
        }
    }
    (listed, firsts)
}

fn views() -> impl Strategy<Value = Vec<(Vec<AggregationDef>, Tiling)>> {
    prop::collection::vec((definitions(), any::<bool>()).prop_map(over_all), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn parts_answer_as_states_of_their_own(
        views in views(),
        start in prop_oneof![Just(0i64), Just(1_700_000_000 * S), -50 * S..50 * S],
        before in prop::collection::vec((prop::sample::select(vec![true, true, false]), row()), 0..6),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let specs: Vec<Spec> = views.iter().map(|(defs, tiling)| spec(defs, *tiling)).collect();
        let (listed, firsts) = lists(&specs);
        let joint = Joint::new(&listed).expect("lists are what they say");
        let mut alone: Vec<State> = specs.iter().map(State::new).collect();
        let joined = |row: &[Scalar]| firsts.iter().flat_map(|at| project(&specs[*at], row)).collect::<Vec<_>>();
        // some have a past that others lack
        for (nth, (all, row)) in before.iter().enumerate() {
            for (spec, state) in specs.iter().zip(&mut alone).take(if *all { views.len() } else { 1 }) {
                let event = Event { ts_us: start - 2 * S + nth as i64 * 300 * MS, columns: &project(spec, row) };
                state.apply(spec, event, start).unwrap();
            }
        }
        // but the latest
        let last: Vec<Scalar> = STREAM.iter().map(|_| Scalar::Null).collect();
        for (spec, state) in specs.iter().zip(&mut alone) {
            state.apply(spec, Event { ts_us: start, columns: &project(spec, &last) }, start).unwrap();
        }
        let mut state = joint.join(alone.clone()).unwrap().expect("nothing lies in the future");
        let mut clock = start;
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Event { offset_us, row } => {
                    let ts_us = clock + offset_us;
                    let mut any = false;
                    for (spec, state) in specs.iter().zip(&mut alone) {
                        let event = Event { ts_us, columns: &project(spec, &row) };
                        any |= state.apply(spec, event, clock).unwrap() == Outcome::Applied;
                    }
                    let event = Event { ts_us, columns: &joined(&row) };
                    let outcome = state.apply(joint.spec(), event, clock).unwrap();
                    prop_assert_eq!(outcome == Outcome::Applied, any, "step {}", i);
                }
                Step::Tick(us) => clock += us,
                Step::Evict => {
                    state.evict(joint.spec(), clock);
                    for (nth, (spec, alone)) in specs.iter().zip(&mut alone).enumerate() {
                        alone.evict(spec, clock);
                        prop_assert!(!state.is_part_empty(&joint, nth) || alone.is_empty(), "step {}", i);
                        let unknown = alone.evaluate(spec, clock).is_none();
                        prop_assert!(!alone.is_empty() || !unknown || state.is_part_empty(&joint, nth), "step {}", i);
                    }
                }
                Step::Pack => {
                    let mut bytes = Vec::new();
                    state.encode(joint.spec(), &mut bytes);
                    state = State::decode(joint.spec(), &bytes).unwrap();
                }
                Step::Restart => {
                    let parts = specs.iter().enumerate().map(|(nth, spec)| {
                        let mut bytes = vec![7];
                        state.encode_part(&joint, nth, &mut bytes);
                        State::decode(spec, &bytes[1..]).unwrap()
                    });
                    let parts: Vec<State> = parts.collect();
                    for ((part, alone), ((defs, _), spec)) in parts.iter().zip(&alone).zip(views.iter().zip(&specs)) {
                        let context = format!("step {i}, written");
                        assert_same(defs, part.evaluate(spec, clock).as_ref(), alone.evaluate(spec, clock).as_ref(), &context);
                    }
                    state = joint.join(parts).unwrap().expect("they are of one state");
                }
                Step::Query(offset_us) => {
                    let t_us = clock + offset_us;
                    for (nth, ((alone, spec), (defs, _))) in alone.iter().zip(&specs).zip(&views).enumerate() {
                        let got = state.evaluate_part(&joint, nth, spec, t_us);
                        let want = alone.evaluate(spec, t_us);
                        assert_same(defs, got.as_ref(), want.as_ref(), &format!("step {i}, part {nth}, t {t_us}"));
                    }
                }
            }
        }
    }
}

#[test]
fn definitions_that_do_not_read_the_list_they_say_are_not_kept_together() {
    let over = |column: &str, list| (spec(&[def("n", "count", column, S, 0)], Tiling::default()), list);
    assert!(Joint::new(&[over("amount", 0), over("clicks", 1)]).is_some());
    assert!(Joint::new(&[over("amount", 0), over("clicks", 0)]).is_none());
    assert!(Joint::new(&[over("amount", 0), over("clicks", 2)]).is_none(), "nobody reads the list between");
    assert!(Joint::new(&[]).is_none());
}
