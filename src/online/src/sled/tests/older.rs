//! Stores of older formats: what they have in the tree, and in runs of states, is served, and what is newer counts.

use super::*;

/// Makes a closed store one of an older format, whose tree has these.
fn make_older(path: &Path, format: u32, in_tree: &[(Vec<u8>, Vec<u8>)]) {
    tamper(path, |db| {
        for (key, payload) in in_tree {
            db.insert(key.as_slice(), layout::seal(key, payload)).expect("writes");
        }
        let key = layout::FORMAT_KEY;
        db.insert(key, layout::seal(key, &format.to_le_bytes())).expect("writes");
        if format == 1 {
            db.remove(layout::TRIMMED_KEY).expect("removes");
        }
    });
    if format == 1 {
        fs::remove_dir_all(path.join("wal")).expect("removes");
    }
    if format == 3 {
        fs::rename(path.join("runs"), path.join("states")).expect("renames");
    } else {
        fs::remove_dir_all(path.join("runs")).expect("removes");
    }
    fs::write(path.join("larder-format"), format!("{format}\n")).expect("writes");
}

async fn all(store: &dyn OnlineStore, t: &Arc<Table>, names: &[&str]) -> (Vec<Option<i64>>, Vec<Option<Bytes>>) {
    let versions = get(store, t, names).await.into_iter().map(|row| row.map(|row| row.newest().event.0));
    (versions.collect(), get_states(store, t, names).await)
}

#[tokio::test]
async fn stores_of_all_formats_open_and_what_is_newer_counts() {
    for format in layout::OLDER_FORMATS {
        let settings = |path: &Path| Settings { log_bytes: 3000, ..settings(path, 500, Durability::Flush) };
        let mut subject = OnDisk::with(settings);
        let tables = ["a", "b"].map(|view| table("p", view));
        let names: Vec<String> = (0..40).map(|number| format!("entity {number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (even, odd): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.len() % 2 == 0);
        let mut in_tree = Vec::new();
        for t in &tables {
            for name in &even {
                let row = row(10, 0, &[("f", b"old")]);
                in_tree.push((entity_key(Kind::Row, t, name), row.as_bytes().to_vec()));
                if format < 3 {
                    in_tree.push((entity_key(Kind::State, t, name), b"old".to_vec()));
                } else {
                    subject.store().write(contract::states(&[(t, name, Some(b"old"))])).await.expect("writes");
                }
            }
        }
        subject.store().close().await.expect("closes");
        make_older(&subject.settings.path, format, &in_tree);
        let whole = check(&subject.settings.path).expect("checks");
        let each = 2 * even.len() as u64;
        assert!(whole.is_whole(), "{whole:?}");
        assert_eq!((whole.rows, whole.states), (each, each), "format {format}");

        subject.store = Some(Store::open(subject.settings.clone()).expect("opens"));
        let old = || Some(Bytes::from("old"));
        let store = subject.store();
        assert_eq!(all(store, &tables[0], &even).await, (vec![Some(10); even.len()], vec![old(); even.len()]));
        assert_eq!(all(store, &tables[0], &odd).await, (vec![None; odd.len()], vec![None; odd.len()]));
        // the first is older than what the tree has, the second newer, the third there was none of
        let (first, second) = (even[0], even[1]);
        for (name, event) in [(first, 5), (second, 20), (odd[0], 1)] {
            let written = store.write(rows(&[(&tables[0], name, row(event, 0, &[("f", b"new")]))])).await;
            assert_eq!(written.expect("writes").applied, usize::from(event != 5), "{name}");
        }
        store
            .write(contract::states(&[(&tables[0], first, None), (&tables[0], second, Some(b"new"))]))
            .await
            .expect("writes");
        for _ in 0..3 {
            let store = subject.store();
            let expected = (vec![Some(10), Some(20), Some(1)], vec![None, Some("new".into()), None]);
            assert_eq!(all(store, &tables[0], &[first, second, odd[0]]).await, expected, "format {format}");
            assert_eq!(all(store, &tables[1], &even).await, (vec![Some(10); even.len()], vec![old(); even.len()]));
            subject = subject.reopen().await;
        }
        assert_eq!(fs::read_to_string(subject.settings.path.join("larder-format")).expect("reads").trim(), "4");
        assert!(!subject.settings.path.join("states").exists());

        // what is written goes out of the tree, and so does what is cleared
        for t in &tables {
            assert!(subject.store().clear(t).await.expect("clears") >= each - 1);
        }
        subject = subject.reopen().await;
        for t in &tables {
            assert_eq!(all(subject.store(), t, &names).await, (vec![None; names.len()], vec![None; names.len()]));
        }
        let in_tree = subject.store.as_ref().expect("is open").shared.runs.in_tree();
        assert_eq!(in_tree, runs::InTree { rows: false, states: false }, "format {format}");
    }
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
        assert!(matches!(&error, Error::Format { found, expected: 4, .. } if found.contains('7')), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

/// A table of many rows and states, in runs, in the tree of an older store and in the log, goes; its neighbours stay.
#[tokio::test]
async fn rows_and_states_are_cleared_wherever_they_are() {
    const EACH: usize = 3000;
    let mut subject = OnDisk::with(|path| Settings { log_bytes: 200_000, ..settings(path, 0, Durability::Flush) });
    let tables = ["a", "b", "c"].map(|view| table("p", view));
    let names: Vec<String> = (0..EACH).map(|n| format!("entity {n}")).collect();
    subject.store().close().await.expect("closes");
    let old_row = row(1, 0, &[("f", b"in the tree")]);
    let of = |t| {
        [(Kind::Row, old_row.as_bytes().to_vec()), (Kind::State, b"in the tree".to_vec())]
            .map(|(kind, payload)| (entity_key(kind, t, "old"), payload))
    };
    make_older(&subject.settings.path, 2, &tables.each_ref().map(|t| of(t)).concat());
    subject.store = Some(Store::open(subject.settings.clone()).expect("opens an older store"));
    for round in 0..12u8 {
        for t in &tables {
            let some: Vec<_> = names[usize::from(round) * EACH / 12..].iter().take(EACH / 6).collect();
            let states: Vec<_> = some.iter().map(|name| (t, name.as_str(), Some([round; 40]))).collect();
            let states: Vec<_> = states.iter().map(|(t, n, v)| (*t, *n, v.as_ref().map(|v| &v[..]))).collect();
            let mut batch = contract::states(&states);
            let new = row(i64::from(round), 0, &[("f", &[round; 30])]);
            batch.rows = rows(&some.iter().map(|name| (t, name.as_str(), new.clone())).collect::<Vec<_>>()).rows;
            subject.store().write(batch).await.expect("writes");
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["old"]).collect();
    let there = async |store: &dyn OnlineStore, t: &Arc<Table>| {
        let rows = get(store, t, &names).await.iter().flatten().count();
        (rows, get_states(store, t, &names).await.iter().flatten().count())
    };
    assert_eq!(there(subject.store(), &tables[1]).await, (EACH + 1, EACH + 1));
    assert_eq!(subject.store().clear(&tables[1]).await.expect("clears"), 2 * (EACH as u64 + 1));
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!([there(store, &tables[0]).await, there(store, &tables[2]).await], [(EACH + 1, EACH + 1); 2]);
        assert_eq!(there(store, &tables[1]).await, (0, 0));
        assert_eq!(store.clear(&tables[1]).await.expect("clears"), 0);
        subject = subject.reopen().await;
    }
    subject.store().close().await.expect("closes");
    let report = check(&subject.settings.path).expect("checks");
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.rows, report.states), (2 * (EACH as u64 + 1), 2 * (EACH as u64 + 1)));
    let error = fs::remove_dir_all(subject.settings.path.join("runs"));
    assert!(error.is_ok());
    let error = Store::open(subject.settings.clone()).err().expect("is refused");
    assert!(matches!(&error, Error::Damaged { .. }) && error.to_string().contains("window states"), "{error:?}");
    let report = check(&subject.settings.path).expect("checks");
    assert!(!report.is_whole(), "{report:?}");
}
