//! The store on sled: the contract with the tier on, off and tiny; what a damaged directory gives.

mod damage;
mod log;
mod older;
mod rows;

use std::fs;
use std::path::Path;

use model::Kind as ErrorKind;
use tempfile::TempDir;

use super::*;
use crate::contract::{self, Subject, get, get_states, key, row, rows, run_all, table};

struct OnDisk {
    /// `None` only while it is reopened.
    store: Option<Store>,
    settings: Settings,
    _directory: Arc<TempDir>,
}

fn settings(path: &Path, tier_bytes: u64, durability: Durability) -> Settings {
    Settings { cache_bytes: 64 << 20, tier_bytes, durability, ..Settings::new(path) }
}

impl OnDisk {
    fn new(tier_bytes: u64, durability: Durability) -> Self {
        Self::with(|path| settings(path, tier_bytes, durability))
    }

    fn with(settings: impl FnOnce(&Path) -> Settings) -> Self {
        let directory = Arc::new(TempDir::new().expect("a directory"));
        let settings = settings(&directory.path().join("not/yet/there"));
        let store = Some(Store::open(settings.clone()).expect("opens"));
        Self { store, settings, _directory: directory }
    }
}

impl Subject for OnDisk {
    fn store(&self) -> &dyn OnlineStore {
        self.store.as_ref().expect("open")
    }

    async fn reopen(mut self) -> Self {
        self.store().close().await.expect("closes");
        // The old store is still there: close must have let go of the files by itself.
        self.store = Some(Store::open(self.settings.clone()).expect("opens again"));
        self
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    run_all(|| OnDisk::new(32 << 20, Durability::Fsync)).await;
}

#[tokio::test]
async fn keeps_the_contract_without_a_tier() {
    run_all(|| OnDisk::new(0, Durability::Flush)).await;
}

#[tokio::test]
async fn keeps_the_contract_with_a_tier_that_holds_three_rows() {
    run_all(|| OnDisk::new(1000, Durability::Memory)).await;
}

/// Nearly every group finds the log full.
#[tokio::test]
async fn keeps_the_contract_with_a_log_that_holds_three_rows() {
    run_all(|| OnDisk::with(|path| Settings { log_bytes: 1000, ..settings(path, 0, Durability::Flush) })).await;
}

/// Writers raise versions while readers read, with a tier so small that rows come and go all the
/// time: nobody reads less than what a write that was finished before had written. (The race between
/// a fill and a write is too narrow to be met here: the tier's own tests hold it open.)
#[test]
fn reads_beside_writes_are_never_stale() {
    const KEYS: usize = 8;
    const ROUNDS: i64 = 150;
    let subject = OnDisk::with(|path| Settings { log_bytes: 3000, ..settings(path, 1200, Durability::Memory) });
    let store = subject.store();
    let t = table("p", "v");
    let names: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let finished: Vec<_> = (0..KEYS).map(|_| std::sync::atomic::AtomicI64::new(0)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::SeqCst;
    let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (names, finished, done, t) = (&names, &finished, &done, &t);
            scope.spawn(move || {
                runtime().block_on(async {
                    let mut n: usize = first;
                    while !done.load(ordering) {
                        n = (n * 5 + 3) % KEYS;
                        let least = finished[n].load(ordering);
                        let seen = get(store, t, &[&names[n]]).await.remove(0).map_or(0, |r| r.newest().event.0);
                        assert!(seen >= least, "{}: read {seen} after {least} was written", names[n]);
                    }
                });
            });
        }
        runtime().block_on(async {
            for round in 1..=ROUNDS {
                for (name, finished) in names.iter().zip(&finished) {
                    store.write(rows(&[(&t, name, row(round, 0, &[("f", &[7; 100])]))])).await.expect("writes");
                    finished.store(round, ordering);
                }
            }
        });
        done.store(true, ordering);
    });
}

/// While a table of many slices is cleared, others write and read, and wait for no more than a slice or so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_write_while_a_large_table_is_cleared() {
    const ROWS: usize = 30_000;
    // Some of the table is in sled, some on its way, some in the log.
    let subject = OnDisk::with(|path| Settings { log_bytes: 2 << 20, ..settings(path, 8 << 20, Durability::Flush) });
    let store = subject.store();
    let (large, other) = (table("p", "large"), table("p", "other"));
    let names: Vec<String> = (0..ROWS).map(|n| format!("k{n}")).collect();
    for names in names.chunks(1000) {
        let batch: Vec<_> = names.iter().map(|name| (&large, name.as_str(), row(1, 0, &[("f", b"1")]))).collect();
        store.write(rows(&batch)).await.expect("writes");
    }
    let mut rounds = 0;
    let mut clear = store.clear(&large);
    let cleared = loop {
        let write = async {
            let batch = rows(&[(&other, "k", row(rounds + 1, 0, &[("f", b"2")]))]);
            store.write(batch).await.expect("writes");
            get(store, &other, &["k"]).await.remove(0).expect("is there").newest().event.0
        };
        tokio::select! {
            biased;
            cleared = &mut clear => break cleared,
            written = write => {
                rounds += 1;
                assert_eq!(written, rounds);
            }
        }
    };
    drop(clear);
    assert_eq!(cleared.expect("clears"), ROWS as u64);
    assert!(rounds >= 10, "only {rounds} writes came through");
    let left = get(store, &large, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(left.iter().all(Option::is_none));
    assert_eq!(store.clear(&large).await.expect("clears"), 0);
    let subject = subject.reopen().await;
    assert_eq!(subject.store().clear(&large).await.expect("clears"), 0);
}

#[tokio::test]
async fn a_second_store_in_the_directory_is_refused() {
    let subject = OnDisk::new(0, Durability::Fsync);
    let error = Store::open(subject.settings.clone()).err().expect("is refused");
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(&*subject.settings.path.to_string_lossy()), "{error}");
}

#[tokio::test]
async fn nothing_is_answered_after_closing() {
    let subject = OnDisk::new(1 << 20, Durability::Fsync);
    let t = table("p", "v");
    subject.store().write(rows(&[(&t, "a", row(1, 0, &[("f", b"x")]))])).await.expect("writes");
    subject.store().close().await.expect("closes");
    let read = Read { table: Arc::clone(&t), keys: vec![key("a")] };
    let errors = [
        subject.store().read(&[read]).await.err(),
        subject.store().write(WriteBatch::default()).await.err(),
        subject.store().positions("g").await.err(),
        subject.store().clear(&t).await.err(),
        subject.store().close().await.err(),
    ];
    for error in errors {
        assert_eq!(error.expect("an error").kind(), ErrorKind::Unavailable);
    }
}

/// Dropping a store without closing it loses nothing that was answered or waiting.
#[tokio::test]
async fn dropping_finishes_what_is_waiting() {
    let mut subject = OnDisk::new(1 << 20, Durability::Memory);
    let t = table("p", "v");
    let one = row(1, 0, &[("f", b"x")]);
    subject.store().write(rows(&[(&t, "a", one.clone())])).await.expect("writes");
    drop(subject.store.take());
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens again"));
    assert_eq!(get(subject.store(), &t, &["a"]).await, [Some(one)]);
}

/// Writes values into a closed store behind its back.
fn tamper(path: &Path, change: impl Fn(&::sled::Db)) {
    let db = ::sled::Config::new().path(path).open().expect("opens");
    change(&db);
    db.flush().expect("flushes");
    drop(db);
    let data = fs::File::open(path.join("db")).expect("is there");
    data.lock().expect("sled lets go");
}

fn entity_key(kind: Kind, table: &Table, name: &str) -> Vec<u8> {
    let mut key = layout::table_prefix(kind, table);
    key.extend_from_slice(contract::key(name).as_bytes());
    key
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let directory = TempDir::new().expect("a directory");
    tamper(directory.path(), |db| {
        db.insert("theirs", "value").expect("writes");
    });
    let error = Store::open(settings(directory.path(), 0, Durability::Fsync)).err().expect("is refused");
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    fs::remove_file(directory.path().join("conf")).expect("is there");
    fs::write(directory.path().join("db"), "another program's").expect("writes");
    let error = Store::open(settings(directory.path(), 0, Durability::Fsync)).err().expect("is refused");
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert_eq!(fs::read(directory.path().join("db")).expect("reads"), b"another program's", "it is left alone");

    let error = check(&directory.path().join("nowhere")).expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!directory.path().join("nowhere").exists(), "a check creates nothing");
}
