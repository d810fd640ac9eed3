//! Training sets as they were served: an event of a stream's log counts from when it arrived on, against a naive oracle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use model::ports::{LogOf, LoggedEvent, ObjectKind};
use model::row::Version;
use model::value::proto_value::Val;
use model::{EntityKey, Timestamp, Value, ValueType};
use offline::Offline;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proto::feast::core;
use window::{AggregationDef, ColumnType, Scalar, Tiling, oracle};

use crate::support::*;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Events lie around the end of a day, so that the log has them in two folders.
const BASE: i64 = 19_000 * DAY - 200 * SECOND;
const TTL: i64 = 100 * SECOND;
const SQL: &str = "SELECT k, t, v * 2 AS v FROM events WHERE v IS NULL OR v > -5";
const BOUNDED: [(&str, &str, i64); 7] = [
    ("count", "v", 60),
    ("count", "", 60),
    ("count_distinct", "v", 60),
    ("last", "v", 180),
    ("seconds_since_last", "v", 180),
    ("decayed_sum(30)", "v", 120),
    ("session_count(20)", "v", 90),
];
/// What SQL gives is a number, of which the registry does not say that it is whole.
const SELECTED: [(&str, &str, i64); 5] = [
    ("count", "v", 60),
    ("count", "", 60),
    ("sum", "v", 60),
    ("seconds_since_last", "v", 180),
    ("session_count(20)", "v", 90),
];
const LIFETIME: [(&str, &str, i64); 4] =
    [("count_distinct", "v", 0), ("sum_last_k(3)", "v", 0), ("first", "v", 0), ("session_sum(15)", "v", 0)];

/// Something that happened.
#[derive(Clone, Debug)]
struct Event {
    key: i64,
    ts: i64,
    /// Since when it is known; `None` is never.
    known: Option<i64>,
    created: Option<i64>,
    value: Option<i64>,
    /// Where it came from in the stream; what is of the batch source came from nowhere.
    origin: Option<(i32, i64)>,
}

impl Event {
    /// The place among the rows of all files: the source's, then the log's by date, partition and offset.
    fn place(&self, row: usize) -> (i64, i32, i64) {
        self.origin
            .map_or((i64::MIN, 0, row as i64), |(partition, offset)| (self.ts.div_euclid(DAY), partition, offset))
    }

    /// Since when it counts, where what was known is asked for, or not.
    fn counts(&self, known: bool) -> Option<i64> {
        if known { self.known.map(|at| at.max(self.ts)) } else { Some(self.ts) }
    }
}

/// What a case has.
#[derive(Clone, Debug)]
struct Case {
    events: Vec<Event>,
    /// Whether the batch source says when its rows were created.
    with_created: bool,
    asked: Vec<(i64, i64)>,
    memory: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let moment = |seconds: Range<i64>| seconds.prop_map(|s| BASE + s * SECOND);
    let value = || proptest::option::of(-9i64..9);
    let source = (0i64..3, moment(0..300), proptest::option::weighted(0.9, 0i64..120), value());
    // how long after the one before it came, and how long before that it happened; a little future there is, too
    let streamed = (0i64..3, 0i64..8, prop_oneof![4 => -5i64..10, 1 => 0i64..250], value(), 0i32..2);
    let asked = (0i64..4, moment(0..600));
    let parts = (
        proptest::collection::vec(source, 0..60),
        proptest::collection::vec(streamed, 1..120),
        proptest::collection::vec(asked, 1..80),
        any::<bool>(),
        prop_oneof![Just(256 << 20), Just(1 << 20)],
    );
    parts.prop_map(|(source, streamed, asked, with_created, memory)| {
        let mut events: Vec<Event> = Vec::new();
        for (key, ts, late, value) in source {
            let created = late.filter(|_| with_created).map(|late| ts + late * SECOND);
            let known = if with_created { created } else { Some(ts) };
            events.push(Event { key, ts, known, created, value, origin: None });
        }
        let mut arrived = BASE;
        let mut next = [0, 0];
        for (key, gap, age, value, partition) in streamed {
            arrived += gap * SECOND;
            let ts = arrived - age * SECOND;
            let offset = next[partition as usize];
            next[partition as usize] += 1;
            let created = Some(ts + 1).filter(|_| with_created && offset % 3 > 0);
            events.push(Event { key, ts, known: Some(arrived), created, value, origin: Some((partition, offset)) });
        }
        Case { events, with_created, asked, memory }
    })
}

fn definitions(of: &[(&str, &str, i64)]) -> Vec<AggregationDef> {
    let def = |(at, (function, column, seconds)): (usize, &(&str, &str, i64))| AggregationDef {
        feature: format!("f{at}"),
        column: (*column).to_owned(),
        function: (*function).to_owned(),
        window_us: seconds * SECOND,
        slide_us: 0,
    };
    of.iter().enumerate().map(def).collect()
}

fn type_of(def: &AggregationDef) -> ValueType {
    let is_float = ["sum", "seconds_since_last", "decayed_sum(30)"].contains(&def.function.as_str());
    if is_float { ValueType::Double } else { ValueType::Int64 }
}

/// The stream of all views, with its batch source.
fn stream(with_created: bool) -> (core::DataSource, core::DataSource) {
    let mut batch = source("events_file", "events.parquet");
    if !with_created {
        batch.created_timestamp_column.clear();
    }
    let json = core::stream_format::JsonFormat { schema_json: "k bigint, v bigint, t timestamp".into() };
    let kafka = core::data_source::KafkaOptions {
        topic: "happened".into(),
        message_format: Some(core::StreamFormat { format: Some(core::stream_format::Format::JsonFormat(json)) }),
        ..Default::default()
    };
    let stream = core::DataSource {
        name: "happened".into(),
        timestamp_field: "t".into(),
        created_timestamp_column: batch.created_timestamp_column.clone(),
        batch_source: Some(Box::new(batch.clone())),
        options: Some(core::data_source::Options::KafkaOptions(kafka)),
        ..Default::default()
    };
    (batch, stream)
}

/// A view of windows over the stream.
fn windows(repo: &mut Repo, name: &str, key: &str, defs: &[AggregationDef], of: &Case, tags: &[(&str, &str)]) {
    let (batch, stream) = stream(of.with_created);
    let tags: BTreeMap<String, String> = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let spec = core::StreamFeatureViewSpec {
        name: name.into(),
        project: PROJECT.into(),
        entities: vec![key.into()],
        features: defs.iter().map(|d| field(&d.feature, type_of(d))).collect(),
        batch_source: Some(batch),
        stream_source: Some(stream),
        aggregations: defs
            .iter()
            .map(|d| core::Aggregation {
                column: d.column.clone(),
                function: d.function.clone(),
                name: d.feature.clone(),
                time_window: Some(prost_types::Duration { seconds: d.window_us / SECOND, nanos: 0 }),
                ..Default::default()
            })
            .collect(),
        timestamp_field: "t".into(),
        mode: if tags.contains_key("larder.sql") { "sql".into() } else { "python".into() },
        tags,
        ..Default::default()
    };
    let view = core::StreamFeatureView { spec: Some(spec), meta: None };
    repo.put(ObjectKind::StreamFeatureView, name, &view);
}

/// The repo of a case, its batch source written.
fn repo(case: &Case) -> Repo {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    windows(&mut repo, "bounded", "k", &definitions(&BOUNDED), case, &[]);
    windows(&mut repo, "ever", "__dummy", &definitions(&LIFETIME), case, &[]);
    let tags = [("larder.sql", SQL), ("larder.known_at", "True")];
    windows(&mut repo, "selected", "k", &definitions(&SELECTED), case, &tags);
    let (batch_source, stream_source) = stream(case.with_created);
    let spec = core::FeatureViewSpec {
        name: "rows".into(),
        project: PROJECT.into(),
        entities: vec!["k".into()],
        features: vec![field("v", ValueType::Int64)],
        ttl: Some(prost_types::Duration { seconds: TTL / SECOND, nanos: 0 }),
        batch_source: Some(batch_source),
        stream_source: Some(stream_source),
        online: true,
        ..Default::default()
    };
    repo.put(ObjectKind::FeatureView, "rows", &core::FeatureView { spec: Some(spec), meta: None });
    let of_source: Vec<&Event> = case.events.iter().filter(|e| e.origin.is_none()).collect();
    let mut columns = vec![
        ("k", ints(of_source.iter().map(|e| Some(e.key)))),
        ("v", ints(of_source.iter().map(|e| e.value))),
        ("t", times(of_source.iter().map(|e| Some(e.ts)))),
    ];
    if case.with_created {
        columns.push(("c", times(of_source.iter().map(|e| e.created))));
    }
    repo.write("events.parquet", &batch(columns));
    repo
}

/// What the view's SQL makes of an event; `None` where it leaves it out.
fn selected(event: &Event) -> Option<Event> {
    let value = event.value;
    value.is_none_or(|v| v > -5).then(|| Event { value: value.map(|v| v * 2), ..event.clone() })
}

/// What a view takes of the events.
fn taken(view: &str, events: &[Event]) -> Vec<Event> {
    let of_view = |event: &Event| if view == "selected" { selected(event) } else { Some(event.clone()) };
    events.iter().filter_map(of_view).collect()
}

/// Writes the logs as the streams of all views do.
async fn log(repo: &Repo, offline: &Offline, events: &[Event]) {
    let int = |v: i64| Value { val: Some(Val::Int64Val(v)) };
    for name in ["bounded", "ever", "selected", "rows"] {
        let view = repo.registered(name);
        let log = offline.event_log().expect("one is kept");
        let is_float = name == "selected";
        let columns = [("v".to_owned(), if is_float { ValueType::Double } else { ValueType::Int64 })];
        let value = |v: i64| if is_float { Value { val: Some(Val::DoubleVal(v as f64)) } } else { int(v) };
        let of = LogOf { view: &view, topic: "happened", columns: &columns };
        let mut appender = log.open(of, BTreeMap::new()).await.expect("opens");
        let happened: Vec<LoggedEvent> = taken(name, events)
            .iter()
            .filter_map(|event| {
                let (partition, offset) = event.origin?;
                let key = if view.is_entityless() {
                    EntityKey::dummy()
                } else {
                    EntityKey::encode(&[("k", &int(event.key))]).expect("a key")
                };
                let created = Timestamp(event.created.unwrap_or_default());
                Some(LoggedEvent {
                    partition,
                    offset,
                    arrived: Timestamp(event.known.expect("it came")),
                    key,
                    version: Version { event: Timestamp(event.ts), created },
                    values: vec![event.value.map_or(Value { val: None }, value)].into(),
                })
            })
            .collect();
        for some in happened.chunks(happened.len().div_ceil(3).max(1)) {
            appender.append(Arc::new(some.to_vec())).await.expect("appends");
            appender.counted();
        }
    }
}

/// What the windows' definition says at `t`, of the events that count then.
fn in_windows(defs: &[AggregationDef], events: &[Event], key: Option<i64>, t: i64, known: bool) -> Option<Vec<Scalar>> {
    let mut own: Vec<_> = events
        .iter()
        .enumerate()
        .filter(|(_, e)| key.is_none_or(|key| e.key == key))
        .filter_map(|(row, e)| Some(((e.counts(known).filter(|at| *at <= t)?, e.place(row)), e)))
        .collect();
    own.sort_by_key(|(order, _)| *order);
    let own: Vec<(i64, Vec<Scalar>)> =
        own.into_iter().map(|(_, e)| (e.ts, vec![e.value.map_or(Scalar::Null, Scalar::Int)])).collect();
    let is_whole = defs.iter().all(|d| d.function != "sum");
    let columns = [("v".to_owned(), if is_whole { ColumnType::Int } else { ColumnType::Float })];
    oracle::evaluate(defs, Tiling::default(), &columns, &own, t).map(|answer| answer.values)
}

/// The last row of a key that counts at `t`.
fn last(events: &[Event], key: i64, t: i64, known: bool) -> Option<i64> {
    let own = events.iter().enumerate().filter(|(_, e)| e.key == key && e.counts(known).is_some_and(|at| at <= t));
    let best = own.max_by_key(|(row, e)| (e.ts, e.created.unwrap_or(i64::MIN), e.place(*row)));
    best.filter(|(_, e)| e.ts >= t - TTL).and_then(|(_, e)| e.value)
}

fn value_at(got: &RecordBatch, name: &str, row: usize) -> Scalar {
    let column = got.column_by_name(name).expect(name);
    if column.is_null(row) {
        return Scalar::Null;
    }
    match column.data_type() {
        DataType::Float64 => Scalar::Float(column.as_primitive::<Float64Type>().value(row)),
        _ => Scalar::Int(column.as_primitive::<Int64Type>().value(row)),
    }
}

fn same(got: &Scalar, wanted: &Scalar) -> bool {
    match (got, wanted) {
        (Scalar::Float(a), Scalar::Float(b)) => (a - b).abs() <= 1e-9 * b.abs().max(1.0),
        (a, b) => a == b,
    }
}

/// Every entity row of an answer against the oracle; `known` says it by view.
fn compare(case: &Case, got: &RecordBatch, known: impl Fn(&str) -> bool) -> Result<(), TestCaseError> {
    for (row, (key, t)) in case.asked.iter().enumerate() {
        for (view, defs) in [("bounded", &BOUNDED[..]), ("ever", &LIFETIME[..]), ("selected", &SELECTED[..])] {
            let defs = definitions(defs);
            let key = Some(*key).filter(|_| view != "ever");
            let wanted = in_windows(&defs, &taken(view, &case.events), key, *t, known(view));
            for (at, def) in defs.iter().enumerate() {
                let got = value_at(got, &format!("{view}__{}", def.feature), row);
                let wanted = wanted.as_ref().map_or(Scalar::Null, |values| values[at].clone());
                prop_assert!(same(&got, &wanted), "{view} {} at {t}: {got:?}, not {wanted:?}", def.function);
            }
        }
        let wanted = last(&case.events, *key, *t, known("rows")).map_or(Scalar::Null, Scalar::Int);
        prop_assert_eq!(value_at(got, "rows__v", row), wanted, "rows at {}", t);
    }
    Ok(())
}

fn command() -> serde_json::Value {
    let names = |of: &[(&str, &str, i64)]| definitions(of).into_iter().map(|d| d.feature).collect::<Vec<_>>();
    let (bounded, ever, selected) = (names(&BOUNDED), names(&LIFETIME), names(&SELECTED));
    let bounded: Vec<&str> = bounded.iter().map(String::as_str).collect();
    let ever: Vec<&str> = ever.iter().map(String::as_str).collect();
    let selected: Vec<&str> = selected.iter().map(String::as_str).collect();
    historical(&[("bounded", &bounded), ("rows", &["v"]), ("ever", &ever), ("selected", &selected)])
}

fn frame(asked: &[(i64, i64)]) -> RecordBatch {
    batch(vec![
        ("k", ints(asked.iter().map(|a| Some(a.0)))),
        ("event_timestamp", times(asked.iter().map(|a| Some(a.1)))),
    ])
}

/// What a request says, and by view whether it is then given what was known.
type Asked = (Option<bool>, fn(&str) -> bool);

const ASKED: [Asked; 3] = [(Some(true), |_| true), (None, |view| view == "selected"), (Some(false), |_| false)];

#[test]
fn an_event_counts_from_when_it_arrived() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let run = |case: Case| {
        let repo = repo(&case);
        runtime.block_on(async {
            let offline = repo.offline_with(case.memory, 64, Some("log"));
            log(&repo, &offline, &case.events).await;
            let server = Server::start(offline.clone()).await;
            for (asked, known) in ASKED {
                let mut command = command();
                if let Some(asked) = asked {
                    command["filter_by_created_timestamp"] = asked.into();
                }
                let got = server.exchange(&command, &frame(&case.asked)).await;
                let got = got.map_err(|e| TestCaseError::fail(e.to_string()))?;
                compare(&case, &got, known)?;
            }
            prop_assert_eq!(offline.reserved_bytes(), 0);
            Ok(())
        })
    };
    runner.run(&cases(), run).expect("the oracle agrees");
}

#[tokio::test]
async fn a_log_that_is_a_source_itself_says_when_its_events_arrived() {
    let event = |offset: i64, ts: i64, known: i64| {
        let (ts, known) = (BASE + ts * SECOND, Some(BASE + known * SECOND));
        Event { key: 1, ts, known, created: Some(ts), value: Some(offset), origin: Some((0, offset)) }
    };
    let events = vec![event(0, 10, 10), event(1, 30, 31), event(2, 20, 90), event(3, 60, 95)];
    let case = Case { events, with_created: true, asked: Vec::new(), memory: 0 };
    let mut repo = repo(&case);
    log(&repo, &repo.offline_with(256 << 20, 64, Some("log")), &case.events).await;
    repo.view("copied", &["k"], &[("v", ValueType::Int64)], 0, "log/p/rows/happened/");
    let mut command = historical(&[("copied", &["v"])]);
    command["filter_by_created_timestamp"] = true.into();
    let asked = [9, 10, 30, 31, 70, 94, 95].map(|s| (1, BASE + s * SECOND));
    let got = repo.serve().await.exchange(&command, &frame(&asked)).await.expect("joins");
    let wanted = [None, Some(0), Some(0), Some(1), Some(1), Some(1), Some(3)];
    assert_eq!(got.column(2), &ints(wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_and_entity_rows_than_fit_into_memory_are_the_same() {
    let mixed = |i: i64, of: i64| (i * 7919 + 13).rem_euclid(of);
    let event = |i: i64| {
        let (ts, key) = (BASE + mixed(i, 300_000) * 1000, mixed(i, 31));
        // each tenth comes when it is of no use any more
        let late = if i % 10 == 0 { 200 * SECOND } else { mixed(i, 7) * SECOND };
        Event { key, ts, known: Some(ts + late), created: None, value: Some(i % 9), origin: Some((0, i)) }
    };
    let asked = |i: i64| (mixed(i, 33), BASE + mixed(i, 400_000) * 1000);
    let events: Vec<Event> = (0..12_000).map(event).collect();
    let case = Case { events, with_created: false, asked: (0..6000).map(asked).collect(), memory: 0 };
    let repo = repo(&case);
    let mut command = command();
    command["filter_by_created_timestamp"] = true.into();
    let roomy = repo.offline_with(256 << 20, 1024, Some("log"));
    log(&repo, &roomy, &case.events).await;
    let whole = Server::start(roomy).await.exchange(&command, &frame(&case.asked)).await.expect("fits");
    // The events of a view take more than that once they are sorted.
    let tight = repo.offline_with(512 << 10, 256, Some("log"));
    let got = Server::start(tight.clone()).await.exchange(&command, &frame(&case.asked)).await.expect("spills");
    assert_eq!(got, whole);
    assert_eq!(tight.reserved_bytes(), 0);
    let few = Case { asked: case.asked[..40].to_vec(), ..case };
    compare(&few, &got, |_| true).expect("the oracle agrees");
}
