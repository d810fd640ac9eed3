//! What a consumer's batches become in the store: rows with their positions at once; window states live in memory, and
//! with their positions at checkpoints. Where events are logged, all positions are stored at checkpoints, behind the log.
//! Knows no Kafka client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Timestamp;
use model::ports::{EventLog, Fence, OnlineStore, WriteBatch};
use service::windows::live::{Checkpoint, Live, Owner};
use service::windows::{FoldError, FoldEvent};

use crate::decode::Event;
use crate::feed::{Content, Feed};
use crate::logging::Logging;
use crate::metrics;
use crate::pipeline::{self, Applied, Batch, Failure, Progress, Shared};

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
    logging: Option<Logging>,
    /// The partitions that are claimed, where other processes may claim them too.
    fences: BTreeMap<i32, Fence>,
    /// When another process last wrote a state that was changed here.
    contended: Option<Instant>,
}

/// So long after another process wrote an entity's state, too, checkpoints follow each batch: the shorter they are, the
/// sooner one of the two comes through.
const CONTENDED: Duration = Duration::from_secs(10);

impl Writer {
    /// A writer; a windowed view's states are live from now on.
    pub fn new(feed: &Arc<Feed>, store: Arc<dyn OnlineStore>, live: &Arc<Live>, checkpoints: Checkpoints) -> Self {
        let owner = match &feed.content {
            Content::Windows { spec, .. } => Some(live.own(&feed.view, (**spec).clone(), store.is_shared())),
            Content::Rows(_) => None,
        };
        Self {
            feed: Arc::clone(feed),
            store,
            checkpoints,
            owner,
            pending: BTreeMap::new(),
            since: None,
            torn: false,
            logging: None,
            fences: BTreeMap::new(),
            contended: None,
        }
    }

    /// Partitions were claimed for the feed's group: positions are written behind these fences from now on.
    pub fn claimed(&mut self, fences: Vec<Fence>) {
        self.fences.extend(fences.into_iter().map(|fence| (fence.partition, fence)));
    }

    /// Another process wrote a state that was changed here: all is given up, and comes again from the stored positions.
    pub fn contend(&mut self) {
        self.forget();
        self.contended = Some(Instant::now());
    }

    fn fences<'a>(&self, partitions: impl Iterator<Item = &'a i32>) -> Vec<Fence> {
        partitions.filter_map(|partition| self.fences.get(partition).cloned()).collect()
    }

    /// Writes down the events, too.
    #[must_use]
    pub fn with_log(mut self, log: Option<Arc<dyn EventLog>>) -> Self {
        self.logging = log.map(|log| Logging::new(log, &self.feed));
        self
    }

    /// Whether positions are stored at checkpoints, not with each batch.
    pub fn has_checkpoints(&self) -> bool {
        self.owner.is_some() || self.logging.is_some()
    }

    /// Applies a batch, all of it or nothing: rows are in the store then, states can be read.
    ///
    /// Errors: after [`Failure::State`] the writer must be given up.
    pub async fn apply(&mut self, batch: &Batch, now: Timestamp) -> Result<Applied, Failure> {
        let applied = self.write(batch, now).await?;
        if let Some(logging) = &mut self.logging {
            logging.take(batch, now);
        }
        if self.has_checkpoints() {
            self.pending.extend(batch.progress.iter().map(|(partition, progress)| (*partition, *progress)));
            self.since.get_or_insert_with(Instant::now);
        }
        Ok(applied)
    }

    async fn write(&mut self, batch: &Batch, now: Timestamp) -> Result<Applied, Failure> {
        let Some(owner) = &mut self.owner else {
            let fences = self.fences(batch.progress.keys());
            return pipeline::write_rows(&self.feed, &*self.store, batch, self.logging.is_none().then_some(fences))
                .await;
        };
        let shared = batch.shared.as_ref().filter(|_| owner.is_joined());
        let together = shared.map(|shared| &shared.together);
        let done = if let Some(applied) = owner.applied(together) {
            Ok(applied)
        } else {
            let lists = match shared {
                Some(shared) => shared.lists.iter().map(|events| taken(events)).collect(),
                None => vec![taken(&batch.events)],
            };
            self.torn = true;
            // decoding gave every column the schema's type, so a refused event is a defect of ours
            owner.apply(&*self.store, &lists, now, together).await
        };
        self.torn = matches!(done, Err(FoldError::State(_)));
        let done = done.map_err(|e| match e {
            FoldError::Store(e) => Failure::of_store(e),
            FoldError::State(e) => Failure::State(e),
        })?;
        let dropped_of = match &self.feed.content {
            Content::Windows { spec, .. } if done.late_dropped > 0 => {
                batch.before(Timestamp(spec.window_start(now.micros())))
            }
            _ => BTreeMap::new(),
        };
        Ok(Applied { applied: done.applied, dropped: done.late_dropped, dropped_of })
    }

    /// Keeps the window states of views as one that take their next batch together, where nothing of them waits for a
    /// checkpoint (and no events are logged: a view's log comes before its states).
    pub fn join(views: &mut [(&mut Self, &Batch)]) {
        let mut known: Vec<Arc<Shared>> = Vec::new();
        for at in 0..views.len() {
            let Some(shared) = views[at].1.shared.clone() else { continue };
            let is = |batch: &Batch| batch.shared.as_ref().is_some_and(|other| Arc::ptr_eq(other, &shared));
            if known.iter().any(|known| Arc::ptr_eq(known, &shared)) {
                continue;
            }
            let those = views.iter_mut().filter(|(_, batch)| is(batch));
            let idle = |writer: &Self| writer.since.is_none() && !writer.torn && writer.logging.is_none();
            let owners = those.map(|(writer, _)| {
                let list = shared.together.list_of(&writer.feed.view.table);
                Some((idle(writer).then_some(writer.owner.as_mut()).flatten()?, list?))
            });
            let owners = owners.collect::<Option<Vec<_>>>();
            if let Some(mut owners) = owners.filter(|all| all.len() == shared.together.tables.len()) {
                Owner::join(&mut owners);
            }
            known.push(shared);
        }
    }

    /// Whether its window states are kept with those of other views.
    pub fn is_joined(&mut self) -> bool {
        self.owner.as_mut().is_some_and(Owner::is_joined)
    }

    /// Whether anything waits for a checkpoint.
    pub fn is_pending(&self) -> bool {
        self.since.is_some()
    }

    /// Whether so much changed that it should be written whatever that costs.
    fn is_full(&self) -> bool {
        if self.since.is_some() && self.contended.is_some_and(|at| at.elapsed() < CONTENDED) {
            return true;
        }
        let changes = self.owner.as_ref().map_or(0, Owner::changes);
        changes.max(self.logging.as_ref().map_or(0, Logging::waiting)) >= self.checkpoints.entities
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
        if self.since.is_none() {
            return Ok(BTreeMap::new());
        }
        let start = Instant::now();
        if let Some(logging) = &mut self.logging {
            logging.append(&self.feed, &*self.store).await.map_err(Failure::of_log)?;
        }
        let checkpoint = self.owner.as_mut().map(|owner| owner.checkpoint(&*self.store, now)).transpose();
        let Checkpoint { states, before } = checkpoint.map_err(Failure::Other)?.unwrap_or_default();
        let written = states.len();
        let positions = pipeline::positions(&self.feed, &self.pending);
        let fences = self.fences(self.pending.keys());
        let batch = WriteBatch { states, before, positions, fences, ..WriteBatch::default() };
        self.store.write(batch).await.map_err(Failure::of_store)?;
        if let Some(owner) = &mut self.owner {
            owner.settle(self.checkpoints.memory);
        }
        if let Some(logging) = &mut self.logging {
            logging.counted();
        }
        metrics::checkpointed(&self.feed, written, start.elapsed().as_secs_f64());
        self.since = None;
        Ok(std::mem::take(&mut self.pending))
    }

    /// A partition's offsets mean other events from now on: its topic was made anew.
    pub fn begin_anew(&mut self, partition: i32) {
        if let Some(logging) = &mut self.logging {
            logging.begin_anew(partition);
        }
    }

    /// Lets go of all states: they may change elsewhere. What is pending is lost here, and comes again from the stored
    /// positions.
    pub fn forget(&mut self) {
        if let Some(owner) = &mut self.owner {
            owner.clear();
        }
        if let Some(logging) = &mut self.logging {
            logging.forget();
        }
        self.pending.clear();
        self.since = None;
        self.torn = false;
    }
}

fn taken(events: &[Event]) -> Vec<FoldEvent<'_>> {
    let taken = |event| {
        let Event { key, version, columns, .. }: &Event = event;
        FoldEvent { key, time: version.event, columns }
    };
    events.iter().map(taken).collect()
}
