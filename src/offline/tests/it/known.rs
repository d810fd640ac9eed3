//! `filter_by_created_timestamp`: what was known at the entity row's time, against a naive oracle.

use arrow::array::{Array, AsArray, Float64Array};
use arrow::datatypes::{Float64Type, Int64Type};
use model::ValueType;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use window::{ColumnType, Scalar, Tiling, oracle};

use crate::joins::{self, Row, keys, windowed, written};
use crate::support::*;

const SECOND: i64 = 1_000_000;

/// Rows of which many came late, and some say not when they came.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let created = prop_oneof![9 => (0i64..40).prop_map(Some), 1 => Just(None)];
    let row = (keys(), 0i64..30, created, proptest::option::of(0i64..99));
    let row = row.prop_map(|(key, time, created, value)| Row { key, name: None, time: Some(time), created, value });
    proptest::collection::vec(row, 1..200)
}

/// Key and time of an entity row.
type Asked = (Option<i64>, i64);

/// Key, time, how much later it came, and value of an event.
type Happened = (i64, i64, i64, Option<i64>);

/// What the contract says, row by row.
fn expected(rows: &[Row], key: Option<i64>, t: i64, ttl: i64, known: bool) -> Option<i64> {
    let there = |r: &Row| !known || r.created.is_some_and(|created| created <= t);
    joins::expected(rows, |r| key.is_some() && r.key == key && there(r), t, ttl)
}

#[test]
fn only_rows_that_were_known_then_count() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let ttl = prop_oneof![Just(0i64), 1i64..15];
    let asked = proptest::collection::vec((keys(), 0i64..45), 0..150);
    let run = |(late, asked, ttl, known): (Vec<Row>, Vec<Asked>, i64, bool)| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int64);
        let feature = [("f", ValueType::Double)];
        repo.view("late", &["k"], &feature, ttl, "late.parquet");
        repo.view("everywhere", &["__dummy"], &feature, 0, "late.parquet");
        repo.write("late.parquet", &written(&late));
        let frame = batch(vec![
            ("k", ints(asked.iter().map(|a| a.0))),
            ("event_timestamp", times(asked.iter().map(|a| Some(a.1)))),
        ]);
        let mut command = historical(&[("late", &["f"]), ("everywhere", &["f"])]);
        command["filter_by_created_timestamp"] = known.into();
        let got = runtime.block_on(async { repo.serve().await.exchange(&command, &frame).await.expect("joins") });
        prop_assert_eq!(&got.columns()[..2], frame.columns());
        let column = |name: &str| got.column_by_name(name).expect(name).as_primitive::<Float64Type>().clone();
        let (own, all) = (column("late__f"), column("everywhere__f"));
        let one: Vec<Row> = late.iter().cloned().map(|r| Row { key: Some(1), ..r }).collect();
        for (i, (key, t)) in asked.iter().enumerate() {
            let of = |c: &Float64Array| c.is_valid(i).then(|| c.value(i) as i64);
            prop_assert_eq!(of(&own), expected(&late, *key, *t, ttl, known));
            prop_assert_eq!(of(&all), expected(&one, Some(1), *t, 0, known));
        }
        Ok(())
    };
    runner.run(&(rows(), asked, ttl, any::<bool>()), run).expect("the oracle agrees");
}

#[test]
fn windows_count_the_events_that_were_known_then() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases: 25, ..Config::default() });
    let time = || (0i64..400).prop_map(|s| s * SECOND);
    let event = (0i64..3, time(), 0i64..120, proptest::option::of(-9i64..9));
    let asked = (0i64..4, time());
    let cases = (proptest::collection::vec(event, 1..200), proptest::collection::vec(asked, 1..100));
    let run = |(events, asked): (Vec<Happened>, Vec<(i64, i64)>)| {
        let mut repo = Repo::new();
        repo.entity("k", ValueType::Int64);
        let defs = windowed(&mut repo, "events.parquet", 60 * SECOND);
        repo.write(
            "events.parquet",
            &batch(vec![
                ("k", ints(events.iter().map(|e| Some(e.0)))),
                ("v", ints(events.iter().map(|e| e.3))),
                ("t", times(events.iter().map(|e| Some(e.1)))),
                ("c", times(events.iter().map(|e| Some(e.1 + e.2 * SECOND)))),
            ]),
        );
        let frame = batch(vec![
            ("k", ints(asked.iter().map(|a| Some(a.0)))),
            ("event_timestamp", times(asked.iter().map(|a| Some(a.1)))),
        ]);
        let names: Vec<&str> = defs.iter().map(|d| d.feature.as_str()).collect();
        let mut command = historical(&[("windows", &names)]);
        command["filter_by_created_timestamp"] = true.into();
        let got = runtime.block_on(async { repo.serve().await.exchange(&command, &frame).await.expect("joins") });
        for (i, (key, t)) in asked.iter().enumerate() {
            let mut own: Vec<_> = events
                .iter()
                .filter(|e| e.0 == *key && e.1 + e.2 * SECOND <= *t)
                .map(|e| (e.1 + e.2 * SECOND, e))
                .collect();
            // In the order in which they came.
            own.sort_by_key(|(created, _)| *created);
            let own: Vec<(i64, Vec<Scalar>)> =
                own.into_iter().map(|(_, e)| (e.1, vec![e.3.map_or(Scalar::Null, Scalar::Int)])).collect();
            let columns = [("v".to_owned(), ColumnType::Int)];
            let want = oracle::evaluate(&defs, Tiling::default(), &columns, &own, *t);
            for (d, def) in defs.iter().enumerate() {
                let name = format!("windows__{}", def.feature);
                let column = got.column_by_name(&name).expect("a column").as_primitive::<Int64Type>();
                let wanted = match want.as_ref().map(|w| &w.values[d]) {
                    Some(Scalar::Int(v)) => Some(*v),
                    _ => None,
                };
                prop_assert_eq!(column.is_valid(i).then(|| column.value(i)), wanted, "{} at {}", name, t);
            }
        }
        Ok(())
    };
    runner.run(&cases, run).expect("the oracle agrees");
}
