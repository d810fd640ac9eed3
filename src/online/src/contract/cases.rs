//! The cases of the contract, one function each; every store comes empty. Knows no store.

use std::sync::Arc;

use bytes::Bytes;
use model::ports::{OnlineStore, Position, Read, Table, WriteBatch, Written};
use model::row::{Column, Version, column_id};
use model::value::{Value, proto_value::Val};
use model::{Row, Timestamp};
use prost::Message;
use proto::feast::types::RepeatedValue;

use super::{Subject, block_on, get, get_states, key, row, rows, states, table, value};

async fn write(store: &dyn OnlineStore, batch: WriteBatch) -> Written {
    store.write(batch).await.expect("writes")
}

fn position(group: &str, topic: &str, partition: i32, offset: i64) -> Position {
    Position { group: group.into(), topic: topic.into(), partition, offset, max_event: Timestamp(offset * 10) }
}

async fn positions(store: &dyn OnlineStore, group: &str) -> Vec<Position> {
    let mut positions = store.positions(group).await.expect("reads");
    positions.sort();
    positions
}

pub(super) async fn nothing_is_there_at_first(store: &dyn OnlineStore) {
    let t = table("p", "v");
    assert_eq!(get(store, &t, &["a", "b"]).await, [None, None]);
    assert_eq!(get(store, &t, &["a"]).await, [None], "absence is not remembered as presence");
    assert_eq!(get_states(store, &t, &["a"]).await, [None]);
    assert_eq!(positions(store, "g").await, []);
    assert_eq!(store.read(&[]).await.expect("reads"), Vec::<Vec<Option<Row>>>::new());
    assert_eq!(get(store, &t, &[]).await, []);
    assert_eq!(store.clear(&t).await.expect("clears"), 0);
    assert_eq!(write(store, WriteBatch::default()).await, Written::default());
}

pub(super) async fn answers_have_the_shape_of_the_reads(store: &dyn OnlineStore) {
    let (s, t) = (table("p", "s"), table("p", "t"));
    let of = |n: i64| row(n, 0, &[("f", &n.to_le_bytes())]);
    let written = write(store, rows(&[(&s, "a", of(1)), (&s, "b", of(2)), (&t, "a", of(3))])).await;
    assert_eq!(written, Written { applied: 3, stale: vec![] });
    let read = |table: &Arc<Table>, names: &[&str]| Read {
        table: Arc::clone(table),
        keys: names.iter().map(|n| key(n)).collect(),
    };
    let reads = [read(&t, &["b", "a"]), read(&s, &[]), read(&s, &["b", "x", "a", "b"]), read(&t, &["a"])];
    let expected =
        vec![vec![None, Some(of(3))], vec![], vec![Some(of(2)), None, Some(of(1)), Some(of(2))], vec![Some(of(3))]];
    assert_eq!(store.read(&reads).await.expect("reads"), expected);
    let none = vec![vec![None; 2], vec![], vec![None; 4], vec![None]];
    assert_eq!(store.read_states(&reads).await.expect("reads"), none, "a row is no state");
}

pub(super) async fn later_versions_win(store: &dyn OnlineStore) {
    let t = table("p", "v");
    let at = |event, created, bytes: &[u8]| row(event, created, &[("f", bytes)]);
    for (event, created, sent, winner) in [
        (10, 5, "first", "first"),
        (9, 9, "older event", "first"),
        (10, 4, "older created", "first"),
        (10, 6, "newer created", "newer created"),
        (11, 0, "newer event", "newer event"),
        (-5, 99, "before 1970", "newer event"),
    ] {
        write(store, rows(&[(&t, "a", at(event, created, sent.as_bytes()))])).await;
        let stored = get(store, &t, &["a"]).await.remove(0).expect("is there");
        let (stored, _) = stored.get(column_id("f")).expect("has the column");
        assert_eq!(stored, value(winner.as_bytes()));
    }
}

pub(super) async fn equal_versions_are_corrections(store: &dyn OnlineStore) {
    let t = table("p", "v");
    let at = |value: &[u8]| row(10, 5, &[("f", value)]);
    write(store, rows(&[(&t, "a", at(b"first"))])).await;
    let written = write(store, rows(&[(&t, "a", at(b"second"))])).await;
    assert_eq!(written, Written { applied: 1, stale: vec![] });
    assert_eq!(get(store, &t, &["a"]).await, [Some(at(b"second"))], "the later arrival stands");
    let written = write(store, rows(&[(&t, "a", at(b"third")), (&t, "b", at(b"b")), (&t, "a", at(b"fourth"))])).await;
    assert_eq!(written, Written { applied: 3, stale: vec![] });
    assert_eq!(get(store, &t, &["a"]).await, [Some(at(b"fourth"))], "also within a batch");
}

pub(super) async fn stale_rows_are_counted(store: &dyn OnlineStore) {
    let t = table("p", "v");
    let at = |event| row(event, 0, &[("f", b"x")]);
    let batch = rows(&[(&t, "a", at(5)), (&t, "a", at(4)), (&t, "b", at(1)), (&t, "a", at(6)), (&t, "b", at(0))]);
    assert_eq!(write(store, batch).await, Written { applied: 3, stale: vec![1, 4] });
    assert_eq!(write(store, rows(&[(&t, "a", at(3))])).await, Written { applied: 0, stale: vec![0] });
    assert_eq!(get(store, &t, &["a", "b"]).await, [Some(at(6)), Some(at(1))]);
}

pub(super) async fn partial_rows_merge_by_column(store: &dyn OnlineStore) {
    let t = table("p", "v");
    write(store, rows(&[(&t, "a", row(10, 0, &[("f", b"f10"), ("g", b"g10")]))])).await;
    write(store, rows(&[(&t, "a", row(20, 0, &[("g", b"g20"), ("h", b"h20")]))])).await;
    let written = write(store, rows(&[(&t, "a", row(15, 0, &[("f", b"f15"), ("g", b"g15")]))])).await;
    assert_eq!(written, Written { applied: 1, stale: vec![] }, "one of its columns is news");
    let stored = get(store, &t, &["a"]).await.remove(0).expect("is there");
    let column = |name: &str| stored.get(column_id(name)).map(|(v, at)| (v, at.event.0));
    assert_eq!(column("f"), Some((value(b"f15"), 15)));
    assert_eq!(column("g"), Some((value(b"g20"), 20)));
    assert_eq!(column("h"), Some((value(b"h20"), 20)));
    assert_eq!(stored.newest().event, Timestamp(20));
}

pub(super) async fn parts_of_tables_are_read_as_of_the_whole(store: &dyn OnlineStore) {
    let (t, names) = (table("p", "v"), ["old", "mixed", "only h", "nobody"]);
    write(store, rows(&[(&t, "old", row(10, 1, &[("f", b"f10"), ("g", b"g10"), ("h", b"h10")]))])).await;
    write(store, rows(&[(&t, "mixed", row(-10, 0, &[("f", b"f-10")]))])).await;
    write(store, rows(&[(&t, "mixed", row(-5, 3, &[("g", b"")]))])).await;
    write(store, rows(&[(&t, "only h", row(-7, 0, &[("h", b"h-7")]))])).await;
    let whole = get(store, &t, &names).await;
    for asked in [&["f"][..], &["g"], &["h"], &["f", "g"], &["h", "f"], &["f", "g", "h"], &["unknown"]] {
        let ids: Vec<u32> = asked.iter().map(|name| column_id(name)).collect();
        let parts = get(store, &t.part(&ids), &names).await;
        for ((part, whole), name) in parts.iter().zip(&whole).zip(names) {
            let (Some(part), Some(whole)) = (part, whole) else {
                assert_eq!(part, whole, "{name}: {asked:?}");
                continue;
            };
            for id in &ids {
                assert_eq!(part.get(*id), whole.get(*id), "{name}: {asked:?}");
            }
            if ids.iter().any(|id| whole.get(*id).is_none()) {
                assert_eq!(part.newest(), whole.newest(), "{name}: {asked:?}: the time of what was never written");
            }
        }
    }
}

pub(super) async fn times_are_kept_to_the_microsecond(store: &dyn OnlineStore) {
    let t = table("p", "v");
    let year_9999 = 253_402_300_799_999_999;
    let times = [1, -1, -1_500_001, 1_767_225_600_123_456, year_9999, year_9999 - 1, -62_135_596_800_000_000];
    for (n, event) in times.into_iter().enumerate() {
        for (m, created) in [0].into_iter().chain(times).enumerate() {
            let (name, one) = (format!("{n} {m}"), row(event, created, &[("f", b"x"), ("g", b"y")]));
            let written = write(store, rows(&[(&t, &name, one.clone())])).await;
            assert_eq!(written, Written { applied: 1, stale: vec![] });
            assert_eq!(get(store, &t, &[&name]).await, [Some(one)]);
            let older = row(event, created - 1, &[("f", b"z")]);
            assert_eq!(write(store, rows(&[(&t, &name, older)])).await, Written { applied: 0, stale: vec![0] });
            let newer = row(event, created + 1, &[("f", b"z")]);
            assert_eq!(write(store, rows(&[(&t, &name, newer)])).await, Written { applied: 1, stale: vec![] });
            let stored = get(store, &t, &[&name]).await.remove(0).expect("is there");
            let created_of = |name| stored.get(column_id(name)).map(|(_, at)| at.created.0);
            assert_eq!((created_of("f"), created_of("g")), (Some(created + 1), Some(created)));
        }
    }
}

pub(super) async fn every_kind_of_value_is_kept(store: &dyn OnlineStore) {
    let t = table("p", "v");
    let list = |val| vec![Value { val: Some(Val::Int64Val(val)) }, Value { val: None }];
    let values = [
        None,
        Some(Val::NullVal(0)),
        Some(Val::BytesVal(vec![0, 255, 34, 39])),
        Some(Val::StringVal("größe\0\"'".into())),
        Some(Val::StringVal(String::new())),
        Some(Val::Int32Val(i32::MIN)),
        Some(Val::Int64Val(i64::MAX)),
        Some(Val::Int64Val(0)),
        Some(Val::DoubleVal(f64::NAN)),
        Some(Val::DoubleVal(-0.0)),
        Some(Val::FloatVal(f32::INFINITY)),
        Some(Val::BoolVal(false)),
        Some(Val::UnixTimestampVal(-1)),
        Some(Val::ListVal(RepeatedValue { val: list(7) })),
    ];
    let version = Version { event: Timestamp(1), created: Timestamp(0) };
    for (n, val) in values.into_iter().enumerate() {
        let bytes = Bytes::from(Value { val }.encode_to_vec());
        let one = Row::pack(vec![Column { id: column_id("g"), value: bytes, version }]);
        write(store, rows(&[(&t, &n.to_string(), one.clone())])).await;
        assert_eq!(get(store, &t, &[&n.to_string()]).await, [Some(one)], "value {n}, byte by byte");
    }
}

pub(super) async fn states_are_set_and_removed(store: &dyn OnlineStore) {
    let (s, t) = (table("p", "s"), table("p", "t"));
    write(store, states(&[(&s, "a", Some(b"one")), (&s, "b", Some(b"")), (&t, "a", Some(b"two"))])).await;
    assert_eq!(get_states(store, &s, &["b", "a"]).await, [Some(Bytes::new()), Some(Bytes::from("one"))]);
    write(store, states(&[(&s, "a", None), (&s, "b", Some(b"three")), (&s, "x", None)])).await;
    assert_eq!(get_states(store, &s, &["a", "b", "x"]).await, [None, Some(Bytes::from("three")), None]);
    assert_eq!(get_states(store, &t, &["a"]).await, [Some(Bytes::from("two"))]);
    write(store, states(&[(&s, "a", Some(b"four")), (&s, "a", None), (&s, "b", None), (&s, "b", Some(b"five"))])).await;
    assert_eq!(get_states(store, &s, &["a", "b"]).await, [None, Some(Bytes::from("five"))], "the last one stands");
    assert_eq!(get(store, &s, &["b"]).await, [None], "a state is no row");
}

pub(super) async fn positions_are_kept_by_group(store: &dyn OnlineStore) {
    let set = |positions: &[Position]| WriteBatch { positions: positions.to_vec(), ..WriteBatch::default() };
    let (a, b, c) = (position("g", "t", 0, 5), position("g", "t", -1, 6), position("gt", "", 0, 7));
    write(store, set(&[a.clone(), b.clone(), c.clone()])).await;
    assert_eq!(positions(store, "g").await, [b.clone(), a]);
    assert_eq!(positions(store, "gt").await, [c]);
    assert_eq!(positions(store, "").await, []);
    let back = position("g", "t", 0, 2);
    write(store, set(&[position("g", "t", 0, 9), back.clone()])).await;
    assert_eq!(positions(store, "g").await, [b, back], "the last one set stands, also if it goes back");
}

pub(super) async fn everything_outlives_reopening<S: Subject>(subject: S) {
    let t = table("p", "v");
    let newer = row(5, 0, &[("f", b"x")]);
    let mut batch = rows(&[(&t, "a", newer.clone())]);
    batch.states = states(&[(&t, "a", Some(b"state"))]).states;
    batch.positions = vec![position("g", "t", 0, 5)];
    write(subject.store(), batch).await;
    let subject = subject.reopen().await;
    let store = subject.store();
    assert_eq!(get(store, &t, &["a"]).await, [Some(newer.clone())]);
    assert_eq!(get_states(store, &t, &["a"]).await, [Some(Bytes::from("state"))]);
    assert_eq!(positions(store, "g").await, [position("g", "t", 0, 5)]);
    let older = row(4, 0, &[("f", b"y")]);
    assert_eq!(write(store, rows(&[(&t, "a", older)])).await, Written { applied: 0, stale: vec![0] });
    assert_eq!(get(store, &t, &["a"]).await, [Some(newer)]);
}

pub(super) async fn clearing_leaves_other_tables(store: &dyn OnlineStore) {
    let names = [("a", "bc"), ("ab", "c"), ("a", "b"), ("a", "bcd"), ("", "abc"), ("abc", "")];
    let tables: Vec<_> = names.iter().map(|(project, view)| table(project, view)).collect();
    let one = row(1, 0, &[("f", b"x")]);
    for t in &tables {
        let mut batch = rows(&[(t, "k", one.clone()), (t, "", one.clone()), (t, "c\0\0", one.clone())]);
        batch.states = states(&[(t, "k", Some(b"s")), (t, "only a state", Some(b"s"))]).states;
        batch.positions = vec![position("a", "bc", 0, 1)];
        write(store, batch).await;
    }
    // Some are known from reading, too: a cache must not answer for what is gone.
    assert_eq!(get(store, &tables[0], &["k", "none"]).await, [Some(one.clone()), None]);
    assert_eq!(store.clear(&tables[0]).await.expect("clears"), 5);
    assert_eq!(get(store, &tables[0], &["k", "", "c\0\0"]).await, [None, None, None]);
    assert_eq!(get_states(store, &tables[0], &["k", "only a state"]).await, [None, None]);
    for t in &tables[1..] {
        assert_eq!(get(store, t, &["k", "", "c\0\0"]).await, vec![Some(one.clone()); 3], "{t:?}");
        assert_eq!(get_states(store, t, &["k"]).await, [Some(Bytes::from("s"))], "{t:?}");
    }
    assert_eq!(positions(store, "a").await, [position("a", "bc", 0, 1)]);
    assert_eq!(store.clear(&tables[0]).await.expect("clears"), 0);
    let older = row(0, 0, &[("f", b"y")]);
    assert_eq!(write(store, rows(&[(&tables[0], "k", older.clone())])).await.applied, 1, "the old row is forgotten");
    assert_eq!(get(store, &tables[0], &["k"]).await, [Some(older)]);
}

pub(super) async fn large_values_are_kept<S: Subject>(subject: S) {
    let t = table("p", "v");
    let content = |len: usize| (0..len).map(|i| (i * 7 + len) as u8).collect::<Vec<_>>();
    let sizes = [0, 1, 1000, 70_000, 500_000, 2_000_000];
    let names: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    for (name, len) in names.iter().zip(sizes) {
        let mut batch = rows(&[(&t, name, row(1, 0, &[("f", &content(len)), ("g", b"small")]))]);
        batch.states = states(&[(&t, name, Some(&content(len)))]).states;
        write(subject.store(), batch).await;
    }
    let subject = subject.reopen().await;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let read = get(subject.store(), &t, &names).await;
    let read_states = get_states(subject.store(), &t, &names).await;
    for ((row, state), len) in read.iter().zip(read_states).zip(sizes) {
        let (stored, _) = row.as_ref().and_then(|r| r.get(column_id("f"))).expect("is there");
        assert!(stored == value(&content(len)), "the row of {len} bytes");
        assert!(state.is_some_and(|s| s == content(len)), "the state of {len} bytes");
    }
}

pub(super) async fn large_batches_are_kept<S: Subject>(subject: S) {
    let t = table("p", "v");
    let of = |n: i64| row(n, 0, &[("f", &[n as u8; 100])]);
    let names: Vec<String> = (0..5000).map(|n| format!("entity {n}")).collect();
    for round in [0, 10_000] {
        let writes: Vec<_> = names.iter().zip(round..).map(|(name, n)| (&t, name.as_str(), of(n))).collect();
        assert_eq!(write(subject.store(), rows(&writes)).await, Written { applied: names.len(), stale: vec![] });
    }
    let subject = subject.reopen().await;
    let keys: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected: Vec<_> = (10_000..10_000 + names.len() as i64).map(|n| Some(of(n))).collect();
    assert!(get(subject.store(), &t, &keys).await == expected, "every row of the second batch is there");
}

pub(super) async fn concurrent_writers_end_with_the_greatest(store: &dyn OnlineStore) {
    const WRITERS: i64 = 4;
    const EACH: i64 = 60;
    let t = table("p", "v");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let t = &t;
            scope.spawn(move || {
                block_on(async {
                    for n in 0..EACH {
                        // Every writer goes up and down: 0, 59, 1, 58, …
                        let n = if n % 2 == 0 { n / 2 } else { EACH - 1 - n / 2 };
                        let version = n * WRITERS + writer;
                        let row = row(version, 0, &[("f", &version.to_le_bytes())]);
                        write(store, rows(&[(t, "one", row.clone()), (t, &format!("own {writer}"), row.clone())]))
                            .await;
                        let seen = get(store, t, &["one"]).await.remove(0).expect("is there");
                        assert!(seen.newest() >= row.newest(), "a finished write is not seen");
                    }
                });
            });
        }
    });
    let greatest = EACH * WRITERS - 1;
    let expected = row(greatest, 0, &[("f", &greatest.to_le_bytes())]);
    assert_eq!(get(store, &t, &["one"]).await, [Some(expected)]);
    for writer in 0..WRITERS {
        let own = get(store, &t, &[&format!("own {writer}")]).await.remove(0).expect("is there");
        assert_eq!(own.newest().event, Timestamp((EACH - 1) * WRITERS + writer));
    }
}
