//! The whole join, from files to the wire, against a naive oracle.

use std::sync::Arc;

use arrow::array::{Array, AsArray, DictionaryArray, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use model::ports::OfflineLog;
use model::{Timestamp, ValueType};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use window::{AggregationDef, ColumnType, Scalar, Tiling, oracle};

use crate::support::*;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Option<i64>,
    pub(crate) name: Option<String>,
    pub(crate) time: Option<i64>,
    pub(crate) created: Option<i64>,
    pub(crate) value: Option<i64>,
}

pub(crate) fn keys() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![6 => Just(Some(1)), 3 => (0i64..5).prop_map(Some), 1 => Just(None)]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let time = prop_oneof![12 => (0i64..30).prop_map(Some), 1 => Just(None)];
    let row =
        (keys(), proptest::option::of("[ab]"), time, proptest::option::of(0i64..3), proptest::option::of(0i64..99))
            .prop_map(|(key, name, time, created, value)| Row { key, name, time, created, value });
    // Few beside the entity rows, which is held in memory; or many, which is read as it comes.
    (proptest::collection::vec(row, 1..200), prop_oneof![Just(8), Just(200)]).prop_map(|(mut rows, most)| {
        rows.truncate(most);
        rows
    })
}

/// Key, time and value of an event.
type Happened = (i64, i64, Option<i64>);

/// Both keys and the time of an entity row.
type Asked = (Option<i64>, Option<String>, i64);

fn frame() -> impl Strategy<Value = Vec<Asked>> {
    proptest::collection::vec((keys(), proptest::option::of("[ab]"), 0i64..40), 0..150)
}

pub(crate) fn written(rows: &[Row]) -> RecordBatch {
    batch(vec![
        ("k", ints(rows.iter().map(|r| r.key))),
        ("n", texts(rows.iter().map(|r| r.name.clone()))),
        ("f", ints(rows.iter().map(|r| r.value))),
        ("t", times(rows.iter().map(|r| r.time))),
        ("c", times(rows.iter().map(|r| r.created))),
    ])
}

/// What the contract says, row by row.
pub(crate) fn expected(rows: &[Row], key: impl Fn(&Row) -> bool, t: i64, ttl: i64) -> Option<i64> {
    rows.iter()
        .enumerate()
        .filter(|(_, r)| key(r) && r.time.is_some_and(|time| time <= t && (ttl == 0 || time >= t - ttl)))
        .max_by_key(|(i, r)| (r.time, r.created, *i))
        .and_then(|(_, r)| r.value)
}

/// The rows of three views, entity rows, a ttl, and the rows of a row group and of a batch.
type Case = (Vec<Row>, Vec<Row>, Vec<Row>, Vec<Asked>, i64, (usize, usize));

#[test]
fn several_views_equal_the_oracle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let ttl = prop_oneof![Just(0i64), 1i64..15];
    // The rows of a row group and of a batch: pieces of some row groups are read at the same time.
    let cut = (prop_oneof![2 => 1usize..60, 1 => Just(1000)], prop_oneof![2 => 1usize..12, 1 => Just(64)]);
    let cases = (rows(), rows(), rows(), frame(), ttl, cut);
    let run = |(one, two, three, asked, ttl, (group, batch_rows)): Case| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int32);
        repo.entity("n", ValueType::String);
        let feature = [("f", ValueType::Double)];
        repo.view("one", &["k"], &feature, ttl, "one.parquet");
        repo.view("two", &["n", "k"], &feature, 0, "two");
        repo.view("three", &["__dummy"], &feature, ttl, "three-*.parquet");
        repo.write_in_groups("one.parquet", &written(&one), group);
        let half = two.len() / 2;
        repo.write_in_groups("two/a.parquet", &written(&two[..half]), group);
        repo.write_in_groups("two/b/c.parquet", &written(&two[half..]), group);
        repo.write("three-1.parquet", &written(&three));
        let frame = batch(vec![
            ("n", texts(asked.iter().map(|a| a.1.clone()))),
            ("event_timestamp", times(asked.iter().map(|a| Some(a.2)))),
            ("k", ints(asked.iter().map(|a| a.0))),
        ]);
        let command = historical(&[("one", &["f"]), ("two", &["f"]), ("three", &["f"])]);
        let got = runtime.block_on(async {
            let server = Server::start(repo.offline_by(256 << 20, batch_rows)).await;
            server.exchange(&command, &frame).await.expect("joins")
        });
        prop_assert_eq!(&got.columns()[..3], frame.columns());
        let column =
            |name: &str| got.column_by_name(name).expect(name).as_primitive::<arrow::datatypes::Float64Type>().clone();
        let (first, second, third) = (column("one__f"), column("two__f"), column("three__f"));
        for (i, (key, name, t)) in asked.iter().enumerate() {
            let of = |c: &arrow::array::Float64Array| c.is_valid(i).then(|| c.value(i) as i64);
            let by_key = |r: &Row| key.is_some() && r.key == *key;
            prop_assert_eq!(of(&first), expected(&one, by_key, *t, ttl));
            let by_both = |r: &Row| by_key(r) && name.is_some() && r.name == *name;
            prop_assert_eq!(of(&second), expected(&two, by_both, *t, 0));
            prop_assert_eq!(of(&third), expected(&three, |_| true, *t, ttl));
        }
        Ok(())
    };
    runner.run(&cases, run).expect("the oracle agrees");
}

/// A view of windows over events of `k`: count and sum of `v`.
pub(crate) fn windowed(repo: &mut Repo, uri: &str, window_us: i64) -> Vec<AggregationDef> {
    use proto::feast::core;
    let source = source("events", uri);
    let def = |function: &str, window_us: i64| AggregationDef {
        feature: format!("{function}_{window_us}"),
        column: "v".into(),
        function: function.into(),
        window_us,
        slide_us: 0,
    };
    let defs = vec![def("count", window_us), def("sum", window_us), def("last", 3 * window_us)];
    let spec = core::StreamFeatureViewSpec {
        name: "windows".into(),
        project: PROJECT.into(),
        entities: vec!["k".into()],
        features: defs.iter().map(|d| field(&d.feature, ValueType::Int64)).collect(),
        batch_source: Some(source.clone()),
        stream_source: Some(core::DataSource {
            batch_source: Some(Box::new(source)),
            options: Some(core::data_source::Options::KafkaOptions(core::data_source::KafkaOptions {
                message_format: Some(core::StreamFormat {
                    format: Some(core::stream_format::Format::JsonFormat(core::stream_format::JsonFormat {
                        schema_json: "k bigint, v bigint, t timestamp".into(),
                    })),
                }),
                ..Default::default()
            })),
            ..Default::default()
        }),
        aggregations: defs
            .iter()
            .map(|d| core::Aggregation {
                column: d.column.clone(),
                function: d.function.clone(),
                name: d.feature.clone(),
                time_window: Some(prost_types::Duration { seconds: d.window_us / 1_000_000, nanos: 0 }),
                ..Default::default()
            })
            .collect(),
        timestamp_field: "t".into(),
        ..Default::default()
    };
    let view = core::StreamFeatureView { spec: Some(spec), meta: None };
    repo.put(model::ports::ObjectKind::StreamFeatureView, "windows", &view);
    defs
}

#[test]
fn windows_over_history_equal_the_definition() {
    const SECOND: i64 = 1_000_000;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 25, ..Config::default() });
    let time = || prop_oneof![3 => 0i64..400 * SECOND, 1 => (0i64..400).prop_map(|s| s * SECOND)];
    let event = (0i64..3, time(), proptest::option::of(-9i64..9));
    let asked = (proptest::option::of(0i64..4), time());
    let cases = (proptest::collection::vec(event, 1..200), proptest::collection::vec(asked, 1..100));
    let run = |(events, asked): (Vec<Happened>, Vec<(Option<i64>, i64)>)| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int64);
        let defs = windowed(&mut repo, "events.parquet", 60 * SECOND);
        repo.write(
            "events.parquet",
            &batch(vec![
                ("k", ints(events.iter().map(|e| Some(e.0)))),
                ("v", ints(events.iter().map(|e| e.2))),
                ("t", times(events.iter().map(|e| Some(e.1)))),
                ("c", times(events.iter().map(|e| Some(e.1)))),
            ]),
        );
        let frame = batch(vec![
            ("k", ints(asked.iter().map(|a| a.0))),
            ("event_timestamp", times(asked.iter().map(|a| Some(a.1)))),
        ]);
        let names: Vec<&str> = defs.iter().rev().map(|d| d.feature.as_str()).collect();
        let command = historical(&[("windows", &names)]);
        let got = runtime.block_on(async { repo.serve().await.exchange(&command, &frame).await.expect("joins") });
        prop_assert_eq!(got.num_rows(), asked.len());
        for (i, (key, t)) in asked.iter().enumerate() {
            let own: Vec<(i64, Vec<Scalar>)> = events
                .iter()
                .filter(|e| Some(e.0) == *key)
                .map(|e| (e.1, vec![e.2.map_or(Scalar::Null, Scalar::Int)]))
                .collect();
            let columns = [("v".to_owned(), ColumnType::Int)];
            let want = oracle::evaluate(&defs, Tiling::default(), &columns, &own, *t);
            for (d, def) in defs.iter().enumerate() {
                let name = format!("windows__{}", def.feature);
                let column = got.column_by_name(&name).expect("a column").as_primitive::<Int64Type>();
                let value = column.is_valid(i).then(|| column.value(i));
                let wanted = match want.as_ref().map(|w| &w.values[d]) {
                    Some(Scalar::Int(v)) => Some(*v),
                    _ => None,
                };
                prop_assert_eq!(value, wanted, "{} at {}", name, t);
            }
        }
        Ok(())
    };
    runner.run(&cases, run).expect("the oracle agrees");
}

#[tokio::test]
async fn the_entity_frame_comes_back_as_it_was_sent() {
    let mut repo = Repo::new();
    repo.entity("n", ValueType::String);
    repo.view("v", &["n"], &[("f", ValueType::Int64)], 0, "v.parquet");
    repo.write(
        "v.parquet",
        &batch(vec![
            ("n", texts([Some("a".into())])),
            ("f", ints([Some(7)])),
            ("t", times([Some(10)])),
            ("c", times([None])),
        ]),
    );
    let words: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
    let stamps =
        TimestampNanosecondArray::from(vec![Some(10_000), Some(20_000), None]).with_timezone("America/New_York");
    let fields = vec![
        Field::new("n", words.data_type().clone(), true),
        Field::new("asked", stamps.data_type().clone(), true).with_metadata([("x".into(), "y".into())].into()),
        Field::new("__index_level_0__", DataType::Utf8, false),
    ];
    let metadata = [("pandas".to_owned(), "{\"index_columns\": []}".to_owned())].into();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let index = StringArray::from(vec!["r", "q", "p"]);
    let frame =
        RecordBatch::try_new(schema.clone(), vec![Arc::new(words), Arc::new(stamps), Arc::new(index)]).expect("frame");
    let got = repo.serve().await.exchange(&historical(&[("v", &["f"])]), &frame).await.expect("joins");
    assert_eq!(got.schema().metadata(), schema.metadata());
    for i in 0..3 {
        assert_eq!(got.schema().field(i).data_type(), schema.field(i).data_type());
        assert_eq!(got.schema().field(i).metadata(), schema.field(i).metadata());
        assert_eq!(got.column(i), frame.column(i));
    }
    assert_eq!(got.column(3), &ints([Some(7), None, None]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_beyond_the_memory_limit_is_done_all_the_same() {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::String)], 0, "v.parquet");
    let rows = 60_000i64;
    let text = |i: i64| format!("{i:0>120}");
    repo.write(
        "v.parquet",
        &batch(vec![
            ("k", ints((0..rows).map(|i| Some(i * 7919 % rows)))),
            ("f", texts((0..rows).map(|i| Some(text(i))))),
            ("t", times((0..rows).map(|i| Some(i % 5)))),
            ("c", times((0..rows).map(Some))),
        ]),
    );
    // So many that the scan cannot leave the others out: all rows are sorted.
    let asked: Vec<i64> = (0..300).map(|i| i * 200).collect();
    let frame = |repeat: usize| {
        let keys = || asked.iter().cycle().take(asked.len() * repeat).copied();
        batch(vec![("k", ints(keys().map(Some))), ("event_timestamp", times(keys().map(|_| Some(100))))])
    };
    // The source's text alone is about 7 MB.
    let server = Server::start(repo.offline(6 << 20)).await;
    let command = historical(&[("v", &["f"])]);
    // Few entity rows are joined to the source as it comes. 105,000 with the join's places are more than the limit, and
    // so is the frame of 300,000 alone.
    for repeat in [1, 350, 1000] {
        let got = server.exchange(&command, &frame(repeat)).await.expect("joins");
        let found = got.column_by_name("v__f").expect("f").as_string::<i32>();
        assert_eq!(found.len(), asked.len() * repeat);
        for (i, key) in asked.iter().cycle().take(found.len()).enumerate() {
            let row: i64 = found.value(i).parse().expect("a number");
            assert_eq!(row * 7919 % rows, *key);
        }
    }
}

#[tokio::test]
async fn row_groups_without_the_keys_asked_for_are_never_read() {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int32);
    repo.entity("n", ValueType::String);
    repo.view("by_number", &["k"], &[("f", ValueType::Int64)], 0, "v.parquet");
    repo.view("by_name", &["n"], &[("f", ValueType::Int64)], 0, "v.parquet");
    let name = |i: i64| format!("{i:04}");
    let rows = batch(vec![
        ("k", ints((0..2000).map(Some))),
        ("n", texts((0..2000).map(|i| Some(name(i))))),
        ("f", ints((0..2000).map(|i| Some(i * 10)))),
        ("t", times((0..2000).map(|_| Some(5)))),
        ("c", times((0..2000).map(|_| None))),
    ]);
    let damaged = in_row_groups(&rows, 500, &[0, 2, 3]);
    std::fs::write(repo.dir.path().join("v.parquet"), damaged).expect("write");
    let server = repo.serve().await;
    let command = historical(&[("by_number", &["f"]), ("by_name", &["f"])]);
    let frame = |keys: &[i64]| {
        batch(vec![
            ("k", ints(keys.iter().copied().map(Some))),
            ("n", texts(keys.iter().map(|k| Some(name(*k))))),
            ("event_timestamp", times(keys.iter().map(|_| Some(9)))),
        ])
    };
    // Few keys are named one by one, many are a range.
    for keys in [vec![999, 500, 750], (500..1000).collect()] {
        let got = server.exchange(&command, &frame(&keys)).await.expect("reads what is whole");
        let want = ints(keys.iter().map(|k| Some(k * 10)));
        assert_eq!(got.column_by_name("by_number__f"), Some(&want));
        assert_eq!(got.column_by_name("by_name__f"), Some(&want));
    }
    // What is damaged is noticed when it is read.
    server.exchange(&command, &frame(&[750, 1250])).await.expect_err("a damaged row group");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_groups_beyond_the_span_of_time_are_never_read() {
    const SECOND: i64 = 1_000_000;
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::Int64)], 100 * SECOND, "v.parquet");
    windowed(&mut repo, "v.parquet", 30 * SECOND);
    // Every key is in every row group: only the times tell.
    let at = |i: i64| Some(i * SECOND);
    let rows = batch(vec![
        ("k", ints((0..2000).map(|i| Some(i % 10)))),
        ("f", ints((0..2000).map(Some))),
        ("v", ints((0..2000).map(|_| Some(1)))),
        ("t", times((0..2000).map(at))),
        ("c", times((0..2000).map(|_| None))),
    ]);
    std::fs::write(repo.dir.path().join("v.parquet"), in_row_groups(&rows, 500, &[0, 2, 3])).expect("write");
    let offline = repo.offline(256 << 20);
    let server = Server::start(offline.clone()).await;
    let command = historical(&[("v", &["f"]), ("windows", &["count_30000000"])]);
    // Times within the second row group, as far as the ttl and the widest window reach back.
    let frame = |seconds: &[i64]| {
        batch(vec![
            ("k", ints(seconds.iter().map(|s| Some(s % 10)))),
            ("event_timestamp", times(seconds.iter().copied().map(at))),
        ])
    };
    // Few are located one by one, of many whole row groups are read. (A history far shorter than the frame is held whole.)
    for seconds in [vec![700, 999, 800], (0..5000).map(|i| 700 + i % 300).collect()] {
        let got = server.exchange(&command, &frame(&seconds)).await.expect("reads what is whole");
        assert_eq!(got.column_by_name("v__f"), Some(&ints(seconds.iter().copied().map(Some))));
        assert_eq!(got.column_by_name("windows__count_30000000"), Some(&ints(seconds.iter().map(|_| Some(4)))));
    }
    let text = |seconds: i64| Timestamp(seconds * SECOND).to_rfc3339();
    let placeholder = batch(vec![("key", texts([Some("m".into())]))]);
    let mut span = historical(&[("v", &["f"])]);
    (span["start_date"], span["end_date"]) = (text(600).into(), text(699).into());
    let got = server.exchange(&span, &placeholder).await.expect("a span");
    assert_eq!(got.column_by_name("v__f"), Some(&ints((690..700).map(Some))));
    for api in ["pull_all_from_table_or_query", "pull_latest_from_table_or_query"] {
        let pull = serde_json::json!({"api": api, "data_source_name": "v_source", "join_key_columns": ["k"],
            "feature_name_columns": ["f"], "timestamp_field": "t", "start_date": text(600), "end_date": text(699)});
        let got = server.exchange(&pull, &placeholder).await.expect(api);
        assert_eq!(got.num_rows(), if api.contains("all") { 100 } else { 10 });
    }
    let span = Timestamp(600 * SECOND)..Timestamp(700 * SECOND);
    let mut latest = offline.latest(&repo.registered("v"), span).await.expect("materializes");
    let mut found = 0;
    while let Some(batch) = latest.next().await.expect("reads what is whole") {
        found += batch.len();
    }
    assert_eq!(found, 10);
    // What is damaged is noticed when it is read.
    server.exchange(&command, &frame(&[700, 1200])).await.expect_err("a damaged row group");
}

/// A Parquet file with `rows` rows in each row group, of which some have their pages wiped out.
fn in_row_groups(batch: &RecordBatch, rows: usize, wiped: &[usize]) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).expect("writer");
    writer.write(batch).expect("write");
    let metadata = writer.close().expect("close");
    assert_eq!(metadata.num_row_groups(), batch.num_rows() / rows);
    for group in wiped {
        for column in metadata.row_group(*group).columns() {
            let (start, length) = column.byte_range();
            bytes[start as usize..(start + length) as usize].fill(0xff);
        }
    }
    bytes
}
