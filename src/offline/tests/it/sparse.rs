//! Few entity rows and a long history: features are decoded of those rows only that some entity row may match, and the
//! result is the same.

use arrow::array::Array;
use model::ValueType;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::joins::{Row, expected, keys, written};
use crate::support::*;

/// The rows of a view with two keys, entity rows, a ttl, and the rows of a row group.
type Case = (Vec<Row>, Vec<(Option<i64>, Option<String>, i64)>, i64, usize);

#[test]
fn few_rows_of_a_long_history_equal_the_oracle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 32, ..Config::default() });
    let time = prop_oneof![12 => (0i64..300).prop_map(Some), 1 => Just(None)];
    let optional = |most: i64| proptest::option::of(0..most);
    let row = (keys(), proptest::option::of("[ab]"), time, optional(3), optional(99))
        .prop_map(|(key, name, time, created, value)| Row { key, name, time, created, value });
    let rows = proptest::collection::vec(row, 400..700);
    let asked = proptest::collection::vec((keys(), proptest::option::of("[ab]"), 0i64..310), 1..4);
    let cases = (rows, asked, prop_oneof![Just(0i64), 1i64..25], 20usize..400);
    let run = |(rows, asked, ttl, group): Case| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int64);
        repo.entity("n", ValueType::String);
        repo.view("one", &["k"], &[("f", ValueType::Int64)], ttl, "v.parquet");
        repo.view("two", &["n", "k"], &[("f", ValueType::Int64)], ttl, "v.parquet");
        repo.write_in_groups("v.parquet", &written(&rows), group);
        let frame = batch(vec![
            ("k", ints(asked.iter().map(|(k, ..)| *k))),
            ("n", texts(asked.iter().map(|(_, n, _)| n.clone()))),
            ("event_timestamp", times(asked.iter().map(|(.., t)| Some(*t)))),
        ]);
        let got = runtime.block_on(async {
            let server = Server::start(repo.offline_by(64 << 20, 8)).await;
            server.exchange(&historical(&[("one", &["f"]), ("two", &["f"])]), &frame).await
        });
        let got = got.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let one = asked.iter().map(|(k, _, t)| expected(&rows, |r| k.is_some() && r.key == *k, *t, ttl));
        prop_assert_eq!(got.column(3), &ints(one));
        let same =
            |r: &Row, k: &Option<i64>, n: &Option<String>| k.is_some() && n.is_some() && r.key == *k && r.name == *n;
        let two = asked.iter().map(|(k, n, t)| expected(&rows, |r| same(r, k, n), *t, ttl));
        prop_assert_eq!(got.column(4), &ints(two));
        Ok(())
    };
    runner.run(&cases, run).expect("equal");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_not_decoded() {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::Int64), ("g", ValueType::String)], 0, "v.parquet");
    let rows = 50_000i64;
    repo.write_in_groups(
        "v.parquet",
        &batch(vec![
            ("k", ints((0..rows).map(|i| Some(i * 7919 % rows)))),
            ("f", ints((0..rows).map(|i| Some(i * 10)))),
            ("g", texts((0..rows).map(|i| Some(format!("text {i}"))))),
            ("t", times((0..rows).map(|_| Some(5)))),
            ("c", times((0..rows).map(|_| None))),
        ]),
        10_000,
    );
    let offline = repo.offline_by(64 << 20, 1024);
    let server = Server::start(offline.clone()).await;
    // So many that they are not named one by one, of the whole range of keys.
    let asked: Vec<i64> = (0..400).map(|i| i * 124).collect();
    let frame = batch(vec![
        ("k", ints(asked.iter().map(|k| Some(*k)))),
        ("event_timestamp", times(asked.iter().map(|_| Some(9)))),
    ]);
    let got = server.exchange(&historical(&[("v", &["f", "g"])]), &frame).await.expect("joins");
    let row_of: std::collections::HashMap<i64, i64> = (0..rows).map(|i| (i * 7919 % rows, i)).collect();
    assert_eq!(got.column(2), &ints(asked.iter().map(|k| Some(row_of[k] * 10))));
    assert_eq!(got.column(3), &texts(asked.iter().map(|k| Some(format!("text {}", row_of[k])))));
    assert_eq!(got.column(2).null_count(), 0);
    assert_eq!(offline.reserved_bytes(), 0);
}
