//! A segment cut or changed at any byte: what was synchronized is there or is reported, and no group is
//! there in part.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::sled::layout::{Kind, table_prefix};
use crate::sled::overlay::Layer;

fn key(group: u8, n: u8) -> Vec<u8> {
    let table = model::ports::Table::new("p", "v");
    let mut key = table_prefix(Kind::State, &table);
    key.extend_from_slice(&[group, n]);
    key
}

fn append(wal: &mut Wal, group: u8) {
    let entries: Vec<_> = (0..3).map(|n| (key(group, n), vec![group; usize::from(n) * 5])).collect();
    wal.append(entries.iter().map(|(k, v)| ([k.as_slice(), &[]], Some(v.as_slice())))).expect("appends");
}

/// Of the groups, which are there; each must be whole.
fn groups(layer: &Layer, of: u8) -> Vec<u8> {
    let there = |group| (0..3).map(move |n| layer.get(&key(group, n)).is_some());
    let found: Vec<u8> = (1..=of).filter(|group| there(*group).any(|there| there)).collect();
    assert!(found.iter().all(|group| there(*group).all(|there| there)), "a group is there in part: {found:?}");
    found
}

/// Groups 1 and 2 synchronized, 3 and 4 not; `mark` says so of 2. Gives where the synchronized end.
fn four_groups(directory: &Path, mark: bool) -> (PathBuf, usize) {
    let mut wal = Wal::create(directory, 1, 0).expect("creates");
    append(&mut wal, 1);
    wal.sync().expect("synchronizes");
    append(&mut wal, 2);
    wal.sync().expect("synchronizes");
    let end = wal.length() as usize;
    if mark {
        wal.mark().expect("marks");
    }
    append(&mut wal, 3);
    append(&mut wal, 4);
    (segment_path(directory, 1), end)
}

#[test]
fn any_prefix_keeps_what_was_synchronized() {
    let directory = TempDir::new().expect("a directory");
    let (path, end) = four_groups(directory.path(), true);
    let whole = fs::read(&path).expect("reads");
    for length in end..=whole.len() {
        fs::write(&path, &whole[..length]).expect("writes");
        let mut replayed = read(directory.path(), Some(0)).unwrap_or_else(|e| panic!("cut to {length}: {e:?}"));
        let found = groups(&replayed.layer, 4);
        assert!(found.len() >= 2 && found.iter().copied().eq(1..=found.len() as u8), "cut to {length}: {found:?}");
        replayed.repair(directory.path()).expect("repairs");
        let again = read(directory.path(), Some(0)).expect("reads");
        assert_eq!(groups(&again.layer, 4), found);
        assert_eq!(fs::metadata(&path).expect("is there").len(), again.end);
    }
    // What follows says of group 1 that it was synchronized: its loss is never silent.
    for length in HEADER as usize + 1..whole.len() {
        let mut holed = whole.clone();
        holed[HEADER as usize..length.min(end)].fill(0);
        fs::write(&path, &holed).expect("writes");
        assert!(matches!(read(directory.path(), Some(0)), Err(Damage::Found(_))), "hole up to {length}");
    }
}

#[test]
fn any_flipped_bit_is_found_and_cut_only_where_nothing_was_promised() {
    let directory = TempDir::new().expect("a directory");
    let (path, end) = four_groups(directory.path(), true);
    let whole = fs::read(&path).expect("reads");
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).expect("writes");
        match read(directory.path(), Some(0)) {
            Ok(replayed) => {
                assert!(at >= end, "byte {at} was synchronized");
                assert!(groups(&replayed.layer, 4).len() < 4 || at < end + RECORD, "byte {at} is not checked");
            }
            Err(Damage::Found(text)) => assert!(at < end, "byte {at} was never promised: {text}"),
            Err(Damage::Io(e)) => panic!("{e}"),
        }
    }
}

/// Pages reach the disk in any order: a group may be lost that an unsynchronized later one follows.
#[test]
fn a_hole_in_what_was_not_synchronized_is_a_torn_end() {
    let directory = TempDir::new().expect("a directory");
    let (path, end) = four_groups(directory.path(), false);
    let whole = fs::read(&path).expect("reads");
    let mut holed = whole.clone();
    holed[end..end + 30].fill(0);
    fs::write(&path, &holed).expect("writes");
    let mut replayed = read(directory.path(), Some(0)).expect("reads");
    assert_eq!(groups(&replayed.layer, 4), [1, 2]);
    replayed.repair(directory.path()).expect("repairs");
    assert_eq!(fs::metadata(&path).expect("is there").len(), end as u64);
}

#[test]
fn a_segment_is_on_the_disk_before_the_next_begins() {
    let directory = TempDir::new().expect("a directory");
    let mut wal = Wal::create(directory.path(), 1, 0).expect("creates");
    append(&mut wal, 1);
    append(&mut wal, 2);
    assert_eq!(wal.rotate().expect("rotates"), 1);
    append(&mut wal, 3);
    let replayed = read(directory.path(), None).expect("reads");
    assert_eq!((groups(&replayed.layer, 3), replayed.last), (vec![1, 2, 3], 2));
    assert_eq!(groups(&read(directory.path(), Some(1)).expect("reads").layer, 3), [3]);

    // The power went while the second was created: it was not there yet.
    let second = segment_path(directory.path(), 2);
    let whole = fs::read(&second).expect("reads");
    for length in 0..HEADER as usize {
        fs::write(&second, &whole[..length]).expect("writes");
        let replayed = read(directory.path(), None).expect("reads");
        assert_eq!((groups(&replayed.layer, 3), replayed.last), (vec![1, 2], 1));
    }
    fs::write(&second, &whole).expect("writes");

    let first = segment_path(directory.path(), 1);
    let whole = fs::read(&first).expect("reads");
    for length in 0..whole.len() {
        fs::write(&first, &whole[..length]).expect("writes");
        assert!(matches!(read(directory.path(), None), Err(Damage::Found(_))), "the first is cut to {length}");
    }
    fs::remove_file(first).expect("removes");
    assert!(matches!(read(directory.path(), None), Err(Damage::Found(text)) if text.contains("segment 1")));
    assert_eq!(groups(&read(directory.path(), Some(1)).expect("reads").layer, 3), [3]);
    fs::remove_file(second).expect("removes");
    assert!(matches!(read(directory.path(), Some(1)), Err(Damage::Found(text)) if text.contains("segment 2")));
}

#[test]
fn trimming_leaves_later_segments() {
    let directory = TempDir::new().expect("a directory");
    let mut wal = Wal::create(directory.path(), 1, 0).expect("creates");
    for group in 1..=3 {
        append(&mut wal, group);
        wal.rotate().expect("rotates");
    }
    trim(directory.path(), 2).expect("trims");
    assert_eq!(groups(&read(directory.path(), Some(2)).expect("reads").layer, 3), [3]);
}
