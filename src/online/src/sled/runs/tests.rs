//! Runs against a map: whatever is written, merged, reopened or damaged.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

type Oracle = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

const NOTHING: InTree = InTree { rows: false, states: false };

fn key(number: u16) -> Vec<u8> {
    // some share a table, of some one begins with the other
    let kind = if number % 5 < 3 { Kind::Row } else { Kind::State };
    let table = model::ports::Table::new("p", ["a", "ab", "b"][usize::from(number) % 3]);
    let entity = &b"entity "[..usize::from(number % 7)];
    [&layout::table_prefix(kind, &table)[..], entity, &number.to_be_bytes()].concat()
}

/// What is stored: a state is whatever it is, a row must be one.
fn value(key: &[u8], with: u8, length: u16) -> Vec<u8> {
    let value = vec![with; usize::from(length)];
    if layout::kind(key) == Some(Kind::State) {
        return value;
    }
    let version = model::row::Version { event: model::Timestamp(1), created: model::Timestamp(0) };
    model::Row::pack(vec![model::row::Column { id: 1, value: value.into(), version }]).as_bytes().to_vec()
}

fn get(runs: &Runs, key: &[u8]) -> Result<Option<Entry>, Fault> {
    runs.reader().get(key)
}

/// What a drain brings: keys with states of some length, or without one.
fn drain() -> impl Strategy<Value = Vec<(u16, Option<u16>)>> {
    proptest::collection::vec((0u16..400, proptest::option::weighted(0.8, 0u16..600)), 0..60)
}

fn open(directory: &TempDir, list: &[Listed], in_tree: InTree) -> Runs {
    let runs = Runs::open(directory.path(), list, in_tree).expect("opens");
    runs.tidy().expect("tidies");
    runs
}

fn write(runs: &Runs, round: usize, drained: &[(u16, Option<u16>)], oracle: &mut Oracle) {
    let entry = |(number, length): &(u16, Option<u16>)| {
        let key = key(*number);
        let value = length.map(|length| value(&key, round as u8, length));
        (key, value)
    };
    let entries: Oracle = drained.iter().map(entry).collect();
    let sorted: Vec<_> = entries.iter().map(|(key, state)| (key.as_slice(), state.as_deref())).collect();
    let run = runs
        .write(sorted.len() as u64, |push| sorted.into_iter().try_for_each(|(key, value)| push(key, value)))
        .expect("writes");
    runs.add(run);
    oracle.extend(entries);
}

/// Does what is due; gives the list that would be stored.
fn merge(runs: &Runs) {
    while let Some(plan) = runs.plans().into_iter().next() {
        let made = plan.make(&AtomicBool::new(false)).expect("merges").expect("was not stopped");
        let list = runs.without(&plan, &made);
        runs.swap(&plan, made).expect("removes");
        assert_eq!(runs.list(), list);
    }
}

fn found(runs: &Runs, key: &[u8]) -> Option<Vec<u8>> {
    get(runs, key).expect("reads").and_then(|entry| entry.payload().map(|bytes| bytes.to_vec()))
}

fn agrees(runs: &Runs, oracle: &Oracle) {
    let mut asked: Vec<_> = (0..400).map(key).collect();
    for sorted in [false, true] {
        let mut reader = runs.reader();
        for key in &asked {
            let there = reader.get(key).expect("reads").and_then(|entry| entry.payload().map(|bytes| bytes.to_vec()));
            assert_eq!(there, oracle.get(key).cloned().flatten(), "{key:?}, sorted: {sorted}");
        }
        asked.sort_unstable();
    }
    for (from, ahead) in [(0, 0), (1, 1 << 20), (17, 9000), (399, 0)] {
        let from = key(from);
        let mut merged = runs.from(&from, ahead);
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
        (rows, states) in any::<(bool, bool)>(),
    ) {
        let in_tree = InTree { rows, states };
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
        let runs = open(&directory, &[], NOTHING);
        for (round, drained) in drains.iter().enumerate() {
            write(&runs, round, drained, &mut oracle);
        }
        let list = runs.list();
        let path = file::path_of(&directory.path().join(DIRECTORY), list[0].number);
        let mut bytes = fs::read(&path).expect("reads");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).expect("writes");
        let Ok(runs) = Runs::open(directory.path(), &list, NOTHING) else { return Ok(()) };
        let mut errors = 0;
        for number in 0..400 {
            let key = key(number);
            match get(&runs, &key) {
                Ok(entry) => {
                    let state = entry.and_then(|entry| entry.payload().map(|bytes| bytes.to_vec()));
                    prop_assert_eq!(state, oracle.get(&key).cloned().flatten());
                }
                Err(_) => errors += 1,
            }
        }
        let mut merged = runs.from(&[], 5000);
        while merged.next(|_, _| {}) {}
        prop_assert!(!merged.faults.is_empty() || errors == 0, "a reading of all finds it");
    }
}

/// A run that was cut off, or is another's, is not opened.
#[test]
fn a_file_that_is_no_whole_run_is_refused() {
    let directory = TempDir::new().expect("a directory");
    let runs = open(&directory, &[], NOTHING);
    write(&runs, 1, &[(1, Some(500)), (2, None)], &mut Oracle::new());
    write(&runs, 2, &[(3, Some(100))], &mut Oracle::new());
    let list = runs.list();
    let paths = list.iter().map(|listed| file::path_of(&directory.path().join(DIRECTORY), listed.number));
    let paths: Vec<_> = paths.collect();
    let bytes = fs::read(&paths[0]).expect("reads");
    for length in 0..bytes.len() {
        fs::write(&paths[0], &bytes[..length]).expect("writes");
        assert!(Runs::open(directory.path(), &list, NOTHING).is_err(), "cut to {length}");
    }
    fs::copy(&paths[1], &paths[0]).expect("copies");
    assert!(Runs::open(directory.path(), &list, NOTHING).is_err(), "another run's content");
    fs::write(&paths[0], &bytes).expect("writes");
    assert!(Runs::open(directory.path(), &list, NOTHING).is_ok());
    fs::remove_file(&paths[1]).expect("removes");
    assert!(matches!(Runs::open(directory.path(), &list, NOTHING), Err(Fault::Unreadable(_))));
}

#[test]
fn a_merge_that_is_stopped_leaves_nothing() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], NOTHING);
    for round in 0..FAN_IN {
        write(&runs, round, &[(round as u16, Some(300)), (7, Some(round as u16))], &mut oracle);
    }
    let plan = runs.plans().into_iter().next().expect("is due");
    assert!(plan.make(&AtomicBool::new(true)).expect("stops").is_none());
    assert_eq!(fs::read_dir(directory.path().join(DIRECTORY)).expect("reads").count(), FAN_IN);
    agrees(&runs, &oracle);
}

/// Keys of which nothing is left take no room in the oldest run, and are remembered in the others.
#[test]
fn what_is_removed_is_forgotten_where_nothing_is_older() {
    // 1 and 2 are rows
    for (rows, states) in [(false, true), (true, false)] {
        let in_tree = InTree { rows, states };
        let directory = TempDir::new().expect("a directory");
        let mut oracle = Oracle::new();
        let runs = open(&directory, &[], in_tree);
        for round in 0..FAN_IN {
            write(&runs, round, &[(1, (round + 1 < FAN_IN).then_some(10)), (2, Some(10))], &mut oracle);
        }
        merge(&runs);
        let entries: u64 = runs.live().iter().map(|live| live.run.entries).sum();
        assert_eq!((runs.list().len(), entries), (1, if rows { 2 } else { 1 }));
        let removed = get(&runs, &key(1)).expect("reads");
        assert_eq!(removed, Some(Entry::Absent), "the tree is not asked");
        let unknown = [6, 3].map(|number| get(&runs, &key(number)).expect("reads"));
        assert_eq!(unknown, [rows, states].map(|asked| (!asked).then_some(Entry::Absent)));
    }
}

/// What a full disk stops halfway is tried again and again, under another number each time.
#[test]
fn a_run_that_cannot_be_written_leaves_nothing() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], NOTHING);
    write(&runs, 1, &[(1, Some(100))], &mut oracle);
    let files = directory.path().join(DIRECTORY);
    let next = file::path_of(&files, runs.list()[0].number + 1);
    std::os::unix::fs::symlink("/dev/full", &next).expect("links");
    let big = vec![1; 3 << 20];
    let fault = runs.write(1, |push| push(&key(2), Some(&big))).expect_err("there is no room");
    assert!(matches!(&fault, Fault::Io(e) if e.kind() == io::ErrorKind::StorageFull), "{fault:?}");
    assert_eq!(fs::read_dir(&files).expect("reads").count(), 1);
    write(&runs, 2, &[(2, Some(100))], &mut oracle);
    agrees(&runs, &oracle);
}

/// A damaged run is read as far as it goes, and those before and behind it are merged as ever.
#[test]
fn a_damaged_run_does_not_stop_the_merging_of_others() {
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], NOTHING);
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
        for plan in std::iter::from_fn(|| runs.plans().into_iter().next()).take(3) {
            if let Ok(made) = plan.make(&AtomicBool::new(false)) {
                runs.swap(&plan, made.expect("was not stopped")).expect("removes");
            }
        }
    }
    assert!(runs.list().len() <= 2 * FAN_IN, "{:?}", runs.list());
    assert!(matches!(get(&runs, &key(9)), Err(Fault::Damaged(_))));
    for number in [1, 2] {
        assert_eq!(found(&runs, &key(number)), oracle[&key(number)]);
    }
}

/// What is written again and again is merged before it takes many times what is there, and what is only added to is not.
#[test]
fn files_take_a_few_times_what_is_there() {
    const KEYS: u16 = 20_000;
    for rewritten in [true, false] {
        let directory = TempDir::new().expect("a directory");
        let runs = open(&directory, &[], NOTHING);
        let (mut most, mut merges) = (0, 0);
        for round in 0..14u16 {
            let of = |number: u16| {
                let number = if rewritten { number } else { number / 14 * 14 + round };
                (number, number.is_multiple_of(100).then_some(200))
            };
            let drained: Vec<_> = (0..KEYS).step_by(if rewritten { 1 } else { 14 }).map(of).collect();
            write(&runs, usize::from(round), &drained, &mut Oracle::new());
            merges += usize::from(!runs.plans().is_empty());
            merge(&runs);
            most = most.max(runs.size().1);
        }
        let live = runs.live().iter().map(|live| live.run.bytes).max().expect("has some");
        if rewritten {
            assert!(most < 5 * live, "{most} bytes, of which {live} are there");
            assert!(merges >= 3, "{merges}");
        } else {
            assert_eq!(merges, 1, "eight of one level");
        }
    }
}

/// A run of a store of the format before is read and merged.
#[test]
fn runs_of_the_first_version_are_read() {
    let directory = TempDir::new().expect("a directory");
    let files = directory.path().join(DIRECTORY);
    fs::create_dir_all(&files).expect("makes it");
    let mut oracle = Oracle::new();
    for number in 1..=FAN_IN as u64 {
        let keys = (0..400u16).filter(|key| u64::from(*key) % 9 != number).map(key);
        let states = keys.filter(|key| layout::kind(key) == Some(Kind::State));
        let entries: Oracle = states.map(|key| (key, (number != 3).then(|| vec![number as u8; 70]))).collect();
        let run = first_version(number, &entries);
        fs::write(file::path_of(&files, number), run).expect("writes");
        oracle.extend(entries);
    }
    let list: Vec<_> = (1..=FAN_IN as u64).rev().map(|number| Listed { number, level: 0 }).collect();
    let runs = open(&directory, &list, InTree { rows: true, states: false });
    agrees(&runs, &oracle);
    write(&runs, 40, &[(1, Some(10)), (3, None)], &mut oracle);
    agrees(&runs, &oracle);
    merge(&runs);
    assert!(runs.list().len() < FAN_IN);
    agrees(&runs, &oracle);
}

/// A run as the version before wrote it, with two blocks or more.
fn first_version(number: u64, entries: &Oracle) -> Vec<u8> {
    let word = |length: usize| (length as u32).to_le_bytes();
    let (mut run, mut index, mut filter) = (Vec::new(), Vec::new(), filter::Filter::new(entries.len() as u64));
    let entries: Vec<_> = entries.iter().collect();
    for block in entries.chunk_by(|(a, _), (b, _)| layout::split(a).0 == layout::split(b).0).flat_map(|t| t.chunks(50))
    {
        let mut bytes = Vec::new();
        for (key, value) in block {
            bytes.extend([word(key.len()), word(value.as_ref().map_or(0, |value| value.len() + 1))].concat());
            bytes.extend([key.as_slice(), value.as_deref().unwrap_or_default()].concat());
            filter.add(filter::hash(key));
        }
        let first = block[0].0;
        index.extend((run.len() as u64).to_le_bytes());
        index.extend([&word(bytes.len() + 4)[..], &word(first.len()), first].concat());
        let crc = file::checksum(number, run.len() as u64, &bytes);
        run.extend([&crc[..], &bytes].concat());
    }
    let index_at = run.len() as u64;
    let filter_at = index_at + index.len() as u64;
    let tail: Vec<u8> = index.into_iter().chain(filter.pieces().flatten()).collect();
    let end: Vec<u8> =
        [index_at, filter_at, entries.len() as u64, number].into_iter().flat_map(u64::to_le_bytes).collect();
    let crc = crc32fast::hash(&[&tail[..], &end].concat()).to_le_bytes();
    run.extend([&tail[..], &end, &crc, b"LARDRUN\x01"].concat());
    run
}

/// Of a table that is removed nothing stays on the disk, though few runs had it.
#[test]
fn what_is_removed_leaves_the_disk() {
    const KEYS: u16 = 30_000;
    let directory = TempDir::new().expect("a directory");
    let mut oracle = Oracle::new();
    let runs = open(&directory, &[], NOTHING);
    let all = |length: Option<u16>| (0..KEYS).map(|number| (number, length)).collect::<Vec<_>>();
    write(&runs, 1, &all(Some(20)), &mut oracle);
    merge(&runs);
    let mut reader = runs.reader();
    assert!(reader.get(&key(7)).expect("reads").is_some_and(|entry| entry != Entry::Absent));
    write(&runs, 2, &all(None), &mut oracle);
    assert_eq!(reader.get(&key(7)).expect("reads"), Some(Entry::Absent), "it reads what is newest");
    merge(&runs);
    assert_eq!(reader.get(&key(7)).expect("reads"), Some(Entry::Absent));
    let (count, bytes, _) = runs.size();
    assert!(count == 1 && bytes < 20_000, "{bytes} bytes in {count} runs");
}
