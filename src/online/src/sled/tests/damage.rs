//! What damaged files give: errors that name what is damaged, and never a wrong value.

use super::*;

fn flip_last_bit(db: &::sled::Db, key: &[u8]) {
    let mut value = db.get(key).expect("reads").expect("is there").to_vec();
    *value.last_mut().expect("not empty") ^= 1;
    db.insert(key, value).expect("writes");
}

/// Changes a bit in the block of a table's first keys, in the only run.
fn flip_in_run(path: &Path, key: &[u8]) {
    let mut files = fs::read_dir(path.join("runs")).expect("reads");
    let run = files.next().expect("a run").expect("reads").path();
    assert!(files.next().is_none());
    let mut bytes = fs::read(&run).expect("reads");
    let prefix = layout::split(key).0;
    let at = bytes.windows(prefix.len()).position(|window| window == prefix).expect("is there");
    bytes[at + prefix.len() + 4] ^= 1;
    fs::write(&run, bytes).expect("writes");
}

#[tokio::test]
async fn a_damaged_value_is_an_error_and_never_a_value() {
    let mut subject = OnDisk::new(1 << 20, Durability::Fsync);
    let t = table("proj", "the_view");
    let rows_of_another = table("proj", "another_view");
    let of = |n| row(n, 0, &[("f", b"x")]);
    let mut batch = rows(&[(&t, "good", of(1)), (&t, "bad", of(1)), (&rows_of_another, "good", of(1))]);
    batch.states = contract::states(&[(&t, "good", Some(b"s")), (&t, "bad", Some(b"s"))]).states;
    let position =
        Position { group: "g".into(), topic: "t".into(), partition: 3, offset: 1, max_event: model::Timestamp(0) };
    batch.positions = vec![position.clone()];
    subject.store().write(batch).await.expect("writes");
    subject.store().close().await.expect("closes");
    let whole = check(&subject.settings.path).expect("checks");
    assert!(whole.is_whole());
    assert_eq!((whole.rows, whole.states, whole.positions), (3, 2, 1));

    tamper(&subject.settings.path, |db| flip_last_bit(db, &layout::position_key(&position)));
    // The rows of the view are in one block, and so are its states.
    for kind in [Kind::Row, Kind::State] {
        flip_in_run(&subject.settings.path, &entity_key(kind, &t, ""));
    }
    let report = check(&subject.settings.path).expect("checks");
    assert_eq!((report.rows, report.states, report.positions, report.damaged), (1, 0, 0, 3), "{report:?}");
    assert!(report.named.iter().any(|n| n.contains("'the_view' in project 'proj'")), "{report:?}");
    assert!(report.named.iter().any(|n| n.contains("partition 3 of topic 't'")), "{report:?}");

    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    let store = subject.store();
    assert_eq!(get(store, &rows_of_another, &["good"]).await, [Some(of(1))]);
    let reads = |name| [Read { table: Arc::clone(&t), keys: vec![key("good"), key(name)] }];
    let errors = [
        store.read(&reads("bad")).await.err(),
        store.read(&reads("bad")).await.err(),
        store.read(&reads("good")).await.err(),
        store.read_states(&reads("bad")).await.err(),
        store.read_states(&reads("good")).await.err(),
        store.write(rows(&[(&t, "fine", of(1)), (&t, "bad", of(2))])).await.err(),
    ];
    for error in errors {
        let error = error.expect("an error");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("view 'the_view' in project 'proj'"), "{error}");
    }
    let another = rows(&[(&rows_of_another, "fine", of(1)), (&t, "bad", of(2))]);
    assert_eq!(store.write(another).await.expect_err("an error").kind(), ErrorKind::Internal);
    assert_eq!(get(store, &rows_of_another, &["fine"]).await, [None], "the failed batch left nothing");
    assert_eq!(store.positions("g").await.expect_err("an error").kind(), ErrorKind::Internal);

    store.clear(&t).await.expect("clears");
    store.write(rows(&[(&t, "bad", of(2))])).await.expect("is healed");
    assert_eq!(get(store, &t, &["bad"]).await, [Some(of(2))]);
    assert_eq!(get(store, &t, &["good"]).await, [None]);
    assert_eq!(get_states(store, &t, &["good", "bad"]).await, [None, None], "and so are the states");
    let store = subject.store.take().expect("is open");
    store.close().await.expect("closes");
    let report = check(&subject.settings.path).expect("checks");
    assert_eq!((report.rows, report.states, report.damaged), (2, 0, 1), "the position is left: {report:?}");
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
    flip_in_run(&subject.settings.path, &entity_key(Kind::State, &tables[1], ""));
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

/// Of two views that are damaged in one run each is healed by clearing it, whichever is first.
#[tokio::test]
async fn damage_to_two_tables_of_one_run_is_healed_one_by_one() {
    let mut subject = OnDisk::new(0, Durability::Flush);
    let tables = ["a", "b", "c"].map(|view| table("p", view));
    let all: Vec<_> = tables.iter().map(|t| (t, "one", row(1, 0, &[("f", b"x")]))).collect();
    subject.store().write(rows(&all)).await.expect("writes");
    subject.store().close().await.expect("closes");
    for t in [&tables[0], &tables[2]] {
        flip_in_run(&subject.settings.path, &entity_key(Kind::Row, t, ""));
    }
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
    for (cleared, damaged) in [(2, Some(0)), (0, None)] {
        subject.store().clear(&tables[cleared]).await.expect("clears");
        for _ in 0..2 {
            let store = subject.store();
            assert_eq!(get(store, &tables[cleared], &["one"]).await, [None]);
            assert!(get(store, &tables[1], &["one"]).await[0].is_some());
            if let Some(damaged) = damaged {
                let read = [Read { table: Arc::clone(&tables[damaged]), keys: vec![key("one")] }];
                assert_eq!(store.read(&read).await.expect_err("an error").kind(), ErrorKind::Internal);
            }
            subject = subject.reopen().await;
        }
    }
    subject.store().close().await.expect("closes");
    assert!(check(&subject.settings.path).expect("checks").is_whole());
}
