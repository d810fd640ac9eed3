//! The tier by itself: its bound, what it evicts, and that a fill never brings back what a write replaced.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use model::ports::Table;
use model::row::{Column, Version};
use model::{Row, Timestamp};
use proptest::prelude::*;

use super::*;

fn state(n: u64) -> Entry {
    Entry::State(Bytes::copy_from_slice(&n.to_le_bytes()))
}

fn number(entry: &Entry) -> u64 {
    match entry {
        Entry::State(bytes) => u64::from_le_bytes(bytes[..].try_into().expect("eight bytes")),
        other => panic!("not a number: {other:?}"),
    }
}

fn key(n: u64) -> Key {
    Key::from(n.to_be_bytes().as_slice())
}

/// What an entity with one number costs.
fn one() -> u64 {
    cost(&Block::of(&key(0), 0, &Payload::of(&state(0), |_| None)).expect("small")) as u64
}

fn write(tier: &Tier, key: &Key, entry: Entry) {
    let begun = tier.begin(std::iter::once(layout::split(key).1));
    tier.end(begun, std::iter::once((Key::clone(key), entry)));
}

#[test]
fn a_fill_fetched_before_a_write_is_not_kept() {
    let tier = Tier::new(10_000);
    let key = key(1);
    let before = tier.ticket(&key).expect("on");
    write(&tier, &key, state(2));
    assert!(!tier.fill(before, &key, &state(1)), "fetched before the write");
    assert_eq!(tier.get(&key), Some(state(2)));

    let begun = tier.begin(std::iter::once(layout::split(&key).1));
    let during = tier.ticket(&key).expect("on");
    assert!(!tier.fill(during, &key, &state(2)), "fetched while the write was under way");
    tier.end_forgetting(begun, |k| k == &*key);
    assert!(!tier.fill(during, &key, &state(2)), "the same, after it");
    assert_eq!(tier.get(&key), None);

    let after = tier.ticket(&key).expect("on");
    assert!(tier.fill(after, &key, &state(3)));
    assert_eq!(tier.get(&key), Some(state(3)));
}

#[test]
fn what_was_used_outlives_what_was_not() {
    let tier = Tier::new(5 * one());
    for n in 0..5 {
        write(&tier, &key(n), state(n));
    }
    assert_eq!(tier.get(&key(0)), Some(state(0)));
    write(&tier, &key(5), state(5));
    assert_eq!(tier.get(&key(0)), Some(state(0)), "it was read");
    assert_eq!(tier.get(&key(1)), None, "it was the oldest that was not");
}

#[test]
fn an_entry_that_became_too_large_leaves_nothing_old_behind() {
    let tier = Tier::new(1000);
    write(&tier, &key(1), state(1));
    write(&tier, &key(1), Entry::State(Bytes::from(vec![0; 2000])));
    assert_eq!(tier.get(&key(1)), None);
    assert_eq!(tier.bytes(), 0);
}

/// One writer raises numbers, first on a slow "disk", then in the tier; readers that miss fetch and
/// fill. Nobody may ever read less than what was finished before the read began.
#[test]
fn a_reader_never_sees_less_than_a_finished_write() {
    const KEYS: u64 = 8;
    const ROUNDS: u64 = 4000;
    /// The writer goes on until this many fills were kept, or there is no hope of that.
    const FILLS: u64 = 500;
    const HOPE: u64 = 100 * ROUNDS;
    // Room for about half of the keys, so that there are misses all the time.
    let tier = Tier::new(4 * one());
    let disk: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let finished: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let fills = AtomicU64::new(0);

    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (tier, disk, finished, done, fills) = (&tier, &disk, &finished, &done, &fills);
            scope.spawn(move || {
                let mut n = reader;
                while !done.load(Ordering::Acquire) {
                    n = (n * 5 + 3) % KEYS;
                    let (key, at) = (key(n), n as usize);
                    let least = finished[at].load(Ordering::Acquire);
                    let seen = tier.get(&key).map_or_else(
                        || {
                            let ticket = tier.ticket(&key).expect("on");
                            let fetched = disk[at].load(Ordering::Acquire);
                            std::thread::yield_now(); // where a write may come between
                            fills.fetch_add(u64::from(tier.fill(ticket, &key, &state(fetched))), Ordering::Relaxed);
                            fetched
                        },
                        |entry| number(&entry),
                    );
                    assert!(seen >= least, "key {n}: read {seen} after {least} was written");
                }
            });
        }
        for round in 1..=HOPE {
            if round > ROUNDS && fills.load(Ordering::Relaxed) >= FILLS {
                break;
            }
            // Breaks of different lengths between writes, in which fills are kept.
            (0..round % 8).for_each(|_| std::thread::yield_now());
            let at = (round % KEYS) as usize;
            let begun = tier.begin(std::iter::once(layout::split(&key(at as u64)).1));
            std::thread::yield_now();
            disk[at].store(round, Ordering::Release);
            std::thread::yield_now();
            tier.end(begun, std::iter::once((key(at as u64), state(round))));
            finished[at].store(round, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
    let fills = fills.load(Ordering::Relaxed);
    assert!(fills >= FILLS, "only {fills} fills were kept: little was tested");
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize),
    Fill(u64, usize),
    Get(u64),
    Forget(u64),
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..20, 0usize..400).prop_map(|(k, len)| Step::Write(k, len)),
        (0u64..20, 0usize..400).prop_map(|(k, len)| Step::Fill(k, len)),
        (0u64..20).prop_map(Step::Get),
        (0u64..20).prop_map(Step::Forget),
        (0u64..20).prop_map(Step::Remove),
    ]
}

proptest! {
    /// The bound holds after every step, and what is counted is what is there.
    #[test]
    fn bytes_are_bounded_and_counted(capacity in 0u64..3000, steps in proptest::collection::vec(step(), 0..80)) {
        let tier = Tier::new(capacity);
        for step in steps {
            match step {
                Step::Write(k, len) => write(&tier, &key(k), Entry::State(vec![0; len].into())),
                Step::Fill(k, len) => {
                    if let Some(ticket) = tier.ticket(&key(k)) {
                        tier.fill(ticket, &key(k), &Entry::State(vec![0; len].into()));
                    }
                }
                Step::Get(k) => drop(tier.get(&key(k))),
                Step::Remove(k) => {
                    let keys = [key(k), key(k + 1)];
                    tier.end_without(tier.begin(keys.iter().map(|key| layout::split(key).1)), keys.iter());
                    prop_assert!(keys.iter().all(|key| tier.get(key).is_none()));
                }
                Step::Forget(k) => tier.end_forgetting(tier.begin_all(), |other| other == &*key(k)),
            }
            let map = tier.map.pin();
            let there: usize = map.values().map(|slot| cost(&slot.block)).sum();
            prop_assert_eq!(tier.bytes(), there);
            prop_assert!(there as u64 <= capacity);
            let queued: usize = tier.stripes.iter().map(|s| s.lock().queue.len()).sum();
            prop_assert_eq!(queued, map.len());
        }
    }
}

/// A key in the tree: of entity `n` under a table of one row or state per entity.
fn key_under(table: u64, n: u64) -> Key {
    let table = model::ports::Table::new("project", format!("view {table}"));
    let mut key = layout::table_prefix(layout::Kind::State, &table);
    key.extend_from_slice(&n.to_be_bytes());
    key.into()
}

/// Everything of every entity as a plain map has it.
type Oracle = std::collections::BTreeMap<(u64, u64), Entry>;

fn prefixes(tables: u64) -> Vec<Vec<u8>> {
    (0..tables).map(|table| layout::split(&key_under(table, 0)).0.to_vec()).collect()
}

proptest! {
    /// With room enough, entities under several tables are what was last written, forgotten or neither,
    /// one by one and all in one read.
    #[test]
    fn what_is_known_is_what_was_written(
        steps in proptest::collection::vec((0u64..4, 0u64..6, 0u64..9), 0..80),
    ) {
        let tier = Tier::new(1 << 20);
        let mut oracle = Oracle::new();
        for (table, entity, what) in steps {
            let key = key_under(table, entity);
            if what == 0 {
                tier.end_forgetting(tier.begin(std::iter::once(layout::split(&key).1)), |other| other == &*key);
                oracle.remove(&(table, entity));
            } else {
                let entry = if what == 1 { Entry::Absent } else { state(what) };
                write(&tier, &key, entry.clone());
                oracle.insert((table, entity), entry);
            }
        }
        let entities: Vec<_> = (0..6u64).map(u64::to_be_bytes).collect();
        let mut read = Oracle::new();
        tier.read::<()>(&prefixes(4), entities.iter().map(<[u8; 8]>::as_slice), |entity, table, part| {
            if let Some(part) = part {
                let number = entities.iter().position(|other| other == entity).expect("an entity that was asked for");
                read.insert((table as u64, number as u64), part.to_entry());
            }
            Ok(())
        }).expect("no error");
        prop_assert_eq!(&read, &oracle);
        for (table, entity) in (0..4).flat_map(|table| (0..6).map(move |entity| (table, entity))) {
            prop_assert_eq!(tier.get(&key_under(table, entity)), oracle.get(&(table, entity)).cloned());
        }
    }
}

proptest! {
    /// A row comes back as it was written, whatever columns, values and times it has: alone and in a read of
    /// several tables, slim or as it is stored.
    #[test]
    fn rows_come_back_as_they_were_written(
        rows in proptest::collection::vec(
            proptest::collection::vec((0u32..4, proptest::collection::vec(any::<u8>(), 0..20), 0i64..2), 0..5), 1..20),
        long in 0usize..100_000,
    ) {
        let tier = Tier::new(10_000_000);
        let prefix = |table: usize| layout::table_prefix(layout::Kind::Row, &Table::new("p", format!("view_{table}")));
        let (prefixes, entity): (Vec<_>, _) = ((0..3).map(prefix).collect(), b"entity");
        let mut last = [const { None }; 3];
        for (at, columns) in rows.into_iter().enumerate() {
            let columns = columns.into_iter().map(|(id, value, event)| Column {
                id,
                value: if at == 0 && id == 0 { vec![7; long].into() } else { value.into() },
                version: Version { event: Timestamp(event), created: Timestamp(event * 2) },
            });
            let row = Row::pack(columns.collect());
            let key = Key::from([prefixes[at % 3].as_slice(), entity].concat());
            write(&tier, &key, Entry::Row(row.clone()));
            prop_assert_eq!(tier.get(&key), Some(Entry::Row(row.clone())));
            last[at % 3] = Some(row);
        }
        let mut read = Vec::new();
        let done = tier.read(&prefixes, std::iter::once(entity.as_slice()), |_, _, part| {
            read.push(part.map(Part::to_entry));
            Ok::<(), ()>(())
        });
        prop_assert_eq!(done, Ok(()));
        prop_assert_eq!(read, last.map(|row| row.map(Entry::Row)));
    }
}

#[test]
fn only_so_many_sequences_have_a_number() {
    let numbers = Numbers::default();
    assert_eq!(numbers.number(&[1, 2], 2), Some(0));
    assert_eq!(numbers.number(&[1], 2), Some(1));
    assert_eq!(numbers.number(&[2], 2), None);
    assert_eq!(numbers.number(&[1, 2], 2), Some(0), "it has one");
    assert_eq!((numbers.known(&[2]), numbers.pin().get(1)), (None, Some([1].as_slice())));
}
