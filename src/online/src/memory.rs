//! The online store in memory: for tests, and for `online_store: memory`, where nothing outlives the
//! process. Knows no disk; every write is visible at once and whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use model::ports::{BoxFuture, OnlineStore, Position, Read, Table, WriteBatch, Written};
use model::{EntityKey, Result, Row, row};

use crate::metrics::Traffic;

type Tables<V> = HashMap<Table, HashMap<EntityKey, V>>;

#[derive(Default)]
struct Content {
    rows: Tables<Row>,
    states: Tables<Bytes>,
    positions: BTreeMap<(String, String, i32), Position>,
}

/// An online store that forgets everything when it is dropped. Reads share a lock, a write holds it
/// while it is applied.
pub struct Store {
    content: RwLock<Content>,
    traffic: Traffic,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self { content: RwLock::default(), traffic: Traffic::new("memory") }
    }

    fn content(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, batch: WriteBatch) -> Written {
        let mut written = Written::default();
        let states = batch.states.len();
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        for (at, write) in (0..).zip(batch.rows) {
            let rows = table(&mut content.rows, &write.table);
            if let Some(merged) = row::merge(rows.get(&write.key), &write.row) {
                rows.insert(write.key, merged);
                written.applied += 1;
            } else {
                written.stale.push(at);
            }
        }
        for write in batch.states {
            let states = table(&mut content.states, &write.table);
            match write.state {
                // what it comes in may be shared with many
                Some(state) => states.insert(write.key, Bytes::copy_from_slice(&state)),
                None => states.remove(&write.key),
            };
        }
        for position in batch.positions {
            let key = (position.group.clone(), position.topic.clone(), position.partition);
            content.positions.insert(key, position);
        }
        drop(content);
        self.traffic.written(&written, states);
        written
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

fn table<'a, V>(tables: &'a mut Tables<V>, name: &Table) -> &'a mut HashMap<EntityKey, V> {
    tables.entry(name.clone()).or_default()
}

fn look_up<V: Clone>(tables: &Tables<V>, reads: &[Read]) -> Vec<Vec<Option<V>>> {
    let one = |read: &Read| {
        let table = tables.get(&*read.table);
        read.keys.iter().map(|key| table.and_then(|t| t.get(key)).cloned()).collect()
    };
    reads.iter().map(one).collect()
}

impl OnlineStore for Store {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        Box::pin(async move {
            let answer = look_up(&self.content().rows, reads);
            self.traffic.rows(&answer);
            Ok(answer)
        })
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        Box::pin(async move {
            let answer = look_up(&self.content().states, reads);
            self.traffic.states(&answer);
            Ok(answer)
        })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move { Ok(self.apply(batch)) })
    }

    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        Box::pin(async move { Ok(self.content().positions.values().filter(|p| p.group == group).cloned().collect()) })
    }

    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
            let rows = content.rows.remove(table).map_or(0, |t| t.len());
            let states = content.states.remove(table).map_or(0, |t| t.len());
            Ok((rows + states) as u64)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Subject, run_all};

    impl Subject for Store {
        fn store(&self) -> &dyn OnlineStore {
            self
        }

        async fn reopen(self) -> Self {
            self
        }
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        run_all(Store::new).await;
    }
}
