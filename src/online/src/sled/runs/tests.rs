//! Runs against a map: whatever is written, merged, reopened or damaged.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

type Oracle = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn key(number: u16) -> Vec<u8> {
    // some share a table, of some one begins with the other
    [b"table ", &[number as u8 % 3][..], &b"entity "[..usize::from(number % 7)], &number.to_be_bytes()].concat()
}

/// What a drain brings: keys with states of some length, or without one.
fn drain() -> impl Strategy<Value = Vec<(u16, Option<u16>)>> {
    proptest::collection::vec((0u16..400, proptest::option::weighted(0.8, 0u16..600)), 0..60)
}

fn open(directory: &TempDir, list: &[Listed], in_tree: bool) -> Runs {
    let runs = Runs::open(directory.path(), list, in_tree).expect("opens");
    runs.tidy().expect("tidies");
    runs
}

fn write(runs: &Runs, round: usize, drained: &[(u16, Option<u16>)], oracle: &mut Oracle) {
    let state = |length: u16| vec![round as u8; usize::from(length)];
    let entries: Oracle = drained.iter().map(|(number, length)| (key(*number), length.map(state))).collect();
    let sorted: Vec<_> = entries.iter().map(|(key, state)| (key.as_slice(), state.as_deref())).collect();
    let run = runs.write(sorted.into_iter()).expect("writes");
    runs.add(run);
    oracle.extend(entries);
}

/// Does what is due; gives the list that would be stored.
fn merge(runs: &Runs) {
    while let Some(plan) = runs.plan() {
        let made = plan.make(&AtomicBool::new(false)).expect("merges").expect("was not stopped");
        let list = runs.without(&plan, &made);
        runs.swap(&plan, made).expect("removes");
        assert_eq!(runs.list(), list);
    }
}

fn found(runs: &Runs, key: &[u8]) -> Option<Vec<u8>> {
    runs.get(key).expect("reads").and_then(|entry| entry.payload().map(|bytes| bytes.to_vec()))
}

fn agrees(runs: &Runs, oracle: &Oracle) {
    for number in 0..400 {
        let key = key(number);
        assert_eq!(found(runs, &key), oracle.get(&key).cloned().flatten(), "{number}");
    }
    for from in [0, 1, 17, 399] {
        let from = key(from);
        let mut merged = runs.from(&from);
        let mut there = Vec::new();
        while merged.next(|key, state| there.extend(state.map(|state| (key.to_vec(), state.to_vec())))) {}
        assert!(merged.faults.is_empty());
        let wanted = oracle.range(from..).filter_map(|(key, state)| Some((key.clone(), state.clone()?)));
        assert_eq!(there, wanted.collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn they_say_what_a_map_says(
        drains in proptest::collection::vec((drain(), any::<bool>(), any::<bool>()), 1..30),
        in_tree: bool,
    ) {
        let directory = TempDir::new().expect("a directory");
        let mut oracle = Oracle::new();
        let mut runs = open(&directory, &[], in_tree);
        for (round, (drained, merges, reopens)) in drains.iter().enumerate() {
            write(&runs, round, drained, &mut oracle);
            if *merges {
                merge(&runs);
                prop_assert!(runs.list().len() < 2 * FAN_IN);
            }
            if *reopens {
                let list = decode(&encode(&runs.list())).expect("a list");
                runs = open(&directory, &list, in_tree);
            }
            prop_assert!(runs.list().is_sorted_by_key(|listed| listed.level));
        }
        agrees(&runs, &oracle);
        let files = fs::read_dir(directory.path().join(DIRECTORY)).expect("reads").count();
        prop_assert_eq!(files, runs.list().len(), "nothing else is left");
    }

    /// One bit of one run is another: every answer is right, or an error, or the run does not open.
    #[test]
    fn what_is_damaged_is_never_served(
        drains in proptest::collection::vec(drain(), 1..4),
        at in any::<proptest::sample::Index>(),
        bit in 0u32..8,
    ) {
        let directory = TempDir::new().expect("a directory");
        let mut oracle = Oracle::new();
        let runs = open(&directory, &[], false);
        for (round, drained) in drains.iter().enumerate() {
            write(&runs, round, drained, &mut oracle);
        }
        let list = runs.list();
        let path = file::path_of(&directory.path().join(DIRECTORY), list[0].number);
        let mut bytes = fs::read(&path).expect("reads");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).expect("writes");
        let Ok(runs) = Runs::open(directory.path(), &list, false) else { return Ok(()) };
        let mut errors = 0;
        for number in 0..400 {
            let key = key(number);
            match runs.get(&key) {
                Ok(entry) => {
                    let state = entry.and_then(|entry| entry.payload().map(|bytes| bytes.to_vec()));
                    prop_assert_eq!(state, oracle.get(&key).cloned().flatten());
                }
                Err(_) => errors += 1,
            }
        }
        let mut merged = runs.from(&[]);
        while merged.next(|_, _| {}) {}
        prop_assert!(!merged.faults.is_empty() || errors == 0, "a reading of all finds it");
    }
}

/// A run that was cut off, or is another's, is not opened.
#[test]
fn a_file_that_is_no_whole_run_is_refused() {
    let directory = TempDir::new().expect("a directory");
    let runs = open(&directory, &[], false);
    write(&runs, 1, &[(1, Some(500)), (2, None)], &mut Oracle::new());
    write(&runs, 2, &[(3, Some(100))], &mut Oracle::new());
    let list = runs.list();
    let paths = list.iter().map(|listed| file::path_of(&directory.path().join(DIRECTORY), listed.number));
    let paths: Vec<_> = paths.collect();
    let bytes = fs::read(&paths[0]).expect("reads");
    for length in 0..bytes.len() {
        fs::write(&paths[0], &bytes[..length]).expect("writes");
        assert!(Runs::open(directory.path(), &list, false).is_err(), "cut to {length}");
    }
    fs::copy(&paths[1], &paths[0]).expect("copies");
    assert!(Runs::open(directory.path(), &list, false).is_err(), "another run's content");
    fs::write(&paths[0], &bytes).expect("writes");
    assert!(Runs::open(directory.path(), &list, false).is_ok());
    fs::remove_file(&paths[1]).expect("removes");
    assert!(matches!(Runs::open(directory.path(), &list, false), Err(Fault::Unreadable(_))));
}

#[test]
fn a_merge_that_is_stopped_leaves_nothing() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], false);
    for round in 0..FAN_IN {
        write(&runs, round, &[(round as u16, Some(300)), (7, Some(round as u16))], &mut oracle);
    }
    let plan = runs.plan().expect("is due");
    assert!(plan.make(&AtomicBool::new(true)).expect("stops").is_none());
    assert_eq!(fs::read_dir(directory.path().join(DIRECTORY)).expect("reads").count(), FAN_IN);
    agrees(&runs, &oracle);
}

/// Keys of which nothing is left take no room in the oldest run, and are remembered in the others.
#[test]
fn what_is_removed_is_forgotten_where_nothing_is_older() {
    for in_tree in [false, true] {
        let directory = TempDir::new().expect("a directory");
        let mut oracle = Oracle::new();
        let runs = open(&directory, &[], in_tree);
        for round in 0..FAN_IN {
            write(&runs, round, &[(1, (round + 1 < FAN_IN).then_some(10)), (2, Some(10))], &mut oracle);
        }
        merge(&runs);
        let entries: u64 = runs.live().iter().map(|live| live.run.entries).sum();
        assert_eq!((runs.list().len(), entries), (1, if in_tree { 2 } else { 1 }));
        let removed = runs.get(&key(1)).expect("reads");
        assert_eq!(removed, Some(Entry::Absent), "the tree is not asked");
        let unknown = runs.get(&key(3)).expect("reads");
        assert_eq!(unknown, (!in_tree).then_some(Entry::Absent));
    }
}

/// What a full disk stops halfway is tried again and again, under another number each time.
#[test]
fn a_run_that_cannot_be_written_leaves_nothing() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], false);
    write(&runs, 1, &[(1, Some(100))], &mut oracle);
    let states = directory.path().join(DIRECTORY);
    let next = file::path_of(&states, runs.list()[0].number + 1);
    std::os::unix::fs::symlink("/dev/full", &next).expect("links");
    let big = vec![1; 3 << 20];
    let fault = runs.write([(key(2).as_slice(), Some(big.as_slice()))].into_iter()).expect_err("there is no room");
    assert!(matches!(&fault, Fault::Io(e) if e.kind() == io::ErrorKind::StorageFull), "{fault:?}");
    assert_eq!(fs::read_dir(&states).expect("reads").count(), 1);
    write(&runs, 2, &[(2, Some(100))], &mut oracle);
    agrees(&runs, &oracle);
}

/// A damaged run is read as far as it goes, and those before and behind it are merged as ever.
#[test]
fn a_damaged_run_does_not_stop_the_merging_of_others() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], false);
    let damaged = FAN_IN / 2;
    for round in 0..6 * FAN_IN {
        let number = if round == damaged { 9 } else { 1 + round as u16 % 2 };
        write(&runs, round, &[(number, Some(300))], &mut oracle);
        if round == damaged {
            let path = file::path_of(&directory.path().join(DIRECTORY), runs.list()[0].number);
            let mut bytes = fs::read(&path).expect("reads");
            bytes[30] ^= 1;
            fs::write(&path, bytes).expect("writes");
        }
        // where the first fails the second goes without the one that is damaged
        for plan in std::iter::from_fn(|| runs.plan()).take(3) {
            if let Ok(made) = plan.make(&AtomicBool::new(false)) {
                runs.swap(&plan, made.expect("was not stopped")).expect("removes");
            }
        }
    }
    assert!(runs.list().len() <= 2 * FAN_IN, "{:?}", runs.list());
    assert!(matches!(runs.get(&key(9)), Err(Fault::Damaged(_))));
    for number in [1, 2] {
        assert_eq!(found(&runs, &key(number)), oracle[&key(number)]);
    }
}
