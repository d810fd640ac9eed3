//! The store and its write-ahead log across crashes: a copy of the directory, taken while the store is
//! open, is what a crash at that moment leaves behind.

use std::path::PathBuf;

use model::Timestamp;

use super::*;

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("is known").is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

fn logged(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(path.join("wal")).expect("reads").map(|entry| entry.expect("reads").path()).collect();
    found.sort();
    found
}

/// Returns once sled has everything and is left alone, so that its files may be copied one after another.
async fn settle(store: &dyn OnlineStore) {
    assert_eq!(store.clear(&table("p", "nothing is here")).await.expect("clears"), 0);
}

/// Rows, a state and a position, all of which say which batch they are from.
fn batch(t: &Arc<Table>, number: i64) -> WriteBatch {
    let own = format!("own {number}");
    let value = [number as u8; 20];
    let of = || row(number, 0, &[("f", &value)]);
    let mut batch = rows(&[(t, &own, of()), (t, "shared", of())]);
    batch.states = contract::states(&[(t, "shared", Some(&value))]).states;
    batch.positions = vec![position(number)];
    batch
}

fn position(offset: i64) -> Position {
    Position { group: "g".into(), topic: "t".into(), partition: 0, offset, max_event: Timestamp(offset) }
}

/// The number of batches that are there, after a check that each is there whole.
async fn whole_batches(store: &dyn OnlineStore, t: &Arc<Table>, of: i64) -> i64 {
    let there = store.positions("g").await.expect("reads").first().map_or(0, |p| p.offset);
    for number in 1..=of {
        let expected = (number <= there).then(|| row(number, 0, &[("f", &[number as u8; 20])]));
        assert_eq!(get(store, t, &[&format!("own {number}")]).await, [expected], "batch {number} of {there}");
    }
    let last = (there > 0).then(|| row(there, 0, &[("f", &[there as u8; 20])]));
    assert_eq!(get(store, t, &["shared"]).await, [last]);
    let state = (there > 0).then(|| Bytes::from(vec![there as u8; 20]));
    assert_eq!(get_states(store, t, &["shared"]).await, [state]);
    there
}

/// The power goes with the last two batches on their way to the disk: any prefix of them may be there.
#[tokio::test]
async fn a_log_cut_anywhere_in_its_tail_keeps_what_was_synchronized() {
    let subject = OnDisk::new(0, Durability::Fsync);
    let (store, path, t) = (subject.store(), &subject.settings.path, table("p", "v"));
    settle(store).await;
    for number in 1..=3 {
        store.write(batch(&t, number)).await.expect("writes");
    }
    let segment = logged(path).pop().expect("a segment");
    let name = segment.file_name().expect("a name").to_owned();
    let acknowledged = fs::metadata(&segment).expect("is there").len();
    for number in 4..=5 {
        store.write(batch(&t, number)).await.expect("writes");
    }
    let whole = fs::metadata(&segment).expect("is there").len();
    let mut seen = Vec::new();
    for length in (acknowledged..=whole).step_by(7) {
        let copy = TempDir::new().expect("a directory");
        copy_directory(path, copy.path());
        let cut = copy.path().join("wal").join(&name);
        fs::File::options().write(true).open(cut).and_then(|f| f.set_len(length)).expect("cuts");
        let report = check(copy.path()).expect("checks");
        assert!(report.is_whole(), "{report:?}");
        for _ in 0..2 {
            let store = Store::open(settings(copy.path(), 0, Durability::Fsync)).expect("opens");
            let there = whole_batches(&store, &t, 5).await;
            assert!(there >= 3, "cut to {length} of {whole}: only {there} are there");
            seen.push(there);
            store.close().await.expect("closes");
        }
    }
    assert!([3, 4].iter().all(|n| seen.contains(n)), "{seen:?}");
}

/// What is in sled already is replayed once more, over newer and over older content of sled: both give
/// the end of the log.
#[tokio::test]
async fn a_replay_of_what_sled_has_changes_nothing() {
    let mut subject = OnDisk::new(0, Durability::Fsync);
    let (path, t) = (subject.settings.path.clone(), table("p", "v"));
    subject.store().write(batch(&t, 1)).await.expect("writes");
    // A correction: of equal times the later arrival counts, whatever is replayed how often.
    for value in [b"first", b"later"] {
        subject.store().write(rows(&[(&t, "corrected", row(9, 0, &[("f", value)]))])).await.expect("writes");
    }
    let removed = contract::states(&[(&t, "shared", None)]);
    subject.store().write(removed).await.expect("writes");
    subject.store().write(batch(&t, 2)).await.expect("writes");
    let log = TempDir::new().expect("a directory");
    copy_directory(&path.join("wal"), log.path());
    subject.store().close().await.expect("closes");
    // The crash came when sled had everything, and did not know yet that the log had been for nothing.
    fs::remove_dir_all(path.join("wal")).expect("removes");
    copy_directory(log.path(), &path.join("wal"));
    tamper(&path, |db| {
        db.remove(layout::TRIMMED_KEY).expect("removes");
    });
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    assert_eq!(whole_batches(subject.store(), &t, 2).await, 2);
    let later = row(9, 0, &[("f", b"later")]);
    assert_eq!(get(subject.store(), &t, &["corrected"]).await, [Some(later)]);
}

/// Removing a file is one of the things that a power loss may undo.
#[tokio::test]
async fn a_trimmed_segment_that_comes_back_is_not_replayed() {
    let mut subject = OnDisk::new(0, Durability::Fsync);
    let (path, t) = (subject.settings.path.clone(), table("p", "v"));
    subject.store().write(batch(&t, 1)).await.expect("writes");
    let log = TempDir::new().expect("a directory");
    copy_directory(&path.join("wal"), log.path());
    subject = subject.reopen().await;
    subject.store().write(batch(&t, 2)).await.expect("writes");
    settle(subject.store()).await;
    subject.store().close().await.expect("closes");
    copy_directory(log.path(), &path.join("wal"));
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    assert_eq!(whole_batches(subject.store(), &t, 2).await, 2);
}

#[tokio::test]
async fn a_missing_or_damaged_segment_is_an_error() {
    let subject = OnDisk::new(0, Durability::Fsync);
    let (store, path, t) = (subject.store(), &subject.settings.path, table("p", "v"));
    settle(store).await;
    for number in 1..=20 {
        store.write(batch(&t, number)).await.expect("writes");
    }
    let copied = || {
        let copy = TempDir::new().expect("a directory");
        copy_directory(path, copy.path());
        let segments = logged(copy.path());
        (copy, segments.last().expect("a segment").clone())
    };
    let refused = |path: &Path, word: &str| {
        let error = Store::open(settings(path, 0, Durability::Fsync)).err().expect("is refused");
        assert!(matches!(&error, Error::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
        let report = check(path).expect("checks");
        assert!(!report.is_whole() && report.named.iter().any(|n| n.contains(word)), "{report:?}");
    };

    let (copy, _) = copied();
    fs::remove_dir_all(copy.path().join("wal")).expect("removes");
    fs::create_dir(copy.path().join("wal")).expect("creates");
    refused(copy.path(), "is missing");

    let (copy, segment) = copied();
    let mut bytes = fs::read(&segment).expect("reads");
    bytes[60] ^= 1;
    fs::write(&segment, bytes).expect("writes");
    refused(copy.path(), "is damaged at byte");
}

/// The format before had no log: it is brought up to date, and nothing of it is lost.
#[tokio::test]
async fn a_store_without_a_log_is_brought_up_to_date() {
    let mut subject = OnDisk::new(0, Durability::Fsync);
    let (path, t) = (subject.settings.path.clone(), table("p", "v"));
    subject.store().write(batch(&t, 1)).await.expect("writes");
    subject.store().close().await.expect("closes");
    tamper(&path, |db| {
        db.remove(layout::TRIMMED_KEY).expect("removes");
        let key = layout::FORMAT_KEY;
        db.insert(key, layout::seal(key, &1u32.to_le_bytes())).expect("writes");
    });
    fs::remove_dir_all(path.join("wal")).expect("removes");
    fs::write(path.join("larder-format"), "1\n").expect("writes");
    for number in 1..3 {
        subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
        assert_eq!(whole_batches(subject.store(), &t, 2).await, number);
        subject.store().write(batch(&t, 2)).await.expect("writes");
        subject.store().close().await.expect("closes");
    }
    assert_eq!(fs::read_to_string(path.join("larder-format")).expect("reads").trim(), "4");
}

/// However much is written, what waits for sled in memory and in the log stays bounded.
#[tokio::test]
async fn what_waits_for_sled_is_bounded() {
    const LIMIT: u64 = 20_000;
    let subject = OnDisk::with(|path| Settings { log_bytes: LIMIT, ..settings(path, 0, Durability::Flush) });
    let (store, t) = (subject.store.as_ref().expect("open"), table("p", "v"));
    let one = rows(&[(&t, "a", row(1, 0, &[("f", &[7; 200])]))]);
    store.write(one).await.expect("writes");
    let each = fs::metadata(&logged(&subject.settings.path)[0]).expect("is there").len();
    for number in 0..500 {
        let name = format!("k{number}");
        store.write(rows(&[(&t, &name, row(1, 0, &[("f", &[7; 200])]))])).await.expect("writes");
        let bytes = store.shared.overlay.active().bytes() as u64;
        assert!(bytes < LIMIT + 1000, "{bytes}");
        let log: u64 =
            logged(&subject.settings.path).iter().filter_map(|p| fs::metadata(p).ok()).map(|m| m.len()).sum();
        assert!(log < 2 * LIMIT + 3 * each, "{log}");
    }
    // Overwriting one key fills the log, and leaves one entry.
    for number in 0..500 {
        store.write(rows(&[(&t, "k0", row(number, 0, &[("f", &[7; 200])]))])).await.expect("writes");
    }
    assert_eq!(get(store, &t, &["k0"]).await[0].as_ref().map(|r| r.newest().event), Some(Timestamp(499)));
}
