//! What the group says to the views that share a topic: partitions come and go. Knows no message.
//!
//! Positions live in our store, in the same write as what they stand for. On every assignment the partitions start
//! there; what Kafka keeps is committed for lag tools only and never read. Before partitions go, what is pending is
//! written; messages that were polled and not applied are thrown away: their partitions start again from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::Timestamp;
use model::ports::{Fence, WriteBatch};
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};
use tokio::runtime::Handle;

use crate::client;
use crate::error::Stop;
use crate::feed::Feed;
use crate::member::Member;
use crate::pipeline::{self, Failure, Progress};
use crate::readers::Deps;
use crate::{metrics, start, waiting};

/// A view at most so many messages behind another one goes on with it; one further behind would keep it waiting.
const NEAR: i64 = 20_000;

/// A partition as all members read it.
pub(crate) struct Track {
    /// The next offset; negative where it starts at the oldest message.
    pub(crate) next: i64,
    /// Whether no message came yet since it was assigned.
    pub(crate) fresh: bool,
    /// The epoch that assigned it.
    since: u64,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) members: Vec<Member>,
    pub(crate) tracks: BTreeMap<i32, Track>,
    /// Why the positions could not be read, or not be written.
    pub(crate) failed: Option<String>,
    /// What the client last said of the brokers.
    pub(crate) trouble: Option<String>,
    /// Whether none of them answers.
    away: bool,
}

pub(crate) struct Context {
    pub(crate) topic: String,
    pub(crate) deps: Deps,
    pub(crate) runtime: Handle,
    /// Used by one thread: callbacks come while it polls.
    state: Mutex<State>,
    /// Grows with every change of the assignment.
    epoch: AtomicU64,
}

impl State {
    /// Whether a message polled at that epoch is still to be applied.
    pub(crate) fn has_since(&self, partition: i32, epoch: u64) -> bool {
        self.tracks.get(&partition).is_some_and(|track| track.since <= epoch)
    }
}

impl Context {
    pub(crate) fn new(topic: &str, deps: &Deps, runtime: &Handle) -> Self {
        Self {
            topic: topic.to_owned(),
            deps: deps.clone(),
            runtime: runtime.clone(),
            state: Mutex::default(),
            epoch: AtomicU64::new(0),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether a message polled at that epoch is still to be applied.
    pub(crate) fn is_since(&self, partition: i32, epoch: u64) -> bool {
        epoch == self.epoch() || self.state().has_since(partition, epoch)
    }

    /// Claims these partitions for a view, before its positions are read: what another process writes afterwards is refused.
    pub(crate) fn claim(&self, feed: &Feed, partitions: &BTreeSet<i32>) -> Result<Vec<Fence>, String> {
        let partitions: Vec<i32> = partitions.iter().copied().collect();
        let claimed = self.runtime.block_on(self.deps.store.claim(&feed.group, &feed.topic, &partitions));
        claimed.map_err(|e| format!("the partitions cannot be claimed: {e}"))
    }

    /// Where a view stands in these partitions.
    pub(crate) fn stored(
        &self,
        consumer: &BaseConsumer<Self>,
        feed: &Feed,
        partitions: &BTreeSet<i32>,
    ) -> Result<BTreeMap<i32, Progress>, String> {
        let stored = self
            .runtime
            .block_on(pipeline::stored_progress(feed, &*self.deps.store))
            .map_err(|e| format!("the stored positions cannot be read: {e}"))?;
        let mut progress = BTreeMap::new();
        for &partition in partitions {
            let at = match stored.get(&partition) {
                Some(progress) => *progress,
                None => self.start(consumer, feed, partition)?,
            };
            metrics::assigned(feed, partition, (at.next >= 0).then_some(at.next));
            progress.insert(partition, at);
        }
        Ok(progress)
    }

    /// Where a partition begins of which no position is stored. A place that may move is stored at once: a restart must
    /// not find a later one and leave out what came between.
    fn start(&self, consumer: &BaseConsumer<Self>, feed: &Feed, partition: i32) -> Result<Progress, String> {
        let next = start::offset(consumer, feed, partition, &self.deps.settings)?;
        let progress = Progress { next, max_event: Timestamp::MIN };
        if next >= 0 {
            let positions = pipeline::positions(feed, &BTreeMap::from([(partition, progress)]));
            let write = WriteBatch { positions, ..WriteBatch::default() };
            self.runtime.block_on(self.deps.store.write(write)).map_err(|e| e.to_string())?;
        }
        Ok(progress)
    }

    /// Gives the partitions that came the positions of the views: they are read from the oldest one that is near the
    /// others.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), String> {
        if let Some(other) = partitions.elements().iter().find(|e| e.topic() != self.topic) {
            return Err(format!("the group gave a partition of topic {}, which was not asked for", other.topic()));
        }
        let came: BTreeSet<i32> = partitions.elements().iter().map(TopicPartitionListElem::partition).collect();
        let mut state = self.state();
        let State { members, tracks, .. } = &mut *state;
        for member in &mut *members {
            member.writer.claimed(self.claim(&member.feed, &came)?);
            member.progress.extend(self.stored(consumer, &member.feed, &came)?);
        }
        let mut list = TopicPartitionList::new();
        for &partition in &came {
            let stands = |member: &Member| member.progress.get(&partition).map_or(-1, |progress| progress.next);
            let first = members.iter().map(stands).max().unwrap_or(-1);
            let near = members.iter().map(stands).filter(|next| first - next.max(&0) <= NEAR);
            let next = near.min().unwrap_or(first);
            for member in members.iter_mut().filter(|member| stands(member) < next) {
                metrics::behind(&member.feed, partition, stands(member), next);
                member.behind.insert(partition);
            }
            tracks.insert(partition, Track { next, fresh: true, since: self.epoch() });
            let added = list.add_partition_offset(&self.topic, partition, client::offset(next));
            added.map_err(|e| e.to_string())?;
        }
        drop(state);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&list),
            _ => consumer.assign(&list),
        };
        assigned.map_err(|e| e.to_string())
    }

    /// Writes what is pending before partitions go, and lets go of what others may change then.
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), String> {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let mut outcome = Ok(());
        let mut state = self.state();
        let State { members, tracks, .. } = &mut *state;
        let gone: BTreeSet<i32> = if cooperative {
            partitions.elements().iter().map(TopicPartitionListElem::partition).collect()
        } else {
            tracks.keys().copied().collect()
        };
        for member in members {
            if let Err(failure) = self.runtime.block_on(member.writer.checkpoint(self.deps.clock.now())) {
                if matches!(failure, Failure::Fenced(_)) {
                    metrics::fenced(&member.feed);
                }
                outcome = Err(format!("the last checkpoint before a rebalance: {failure:?}"));
            }
            member.lose(&gone);
        }
        tracks.retain(|partition, _| !gone.contains(partition));
        drop(state);
        let unassigned = if cooperative { consumer.incremental_unassign(partitions) } else { consumer.unassign() };
        unassigned.map_err(|e| e.to_string()).and(outcome)
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let mut state = self.state();
        let was_away = state.away;
        state.away = statistics.brokers.values().all(|broker| !matches!(broker.state.as_str(), "UP" | "UPDATE"));
        for member in &state.members {
            if state.away {
                let why = state.trouble.as_deref().unwrap_or("there is no connection to a broker");
                waiting::told(&self.deps.board, &member.feed, format!("Kafka is not available: {why}"));
            } else if was_away {
                waiting::over(&self.deps.board, &member.feed);
            }
        }
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let State { members, tracks, .. } = &*state;
        for member in members {
            for (&partition, progress) in &member.progress {
                let Some(known) = topic.partitions.get(&partition) else { continue };
                // what read_committed can read, where the broker says so
                let end = if known.ls_offset >= 0 { known.ls_offset } else { known.hi_offset };
                let mut start = if progress.next >= 0 { progress.next } else { known.lo_offset.max(0) };
                // offsets behind the last message may be no messages: marks of transactions
                if known.fetchq_cnt == 0 && tracks.get(&partition).is_some_and(|track| track.next == progress.next) {
                    start = start.max(known.next_offset);
                }
                if end >= 0 {
                    let (view, lag) = (&member.feed.view, (end - start).max(0));
                    metrics::lag(&member.feed, partition, lag);
                    self.deps.board.lag(&view.project, &view.name, partition, lag);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(topic = self.topic, %error, reason, "librdkafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: Code, partitions: &mut TopicPartitionList) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let outcome = if code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions)
        } else {
            self.revoke(consumer, partitions)
        };
        if let Err(reason) = outcome {
            let _ = consumer.unassign();
            self.state().failed = Some(reason);
        }
    }
}

/// The consumer of a share.
pub(crate) type Client = BaseConsumer<Context>;

/// A consumer that joins the share's group.
pub(crate) fn open(feed: &Feed, deps: &Deps, runtime: &Handle) -> Result<Client, Stop> {
    let context = Context::new(&feed.topic, deps, runtime);
    let failed = |what| move |e| Stop::kafka(what, &e);
    let consumer: Client = client::of_share(feed, &deps.settings)
        .create_with_context(context)
        .map_err(failed("the Kafka consumer cannot be made"))?;
    consumer.subscribe(&[&feed.topic]).map_err(failed("the topic cannot be subscribed"))?;
    Ok(consumer)
}
