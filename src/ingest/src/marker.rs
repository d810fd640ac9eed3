//! Which definition a windowed view's state was built under: kept beside the state, checked before
//! any message is applied. Knows no Kafka client.
//!
//! The marker is a state row in the reserved table [`TABLE`] of the view's project, under the name of
//! the view's own table.

use std::sync::Arc;

use bytes::Bytes;
use model::ports::{OnlineStore, Position, Read, StateWrite, Table, WriteBatch};
use model::value::proto_value::Val;
use model::{EntityKey, Result, Timestamp, Value};

use crate::error::Stop;
use crate::feed::Feed;
use crate::pipeline::stored_progress;

/// The view name under which markers are kept; no Feast view is named so.
pub const TABLE: &str = "__larder_ingest";

/// The offset of a position that counts as none.
const FORGOTTEN: i64 = -1;

/// Holds the view's state against its definition before its consumer starts; the first start sets
/// the marker, and clears what an unfinished [`forget`] left.
pub(crate) async fn check(feed: &Feed, store: &dyn OnlineStore) -> Result<(), Stop> {
    let Some(definition) = feed.definition() else { return Ok(()) };
    let view = &feed.view;
    let failed = |e: model::Error| Stop::Restart(format!("the online store, at the start of the consumer: {e}"));
    let (table, key) = place(&view.table).map_err(failed)?;
    let reads = [Read { table: Arc::clone(&table), keys: vec![key.clone()] }];
    let found = store.read_states(&reads).await.map_err(failed)?;
    match found.into_iter().flatten().next().flatten() {
        Some(bytes) if bytes == definition.as_bytes() => Ok(()),
        Some(bytes) => Err(Stop::Blocked(format!(
            "the definition of its windows changed since its state was built (it was [{}], it is [{definition}]), and \
             state of one definition cannot be continued under another: rebuild its state from its batch source \
             (`larder backfill`), apply the old definition again, register the new one under another name, or delete \
             the view (`feast feature-views delete`, or leave it out and \
             `feast apply`) and apply it again, which rebuilds its state from the stream",
            String::from_utf8_lossy(&bytes)
        ))),
        None => {
            // a backfill's state is there before its stream
            let backfilled = view.reading.cut_over_us.is_some();
            if !backfilled && stored_progress(feed, store).await.map_err(failed)?.is_empty() {
                store.clear(&view.table).await.map_err(failed)?;
            }
            let state = Some(Bytes::from(definition));
            let states = vec![StateWrite { table, key, state }];
            store.write(WriteBatch { states, ..WriteBatch::default() }).await.map_err(failed)?;
            Ok(())
        }
    }
}

/// Removes what a deleted view leaves beside its rows and states, which are left to whoever deleted it:
/// its group's positions and its marker, together.
pub(crate) async fn forget(store: &dyn OnlineStore, table: &Table, group: &str) -> Result<()> {
    let (markers, key) = place(table)?;
    let positions = store.positions(group).await?;
    let positions: Vec<Position> =
        positions.into_iter().map(|p| Position { offset: FORGOTTEN, max_event: Timestamp::MIN, ..p }).collect();
    let states = vec![StateWrite { table: markers, key, state: None }];
    store.write(WriteBatch { positions, states, ..WriteBatch::default() }).await?;
    Ok(())
}

fn place(of: &Table) -> Result<(Arc<Table>, EntityKey)> {
    let name = Value { val: Some(Val::StringVal(of.view.clone())) };
    let table = Table::new(&of.project, TABLE);
    Ok((Arc::new(table), EntityKey::encode(&[("view", &name)])?))
}
