//! Who writes to a view's table from its stream: no consumer begins while what a deleted view leaves is
//! being removed, and nothing is removed while one still writes. Knows no Kafka client.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::Result;
use model::ports::{BoxFuture, OnlineStore, Table};
use service::clear;
use tokio::sync::watch;

use crate::feed::group;
use crate::marker;

/// The tables with a running consumer, and those that none may write to.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<watch::Sender<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    running: BTreeSet<Table>,
    closed: BTreeSet<Table>,
}

/// A consumer's permission to write to a table; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    gate: Gate,
    table: Table,
}

/// A table that no consumer may write to until this is dropped.
#[derive(Debug)]
pub(crate) struct Closed {
    gate: Gate,
    table: Table,
}

impl Gate {
    /// Waits until the table is not closed.
    pub(crate) async fn enter(&self, table: &Table) -> Running {
        let mut changes = self.0.subscribe();
        loop {
            let entered = self.0.send_if_modified(|t| !t.closed.contains(table) && t.running.insert(table.clone()));
            if entered {
                return Running { gate: self.clone(), table: table.clone() };
            }
            // the sender is our own: it cannot be gone
            let _ = changes.changed().await;
        }
    }

    /// Waits until the table is closed, or about to be: who writes to it should end.
    pub(crate) async fn closing(&self, table: &Table) {
        // the sender is our own: it cannot be gone
        let _ = self.0.subscribe().wait_for(|t| t.closed.contains(table)).await;
    }

    /// Waits until somebody writes to the table.
    pub(crate) async fn entered(&self, table: &Table) {
        // the sender is our own: it cannot be gone
        let _ = self.0.subscribe().wait_for(|t| t.running.contains(table)).await;
    }

    /// Closes the table, and waits until no consumer writes to it.
    pub(crate) async fn close(&self, table: &Table) -> Closed {
        self.0.send_modify(|t| {
            t.closed.insert(table.clone());
        });
        let closed = Closed { gate: self.clone(), table: table.clone() };
        // the sender is our own: it cannot be gone
        let _ = self.0.subscribe().wait_for(|t| !t.running.contains(table)).await;
        closed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gate.0.send_modify(|t| {
            t.running.remove(&self.table);
        });
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.gate.0.send_modify(|t| {
            t.closed.remove(&self.table);
        });
    }
}

/// Removes what a deleted view's consumer left beside the rows, once it has stopped.
pub struct Leftovers {
    /// The gate that the consumers go through.
    pub gate: Gate,
    /// Where the positions are.
    pub store: Arc<dyn OnlineStore>,
    /// What the names of the consumer groups begin with.
    pub group_prefix: String,
}

impl clear::Streams for Leftovers {
    fn forget<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<Box<dyn Send>>> {
        Box::pin(async move {
            let closed = self.gate.close(table).await;
            let group = group(&self.group_prefix, &table.project, &table.view);
            marker::forget(&*self.store, table, &group).await?;
            Ok(Box::new(closed) as Box<dyn Send>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a future is not done although everything else that could run has run.
    async fn pending<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }

    #[tokio::test]
    async fn nothing_writes_to_a_closed_table_and_none_is_closed_under_a_writer() {
        let (gate, table, other) = (Gate::default(), Table::new("p", "v"), Table::new("p", "w"));
        let running = gate.enter(&table).await;
        let mut close = Box::pin(gate.close(&table));
        assert!(pending(&mut close).await, "somebody writes");
        let mut enter = Box::pin(gate.enter(&table));
        assert!(pending(&mut enter).await, "it is being closed");
        drop(gate.enter(&other).await);
        drop(running);
        let closed = close.await;
        assert!(pending(&mut enter).await, "it is closed");
        drop(closed);
        drop(enter.await);
    }
}
