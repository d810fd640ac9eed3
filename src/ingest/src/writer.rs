//! What a consumer's batches become in the store: rows with their positions at once; window states live in memory, and
//! with their positions at checkpoints. Knows no Kafka client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Timestamp;
use model::ports::{OnlineStore, WriteBatch};
use service::windows::live::{Live, Owner};
use service::windows::{FoldError, FoldEvent};

use crate::decode::Event;
use crate::feed::{Content, Feed};
use crate::metrics;
use crate::pipeline::{self, Applied, Batch, Failure, Progress};

/// When a checkpoint is due, and what may stay in memory between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// The longest that a change waits for its checkpoint.
    pub interval: Duration,
    /// The most entities that one writes, as near as a batch comes to it.
    pub entities: usize,
    /// What states that rest may take of memory together with those that change, bytes (an estimate).
    pub memory: usize,
}

/// Keeps the checkpoints of writers that share a thread to about a tenth of its time: where they take long, they come
/// less often. (What was applied can be read all the same; a restart has more to read again.)
#[derive(Debug)]
pub struct Pace {
    next: Instant,
    longest: Duration,
}

/// The rest after checkpoints, as a multiple of their time.
const REST: u32 = 9;
/// The longest rest, as a multiple of the interval.
const LONGEST_REST: u32 = 10;

impl Pace {
    /// Of writers with these settings.
    pub fn new(checkpoints: Checkpoints) -> Self {
        Self { next: Instant::now(), longest: checkpoints.interval.saturating_mul(LONGEST_REST) }
    }

    /// Whether what a writer has pending should be written now.
    pub fn is_due(&self, writer: &Writer) -> bool {
        writer.is_full() || (writer.is_due() && Instant::now() >= self.next)
    }

    /// Checkpoints that began then are done.
    pub fn done(&mut self, began: Instant) {
        self.next = Instant::now() + began.elapsed().saturating_mul(REST).min(self.longest);
    }
}

/// Writes the batches of one feed, in order.
pub struct Writer {
    feed: Arc<Feed>,
    store: Arc<dyn OnlineStore>,
    checkpoints: Checkpoints,
    /// The states, where the view has windows.
    owner: Option<Owner>,
    /// The positions behind what was applied and is in no checkpoint yet, and since when.
    pending: BTreeMap<i32, Progress>,
    since: Option<Instant>,
    /// Whether a batch was left half applied, by a failure or a panic: what the states hold then has no positions.
    torn: bool,
}

impl Writer {
    /// A writer; a windowed view's states are live from now on.
    pub fn new(feed: &Arc<Feed>, store: Arc<dyn OnlineStore>, live: &Arc<Live>, checkpoints: Checkpoints) -> Self {
        let owner = match &feed.content {
            Content::Windows { spec, .. } => Some(live.own(&feed.view, (**spec).clone())),
            Content::Rows(_) => None,
        };
        Self { feed: Arc::clone(feed), store, checkpoints, owner, pending: BTreeMap::new(), since: None, torn: false }
    }

    /// Applies a batch, all of it or nothing: rows are in the store then, states can be read.
    ///
    /// Errors: after [`Failure::State`] the writer must be given up.
    pub async fn apply(&mut self, batch: &Batch, now: Timestamp) -> Result<Applied, Failure> {
        let Some(owner) = &mut self.owner else { return pipeline::write_rows(&self.feed, &*self.store, batch).await };
        let events: Vec<_> = batch.events.iter().map(taken).collect();
        self.torn = true;
        // decoding gave every column the schema's type, so a refused event is a defect of ours
        let done = owner.apply(&*self.store, &events, now).await;
        self.torn = matches!(done, Err(FoldError::State(_)));
        let done = done.map_err(|e| match e {
            FoldError::Store(e) => Failure::of_store(e),
            FoldError::State(e) => Failure::State(e),
        })?;
        self.pending.extend(batch.progress.iter().map(|(partition, progress)| (*partition, *progress)));
        self.since.get_or_insert_with(Instant::now);
        Ok(Applied { applied: done.applied, dropped: done.late_dropped })
    }

    /// Whether anything waits for a checkpoint.
    pub fn is_pending(&self) -> bool {
        self.since.is_some()
    }

    /// Whether so much changed that it should be written whatever that costs.
    fn is_full(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.changes() >= self.checkpoints.entities)
    }

    /// Whether what is pending should be written, if there is time for it.
    fn is_due(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= self.checkpoints.interval)
    }

    /// Writes what is pending, states and positions together; gives the positions, none where nothing was pending.
    pub async fn checkpoint(&mut self, now: Timestamp) -> Result<BTreeMap<i32, Progress>, Failure> {
        if self.torn {
            return Err(Failure::Other(model::Error::new(
                model::Kind::Internal,
                "a batch was left half applied: its states are given up and come again from the stored positions",
            )));
        }
        let Some(owner) = self.owner.as_mut().filter(|_| self.since.is_some()) else { return Ok(BTreeMap::new()) };
        let (start, states) = (Instant::now(), owner.checkpoint(now));
        let written = states.len();
        let batch =
            WriteBatch { states, positions: pipeline::positions(&self.feed, &self.pending), ..WriteBatch::default() };
        self.store.write(batch).await.map_err(Failure::of_store)?;
        owner.settle(self.checkpoints.memory);
        metrics::checkpointed(&self.feed, written, start.elapsed().as_secs_f64());
        self.since = None;
        Ok(std::mem::take(&mut self.pending))
    }

    /// Lets go of all states: they may change elsewhere. What is pending is lost here, and comes again from the stored
    /// positions.
    pub fn forget(&mut self) {
        if let Some(owner) = &mut self.owner {
            owner.clear();
        }
        self.pending.clear();
        self.since = None;
        self.torn = false;
    }
}

fn taken(event: &Event) -> FoldEvent<'_> {
    FoldEvent { key: &event.key, time: event.version.event, columns: &event.columns }
}
