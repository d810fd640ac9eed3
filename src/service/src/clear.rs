//! The verb "clear": removes the online rows of deleted views, in the background. What is to be removed
//! is noted in the registry with the delete ([`crate::catalog::gone`]), so that a crash delays it and
//! no more. A windowed state that was replaced stays for a while, for who does not know yet that it was. Knows no store and no stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::ports::{BoxFuture, OnlineStore, Table};
use model::{Result, Timestamp, registry::Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, gone};
use crate::metrics;

/// Between two attempts where the store fails.
const PAUSE: Duration = Duration::from_secs(1);

/// What else goes with a view's rows: the positions of its consumers, with the consumers stopped.
pub trait Streams: Send + Sync {
    /// Stops whatever writes to the table, and forgets how far it read. Held until the answer is
    /// dropped: nothing begins to write before.
    fn forget<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<Box<dyn Send>>>;
}

/// Removes what is noted, now and whenever a view is deleted, until `shutdown`.
pub async fn run(
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    streams: Option<Arc<dyn Streams>>,
    shutdown: CancellationToken,
) {
    let mut changes = catalog.subscribe();
    loop {
        let registry = changes.borrow_and_update().clone();
        let pending: BTreeMap<Table, Timestamp> = gone::pending(&registry).into_iter().collect();
        metrics::clears_pending(pending.len());
        let now = catalog.now();
        let mut again = None;
        for (table, stays_until) in &pending {
            if *stays_until > now {
                let left = Duration::from_micros((stays_until.micros() - now.micros()).unsigned_abs());
                again = Some(again.map_or(left, |again: Duration| again.min(left)));
                continue;
            }
            let cleared = tokio::select! {
                () = shutdown.cancelled() => return,
                cleared = clear(&catalog, &*store, streams.as_deref(), table) => cleared,
            };
            if let Err(error) = cleared {
                metrics::clear_failed(table, &error);
                again = Some(again.map_or(PAUSE, |again| again.min(PAUSE)));
            }
        }
        if !wait(&mut changes, again, &shutdown).await {
            return;
        }
    }
}

/// Until there may be something to do; `false` is the end.
async fn wait(
    changes: &mut watch::Receiver<Arc<Registry>>,
    again: Option<Duration>,
    shutdown: &CancellationToken,
) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => false,
        changed = changes.changed() => changed.is_ok(),
        () = tokio::time::sleep(again.unwrap_or(PAUSE)), if again.is_some() => true,
    }
}

async fn clear(catalog: &Catalog, store: &dyn OnlineStore, streams: Option<&dyn Streams>, table: &Table) -> Result<()> {
    // Feast itself may have registered the view again in a registry file that it shares with us
    if !gone::in_use(&*catalog.refreshed().await?, table) {
        let _stopped = match streams {
            Some(streams) => Some(streams.forget(table).await?),
            None => None,
        };
        // whoever began to write while the view was there has ended
        drop(catalog.writers_ended().await);
        let removed = store.clear(table).await?;
        metrics::cleared(table, removed);
        return catalog.cleared(table).await;
    }
    metrics::clear_dropped(table);
    catalog.cleared(table).await
}
