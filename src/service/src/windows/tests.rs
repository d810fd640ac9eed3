//! The bridge held against what a user registers: types, refusals by name, answers in the features'
//! order, and state rebuilt from history.

use std::collections::BTreeMap;

use model::ports::{BoxFuture, EventBatches, RawEvent, StateWrite, Table};
use proptest::prelude::*;
use proto::feast::{core, types as t};
use std::sync::Arc;
use window::Event;

use super::*;

const T0: i64 = 1_767_225_600_000_000;

/// Feature, function, column; all over one minute.
type Aggregation = (&'static str, &'static str, &'static str);

fn view(schema: Option<&str>, features: &[(&str, ValueType)], aggregations: &[Aggregation]) -> View {
    let field = |(name, value_type): &(&str, ValueType)| core::FeatureSpecV2 {
        name: (*name).to_owned(),
        value_type: *value_type as i32,
        ..Default::default()
    };
    let kafka = |schema: &str| core::DataSource {
        name: "events".to_owned(),
        field_mapping: BTreeMap::from([("amt".to_owned(), "amount".to_owned())]),
        options: Some(core::data_source::Options::KafkaOptions(core::data_source::KafkaOptions {
            message_format: Some(core::StreamFormat {
                format: Some(core::stream_format::Format::JsonFormat(core::stream_format::JsonFormat {
                    schema_json: schema.to_owned(),
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    let spec = core::StreamFeatureViewSpec {
        name: "activity".to_owned(),
        features: features.iter().map(field).collect(),
        stream_source: schema.map(kafka),
        aggregations: aggregations
            .iter()
            .map(|(name, function, column)| core::Aggregation {
                name: (*name).to_owned(),
                function: (*function).to_owned(),
                column: (*column).to_owned(),
                time_window: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    View::of_stream("demo", core::StreamFeatureView { spec: Some(spec), meta: None }, &BTreeMap::new())
}

fn key() -> EntityKey {
    EntityKey::encode(&[("card", &of(Val::StringVal("c-7".to_owned())))]).expect("a key")
}

fn of(val: Val) -> Value {
    Value { val: Some(val) }
}

const SCHEMA: &str = "amt double, n int, at timestamp, who string, tags array<string>";

#[test]
fn an_answer_has_the_features_order_and_types() {
    let view = view(
        Some(SCHEMA),
        &[
            ("spare", ValueType::String),
            ("last_at", ValueType::UnixTimestamp),
            ("mean", ValueType::Float),
            ("n_sum", ValueType::Int32),
            ("events", ValueType::Int64),
            ("tagged", ValueType::Double),
        ],
        &[
            ("events", "count", ""),
            ("tagged", "count", "tags"),
            ("mean", "mean", "amount"),
            ("last_at", "last", "at"),
            ("n_sum", "sum", "n"),
        ],
    );
    let spec = spec_of(&view).expect("good");
    assert_eq!(spec.columns(), columns(&view));
    assert_eq!(columns(&view), ["amount", "at", "n", "tags"]);
    let mut state = State::new(&spec);
    let tags = proto::feast::types::StringList { val: vec!["x".to_owned()] };
    for (amount, n) in [(1.0, i64::from(i32::MAX)), (2.0, 1)] {
        let values = [
            of(Val::DoubleVal(amount)),
            of(Val::UnixTimestampVal(1_700_000_000)),
            of(Val::Int64Val(n)),
            of(Val::StringListVal(tags.clone())),
        ];
        let columns: Vec<Scalar> = values.iter().map(to_scalar).collect();
        state.apply(&spec, Event { ts_us: T0, columns: &columns }, T0).expect("fits");
    }
    let bytes = encode(&state, &spec).expect("not empty");
    let (time, values) = answer(&key(), &bytes, &spec, &view, Timestamp(T0)).expect("readable").expect("known");
    assert_eq!(time, Timestamp(T0));
    let want = [
        value::NULL,
        of(Val::UnixTimestampVal(1_700_000_000)),
        of(Val::FloatVal(1.5)),
        of(Val::Int32Val(i32::MAX)),
        of(Val::Int64Val(2)),
        of(Val::DoubleVal(2.0)),
    ];
    assert_eq!(values, want);
    assert_eq!(answer(&key(), &bytes, &spec, &view, Timestamp(T0 + 120 * SECOND)).expect("readable"), None);
    assert_eq!(encode(&State::new(&spec), &spec), None);
}

#[test]
fn a_refusal_names_feature_function_and_column() {
    for (features, aggregation, names) in [
        (("x", ValueType::Double), ("x", "average", "amount"), vec!["`average`", "`x`", "count, sum"]),
        (("x", ValueType::Double), ("x", "sum", "price"), vec!["`price`", "`x`"]),
        (("x", ValueType::Double), ("x", "sum", "who"), vec!["`who`", "`sum`", "Text"]),
        (("x", ValueType::Int64), ("x", "mean", "amount"), vec!["`x`", "`mean`", "`amount`", "register DOUBLE"]),
        (("x", ValueType::Int64), ("x", "max", "who"), vec!["register STRING"]),
        (("x", ValueType::Int64), ("x", "max_last_k(2)", "who"), vec!["register STRING"]),
        (("x", ValueType::String), ("x", "count_distinct", "who"), vec!["`count_distinct`", "register INT64"]),
        (("x", ValueType::Double), ("x", "approx_percentile(2)", "amount"), vec!["`x`", "`2`", "from 0 to 1"]),
        (("x", ValueType::Int64), ("x", "sum_last_k(0)", "amount"), vec!["`x`", "`0`", "whole number from 1"]),
    ] {
        let refused = spec_of(&view(Some(SCHEMA), &[features], &[aggregation])).expect_err("refused");
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        for name in names.into_iter().chain(["'activity'", "'demo'"]) {
            assert!(refused.message().contains(name), "{name} in: {refused}");
        }
    }
    let schema = spec_of(&view(Some("amt dubble"), &[], &[("x", "count", "")])).expect_err("refused");
    assert!(schema.message().contains("'events'") && schema.message().contains("dubble"), "{schema}");
}

#[test]
fn without_a_schema_the_types_follow_from_the_features() {
    let typed = |features: &[(&str, ValueType)], aggregations: &[Aggregation]| {
        spec_of(&view(None, features, aggregations)).map(|s| s.features().iter().map(window::Feature::output).collect())
    };
    let aggregations = [("n", "count", "a"), ("s", "sum", "a"), ("m", "mean", "a"), ("l", "last", "b")];
    let features = [("s", ValueType::Double), ("l", ValueType::String)];
    let outputs: Vec<Output> = typed(&features, &aggregations).expect("good");
    assert_eq!(outputs, [ColumnType::Int, ColumnType::Float, ColumnType::Float, ColumnType::Text].map(Output::One));
    let outputs: Vec<Output> = typed(&[("s", ValueType::Int64)], &[("s", "sum", "a")]).expect("good");
    assert_eq!(outputs, [Output::One(ColumnType::Int)]);
    // the mean needs a float column, whose sum an integer feature cannot hold
    assert!(typed(&[("s", ValueType::Int64)], &aggregations).is_err());
}

#[test]
fn a_decimal_is_a_number_where_a_function_takes_it_for_one() {
    let schema = Some("price decimal(12,2), fee decimal(12,2)");
    let (count, sum) = (("n", "count", "fee"), ("s", "sum", "price"));
    let spec = spec_of(&view(schema, &[], &[count, sum])).expect("good");
    let price = to_scalar(&of(Val::DecimalVal("12.50".to_owned())));
    assert_eq!(price, Scalar::Float(12.5));
    // the columns are in the order of their names
    let mut state = State::new(&spec);
    let event = Event { ts_us: T0, columns: &[price.clone(), price] };
    state.apply(&spec, event, T0).expect("they fit");
    let values = state.evaluate(&spec, T0).expect("known").values;
    assert_eq!(values, [Scalar::Int(1), Scalar::Float(12.5)]);
    // its sum is no decimal
    let error = spec_of(&view(schema, &[("s", ValueType::Decimal)], &[sum])).expect_err("refused");
    assert!(error.message().contains("register DOUBLE instead"), "{error}");
    // what was counted before decimals were numbers is counted on
    let lists = Some("fee array<string>");
    let fingerprint = |schema| spec_of(&view(schema, &[], &[count])).expect("good").fingerprint();
    assert_eq!(fingerprint(schema), fingerprint(lists));
}

#[test]
fn lists_and_counts_come_in_the_registered_types_and_no_other() {
    let features = [
        ("wide", ValueType::Int64List),
        ("narrow", ValueType::Int32List),
        ("as_floats", ValueType::FloatList),
        ("times", ValueType::UnixTimestampList),
        ("names", ValueType::StringList),
        ("who", ValueType::Map),
    ];
    let aggregations = [
        ("wide", "last_k(2)", "n"),
        ("narrow", "top_k(2)", "n"),
        ("as_floats", "bottom_k(2)", "n"),
        ("times", "first_k(2)", "at"),
        ("names", "last_k(3)", "who"),
        ("who", "histogram", "who"),
        ("plain", "last_k(2)", "amount"),
    ];
    let mut all = features.to_vec();
    all.push(("plain", ValueType::Invalid));
    let view = view(Some(SCHEMA), &all, &aggregations);
    let refused = spec_of(&view).expect_err("no type for a list");
    assert!(refused.message().contains("register DOUBLE_LIST"), "{refused}");
    let view = self::view(Some(SCHEMA), &features, &aggregations[..6]);
    let spec = spec_of(&view).expect("good");
    let mut state = State::new(&spec);
    for (n, who) in [(7, "a"), (i64::from(i32::MAX) + 1, "b"), (-1, "a")] {
        let values = [of(Val::UnixTimestampVal(n)), of(Val::Int64Val(n)), of(Val::StringVal(who.to_owned()))];
        let columns: Vec<Scalar> = values.iter().map(to_scalar).collect();
        state.apply(&spec, Event { ts_us: T0, columns: &columns }, T0).expect("fits");
    }
    let bytes = encode(&state, &spec).expect("not empty");
    let (_, values) = answer(&key(), &bytes, &spec, &view, Timestamp(T0)).expect("readable").expect("known");
    let big = i64::from(i32::MAX) + 1;
    let count = |n| of(Val::Int64Val(n));
    let want = [
        of(Val::Int64ListVal(t::Int64List { val: vec![big, -1] })),
        of(Val::Int32ListVal(t::Int32List { val: vec![i32::MAX, 7] })),
        of(Val::FloatListVal(t::FloatList { val: vec![-1.0, 7.0] })),
        of(Val::UnixTimestampListVal(t::Int64List { val: vec![7, big] })),
        of(Val::StringListVal(t::StringList { val: ["a", "b", "a"].map(str::to_owned).to_vec() })),
        of(Val::MapVal(t::Map { val: [("a".to_owned(), count(2)), ("b".to_owned(), count(1))].into() })),
    ];
    assert_eq!(values, want);
    for (target, aggregation, names) in [
        (ValueType::Int64, ("x", "last_k(2)", "n"), "register INT64_LIST"),
        (ValueType::Int64Set, ("x", "last_k(2)", "n"), "register INT64_LIST"),
        (ValueType::StringList, ("x", "top_k(2)", "amount"), "register DOUBLE_LIST"),
        (ValueType::Int64List, ("x", "histogram", "who"), "register MAP"),
        (ValueType::Map, ("x", "histogram", "amount"), "Text, Int or Bool"),
        (ValueType::StringList, ("x", "first_k(2)", "tags"), "any type but lists"),
    ] {
        let refused = spec_of(&self::view(Some(SCHEMA), &[("x", target)], &[aggregation])).expect_err("refused");
        assert!(refused.message().contains(names), "{names} in: {refused}");
    }
}

#[test]
fn state_of_another_definition_is_told_from_damage() {
    let (one, two) =
        (view(Some(SCHEMA), &[], &[("x", "sum", "amount")]), view(Some(SCHEMA), &[], &[("x", "min", "amount")]));
    let (spec, other) = (spec_of(&one).expect("good"), spec_of(&two).expect("good"));
    let mut state = State::new(&spec);
    state.apply(&spec, Event { ts_us: T0, columns: &[Scalar::Float(1.0)] }, T0).expect("fits");
    let bytes = encode(&state, &spec).expect("not empty");
    let changed = answer(&key(), &bytes, &other, &two, Timestamp(T0)).expect_err("another definition");
    assert_eq!(changed.kind(), Kind::Unavailable);
    let damaged = answer(&key(), &bytes[..bytes.len() - 1], &spec, &one, Timestamp(T0)).expect_err("damaged");
    assert_eq!(damaged.kind(), Kind::Internal);
    assert!(damaged.message().contains("card=c-7") && damaged.message().contains("'activity'"), "{damaged}");
}

struct Batches(Vec<Vec<RawEvent>>);

impl EventBatches for Batches {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<RawEvent>>>> {
        Box::pin(async { Ok(self.0.pop()) })
    }

    fn skipped(&self) -> u64 {
        0
    }
}

async fn all(mut rebuild: Rebuild<'_>, mut batches: Batches) -> Vec<StateWrite> {
    let mut out = Vec::new();
    while let Some(states) = rebuild.next(&mut batches).await.expect("builds") {
        out.extend(states);
    }
    out
}

proptest! {
    /// A backfill to a cut-over leaves what the events before it make, and nothing of later ones.
    #[test]
    fn rebuilt_state_answers_as_the_events_before_the_cut_over(
        events in proptest::collection::vec((0..3u8, -100..100i64, 0..180i64), 0..40),
        cut in 0..180i64,
        size in 1usize..7,
    ) {
        let view = view(Some(SCHEMA), &[("s", ValueType::Int64)], &[("s", "sum", "n")]);
        let spec = spec_of(&view).expect("good");
        let key = |k: u8| EntityKey::from_bytes(&[k]);
        let raw = |&(k, n, age): &(u8, i64, i64)| RawEvent {
            key: key(k),
            time: Timestamp(T0 - age * SECOND),
            values: vec![of(Val::Int64Val(n))],
        };
        let end = Timestamp(T0 - cut * SECOND);
        let mut sorted: Vec<RawEvent> = events.iter().map(raw).filter(|e| e.time < end).collect();
        sorted.sort_by(|a, b| (&a.key, a.time).cmp(&(&b.key, b.time)));
        let mut batches: Vec<_> = sorted.chunks(size).map(<[RawEvent]>::to_vec).collect();
        batches.reverse();
        let rebuild = Rebuild::new(&view, &spec, Arc::new(Table::new("demo", "beside")), Timestamp(T0));
        let rebuilt = tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
            .block_on(all(rebuild, Batches(batches)));
        let start = spec.window_start(T0);
        for k in 0..3 {
            let inside: Vec<i64> = events.iter().map(raw)
                .filter(|e| e.key == key(k) && e.time < end && e.time.micros() >= start)
                .map(|e| match e.values[0].val { Some(Val::Int64Val(n)) => n, _ => 0 }).collect();
            let state = rebuilt.iter().find(|w| w.key == key(k)).and_then(|w| w.state.clone());
            let found = state.and_then(|s| answer(&key(k), &s, &spec, &view, Timestamp(T0)).expect("readable"));
            let want = (!inside.is_empty()).then(|| vec![of(Val::Int64Val(inside.iter().sum()))]);
            prop_assert_eq!(found.map(|(_, values)| values), want);
        }
    }
}
