//! The contract of [`OnlineStore`]: what every store must do, whatever it keeps its rows in. Knows no
//! store; give [`run_all`] something that makes empty ones.
//!
//! Everything here panics where a store breaks the contract, as a test does.

mod cases;
mod random;

use std::sync::Arc;

use bytes::Bytes;
use model::ports::{OnlineStore, Read, RowWrite, StateWrite, Table, WriteBatch};
use model::row::{Column, Version, column_id};
use model::value::{Value, proto_value::Val};
use model::{EntityKey, Row, Timestamp};
use prost::Message;

/// A store under test.
pub trait Subject: Sized {
    /// The store.
    fn store(&self) -> &dyn OnlineStore;

    /// Closes the store and opens it again, where it outlives that; else gives the same store.
    fn reopen(self) -> impl Future<Output = Self>;
}

/// Runs the whole suite; `make` makes a new, empty store each time.
///
/// # Panics
/// Where the store breaks the contract.
pub async fn run_all<S: Subject>(make: impl Fn() -> S + Sync) {
    cases::nothing_is_there_at_first(make().store()).await;
    cases::answers_have_the_shape_of_the_reads(make().store()).await;
    cases::later_versions_win(make().store()).await;
    cases::equal_versions_are_corrections(make().store()).await;
    cases::stale_rows_are_counted(make().store()).await;
    cases::partial_rows_merge_by_column(make().store()).await;
    cases::parts_of_tables_are_read_as_of_the_whole(make().store()).await;
    cases::times_are_kept_to_the_microsecond(make().store()).await;
    cases::every_kind_of_value_is_kept(make().store()).await;
    cases::states_are_set_and_removed(make().store()).await;
    cases::positions_are_kept_by_group(make().store()).await;
    cases::everything_outlives_reopening(make()).await;
    cases::clearing_leaves_other_tables(make().store()).await;
    cases::large_values_are_kept(make()).await;
    cases::large_batches_are_kept(make()).await;
    cases::concurrent_writers_end_with_the_greatest(make().store()).await;
    std::thread::scope(|scope| {
        scope.spawn(|| random::run(&make)).join().expect("the random batches agree with the oracle");
    });
}

/// The features of every [`table`].
pub const FEATURES: [&str; 3] = ["f", "g", "h"];

/// A table.
pub fn table(project: &str, view: &str) -> Arc<Table> {
    Arc::new(Table::with_features(project, view, FEATURES))
}

/// An entity's key.
///
/// # Panics
/// Never: text can be part of a key.
pub fn key(name: &str) -> EntityKey {
    let name = Value { val: Some(Val::StringVal(name.into())) };
    EntityKey::encode(&[("entity", &name)]).expect("text can be part of a key")
}

/// A value's bytes as a row keeps them: null where there are none.
pub fn value(bytes: &[u8]) -> Bytes {
    let val = (!bytes.is_empty()).then(|| Val::BytesVal(bytes.to_vec()));
    Value { val }.encode_to_vec().into()
}

/// A row in which every column has the same event and created time, in µs.
pub fn row(event: i64, created: i64, columns: &[(&str, &[u8])]) -> Row {
    let version = Version { event: Timestamp(event), created: Timestamp(created) };
    let column = |(name, bytes): &(&str, &[u8])| Column { id: column_id(name), value: value(bytes), version };
    Row::pack(columns.iter().map(column).collect())
}

/// A batch of rows.
pub fn rows(writes: &[(&Arc<Table>, &str, Row)]) -> WriteBatch {
    let write = |(table, name, row): &(&Arc<Table>, &str, Row)| RowWrite {
        table: Arc::clone(table),
        key: key(name),
        row: row.clone(),
    };
    WriteBatch { rows: writes.iter().map(write).collect(), ..WriteBatch::default() }
}

/// A window state to set, or `None` to remove it.
pub type State<'a> = (&'a Arc<Table>, &'a str, Option<&'a [u8]>);

/// A batch of window states.
pub fn states(writes: &[State<'_>]) -> WriteBatch {
    let write = |(table, name, state): &State<'_>| StateWrite {
        table: Arc::clone(table),
        key: key(name),
        state: state.map(Bytes::copy_from_slice),
    };
    WriteBatch { states: writes.iter().map(write).collect(), ..WriteBatch::default() }
}

/// Reads some rows of a table.
///
/// # Panics
/// Where the store fails.
pub async fn get(store: &dyn OnlineStore, table: &Arc<Table>, names: &[&str]) -> Vec<Option<Row>> {
    let read = Read { table: Arc::clone(table), keys: names.iter().map(|n| key(n)).collect() };
    store.read(&[read]).await.expect("reads").remove(0)
}

/// Reads some window states of a table.
///
/// # Panics
/// Where the store fails.
pub async fn get_states(store: &dyn OnlineStore, table: &Arc<Table>, names: &[&str]) -> Vec<Option<Bytes>> {
    let read = Read { table: Arc::clone(table), keys: names.iter().map(|n| key(n)).collect() };
    store.read_states(&[read]).await.expect("reads").remove(0)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
