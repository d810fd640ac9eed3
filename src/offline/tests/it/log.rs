//! The `OfflineLog` port: appends that are whole or not at all, the latest rows, the raw events.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ports::{AppendRows, NamedColumn, OfflineLog};
use model::row::{Version, column_id};
use model::value::proto_value::Val;
use model::{EntityKey, Kind, Timestamp, Value, ValueType};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message;

use crate::support::*;

/// Both keys, event time, created time and value of a row.
type Written = (Option<i64>, Option<String>, Option<i64>, Option<i64>, Option<i64>);

/// A row's times and its value.
type Best = ((i64, Option<i64>), Option<i64>);

fn repo(uri: &str) -> Repo {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int32);
    repo.entity("n", ValueType::String);
    repo.view("v", &["n", "k"], &[("f", ValueType::Double), ("g", ValueType::String)], 0, uri);
    repo
}

fn value(val: Val) -> Value {
    Value { val: Some(val) }
}

fn rows(from: i64, count: i64) -> AppendRows {
    let column = |name: &str, of: &dyn Fn(i64) -> Value| NamedColumn {
        name: name.into(),
        values: (from..from + count).map(of).collect(),
    };
    AppendRows {
        columns: vec![
            column("k", &|i| value(Val::Int64Val(i))),
            column("n", &|_| value(Val::StringVal("a".into()))),
            column("f", &|i| value(Val::Int64Val(i))),
            column("g", &|i| if i % 2 == 0 { Value { val: None } } else { value(Val::StringVal(format!("g{i}"))) }),
        ],
        versions: (from..from + count).map(|i| Version { event: Timestamp(i), created: Timestamp(i % 3) }).collect(),
    }
}

async fn latest(repo: &Repo, from: i64, to: i64) -> BTreeMap<EntityKey, (Version, Vec<Value>)> {
    latest_within(repo, from, to, 64 << 20).await
}

async fn latest_within(repo: &Repo, from: i64, to: i64, memory: usize) -> BTreeMap<EntityKey, (Version, Vec<Value>)> {
    let offline = repo.offline(memory);
    let view = repo.registered("v");
    let mut batches = offline.latest(&view, Timestamp(from)..Timestamp(to)).await.expect("reads");
    let mut out = BTreeMap::new();
    while let Some(batch) = batches.next().await.expect("reads") {
        for (key, row) in batch {
            let of = |name: &str| {
                let (bytes, _) = row.get(column_id(name)).expect("every feature stands in the row");
                Value::decode(bytes).expect("a value")
            };
            let before = out.insert(key, (row.newest(), vec![of("f"), of("g")]));
            assert!(before.is_none(), "one row per key");
        }
    }
    out
}

fn key(n: &str, k: i32) -> EntityKey {
    EntityKey::encode(&[("n", &value(Val::StringVal(n.into()))), ("k", &value(Val::Int32Val(k)))]).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn appended_rows_are_read_back_and_concurrent_writers_lose_none() {
    for uri in ["v.parquet", "folder/"] {
        let repo = repo(uri);
        let offline = Arc::new(repo.offline(64 << 20));
        let view = repo.registered("v");
        // The first append makes the file; twelve more at once, with a reader beside them.
        assert_eq!(offline.append(&view, rows(0, 5)).await.expect("appends"), 5);
        let writers: Vec<_> = (1..13)
            .map(|i| {
                let (offline, view) = (offline.clone(), view.clone());
                tokio::spawn(async move { offline.append(&view, rows(i * 5, 5)).await.expect("appends") })
            })
            .collect();
        while writers.iter().any(|w| !w.is_finished()) {
            assert_eq!(latest(&repo, 0, 1000).await.len() % 5, 0, "an append shows whole or not at all");
        }
        for writer in writers {
            assert_eq!(writer.await.expect("no panic"), 5);
        }
        let all = latest(&repo, 0, 1000).await;
        assert_eq!(all.len(), 65);
        let want = Version { event: Timestamp(31), created: Timestamp(1) };
        let stored = vec![value(Val::DoubleVal(31.0)), value(Val::StringVal("g31".into()))];
        assert_eq!(all[&key("a", 31)], (want, stored));
        assert_eq!(all[&key("a", 30)].1[1], Value { val: None });
        let hidden =
            std::fs::read_dir(repo.dir.path().join(if uri == "folder/" { "folder" } else { "" })).expect("lists");
        let left: Vec<_> =
            hidden.filter(|e| e.as_ref().expect("entry").file_name().to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn an_append_that_does_not_fit_changes_nothing_and_says_why() {
    let repo = repo("v.parquet");
    let offline = repo.offline(64 << 20);
    let view = repo.registered("v");
    offline.append(&view, rows(0, 5)).await.expect("appends");
    let before = std::fs::read(repo.dir.path().join("v.parquet")).expect("reads");
    let mut missing = rows(5, 5);
    missing.columns.pop();
    let mut extra = rows(5, 5);
    extra.columns.push(NamedColumn { name: "h".into(), values: vec![value(Val::BoolVal(true)); 5] });
    let mut lossy = rows(5, 5);
    lossy.columns[2].values[3] = value(Val::StringVal("much".into()));
    for (rows, text) in [(missing, "missing g"), (extra, "not in the source h"), (lossy, "column 'f': \"much\"")] {
        let error = offline.append(&view, rows).await.expect_err(text);
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.message().contains(text), "{}", error.message());
    }
    assert_eq!(std::fs::read(repo.dir.path().join("v.parquet")).expect("reads"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_rows_of_more_keys_than_fit_into_memory_are_the_same() {
    let repo = repo("v.parquet");
    // each of 20,000 keys three times: an old row, then two of one time, of which the one created later comes first
    let (keys, rows) = (20_000, || (0..60_000i64).map(|i| (i % 20_000, i / 20_000)));
    repo.write(
        "v.parquet",
        &batch(vec![
            ("k", ints(rows().map(|(k, _)| Some(k)))),
            ("n", texts(rows().map(|_| Some("a".into())))),
            ("f", ints(rows().map(|(k, nth)| Some(k * 10 + nth)))),
            ("g", texts(rows().map(|_| None))),
            ("t", times(rows().map(|(_, nth)| Some(nth.min(1))))),
            ("c", times(rows().map(|(k, nth)| (k % 2 == 0).then_some(9 - nth)))),
        ]),
    );
    // a key takes more than 100 bytes of the half of the limit that the hash may have
    let sorted = latest_within(&repo, 0, 5, 3 << 20).await;
    assert_eq!(sorted.len(), keys);
    for (k, nth) in [(4, 1), (5, 2), (19_998, 1), (19_999, 2)] {
        let best = Value { val: Some(Val::DoubleVal(f64::from(k * 10 + nth))) };
        assert_eq!(sorted[&key("a", k)].1[0], best, "created decides where it is there, the file's order where not");
    }
    assert!(latest(&repo, 0, 5).await == sorted);
}

#[test]
fn latest_and_events_equal_the_oracle() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let row = (
        prop_oneof![9 => (0i64..4).prop_map(Some), 1 => Just(None)],
        proptest::option::weighted(0.9, "[ab]"),
        proptest::option::weighted(0.9, 0i64..30),
        proptest::option::of(0i64..3),
        proptest::option::of(0i64..99),
    );
    let cases = (proptest::collection::vec(row, 1..300), 0i64..15, 10i64..35);
    let run = |(rows, from, to): (Vec<Written>, i64, i64)| {
        let repo = repo("v.parquet");
        repo.write(
            "v.parquet",
            &batch(vec![
                ("k", ints(rows.iter().map(|r| r.0))),
                ("n", texts(rows.iter().map(|r| r.1.clone()))),
                ("f", ints(rows.iter().map(|r| r.4))),
                ("g", texts(rows.iter().map(|_| None))),
                ("t", times(rows.iter().map(|r| r.2))),
                ("c", times(rows.iter().map(|r| r.3))),
            ]),
        );
        let mut want: BTreeMap<EntityKey, Best> = BTreeMap::new();
        let mut events = Vec::new();
        for (k, n, t, c, f) in &rows {
            let (Some(k), Some(n), Some(t)) = (k, n, t) else { continue };
            let key = key(n, *k as i32);
            if (from..to).contains(t) {
                events.push((key.clone(), *t, *f));
                let best = want.entry(key).or_insert(((*t, *c), *f));
                if (*t, *c) >= best.0 {
                    *best = ((*t, *c), *f);
                }
            }
        }
        let got = runtime.block_on(latest(&repo, from, to));
        prop_assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for (key, ((t, c), f)) in want {
            let (version, values) = &got[&key];
            prop_assert_eq!(*version, Version { event: Timestamp(t), created: Timestamp(c.unwrap_or(0)) });
            prop_assert_eq!(&values[0], &f.map_or(Value { val: None }, |f| value(Val::DoubleVal(f as f64))));
        }
        let raw = runtime.block_on(async {
            let offline = repo.offline(64 << 20);
            let view = repo.registered("v");
            let columns = ["f".to_owned()];
            let mut batches = offline.events(&view, &columns, Timestamp(from)..Timestamp(to)).await.expect("reads");
            let mut out = Vec::new();
            while let Some(batch) = batches.next().await.expect("reads") {
                out.extend(batch.into_iter().map(|e| (e.key, e.time.0, e.values)));
            }
            out
        });
        let mut want: BTreeMap<EntityKey, Vec<(i64, Vec<Value>)>> = BTreeMap::new();
        // those of one time stay in the order of the file
        events.sort_by_key(|(_, t, _)| *t);
        for (key, t, f) in events {
            want.entry(key).or_default().push((t, vec![f.map_or(Value { val: None }, |f| value(Val::Int64Val(f)))]));
        }
        let entities = raw.chunk_by(|a, b| a.0 == b.0).count();
        let mut got: BTreeMap<EntityKey, Vec<(i64, Vec<Value>)>> = BTreeMap::new();
        for (key, t, values) in raw {
            got.entry(key).or_default().push((t, values));
        }
        prop_assert_eq!(got.len(), entities, "an entity's events stand together");
        prop_assert_eq!(got, want);
        Ok(())
    };
    runner.run(&cases, run).expect("the oracle agrees");
}
