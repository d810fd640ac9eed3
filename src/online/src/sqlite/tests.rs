//! The contract on an SQLite file, and what is SQLite's own: Feast's tables and times, other processes
//! in the file, files that are none.

use model::ports::StateWrite;
use model::row::{Column, Version, column_id};
use rusqlite::params;
use rusqlite::types::Value as Sql;
use tempfile::TempDir;

use super::*;
use crate::contract::{Subject, get, get_states, key, row, rows, run_all, states, table, value};

/// A store in a directory of its own.
struct InFile {
    store: Store,
    dir: TempDir,
}

impl InFile {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        Self { store: Store::open(Settings::new(dir.path().join("data/online.db"))).expect("opens"), dir }
    }

    /// Another connection to the file, as another process has one.
    fn other(&self) -> Connection {
        Connection::open(self.dir.path().join("data/online.db")).expect("opens")
    }
}

impl Subject for InFile {
    fn store(&self) -> &dyn OnlineStore {
        &self.store
    }

    async fn reopen(self) -> Self {
        self.store.close().await.expect("closes");
        let store = Store::open(Settings::new(self.dir.path().join("data/online.db"))).expect("opens again");
        Self { store, dir: self.dir }
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    run_all(InFile::new).await;
}

#[tokio::test]
async fn only_what_is_asked_for_is_read() {
    let (file, t) = (InFile::new(), table("p", "v"));
    let whole = row(10, 1, &[("f", b"f"), ("g", b"g"), ("h", b"h")]);
    file.store.write(rows(&[(&t, "a", whole)])).await.expect("writes");
    let found = get(&file.store, &t.part(&[column_id("g")]), &["a"]).await;
    assert_eq!(found, [Some(row(10, 1, &[("g", b"g")]))]);
}

#[tokio::test]
async fn a_table_is_one_views() {
    let file = InFile::new();
    let (first, second) = (table("a_b", "c"), table("a", "b_c"));
    as_feast(&file.other(), &layout::table_name(&first), &[("k", "f", b"feast", 1)]);
    assert!(get(&file.store, &second, &["k"]).await[0].is_some(), "nobody knows whose it is");
    let batch = |t| rows(&[(t, "k", row(2_000_000, 1, &[("f", b"f")]))]);
    file.store.write(batch(&first)).await.expect("writes");
    let read = Read { table: second.clone(), keys: vec![key("k")] };
    let refusals = [file.store.write(batch(&second)).await.map(|_| ()), file.store.read(&[read]).await.map(|_| ())];
    for refused in refusals {
        let error = refused.expect_err("another view's");
        assert_eq!(error.kind(), Kind::Conflict);
        for part in ["feature view b_c of project a ", "feature view c of project a_b", "a_b_c"] {
            assert!(error.message().contains(part), "{error}");
        }
    }
    assert_eq!(file.store.clear(&second).await.expect("nothing to do"), 0);
    assert_eq!(get(&file.store, &first, &["k"]).await, [Some(row(2_000_000, 1, &[("f", b"f")]))]);
    assert_eq!(file.store.clear(&first).await.expect("clears"), 1);
    file.store.write(batch(&second)).await.expect("it is nobody's any more");
}

/// What `feast apply` and a write of Feast's leave behind (`SqliteOnlineStore.update`, `online_write_batch`).
fn as_feast(connection: &Connection, name: &str, rows: &[(&str, &str, &[u8], i64)]) {
    connection
        .execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {name} (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, \
             vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY(entity_key, feature_name))"
        ))
        .expect("creates");
    for (entity, feature, bytes, at) in rows {
        connection
            .execute(
                &format!(
                    "INSERT INTO {name} (entity_key, feature_name, value, value_text, event_ts, created_ts) \
                     VALUES (?1, ?2, ?3, NULL, ?4, NULL) ON CONFLICT(entity_key, feature_name) DO UPDATE SET \
                     value = excluded.value, event_ts = excluded.event_ts, created_ts = excluded.created_ts"
                ),
                params![key(entity).as_bytes(), feature, &value(bytes)[..], at],
            )
            .expect("inserts");
    }
}

fn at(seconds: i64) -> i64 {
    layout::to_feast(Timestamp::from_seconds(seconds))
}

#[tokio::test]
async fn what_feast_writes_is_read_while_it_writes() {
    let (subject, t) = (InFile::new(), table("shop", "users"));
    assert_eq!(get(&subject.store, &t, &["anna"]).await, [None], "there is no table yet");
    let feast = subject.other();
    as_feast(&feast, "shop_users", &[("anna", "f", b"x", at(5)), ("anna", "gone", b"x", at(5))]);
    let stored = get(&subject.store, &t, &["anna", "berta"]).await;
    let version = Version { event: Timestamp(5_000_000), created: Timestamp(0) };
    assert_eq!(stored[0].as_ref().and_then(|r| r.get(column_id("f"))), Some((value(b"x"), version)));
    assert_eq!(stored[1], None);

    // Ours to the microsecond, in Feast's second; then Feast's again.
    let written = subject.store.write(rows(&[(&t, "anna", row(7_654_321, 9, &[("f", b"y")]))])).await;
    assert_eq!(written.expect("writes").applied, 1);
    let f = async || get(&subject.store, &t, &["anna"]).await.remove(0).and_then(|r| r.get(column_id("f")));
    let version = Version { event: Timestamp(7_654_321), created: Timestamp(9) };
    assert_eq!(f().await, Some((value(b"y"), version)));
    as_feast(&feast, "shop_users", &[("anna", "f", b"z", at(9))]);
    let version = Version { event: Timestamp(9_000_000), created: Timestamp(0) };
    assert_eq!(f().await, Some((value(b"z"), version)));
    let stale = subject.store.write(rows(&[(&t, "anna", row(8_999_999, 9, &[("f", b"w")]))])).await;
    assert_eq!(stale.expect("writes").stale, [0]);

    feast.execute_batch("DROP TABLE shop_users").expect("feast apply drops a deleted view's table");
    assert_eq!(get(&subject.store, &t, &["anna"]).await, [None]);
}

#[tokio::test]
async fn rows_are_feasts() {
    let (subject, t) = (InFile::new(), table("shop", "users"));
    let text = Bytes::from(prost::Message::encode_to_vec(&model::value::Value {
        val: Some(model::value::proto_value::Val::DoubleVal(1e16)),
    }));
    let version = Version { event: Timestamp(5_500_000), created: Timestamp(6_000_000) };
    let column = |name: &str, value: Bytes, created| Column {
        id: column_id(name),
        value,
        version: Version { created: Timestamp(created), ..version },
    };
    let one = Row::pack(vec![column("f", text.clone(), 6_000_000), column("g", Bytes::new(), 0)]);
    subject.store.write(rows(&[(&t, "anna", one)])).await.expect("writes");
    let other = subject.other();
    let mut select = other
        .prepare("SELECT feature_name, value, value_text, event_ts, created_ts FROM shop_users ORDER BY 1")
        .expect("Feast's columns are there");
    let read = |row: &rusqlite::Row<'_>| (0..5).map(|n| row.get(n)).collect::<rusqlite::Result<Vec<Sql>>>();
    let stored: Vec<_> = select.query_map([], read).expect("reads").collect::<rusqlite::Result<_>>().expect("reads");
    let (blob, name) = (Sql::Blob, |name: &str| Sql::Text(name.into()));
    let f = [name("f"), blob(text.to_vec()), name("1e+16"), Sql::Integer(at(5)), Sql::Integer(at(6))];
    let g = [name("g"), blob(vec![]), Sql::Null, Sql::Integer(at(5)), Sql::Null];
    assert_eq!(stored, [f.to_vec(), g.to_vec()]);
}

#[tokio::test]
async fn a_batch_that_cannot_be_written_whole_is_not_written() {
    let (subject, t) = (InFile::new(), table("shop", "users"));
    let unknown = Column { id: column_id("unknown"), value: value(b"x"), version: Version::default() };
    let mut batch = rows(&[(&t, "anna", row(5, 0, &[("f", b"x")])), (&t, "berta", Row::pack(vec![unknown]))]);
    batch.states = states(&[(&t, "anna", Some(b"state"))]).states;
    // A sound batch in the same transaction is not drawn in.
    let sound = WriteBatch {
        states: vec![StateWrite { table: t.clone(), key: key("carla"), state: Some(Bytes::from("state")) }],
        ..WriteBatch::default()
    };
    let (failed, written) = tokio::join!(subject.store.write(batch), subject.store.write(sound));
    let error = failed.expect_err("no feature of the view has this column id");
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.message().contains(&format!("{:#010x}", column_id("unknown"))), "{error}");
    written.expect("writes");
    assert_eq!(get(&subject.store, &t, &["anna"]).await, [None]);
    assert_eq!(get_states(&subject.store, &t, &["anna", "carla"]).await, [None, Some(Bytes::from("state"))]);
}

#[tokio::test]
async fn another_writer_is_waited_for_and_then_named() {
    let dir = TempDir::new().expect("a directory");
    let settings = Settings { busy_timeout: Duration::from_millis(50), ..Settings::new(dir.path().join("online.db")) };
    let (store, t) = (Store::open(settings.clone()).expect("opens"), table("shop", "users"));
    let other = Connection::open(&settings.path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("begins");
    let one = row(5, 0, &[("f", b"x")]);
    let error = store.write(rows(&[(&t, "anna", one.clone())])).await.expect_err("is locked");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("online.db") && error.message().contains("try again later"), "{error}");
    assert_eq!(get(&store, &t, &["anna"]).await, [None], "readers do not wait");
    other.execute_batch("ROLLBACK").expect("ends");
    assert_eq!(store.write(rows(&[(&t, "anna", one)])).await.expect("writes").applied, 1);
}

#[tokio::test]
async fn a_file_that_was_deleted_is_not_written() {
    let (subject, t) = (InFile::new(), table("shop", "users"));
    let one = || rows(&[(&t, "anna", row(5, 0, &[("f", b"x")]))]);
    subject.store.write(one()).await.expect("writes");
    // what `feast teardown` does
    std::fs::remove_file(subject.dir.path().join("data/online.db")).expect("deletes");
    let read = [Read { table: t.clone(), keys: vec![key("anna")] }];
    let errors = [
        subject.store.write(one()).await.expect_err("is gone"),
        subject.store.read(&read).await.expect_err("is gone"),
        subject.store.clear(&t).await.expect_err("is gone"),
    ];
    for error in errors {
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("online.db") && error.message().contains("restart Larder"), "{error}");
    }
    let again = Store::open(Settings::new(subject.dir.path().join("data/online.db"))).expect("opens");
    assert_eq!(get(&again, &t, &["anna"]).await, [None]);
    assert_eq!(again.write(one()).await.expect("writes").applied, 1);
}

#[tokio::test]
async fn nothing_is_answered_after_closing() {
    let (subject, t) = (InFile::new(), table("shop", "users"));
    let one = row(5, 0, &[("f", b"x")]);
    subject.store.write(rows(&[(&t, "anna", one.clone())])).await.expect("writes");
    subject.store.close().await.expect("closes");
    let error = subject.store.write(rows(&[(&t, "anna", one)])).await.expect_err("is closed");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(subject.store.positions("g").await.is_err());
    assert!(subject.store.clear(&t).await.is_err());
    subject.store.close().await.expect("may be closed again");
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("online.db");
    std::fs::write(&path, "a letter to my aunt, longer than a header of SQLite's: ".repeat(40)).expect("writes");
    let error = Store::open(Settings::new(&path)).err().expect("is refused");
    assert!(error.kind() == Kind::Internal && error.message().contains("online.db"), "{error}");
    std::fs::remove_file(&path).expect("removes");
    std::fs::create_dir(&path).expect("creates");
    assert_eq!(Store::open(Settings::new(&path)).err().map(|e| e.kind()), Some(Kind::Unavailable));
}
