//! The store on sled: the contract with the tier on, off and tiny; what a damaged directory gives.

mod log;

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

fn flip_last_bit(db: &::sled::Db, key: &[u8]) {
    let mut value = db.get(key).expect("reads").expect("is there").to_vec();
    *value.last_mut().expect("not empty") ^= 1;
    db.insert(key, value).expect("writes");
}

fn entity_key(kind: Kind, table: &Table, name: &str) -> Vec<u8> {
    let mut key = layout::table_prefix(kind, table);
    key.extend_from_slice(contract::key(name).as_bytes());
    key
}

#[tokio::test]
async fn a_damaged_value_is_an_error_and_never_a_value() {
    let mut subject = OnDisk::new(1 << 20, Durability::Fsync);
    let t = table("proj", "the_view");
    let of = |n| row(n, 0, &[("f", b"x")]);
    let mut batch = rows(&[(&t, "good", of(1)), (&t, "bad", of(1))]);
    batch.states = contract::states(&[(&t, "good", Some(b"s")), (&t, "bad", Some(b"s"))]).states;
    let position =
        Position { group: "g".into(), topic: "t".into(), partition: 3, offset: 1, max_event: model::Timestamp(0) };
    batch.positions = vec![position.clone()];
    subject.store().write(batch).await.expect("writes");
    subject.store().close().await.expect("closes");
    let whole = check(&subject.settings.path).expect("checks");
    assert!(whole.is_whole());
    assert_eq!((whole.rows, whole.states, whole.positions), (2, 2, 1));

    tamper(&subject.settings.path, |db| {
        flip_last_bit(db, &entity_key(Kind::Row, &t, "bad"));
        flip_last_bit(db, &layout::position_key(&position));
        // A whole value that stands under another's key.
        let good = db.get(entity_key(Kind::Row, &t, "good")).expect("reads").expect("is there");
        db.insert(entity_key(Kind::Row, &t, "moved"), good).expect("writes");
    });
    // The state of "good" is in the same block.
    let run = fs::read_dir(subject.settings.path.join("states")).expect("reads").next().expect("a run");
    let run = run.expect("reads").path();
    let mut bytes = fs::read(&run).expect("reads");
    bytes[30] ^= 1;
    fs::write(&run, bytes).expect("writes");
    let report = check(&subject.settings.path).expect("checks");
    assert_eq!((report.rows, report.states, report.positions, report.damaged), (1, 0, 0, 4));
    assert!(report.named.iter().any(|n| n.contains("'the_view' in project 'proj'")), "{report:?}");
    assert!(report.named.iter().any(|n| n.contains("partition 3 of topic 't'")), "{report:?}");

    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    let store = subject.store();
    assert_eq!(get(store, &t, &["good"]).await, [Some(of(1))]);
    let reads = |name| [Read { table: Arc::clone(&t), keys: vec![key("good"), key(name)] }];
    let errors = [
        store.read(&reads("bad")).await.err(),
        store.read(&reads("bad")).await.err(),
        store.read(&reads("moved")).await.err(),
        store.read_states(&reads("bad")).await.err(),
        store.read_states(&reads("good")).await.err(),
        store.write(rows(&[(&t, "fine", of(1)), (&t, "bad", of(2))])).await.err(),
    ];
    for error in errors {
        let error = error.expect("an error");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("view 'the_view' in project 'proj'"), "{error}");
    }
    assert_eq!(get(store, &t, &["fine"]).await, [None], "the failed batch left nothing");
    assert_eq!(store.positions("g").await.expect_err("an error").kind(), ErrorKind::Internal);

    assert_eq!(store.clear(&t).await.expect("clears"), 3);
    store.write(rows(&[(&t, "bad", of(2))])).await.expect("is healed");
    assert_eq!(get(store, &t, &["bad"]).await, [Some(of(2))]);
    assert_eq!(get_states(store, &t, &["good", "bad"]).await, [None, None], "and so are the states");
}

#[tokio::test]
async fn another_format_is_refused() {
    for in_the_tree in [true, false] {
        let subject = OnDisk::new(0, Durability::Fsync);
        subject.store().close().await.expect("closes");
        let path = &subject.settings.path;
        if in_the_tree {
            tamper(path, |db| {
                let key = layout::FORMAT_KEY;
                db.insert(key, layout::seal(key, &7u32.to_le_bytes())).expect("writes");
            });
        } else {
            fs::write(path.join("larder-format"), "7\n").expect("writes");
        }
        let error = Store::open(subject.settings.clone()).err().expect("is refused");
        assert!(matches!(&error, Error::Format { found, expected: 3, .. } if found.contains('7')), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
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

/// A table of many states, in runs, in the tree of an older store and in the log, goes; its neighbours stay.
#[tokio::test]
async fn states_are_cleared_wherever_they_are() {
    const EACH: usize = 3000;
    let mut subject = OnDisk::with(|path| Settings { log_bytes: 200_000, ..settings(path, 0, Durability::Flush) });
    let tables = ["a", "b", "c"].map(|view| table("p", view));
    let names: Vec<String> = (0..EACH).map(|n| format!("entity {n}")).collect();
    let key = layout::FORMAT_KEY;
    subject.store().close().await.expect("closes");
    tamper(&subject.settings.path, |db| {
        for t in &tables {
            let old = entity_key(Kind::State, t, "old");
            db.insert(&*old, layout::seal(&old, b"in the tree")).expect("writes");
        }
        db.insert(key, layout::seal(key, &2u32.to_le_bytes())).expect("writes");
    });
    fs::write(subject.settings.path.join("larder-format"), "2\n").expect("writes");
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens an older store"));
    for round in 0..12u8 {
        for t in &tables {
            let some: Vec<_> = names[usize::from(round) * EACH / 12..].iter().take(EACH / 6).collect();
            let states: Vec<_> = some.iter().map(|name| (t, name.as_str(), Some([round; 40]))).collect();
            let states: Vec<_> = states.iter().map(|(t, n, v)| (*t, *n, v.as_ref().map(|v| &v[..]))).collect();
            subject.store().write(contract::states(&states)).await.expect("writes");
        }
    }
    let all: Vec<&str> = names.iter().map(String::as_str).chain(["old"]).collect();
    let there =
        async |store: &dyn OnlineStore, t: &Arc<Table>| get_states(store, t, &all).await.iter().flatten().count();
    assert_eq!(there(subject.store(), &tables[1]).await, EACH + 1);
    assert_eq!(subject.store().clear(&tables[1]).await.expect("clears"), EACH as u64 + 1);
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!([there(store, &tables[0]).await, there(store, &tables[2]).await], [EACH + 1; 2]);
        assert_eq!(there(store, &tables[1]).await, 0);
        assert_eq!(store.clear(&tables[1]).await.expect("clears"), 0);
        subject = subject.reopen().await;
    }
    subject.store().close().await.expect("closes");
    let report = check(&subject.settings.path).expect("checks");
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.states, 2 * (EACH as u64 + 1));
    let error = fs::remove_dir_all(subject.settings.path.join("states"));
    assert!(error.is_ok());
    let error = Store::open(subject.settings.clone()).err().expect("is refused");
    assert!(matches!(&error, Error::Damaged { .. }) && error.to_string().contains("window states"), "{error:?}");
    let report = check(&subject.settings.path).expect("checks");
    assert!(!report.is_whole(), "{report:?}");
}

/// Small tables have blocks of their own: one that is damaged harms no other, and is healed by clearing it alone.
#[tokio::test]
async fn damage_to_one_tables_states_is_no_others() {
    let mut subject = OnDisk::new(0, Durability::Fsync);
    let tables = ["a", "b", "c"].map(|view| table("p", view));
    for t in &tables {
        subject
            .store()
            .write(contract::states(&[(t, "one", Some(b"1")), (t, "two", Some(b"2"))]))
            .await
            .expect("writes");
    }
    subject.store().close().await.expect("closes");
    let run = fs::read_dir(subject.settings.path.join("states")).expect("reads").next().expect("a run");
    let run = run.expect("reads").path();
    let mut bytes = fs::read(&run).expect("reads");
    let in_b = entity_key(Kind::State, &tables[1], "one");
    let at = bytes.windows(in_b.len()).position(|window| window == in_b).expect("is there");
    bytes[at + in_b.len()] ^= 1;
    fs::write(&run, bytes).expect("writes");
    let report = check(&subject.settings.path).expect("checks");
    assert_eq!((report.states, report.damaged), (4, 1), "{report:?}");
    assert!(report.named[0].contains("a window state of view 'b' in project 'p'"), "{report:?}");

    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    for t in [&tables[0], &tables[2]] {
        assert_eq!(get_states(subject.store(), t, &["one", "two"]).await, [Some("1".into()), Some("2".into())]);
    }
    let read = [Read { table: Arc::clone(&tables[1]), keys: vec![key("two")] }];
    assert_eq!(subject.store().read_states(&read).await.expect_err("an error").kind(), ErrorKind::Internal);
    subject.store().clear(&tables[1]).await.expect("clears");
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!(get_states(store, &tables[1], &["one", "two"]).await, [None, None]);
        assert_eq!(get_states(store, &tables[2], &["one", "two"]).await, [Some("1".into()), Some("2".into())]);
        subject = subject.reopen().await;
    }
    subject.store().close().await.expect("closes");
    assert!(check(&subject.settings.path).expect("checks").is_whole());
}

/// Whatever became of the data file, the store opens with what was there or says that it is damaged:
/// it does not begin afresh.
#[tokio::test]
async fn a_ruined_data_file_is_an_error() {
    let t = table("p", "v");
    for name in ["empty", "zeros", "noise", "cut"] {
        let subject = OnDisk::new(0, Durability::Fsync);
        subject.store().write(rows(&[(&t, "a", row(1, 0, &[("f", b"x")]))])).await.expect("writes");
        subject.store().close().await.expect("closes");
        let data = subject.settings.path.join("db");
        let whole = fs::read(&data).expect("reads");
        let ruined = match name {
            "empty" => Vec::new(),
            "zeros" => vec![0; whole.len()],
            "noise" => (0..whole.len()).map(|i| (i * 31 + i / 7) as u8).collect(),
            _ => whole[..100].to_vec(),
        };
        fs::write(&data, ruined).expect("writes");
        let error = Store::open(subject.settings.clone()).err().unwrap_or_else(|| panic!("{name}: it opened"));
        assert!(matches!(error, Error::Damaged { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(&*subject.settings.path.to_string_lossy()), "{name}: {error}");
    }
}
