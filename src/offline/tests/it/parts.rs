//! Entity frames that memory has no room for: they wait on disk, are joined part by part, and come out in their order.

use std::path::Path;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use model::ValueType;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::joins::{Row, expected, written};
use crate::support::*;

/// Open files below the spill directory, which have no names; the directory itself is open, too.
fn open_spills(dir: &Path) -> usize {
    let spill = std::fs::canonicalize(dir.join("larder/spill")).expect("the spill directory");
    let handles = std::fs::read_dir("/proc/self/fd").expect("handles");
    // A handle that was closed in between is none.
    let open = handles.filter_map(|h| std::fs::read_link(h.ok()?.path()).ok());
    open.filter(|file| file.starts_with(&spill) && !file.is_dir()).count()
}

/// A frame's messages, several batches long.
fn messages(command: &serde_json::Value, frame: &RecordBatch, rows: usize) -> Vec<FlightData> {
    let batches = (0..frame.num_rows()).step_by(rows).map(|at| frame.slice(at, rows.min(frame.num_rows() - at)));
    let batches: Vec<_> = batches.map(Ok).collect();
    let encoded = arrow_flight::encode::FlightDataEncoderBuilder::new()
        .with_schema(frame.schema())
        .with_flight_descriptor(Some(arrow_flight::FlightDescriptor::new_cmd(command.to_string())))
        .build(stream::iter(batches))
        .map(|message| message.expect("encodes"))
        .collect::<Vec<_>>();
    futures::executor::block_on(encoded)
}

async fn ask(server: &Server, messages: Vec<FlightData>) -> Result<RecordBatch, tonic::Status> {
    collect(server.client().await.do_exchange(stream::iter(messages)).await?.into_inner()).await
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        // A poll of a condition: nothing tells when a dropped call's files are closed.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

const ROWS: i64 = 200_000;

/// 1,000 keys with a row each second, so that the frame's times matter.
fn repo() -> Repo {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::Int64), ("g", ValueType::String)], 0, "v.parquet");
    repo.view("w", &["k"], &[("f", ValueType::Int64)], 3_000_000, "v.parquet");
    let rows = 20_000i64;
    repo.write(
        "v.parquet",
        &batch(vec![
            ("k", ints((0..rows).map(|i| Some(i % 1000)))),
            ("f", ints((0..rows).map(Some))),
            ("g", texts((0..rows).map(|i| Some(format!("row {i}"))))),
            ("t", times((0..rows).map(|i| Some(i / 1000 * 1_000_000)))),
            ("c", times((0..rows).map(|_| None))),
        ]),
    );
    repo
}

fn frame() -> RecordBatch {
    batch(vec![
        ("k", ints((0..ROWS).map(|i| (i % 17 != 0).then_some(i * 7919 % 1100)))),
        ("event_timestamp", times((0..ROWS).map(|i| Some(i * 104_729 % 25_000_000)))),
        ("note", texts((0..ROWS).map(|i| Some(format!("the caller's own {i}"))))),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_several_times_the_limit_is_joined_from_disk_as_in_memory() {
    let repo = repo();
    let command = historical(&[("v", &["f", "g"]), ("w", &["f"])]);
    let frame = frame();
    let whole = Server::start(repo.offline_by(256 << 20, 1024));
    let whole = ask(&whole.await, messages(&command, &frame, 10_000)).await.expect("fits");
    assert_eq!(whole.num_columns(), 6);
    for (i, k) in frame.column(0).as_primitive::<Int64Type>().iter().enumerate() {
        let at = (i as i64 * 104_729 % 25_000_000 / 1_000_000).min(19);
        let want = k.filter(|k| *k < 1000).map(|k| at * 1000 + k);
        let got = whole.column(3).as_primitive::<Int64Type>();
        assert_eq!(got.is_valid(i).then(|| got.value(i)), want, "row {i}");
    }
    // The frame takes 12 MB as it is.
    let offline = repo.offline_by(3 << 20, 1024);
    let server = Server::start(offline.clone()).await;
    let got = ask(&server, messages(&command, &frame, 10_000)).await.expect("does not fit, and is joined");
    assert_eq!(got, whole);
    eventually("files stay", || open_spills(repo.dir.path()) == 0).await;
    assert_eq!(offline.reserved_bytes(), 0);
    // In one message, by the older flow, and without entity rows of its own.
    let one = ask(&server, messages(&command, &frame, ROWS as usize)).await.expect("one message");
    assert_eq!(one, whole);
    server.put(&command, &frame).await.expect("kept");
    assert_eq!(server.get(&command).await.expect("fetched"), whole);
    let mut by_sql = command.clone();
    by_sql["entity_df_sql"] =
        "SELECT a.k, b.t AS event_timestamp FROM v_source a, v_source b WHERE a.t = b.t AND b.k < 10".into();
    let placeholder = batch(vec![("key", texts([]))]);
    let small = server.exchange(&by_sql, &placeholder).await.expect("SQL");
    assert_eq!(small.num_rows(), 200_000);
    let times = small.column(1).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let keys = small.column(0).as_primitive::<Int64Type>();
    let found = small.column(2).as_primitive::<Int64Type>();
    for i in 0..small.num_rows() {
        assert_eq!(found.value(i), times.value(i) / 1000 + keys.value(i));
    }
    eventually("files stay", || open_spills(repo.dir.path()) == 0).await;
    assert_eq!(offline.reserved_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_wider_than_they_seem_are_joined_from_disk_all_the_same() {
    let mut repo = repo();
    repo.view("wide", &["k"], &[("g", ValueType::String)], 0, "wide.parquet");
    let text = |i: i64| Some(format!("{i:0>300}"));
    repo.write_in_groups(
        "wide.parquet",
        &batch(vec![
            ("k", ints((0..100_000).map(|i| Some(i % 1000)))),
            ("g", texts((0..100_000).map(text))),
            ("t", times((0..100_000).map(|i| Some(i / 1000 * 1_000_000)))),
            ("c", times((0..100_000).map(|_| None))),
        ]),
        10_000,
    );
    let rows = 150_000i64;
    let frame = batch(vec![
        ("k", ints((0..rows).map(|i| Some(i * 7919 % 1100)))),
        ("event_timestamp", times((0..rows).map(|i| Some(i * 104_729 % 110_000_000)))),
        ("note", texts((0..rows).map(text))),
    ]);
    // The frame takes 47 MB, and so do its features.
    let command = historical(&[("wide", &["g"])]);
    let whole = Server::start(repo.offline_by(512 << 20, 8192)).await;
    let whole = ask(&whole, messages(&command, &frame, 20_000)).await.expect("fits");
    assert!(whole.column(3).null_count() > 0);
    assert!(whole.column(3).null_count() < rows as usize / 5);
    let offline = repo.offline_by(32 << 20, 8192);
    let server = Server::start(offline.clone()).await;
    let got = ask(&server, messages(&command, &frame, 20_000)).await.expect("does not fit, and is joined");
    assert_eq!(got, whole);
    eventually("files stay", || open_spills(repo.dir.path()) == 0).await;
    assert_eq!(offline.reserved_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_query_go_out_before_the_last_one_is_read_where_histories_are_small() {
    let mut repo = repo();
    repo.view("asked", &["k"], &[("n", ValueType::String)], 0, "asked.parquet");
    repo.write(
        "asked.parquet",
        &batch(vec![
            ("k", ints((0..ROWS).map(|i| Some(i % 1000)))),
            ("n", texts((0..ROWS).map(|i| Some(if i + 1 == ROWS { "no number".into() } else { i.to_string() })))),
            ("t", times((0..ROWS).map(|i| Some(i * 100)))),
            ("c", times((0..ROWS).map(|_| None))),
        ]),
    );
    let mut command = historical(&[("v", &["f", "g"]), ("w", &["f"])]);
    command["entity_df_sql"] = "SELECT k, t AS event_timestamp, CAST(n AS BIGINT) AS n FROM asked_source".into();
    let placeholder = batch(vec![("key", texts([]))]);
    let offline = repo.offline_by(256 << 20, 1024);
    let server = Server::start(offline.clone()).await;
    let answer = server.client().await.do_exchange(stream::iter(messages(&command, &placeholder, 1))).await;
    let mut rows =
        FlightRecordBatchStream::new_from_flight_data(answer.expect("begins").into_inner().map_err(Into::into));
    let mut found = 0;
    let error = loop {
        match rows.next().await.expect("an error at the end") {
            Ok(batch) => {
                let (times, keys) = (batch.column(1), batch.column(0).as_primitive::<Int64Type>());
                let times = times.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
                let got = batch.column(3).as_primitive::<Int64Type>();
                for i in 0..batch.num_rows() {
                    assert_eq!(got.value(i), times.value(i) / 1_000_000 * 1000 + keys.value(i));
                }
                found += batch.num_rows();
            }
            Err(error) => break error,
        }
    };
    assert!(found > ROWS as usize / 2, "{found} rows came before the error");
    assert!(error.to_string().contains("no number"), "{error}");
    eventually("memory stays", || offline.reserved_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_before_the_last_part_and_files_go_when_nobody_listens() {
    let repo = repo();
    let command = historical(&[("v", &["f"])]);
    let server = Server::start(repo.offline_by(1 << 20, 256)).await;
    let mut client = server.client().await;
    let answer = client.do_exchange(stream::iter(messages(&command, &frame(), 10_000))).await.expect("begins");
    let mut answer = answer.into_inner();
    for _ in 0..3 {
        answer.next().await.expect("a message").expect("rows");
    }
    // The rest of the frame waits for a reader.
    assert!(open_spills(repo.dir.path()) > 0);
    drop(answer);
    drop(client);
    eventually("files stay", || open_spills(repo.dir.path()) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_a_later_part_is_told_and_files_go() {
    let repo = repo();
    let offline = repo.offline_by(1 << 20, 256);
    let server = Server::start(offline.clone()).await;
    let command = historical(&[("v", &["f"])]);
    let frame = batch(vec![
        // pandas makes floating numbers of integers with gaps
        (
            "k",
            std::sync::Arc::new(arrow::array::Float64Array::from_iter_values(
                (0..ROWS).map(|i| if i == ROWS - 5 { 0.5 } else { (i % 1000) as f64 }),
            )),
        ),
        ("event_timestamp", times((0..ROWS).map(Some))),
    ]);
    let error = ask(&server, messages(&command, &frame, 10_000)).await.expect_err("half a key");
    assert!(detail(&error).1.contains("the value 0.5"), "{error}");
    // Another schema in mid-stream, when the first rows are on disk already.
    let mut mixed = messages(&command, &frame, 10_000);
    let other = batch(vec![("k", texts([Some("x".into())])), ("event_timestamp", times([Some(1)]))]);
    mixed.extend(messages(&command, &other, 1));
    ask(&server, mixed).await.expect_err("two schemas");
    eventually("files stay", || open_spills(repo.dir.path()) == 0).await;
    assert_eq!(offline.reserved_bytes(), 0);
}

/// The rows of a view, entity rows, a ttl, the rows of an upload's message and of a batch.
type Case = (Vec<Row>, Vec<(Option<i64>, i64)>, i64, usize, usize);

#[test]
fn parts_equal_the_oracle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let row = (crate::joins::keys(), 0i64..30, proptest::option::of(0i64..3), proptest::option::of(0i64..99))
        .prop_map(|(key, t, created, value)| Row { key, name: None, time: Some(t), created, value });
    let rows = proptest::collection::vec(row, 1..200);
    let asked = proptest::collection::vec((crate::joins::keys(), 0i64..40), 800..1500);
    let cases = (rows, asked, prop_oneof![Just(0i64), 1i64..15], 1usize..700, 1usize..8);
    let run = |(rows, asked, ttl, message, batch_rows): Case| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int64);
        repo.view("one", &["k"], &[("f", ValueType::Int64)], ttl, "v.parquet");
        repo.view("two", &["__dummy"], &[("f", ValueType::Int64)], 0, "v.parquet");
        repo.write_in_groups("v.parquet", &written(&rows), 30);
        let frame = batch(vec![
            ("k", ints(asked.iter().map(|(k, _)| *k))),
            ("event_timestamp", times(asked.iter().map(|(_, t)| Some(*t)))),
        ]);
        let command = historical(&[("one", &["f"]), ("two", &["f"])]);
        let offline = repo.offline_by(48 << 10, batch_rows);
        let got = runtime.block_on(async {
            let server = Server::start(offline.clone()).await;
            ask(&server, messages(&command, &frame, message)).await
        });
        let got = got.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(got.column(0), frame.column(0));
        prop_assert_eq!(got.column(1), frame.column(1));
        let want = |key: &dyn Fn(Option<i64>, &Row) -> bool, ttl| {
            ints(asked.iter().map(|(k, t)| expected(&rows, |r| key(*k, r), *t, ttl)))
        };
        prop_assert_eq!(got.column(2), &want(&|k, r| k.is_some() && r.key == k, ttl));
        prop_assert_eq!(got.column(3), &want(&|_, _| true, 0));
        Ok(())
    };
    runner.run(&cases, run).expect("equal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_span_that_do_not_fit_into_memory_are_the_same() {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.entity("n", ValueType::String);
    // Of some keys both views have rows, and each has some several times.
    let views = [("one", ["k", "n"], 0..20_000i64), ("two", ["n", "k"], 12_000..30_000)];
    for (name, keys, of) in &views {
        let rows = || (0..30_000i64).map(|i| of.start + i * 7919 % (of.end - of.start));
        repo.view(name, keys, &[("f", ValueType::Int64)], 0, &format!("{name}.parquet"));
        repo.write(
            &format!("{name}.parquet"),
            &batch(vec![
                ("k", ints(rows().map(|k| Some(k % 300)))),
                ("n", texts(rows().map(|k| Some(format!("the key {k}"))))),
                ("f", ints(rows().map(Some))),
                // one hour of the day after is in no span
                ("t", times(rows().map(|k| Some(if k % 10 == 0 { 86_400_000_000 } else { k })))),
                ("c", times(rows().map(|k| Some(if k % 10 == 1 { 86_400_000_000 } else { k })))),
            ]),
        );
    }
    let placeholder = batch(vec![("key", texts([]))]);
    let (roomy, tight) = (repo.offline_by(256 << 20, 1024), repo.offline_by(1 << 20, 256));
    for known in [false, true] {
        let mut command = historical(&[("one", &["f"]), ("two", &["f"])]);
        command["start_date"] = "1970-01-01T00:00:00".into();
        command["end_date"] = "1970-01-01T12:00:00".into();
        command["filter_by_created_timestamp"] = known.into();
        let whole = Server::start(roomy.clone()).await.exchange(&command, &placeholder).await.expect("fits");
        assert_eq!(whole.num_rows(), 30_000 / 10 * if known { 8 } else { 9 });
        let got = Server::start(tight.clone()).await.exchange(&command, &placeholder).await.expect("is sorted");
        assert_eq!(got, whole);
        assert_eq!(tight.reserved_bytes(), 0);
    }
}
