//! The merge kernel against a naive oracle, with any chunking of the build side.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::index::{Cursors, Index};
use super::unsorted::{Ranks, Slots, Winners, gather};
use super::*;
use crate::keys::{KeyRows, KeyType};

#[derive(Clone, Debug)]
struct Built {
    key: i64,
    time: i64,
    created: Option<i64>,
}

fn built() -> impl Strategy<Value = Vec<Built>> {
    let row = (prop_oneof![4 => Just(0i64), 1 => 0i64..5], 0i64..12, proptest::option::of(0i64..3))
        .prop_map(|(key, time, created)| Built { key, time, created });
    proptest::collection::vec(row, 0..40)
}

fn probes() -> impl Strategy<Value = Vec<(Option<i64>, Option<i64>)>> {
    let key = prop_oneof![6 => (0i64..6).prop_map(Some), 1 => Just(None)];
    let time = prop_oneof![9 => (0i64..14).prop_map(Some), 1 => Just(None)];
    proptest::collection::vec((key, time), 0..30)
}

fn ints(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

/// Runs the kernel over chunks of the given sizes; gives each probe's build row, by its number in
/// the sorted build side.
fn run(built: &[Built], probes: &[(Option<i64>, Option<i64>)], ttl: i64, sizes: &[usize]) -> Vec<Option<usize>> {
    let rows = KeyRows::new(&[KeyType::Int]).expect("converter");
    let keys = ints(probes.iter().map(|p| p.0).collect());
    let times = Int64Array::from(probes.iter().map(|p| p.1).collect::<Vec<_>>());
    let probe = Sorted::new(&[keys], &times, &rows).expect("a probe");
    let mut latest = Latest::new(probe.rows(), ttl);
    let mut merge = Merge::new(&probe, &rows).expect("a merge");
    let (mut kept, mut carry, mut at, mut turn) = (Vec::new(), None, 0, 0);
    let mut keep = |latest: &mut Latest, base: usize| {
        let (picks, next) = latest.drain();
        for pick in picks {
            kept.push(match pick {
                Pick::Carried => carry.expect("a row was carried"),
                Pick::Row(row) => base + row,
            });
        }
        if let Some(row) = next {
            carry = Some(base + row);
        }
    };
    while at < built.len() && !merge.is_done() {
        let size = sizes.get(turn % sizes.len().max(1)).copied().unwrap_or(7).clamp(1, built.len() - at);
        let chunk = &built[at..at + size];
        let keys = rows.rows(&[ints(chunk.iter().map(|b| Some(b.key)).collect())], size).expect("rows");
        let times: Vec<i64> = chunk.iter().map(|b| b.time).collect();
        merge.push(&keys, &times, &mut latest).expect("push");
        keep(&mut latest, at);
        (at, turn) = (at + size, turn + 1);
    }
    merge.finish(&mut latest).expect("finish");
    keep(&mut latest, 0);
    let slots = latest.slots();
    slots.into_iter().map(|slot| slot.map(|s| kept[s as usize])).collect()
}

/// How the build side comes to the kernel without a sort.
#[derive(Clone, Debug)]
struct Reading {
    /// The rows of its chunks.
    sizes: Vec<usize>,
    /// In which order chunks are taken.
    turns: Vec<usize>,
    /// What is kept of so many chunks at the most is still on its way when the next one is applied.
    late: usize,
    room: usize,
    /// What kind of keys.
    keys: Looked,
}

#[derive(Clone, Copy, Debug)]
enum Looked {
    /// One integer.
    Near,
    /// One of a wide range.
    Wide,
    Text,
    Bytes,
    /// Two parts.
    Two,
}

impl Looked {
    /// The key's parts, of which one may be null.
    fn parts(self, keys: &[Option<i64>]) -> Vec<ArrayRef> {
        let whole = |far: i64| ints(keys.iter().map(|key| key.map(|key| key * far)).collect());
        let text = || keys.iter().map(|key| key.map(|key| "k".repeat(key as usize))).collect::<Vec<_>>();
        match self {
            Self::Near => vec![whole(1)],
            Self::Wide => vec![whole(i64::MAX / 7)],
            Self::Text => vec![Arc::new(StringArray::from_iter(text()))],
            Self::Bytes => vec![Arc::new(BinaryArray::from_iter(text()))],
            Self::Two => vec![whole(1), Arc::new(StringArray::from_iter(text()))],
        }
    }

    fn rows(self) -> KeyRows {
        let types: &[KeyType] = match self {
            Self::Near | Self::Wide => &[KeyType::Int],
            Self::Text => &[KeyType::Text],
            Self::Bytes => &[KeyType::Bytes],
            Self::Two => &[KeyType::Int, KeyType::Text],
        };
        KeyRows::new(types).expect("converter")
    }
}

fn looked() -> impl Strategy<Value = Looked> {
    prop_oneof![Just(Looked::Near), Just(Looked::Wide), Just(Looked::Text), Just(Looked::Bytes), Just(Looked::Two)]
}

fn reading() -> impl Strategy<Value = Reading> {
    let room = prop_oneof![Just(0usize), 0usize..2000, Just(usize::MAX)];
    let (sizes, turns) = (proptest::collection::vec(1usize..9, 1..4), proptest::collection::vec(0usize..50, 0..20));
    (sizes, turns, 0usize..4, room, looked()).prop_map(|(sizes, turns, late, room, keys)| Reading {
        sizes,
        turns,
        late,
        room,
        keys,
    })
}

/// The same without a sort: chunks in any order, the times finer than those of the entity rows by `unit`.
fn run_unsorted(
    built: &[Built],
    probes: &[(Option<i64>, Option<i64>)],
    (ttl, unit): (i64, i64),
    reading: &Reading,
) -> Vec<Option<usize>> {
    let keys = reading.keys.parts(&probes.iter().map(|p| p.0).collect::<Vec<_>>());
    let rows = reading.keys.rows();
    let times = Int64Array::from(probes.iter().map(|p| p.1).collect::<Vec<_>>());
    let probe = Sorted::new(&keys, &times, &rows).expect("a probe");
    let mut chunks = Vec::new();
    let (mut at, mut turn) = (0, 0);
    while at < built.len() {
        let size = reading.sizes[turn % reading.sizes.len()].clamp(1, built.len() - at);
        chunks.push(at..at + size);
        (at, turn) = (at + size, turn + 1);
    }
    for (at, turn) in reading.turns.iter().enumerate().take(chunks.len()) {
        let other = turn % chunks.len();
        chunks.swap(at, other);
    }
    let mut slots = Slots::new(&probe, 1);
    let mut awaited: Vec<(Winners, Vec<ArrayRef>)> = Vec::new();
    for at in chunks {
        let chunk = &built[at.clone()];
        let keys = reading.keys.parts(&chunk.iter().map(|b| Some(b.key)).collect::<Vec<_>>());
        let times = Int64Array::from_iter_values(chunk.iter().map(|b| b.time));
        let micros = Int64Array::from_iter_values(chunk.iter().map(|b| b.time.div_euclid(unit)));
        let created: Int64Array = chunk.iter().map(|b| b.created).collect();
        let numbers = ints(at.clone().map(|i| Some(i as i64)).collect());
        let keys = Keys::of(&keys, &rows, chunk.len()).expect("keys");
        let found = probe.locate(&keys, &micros, None, ttl);
        let ranks = Ranks { times: &times, created: Some(&created), order: at.start as u64 };
        if let Some(winners) = slots.apply(&found, &ranks) {
            let columns = gather(&winners, &[numbers]).expect("gathers");
            awaited.push((winners, columns));
        }
        while awaited.len() > reading.late {
            let (winners, columns) = awaited.remove(0);
            slots.keep(&winners, columns);
        }
        if slots.is_loose(reading.room) {
            slots.compact().expect("compacts");
        }
    }
    for (winners, columns) in awaited {
        slots.keep(&winners, columns);
    }
    let found = slots.finish(&probe, |time| time.div_euclid(unit), ttl).expect("finish");
    let values = |c: &ArrayRef| c.as_primitive::<Int64Type>().values().iter().map(|v| *v as usize).collect::<Vec<_>>();
    let kept: Vec<usize> = found.columns[0].iter().flat_map(values).collect();
    found.index.iter().map(|index| index.map(|i| kept[i as usize])).collect()
}

/// The same the other way round: entity rows in chunks, looked up in the build side.
fn run_indexed(
    built: &[Built],
    probes: &[(Option<i64>, Option<i64>)],
    (ttl, unit): (i64, i64),
    (looked, sizes): (Looked, &[usize]),
) -> Vec<Option<usize>> {
    let keys = looked.parts(&built.iter().map(|b| Some(b.key)).collect::<Vec<_>>());
    let times = Int64Array::from_iter_values(built.iter().map(|b| b.time));
    let micros = Int64Array::from_iter_values(built.iter().map(|b| b.time.div_euclid(unit)));
    let created: Int64Array = built.iter().map(|b| b.created).collect();
    let (rows, ranks) = (looked.rows(), Ranks { times: &times, created: Some(&created), order: 0 });
    let index = Index::new(&keys, &micros, &ranks, &rows).expect("an index");
    let (mut cursors, mut found, mut turn) = (Cursors::default(), Vec::new(), 0);
    while found.len() < probes.len() {
        let size = sizes[turn % sizes.len()].clamp(1, probes.len() - found.len());
        let chunk = &probes[found.len()..found.len() + size];
        let keys = looked.parts(&chunk.iter().map(|p| p.0).collect::<Vec<_>>());
        let times: Int64Array = chunk.iter().map(|p| p.1).collect();
        let nulls = NullBuffer::union(times.nulls(), keys[0].nulls());
        let keys = Keys::of(&keys, &rows, size).expect("keys");
        let answers = index.find(&keys, &times, nulls.as_ref(), ttl, &mut cursors);
        found.extend(answers.iter().map(|row| row.map(|row| row as usize)));
        turn += 1;
    }
    found
}

/// What the contract says, for build rows whose times are finer than the probe's by `unit`.
fn expected(built: &[Built], probe: (Option<i64>, Option<i64>), (ttl, unit): (i64, i64)) -> Option<usize> {
    let (Some(key), Some(t)) = probe else { return None };
    let seen = |b: &Built| {
        let micros = b.time.div_euclid(unit);
        b.key == key && micros <= t && (ttl == 0 || micros >= t - ttl)
    };
    let seen = built.iter().enumerate().filter(|(_, b)| seen(b));
    seen.max_by_key(|(i, b)| (b.time, b.created, *i)).map(|(i, _)| i)
}

proptest! {
    #[test]
    fn unsorted_rows_give_the_same(
        built in built(),
        probes in probes(),
        ttl in prop_oneof![Just(0i64), 1i64..6],
        unit in 1i64..4,
        reading in reading(),
    ) {
        let found = run_unsorted(&built, &probes, (ttl, unit), &reading);
        prop_assert_eq!(found.len(), probes.len());
        for (probe, found) in probes.iter().zip(found) {
            prop_assert_eq!(found, expected(&built, *probe, (ttl, unit)), "{:?}", probe);
        }
    }

    #[test]
    fn entity_rows_that_are_looked_up_get_the_same(
        built in built(),
        probes in probes(),
        ttl in prop_oneof![Just(0i64), 1i64..6],
        unit in 1i64..4,
        looked in looked(),
        sizes in proptest::collection::vec(1usize..9, 1..4),
    ) {
        let found = run_indexed(&built, &probes, (ttl, unit), (looked, &sizes));
        for (probe, found) in probes.iter().zip(found) {
            prop_assert_eq!(found, expected(&built, *probe, (ttl, unit)), "{:?}", probe);
        }
    }

    #[test]
    fn every_probe_gets_the_greatest_row_that_it_may_see(
        mut built in built(),
        probes in probes(),
        ttl in prop_oneof![Just(0i64), 1i64..6],
        sizes in proptest::collection::vec(1usize..9, 1..4),
    ) {
        // A stable sort: file order decides among rows that are equal in all.
        built.sort_by_key(|b| (b.key, b.time, b.created));
        let found = run(&built, &probes, ttl, &sizes);
        prop_assert_eq!(found.len(), probes.len());
        for (probe, found) in probes.iter().zip(found) {
            prop_assert_eq!(found, expected(&built, *probe, (ttl, 1)), "{:?}", probe);
        }
    }
}

#[test]
fn no_entities_is_one_key_for_all() {
    let rows = KeyRows::new(&[]).expect("converter");
    let probe = Sorted::new(&[], &Int64Array::from(vec![5, 15, 1]), &rows).expect("a probe");
    assert_eq!(probe.time_range(), Some((1, 15)));
    let mut latest = Latest::new(3, 0);
    let mut merge = Merge::new(&probe, &rows).expect("a merge");
    merge.push(&rows.rows(&[], 2).expect("rows"), &[2, 10], &mut latest).expect("push");
    merge.finish(&mut latest).expect("finish");
    assert_eq!(latest.drain().0, [Pick::Row(0), Pick::Row(1)]);
    assert_eq!(latest.slots(), [Some(0), Some(1), None]);
}
