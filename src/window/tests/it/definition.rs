//! The rules of the definition, one by one, with numbers that can be checked by hand.

use window::{AggregationDef, ColumnType, Error, Event, Kind, Outcome, Output, Scalar, Spec, State, Tiling};

use crate::support::{S, column_type, def, spec};

fn one(function: &str, column: &str) -> Spec {
    spec(&[def("f", function, column, 10 * S, S)], Tiling::default())
}

fn state(spec: &Spec, events: &[(i64, Scalar)], now_us: i64) -> State {
    let mut state = State::new(spec);
    for (ts_us, value) in events {
        let columns = std::slice::from_ref(value);
        let columns = if spec.columns().is_empty() { &[] } else { columns };
        state.apply(spec, Event { ts_us: *ts_us, columns }, now_us).unwrap();
    }
    state
}

fn value(spec: &Spec, events: &[(i64, Scalar)], t_us: i64) -> Scalar {
    state(spec, events, t_us).evaluate(spec, t_us).unwrap().values.remove(0)
}

fn over(function: &str, column: &str, values: &[Scalar]) -> Scalar {
    let events: Vec<_> = values.iter().map(|value| (0, value.clone())).collect();
    value(&one(function, column), &events, 0)
}

fn refused(definition: AggregationDef) -> (Error, String) {
    let error = Spec::new(&[definition], Tiling::default(), column_type).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidDefinition);
    let message = error.to_string();
    let Error::Aggregation { reason, .. } = error else { panic!("{error}") };
    (*reason, message)
}

#[test]
fn the_leading_edge_is_exact_and_the_trailing_one_moves_in_hops() {
    let spec = one("count", "");
    let at = |ts_us, t_us: i64| state(&spec, &[(ts_us, Scalar::Null)], t_us.min(ts_us)).evaluate(&spec, t_us);
    assert!(at(7, 6).is_none(), "not before its own timestamp");
    assert_eq!(at(7, 7).unwrap().values, [Scalar::Int(1)]);
    // start = floor((t - 10 s) / 1 s) * 1 s: 7 us leaves when the start reaches 1 s, at t = 11 s
    assert_eq!(at(7, 11 * S - 1).unwrap().values, [Scalar::Int(1)]);
    assert!(at(7, 11 * S).is_none());
    assert!(at(-1, 10 * S - 1).is_some());
    assert!(at(-1, 10 * S).is_none());
}

#[test]
fn a_read_at_an_older_time_answers_for_the_time_reached() {
    let spec = one("count", "");
    let state = state(&spec, &[(0, Scalar::Null), (2 * S, Scalar::Null), (5 * S, Scalar::Null)], 3 * S);
    let counts = [-S, 2 * S, 3 * S, 5 * S].map(|t_us| state.evaluate(&spec, t_us).unwrap().values.remove(0));
    assert_eq!(counts, [2, 2, 2, 3].map(Scalar::Int));
}

#[test]
fn late_events_are_applied_while_they_matter_and_dropped_after() {
    let spec = one("count", "");
    let mut state = State::new(&spec);
    let mut apply = |ts_us| state.apply(&spec, Event { ts_us, columns: &[] }, 15 * S).unwrap();
    assert_eq!(apply(15 * S), Outcome::Applied);
    assert_eq!(apply(5 * S), Outcome::Applied);
    assert_eq!(apply(5 * S - 1), Outcome::LateDropped);
    let answer = state.evaluate(&spec, 15 * S).unwrap();
    assert_eq!((answer.event_ts_us, answer.values), (15 * S, vec![Scalar::Int(2)]));
}

#[test]
fn known_by_the_widest_window_zero_or_null_in_the_narrow_one() {
    let defs = [
        def("wide", "count", "", 60 * S, S),
        def("n", "count", "amount", 5 * S, S),
        def("sum", "sum", "amount", 5 * S, S),
        def("mean", "mean", "amount", 5 * S, S),
        def("max", "max", "amount", 5 * S, S),
    ];
    let spec = spec(&defs, Tiling::default());
    let mut state = state(&spec, &[(0, Scalar::Float(2.5))], 0);
    let full = [Scalar::Int(1), Scalar::Int(1), Scalar::Float(2.5), Scalar::Float(2.5), Scalar::Float(2.5)];
    assert_eq!(state.evaluate(&spec, S).unwrap().values, full);
    let quiet = [Scalar::Int(1), Scalar::Int(0), Scalar::Null, Scalar::Null, Scalar::Null];
    assert_eq!(state.evaluate(&spec, 30 * S).unwrap().values, quiet);
    assert_eq!(state.evaluate(&spec, 61 * S), None);
    state.evict(&spec, 60 * S);
    assert!(!state.is_empty());
    state.evict(&spec, 61 * S);
    assert!(state.is_empty());
}

#[test]
fn the_window_that_reaches_back_furthest_decides_even_if_another_is_wider() {
    // 60 s in hops of 59 s reach back further at t = 118 s - 1 than 61 s in hops of 100 ms
    let defs = [def("coarse", "count", "", 60 * S, 59 * S), def("fine", "count", "", 61 * S, 0)];
    let spec = spec(&defs, Tiling::default());
    let answer = state(&spec, &[(S, Scalar::Null)], S).evaluate(&spec, 118 * S).unwrap();
    assert_eq!(answer.values, [Scalar::Int(1), Scalar::Int(0)]);
}

#[test]
fn nulls_are_skipped_and_events_are_counted() {
    let values = [Scalar::Null, Scalar::Float(1.0), Scalar::Int(2), Scalar::Null];
    assert_eq!(over("count", "amount", &values), Scalar::Int(2));
    assert_eq!(over("count", "", &values), Scalar::Int(4));
    assert_eq!(over("sum", "amount", &values), Scalar::Float(3.0));
    assert_eq!(over("mean", "amount", &values), Scalar::Float(1.5));
    assert_eq!(over("min", "amount", &values), Scalar::Float(1.0));
    assert_eq!(over("max", "amount", &values), Scalar::Float(2.0), "integers in a column of floats are floats");
    for function in ["sum", "mean", "min", "max", "var", "stddev", "first", "last"] {
        assert_eq!(over(function, "amount", &[Scalar::Null]), Scalar::Null, "{function}");
    }
}

#[test]
fn integer_sums_are_exact_and_clamped_with_a_mark() {
    let spec = one("sum", "clicks");
    let max = Scalar::Int(i64::MAX);
    let events = [(0, max.clone()), (1, max.clone()), (2, Scalar::Int(i64::MIN)), (3, Scalar::Int(-5))];
    let over = state(&spec, &events[..2], 9).evaluate(&spec, 9).unwrap();
    assert_eq!((over.values, over.saturated), (vec![max], true));
    let back = state(&spec, &events, 9).evaluate(&spec, 9).unwrap();
    assert_eq!((back.values, back.saturated), (vec![Scalar::Int(i64::MAX - 6)], false), "exact again");
}

#[test]
fn nan_spreads_in_sums_and_is_the_greatest_value() {
    let values = [1.0, f64::NAN, -1.0].map(Scalar::Float);
    for function in ["sum", "mean", "var", "stddev", "max"] {
        let result = over(function, "amount", &values);
        assert!(matches!(result, Scalar::Float(x) if x.is_nan()), "{function}: {result:?}");
    }
    assert_eq!(over("min", "amount", &values), Scalar::Float(-1.0));
    assert!(matches!(over("min", "amount", &[Scalar::Float(f64::NAN)]), Scalar::Float(x) if x.is_nan()));
}

#[test]
fn variance_is_that_of_a_sample_and_stable() {
    assert_eq!(over("var", "clicks", &[4, 7, 13, 16].map(Scalar::Int)), Scalar::Float(30.0));
    assert_eq!(over("stddev", "clicks", &[1, 3].map(Scalar::Int)), Scalar::Float(2f64.sqrt()));
    assert_eq!(over("var", "clicks", &[Scalar::Int(4)]), Scalar::Null);
    assert_eq!(over("stddev", "amount", &[0.1; 7].map(Scalar::Float)), Scalar::Float(0.0), "constant");
    let far = [4.0, 7.0, 13.0, 16.0].map(|x| Scalar::Float(1e9 + x));
    assert_eq!(over("var", "amount", &far), Scalar::Float(30.0), "textbook sums of squares lose this");
    let times = [4, 7, 13, 16].map(|x| Scalar::Int(1_700_000_000_000_000 + x * S));
    assert_eq!(over("var", "clicks", &times), Scalar::Float(3e13), "epoch microseconds");
}

#[test]
fn first_and_last_go_by_timestamp_then_by_arrival() {
    let text = |s: &str| Scalar::Text(s.into());
    let events = [(5, text("b")), (9, text("c")), (5, text("a")), (9, text("d")), (9, Scalar::Null)];
    // all in tiles, all pending, and in between
    for now_us in [9, 0, 5] {
        for (function, want) in [("first", "b"), ("last", "d")] {
            let spec = one(function, "merchant");
            let answer = state(&spec, &events, now_us).evaluate(&spec, 9).unwrap();
            assert_eq!(answer.values, [text(want)], "{function} at {now_us}");
        }
    }
}

#[test]
fn the_layout_shares_tiles_and_tells_columns_and_types() {
    let defs = [
        def("a", "mean", "clicks", 60 * S, S),
        def("b", "sum", "clicks", 30 * S, S),
        def("c", "sum", "amount", 30 * S, 30 * S),
        def("d", "max", "seen", 30 * S, S),
        def("e", "min", "merchant", 30 * S, S),
        def("f", "count", "tags", 30 * S, S),
    ];
    let spec = spec(&defs, Tiling::default());
    assert_eq!(spec.columns(), ["amount", "clicks", "merchant", "seen", "tags"]);
    assert_eq!(spec.widest_window(), 60 * S);
    assert_eq!(spec.window_start(60 * S + 1), 0);
    let outputs: Vec<_> = spec.features().iter().map(|f| (f.name(), f.output())).collect();
    let want = [
        ("a", ColumnType::Float),
        ("b", ColumnType::Int),
        ("c", ColumnType::Float),
        ("d", ColumnType::Timestamp),
        ("e", ColumnType::Text),
        ("f", ColumnType::Int),
    ];
    assert_eq!(outputs, want.map(|(name, ty)| (name, Output::One(ty))));
    let lifetime = crate::support::spec(&[defs[0].clone(), def("all", "count", "", 0, 0)], Tiling::default());
    assert_eq!((lifetime.widest_window(), lifetime.window_start(0)), (0, i64::MIN));
}

#[test]
fn what_cannot_be_computed_is_refused_with_the_reason() {
    let (reason, message) = refused(def("avg10", "mean_last(10)", "amount", S, 0));
    assert!(matches!(reason, Error::UnknownFunction { .. }));
    assert!(message.contains("`avg10`") && message.contains("`mean_last(10)`") && message.contains("count, sum"));

    let (reason, message) = refused(def("s", "sum", "price", S, 0));
    assert_eq!(reason, Error::UnknownColumn { column: "price".into() });
    assert!(message.contains("`s`") && message.contains("`sum`") && message.contains("`price`"));

    let (reason, message) = refused(def("s", "sum", "merchant", S, 0));
    assert!(matches!(reason, Error::ColumnType { column_type: ColumnType::Text, .. }));
    assert!(message.contains("type Text") && message.contains("Int or Float"), "{message}");

    for (function, column) in [
        ("mean", "seen"),
        ("var", "tags"),
        ("min", "tags"),
        ("last", "tags"),
        ("count_distinct", "tags"),
        ("session_sum(1)", "merchant"),
        ("median", "seen"),
    ] {
        assert!(matches!(refused(def("f", function, column, S, 0)).0, Error::ColumnType { .. }), "{function}");
    }
    for function in ["sum", "skew", "decayed_sum(9)", "session_sum(9)", "max_last_k(9)", "count_distinct", "median"] {
        assert!(matches!(refused(def("f", function, "", S, 0)).0, Error::MissingColumn { .. }), "{function}");
    }
    for function in ["mean_last_k(0)", "approx_percentile(2)", "decayed_sum(0)", "session_count"] {
        assert!(
            matches!(refused(def("f", function, "amount", S, 0)).0, Error::FunctionParameters { .. }),
            "{function}"
        );
    }
    assert!(matches!(refused(def("f", "count", "", -1, 0)).0, Error::Duration { .. }));

    let twice = [def("f", "count", "", S, 0), def("f", "count", "", 2 * S, 0)];
    let error = Spec::new(&twice, Tiling::default(), column_type).unwrap_err();
    assert!(matches!(error, Error::Aggregation { reason, .. } if *reason == Error::DuplicateFeature));
    assert_eq!(Spec::new(&[], Tiling::default(), column_type).unwrap_err(), Error::NoAggregations);
}

#[test]
fn an_event_that_does_not_fit_leaves_the_state_as_it_was() {
    let spec = one("sum", "clicks");
    let mut state = state(&spec, &[(0, Scalar::Int(1))], 0);
    let before = state.clone();
    let width = state.apply(&spec, Event { ts_us: 1, columns: &[] }, 1).unwrap_err();
    assert_eq!((width.kind(), width), (Kind::InvalidEvent, Error::EventWidth { expected: 1, found: 0 }));
    let float = state.apply(&spec, Event { ts_us: 1, columns: &[Scalar::Float(1.5)] }, 1).unwrap_err();
    assert!(float.to_string().contains("`clicks` is of type Int, the event has Float"), "{float}");
    assert_eq!(state, before);
}

#[test]
fn tiles_do_not_pile_up_without_evict() {
    let spec = one("count", "");
    let mut state = State::new(&spec);
    let mut bytes = Vec::new();
    for second in 0..10_000 {
        state.apply(&spec, Event { ts_us: second * S, columns: &[] }, second * S).unwrap();
    }
    state.encode(&spec, &mut bytes);
    assert!(bytes.len() < 80, "{} bytes for 11 tiles", bytes.len());
}

#[test]
fn a_late_event_makes_tiles_only_where_it_matters() {
    let defs = [
        def("wide", "count", "", 60 * S, 2 * S),
        def("narrow", "count", "", 10 * S, S),
        def("values", "count", "amount", 10 * S, S),
    ];
    let spec = spec(&defs, Tiling::default());
    let size = |ts_us| {
        let state = state(&spec, &[(ts_us, Scalar::Null)], 30 * S);
        let mut bytes = Vec::new();
        state.encode(&spec, &mut bytes);
        bytes.len()
    };
    // in reach of the wide window alone: the latest timestamp, its tile's index and count
    assert_eq!(size(19 * S), size(-31 * S) + 8 + 2);
    // in reach of both: the narrow set's tile has two counts
    assert_eq!(size(20 * S), size(19 * S) + 3);
}

#[test]
fn the_ends_of_time_do_not_overflow() {
    let spec = spec(&[def("n", "count", "", i64::MAX, 3), def("m", "count", "", 10, 7)], Tiling::default());
    let mut state = State::new(&spec);
    for ts_us in [i64::MIN, 0, i64::MAX] {
        state.apply(&spec, Event { ts_us, columns: &[] }, i64::MIN).unwrap();
    }
    let counts = |t_us| state.evaluate(&spec, t_us).unwrap().values;
    assert_eq!(counts(i64::MIN), [Scalar::Int(1), Scalar::Int(1)]);
    // floor((0 - i64::MAX) / 3) * 3 lies before i64::MIN
    assert_eq!(counts(0), [Scalar::Int(2), Scalar::Int(1)]);
    assert_eq!(counts(i64::MAX), [Scalar::Int(2), Scalar::Int(1)]);
}
