//! SIGKILL in the middle of writing, again and again: what was acknowledged is there, and every batch
//! is there whole (its rows, its state, its position) or not at all. Some rounds have so small a log that
//! sled is written, and the log trimmed, all the time; after some the process is killed again while it
//! recovers.
//!
//! The process that is killed is this test binary, started anew for the ignored test [`child`].

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::ports::{OnlineStore, Position, Read, RowWrite, StateWrite, Table, WriteBatch};
use model::row::{Column, Version};
use model::{EntityKey, Row, Timestamp};
use online::sled::{Durability, Settings, Store, check};

const DIRECTORY: &str = "LARDER_KILL_DIRECTORY";
const DURABILITY: &str = "LARDER_KILL_DURABILITY";
const LOG_BYTES: &str = "LARDER_KILL_LOG_BYTES";
const WRITERS: usize = 3;
const ROUNDS: u64 = 12;
/// Rows that every batch of a writer overwrites.
const SHARED: i64 = 20;

fn settings(directory: &Path, durability: Durability, log_bytes: u64) -> Settings {
    Settings {
        cache_bytes: 32 << 20,
        tier_bytes: 100_000,
        durability,
        log_bytes,
        flush_every_ms: Some(20),
        ..Settings::new(directory.join("online"))
    }
}

fn table(writer: usize) -> Arc<Table> {
    Arc::new(Table::new("kill", format!("writer_{writer}")))
}

fn group(writer: usize) -> String {
    format!("group_{writer}")
}

/// The rows that only this batch writes: one to 150 of them.
fn own_rows(batch: i64) -> i64 {
    1 + batch * 37 % 150
}

fn keys(batch: i64) -> Vec<EntityKey> {
    let own = (0..own_rows(batch)).map(|n| format!("own {batch} {n}"));
    own.chain((0..SHARED).map(|n| format!("shared {n}"))).map(|k| EntityKey::from_bytes(k.as_bytes())).collect()
}

fn row(batch: i64) -> Row {
    let version = Version { event: Timestamp(batch), created: Timestamp(0) };
    Row::pack(vec![Column { id: 1, value: vec![batch as u8; 200].into(), version }])
}

fn state(batch: i64) -> Bytes {
    Bytes::from(vec![batch as u8; 300])
}

fn batch(writer: usize, batch: i64) -> WriteBatch {
    let table = table(writer);
    let rows = keys(batch).into_iter().map(|key| RowWrite { table: Arc::clone(&table), key, row: row(batch) });
    let states = ["shared".to_owned(), format!("own {batch}")].map(|key| StateWrite {
        table: Arc::clone(&table),
        key: EntityKey::from_bytes(key.as_bytes()),
        state: Some(state(batch)),
    });
    let position = Position {
        group: group(writer),
        topic: "t".into(),
        partition: 0,
        offset: batch + 1,
        max_event: Timestamp(batch),
    };
    WriteBatch { rows: rows.collect(), states: states.into(), positions: vec![position], ..WriteBatch::default() }
}

/// The number of the batch that a writer must write next: its position.
async fn next(store: &Store, writer: usize) -> i64 {
    store.positions(&group(writer)).await.expect("reads").first().map_or(0, |p| p.offset)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// The process that is killed: writes batches for ever and prints what was acknowledged.
#[test]
#[ignore = "is started, and killed, by acknowledged_batches_survive_a_kill_and_none_is_torn"]
fn child() {
    let directory = std::env::var_os(DIRECTORY).expect("is started by the other test only");
    let durability = match std::env::var(DURABILITY).expect("is given").as_str() {
        "memory" => Durability::Memory,
        "flush" => Durability::Flush,
        _ => Durability::Fsync,
    };
    let log_bytes = std::env::var(LOG_BYTES).expect("is given").parse().expect("is a number");
    writeln!(std::io::stdout().lock(), "\nopening").expect("is heard");
    let store = Store::open(settings(Path::new(&directory), durability, log_bytes)).expect("opens");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                block_on(async {
                    for number in next(store, writer).await.. {
                        store.write(batch(writer, number)).await.expect("writes");
                        writeln!(std::io::stdout().lock(), "\nacknowledged {writer} {number}").expect("is heard");
                    }
                });
            });
        }
    });
}

fn start(directory: &Path, durability: &str, log_bytes: u64) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().expect("is known"))
        .args(["kill::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(DURABILITY, durability)
        .env(LOG_BYTES, log_bytes.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    (child, lines.map(|line| line.expect("is text")))
}

/// Starts the child and kills it while it opens the store, or soon after.
fn kill_in_recovery(directory: &Path, log_bytes: u64, after: Duration) {
    let (mut child, mut lines) = start(directory, "fsync", log_bytes);
    assert!(lines.any(|line| line == "opening"), "the child ended by itself");
    // Any moment will do, and what happens inside cannot be seen from here.
    std::thread::sleep(after);
    child.kill().expect("is killed");
    child.wait().expect("ended");
}

/// Starts the child, kills it after `wait` acknowledgements; gives the last acknowledged by writer.
fn run_and_kill(directory: &Path, durability: &str, log_bytes: u64, wait: u64) -> BTreeMap<usize, i64> {
    let (mut child, lines) = start(directory, durability, log_bytes);
    let mut acknowledged = BTreeMap::new();
    let mut heard = 0;
    for line in lines {
        let Some(rest) = line.strip_prefix("acknowledged ") else {
            continue;
        };
        let (writer, number) = rest.split_once(' ').expect("two numbers");
        // The last line may be cut by the kill: a number that was printed in part was printed late.
        if let (Ok(writer), Ok(number)) = (writer.parse::<usize>(), number.parse::<i64>()) {
            let last = acknowledged.entry(writer).or_insert(-1);
            *last = number.max(*last);
        }
        heard += 1;
        if heard == wait {
            child.kill().expect("is killed");
        }
    }
    let status = child.wait().expect("ended");
    assert!(heard >= wait, "the child ended by itself ({status}) after {heard} of {wait} batches");
    acknowledged
}

/// Checks that a writer's batches are all there up to its position, whole, and nothing of the next.
async fn check_writer(store: &Store, writer: usize, from: i64) -> i64 {
    let next = next(store, writer).await;
    let read = |names: Vec<EntityKey>| [Read { table: table(writer), keys: names }];
    for number in from..next {
        let keys = keys(number);
        let rows = store.read(&read(keys.clone())).await.expect("reads").remove(0);
        let expected = |at: usize| {
            if (at as i64) < own_rows(number) { number } else { next - 1 }
        };
        for (at, stored) in rows.iter().enumerate() {
            let missing = || format!("writer {writer}, batch {number} of {next}: row {at} of {}", keys.len());
            assert_eq!(stored.as_ref(), Some(&row(expected(at))), "{}", missing());
        }
        let own = EntityKey::from_bytes(format!("own {number}").as_bytes());
        let states = store.read_states(&read(vec![own])).await.expect("reads").remove(0);
        assert_eq!(states, [Some(state(number))], "writer {writer}, batch {number} of {next}");
    }
    if next > 0 {
        let shared = EntityKey::from_bytes(b"shared");
        let states = store.read_states(&read(vec![shared])).await.expect("reads").remove(0);
        assert_eq!(states, [Some(state(next - 1))], "writer {writer}: the state is that of the position");
    }
    for number in next..next + 3 {
        let own = keys(number).into_iter().take(own_rows(number) as usize).collect();
        let rows = store.read(&read(own)).await.expect("reads").remove(0);
        assert!(
            rows.iter().all(Option::is_none),
            "writer {writer}: batch {number} is there in part, its position is not"
        );
        let own = EntityKey::from_bytes(format!("own {number}").as_bytes());
        let states = store.read_states(&read(vec![own])).await.expect("reads").remove(0);
        assert_eq!(states, [None], "writer {writer}: of batch {number} the state is there, the position is not");
    }
    next
}

#[test]
fn acknowledged_batches_survive_a_kill_and_none_is_torn() {
    let directory = tempfile::tempdir().expect("a directory");
    let chance = RandomState::new();
    let mut checked = [0; WRITERS];
    for round in 0..ROUNDS {
        let durability = ["fsync", "flush", "memory"][round as usize % 3];
        let wait = 1 + chance.hash_one(round) % 60;
        let log_bytes = if round % 2 == 0 { 64 << 20 } else { 40_000 };
        let acknowledged = run_and_kill(directory.path(), durability, log_bytes, wait);
        for again in 0..round % 3 {
            let after = Duration::from_micros(chance.hash_one((round, again)) % 30_000);
            kill_in_recovery(directory.path(), log_bytes, after);
        }

        let report = check(&directory.path().join("online")).expect("checks");
        assert!(report.is_whole(), "round {round} ({durability}, killed after {wait}): {report:?}");
        let store = Store::open(settings(directory.path(), Durability::Fsync, log_bytes)).expect("opens");
        block_on(async {
            for (writer, checked) in checked.iter_mut().enumerate() {
                // What an earlier round found durable is looked at again now and then.
                let from = if round == ROUNDS - 1 { 0 } else { *checked };
                *checked = check_writer(&store, writer, from).await;
                let last = acknowledged.get(&writer).copied().unwrap_or(-1);
                let kept = durability == "memory" || *checked > last;
                assert!(kept, "round {round} ({durability}): writer {writer} was told {last}, and is at {checked}");
            }
            store.close().await.expect("closes");
        });
    }
    assert!(checked.iter().sum::<i64>() > 0, "nothing was ever written");
}
