//! One reader for the views that share a topic ([`Feed::share`]): started for the first of them, joined by the others,
//! ended after the last. Knows no Kafka client.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ports::{Clock, EventLog, OnlineStore};
use service::streams::Board;
use service::windows::live::Live;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::Stop;
use crate::feed::Feed;
use crate::formats::Formats;
use crate::member::Outcome;
use crate::settings::Settings;
use crate::{metrics, reader};

/// How long a reader may take to leave its group: longer, and it is left to do so by itself.
const CLOSING: Duration = Duration::from_secs(5);

/// What a reader needs.
#[derive(Clone)]
pub(crate) struct Deps {
    pub(crate) store: Arc<dyn OnlineStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) formats: Formats,
    pub(crate) live: Arc<Live>,
    pub(crate) board: Arc<Board>,
    pub(crate) event_log: Option<Arc<dyn EventLog>>,
}

/// A view that wants to be read.
pub(crate) struct Join {
    pub(crate) feed: Arc<Feed>,
    pub(crate) stop: CancellationToken,
    pub(crate) tell: oneshot::Sender<Outcome>,
}

/// The readers of all shares.
#[derive(Clone)]
pub(crate) struct Readers {
    deps: Deps,
    slots: Arc<Mutex<BTreeMap<String, Slot>>>,
}

struct Slot {
    /// Where views join; `None` once the reader has ended.
    joins: Option<Sender<Join>>,
    /// Whether its client is closed.
    closed: CancellationToken,
}

/// A running reader's place among the readers.
pub(crate) struct Place {
    readers: Readers,
    share: String,
    joins: Receiver<Join>,
    closed: CancellationToken,
}

impl Readers {
    pub(crate) fn new(deps: Deps) -> Self {
        Self { deps, slots: Arc::default() }
    }

    pub(crate) fn deps(&self) -> &Deps {
        &self.deps
    }

    /// Reads a view's stream until `stop` (the outcome is `Ok`), or until it cannot go on. Nothing is written for the
    /// view afterwards.
    pub(crate) async fn read(&self, feed: &Arc<Feed>, stop: CancellationToken) -> Outcome {
        let (tell, told) = oneshot::channel();
        self.join(Join { feed: Arc::clone(feed), stop, tell })?;
        told.await.unwrap_or_else(|_| Err(Stop::Restart("the topic's reader panicked; see the log above".to_owned())))
    }

    /// Waits until all clients are closed, but not for a broker that is away.
    pub(crate) async fn closed(&self) {
        let closing: Vec<_> = self.slots().iter().map(|(share, slot)| (share.clone(), slot.closed.clone())).collect();
        let until = tokio::time::Instant::now() + CLOSING;
        for (share, closed) in closing {
            if tokio::time::timeout_at(until, closed.cancelled()).await.is_err() {
                metrics::closing_late(&share, CLOSING);
            }
        }
    }

    fn join(&self, join: Join) -> Result<(), Stop> {
        let mut slots = self.slots();
        let share = join.feed.share.clone();
        let before = slots.get(&share).map(|slot| slot.closed.clone());
        let join = match slots.get(&share).and_then(|slot| slot.joins.as_ref()) {
            None => join,
            Some(joins) => match joins.send(join) {
                Ok(()) => return Ok(()),
                // its thread is gone
                Err(refused) => refused.0,
            },
        };
        let (sender, joins) = channel();
        let closed = CancellationToken::new();
        let place = Place { readers: self.clone(), share: share.clone(), joins, closed: closed.clone() };
        let (deps, runtime) = (self.deps.clone(), Handle::current());
        let name = format!("ingest-{}", join.feed.topic);
        let run = move || {
            // of two clients that are one static member the broker would turn one away
            if let Some(before) = before
                && runtime.block_on(async { tokio::time::timeout(CLOSING, before.cancelled()).await }).is_err()
            {
                metrics::closing_late(&place.share, CLOSING);
            }
            reader::run(join, &place, &deps, &runtime);
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|e| Stop::Restart(format!("no thread for the topic's reader: {e}")))?;
        slots.insert(share, Slot { joins: Some(sender), closed });
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The next view that joins, if one waits to.
    pub(crate) fn next(&self) -> Option<Join> {
        self.joins.try_recv().ok()
    }

    /// Ends the reader; who joins from now on starts another. Gives a view that joined before that.
    pub(crate) fn end(&self) -> Option<Join> {
        let mut slots = self.readers.slots();
        let joined = self.next();
        if let Some(slot) = slots.get_mut(&self.share).filter(|_| joined.is_none()) {
            slot.joins = None;
        }
        joined
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
