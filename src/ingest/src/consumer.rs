//! The consumer of one view: a thread that polls, and writes what it polled before it polls again.
//! Knows no registry.
//!
//! Positions live in our store, in the same write as what they stand for. On every assignment the
//! partitions start there; what Kafka keeps for the group is committed for lag tools only and never
//! read. Before partitions go, what is pending is written; messages that were polled and not applied
//! are thrown away: their partitions start again from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::Timestamp;
use model::ports::{Clock, OnlineStore, WriteBatch};
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, ClientContext, Offset, Statistics, TopicPartitionList};
use service::windows::live::Live;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::dead_letter;
use crate::decode::Decoder;
use crate::error::Stop;
use crate::feed::{Content, Feed};
use crate::formats::Formats;
use crate::pipeline::{self, Batch, Failure, Message, Progress};
use crate::settings::{OffsetReset, Settings};
use crate::writer::Writer;
use crate::{marker, metrics};

/// How often a waiting consumer looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a consumer needs.
#[derive(Clone)]
pub(crate) struct Deps {
    pub(crate) store: Arc<dyn OnlineStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) formats: Formats,
    pub(crate) live: Arc<Live>,
}

/// Consumes until `stop` (the outcome is `Ok`), or until it cannot go on. Blocks its thread, which must
/// not be one of the runtime's.
///
/// The outcome is told before the consumer is closed: nothing is written after it, and closing waits
/// for a broker that may be away.
pub(crate) fn consume(
    feed: &Arc<Feed>,
    deps: &Deps,
    runtime: &Handle,
    stop: &CancellationToken,
    tell: impl FnOnce(Result<(), Stop>),
) {
    match open(feed, deps, runtime) {
        Err(stop) => tell(Err(stop)),
        Ok(consumer) => {
            let consumer = &consumer;
            let outcome = Loop { feed, deps, runtime, stop, consumer, producer: None, last_error: None }.run();
            // closing gives the partitions back: nothing may be left to write then
            consumer.context().writer().forget();
            tell(outcome);
        }
    }
}

/// A consumer that has joined its group, for a view whose state may be continued.
fn open(feed: &Arc<Feed>, deps: &Deps, runtime: &Handle) -> Result<BaseConsumer<Context>, Stop> {
    runtime.block_on(marker::check(feed, &*deps.store))?;
    let writer = Writer::new(feed, Arc::clone(&deps.store), &deps.live, deps.settings.checkpoints);
    let context = Context {
        feed: Arc::clone(feed),
        writer: Mutex::new(writer),
        deps: deps.clone(),
        runtime: runtime.clone(),
        assignment: Mutex::default(),
        epoch: AtomicU64::new(0),
    };
    let consumer: BaseConsumer<Context> = config(feed, &deps.settings)
        .create_with_context(context)
        .map_err(|e| Stop::kafka("the Kafka consumer cannot be made", &e))?;
    consumer.subscribe(&[&feed.topic]).map_err(|e| Stop::kafka("the topic cannot be subscribed", &e))?;
    metrics::started(feed);
    Ok(consumer)
}

fn config(feed: &Feed, settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "larder")
        .set("statistics.interval.ms", "5000")
        .set("topic.metadata.refresh.interval.ms", "2000")
        .set("reconnect.backoff.max.ms", "5000");
    if let Some(id) = &settings.group_instance_id {
        // A static member that comes back is given its partitions without a look at what it subscribes to: on
        // another topic the view's consumer must be another member.
        config.set("group.instance.id", format!("{id}.{}", feed.topic));
    }
    for (name, value) in settings.properties.iter().chain(&settings.consumer_properties) {
        config.set(name, value);
    }
    config
        .set("bootstrap.servers", &feed.bootstrap_servers)
        .set("group.id", &feed.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("auto.offset.reset", settings.auto_offset_reset.as_str());
    config
}

/// The partitions that the consumer has, and where each stands.
#[derive(Default)]
struct Assignment {
    progress: BTreeMap<i32, Progress>,
    /// Partitions of which no message came yet since they were assigned.
    fresh: BTreeSet<i32>,
    /// Why the positions could not be read.
    failed: Option<String>,
}

struct Context {
    feed: Arc<Feed>,
    deps: Deps,
    runtime: Handle,
    assignment: Mutex<Assignment>,
    /// Used by one thread: callbacks come while it polls.
    writer: Mutex<Writer>,
    /// Grows with every change of the assignment.
    epoch: AtomicU64,
}

impl Context {
    fn assignment(&self) -> std::sync::MutexGuard<'_, Assignment> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is pending before partitions go, and lets go of what others may change then.
    fn hand_over(&self) -> Result<(), String> {
        let mut writer = self.writer();
        let written = self.runtime.block_on(writer.checkpoint(self.deps.clock.now()));
        writer.forget();
        written.map(drop).map_err(|failure| format!("the last checkpoint before a rebalance: {failure:?}"))
    }

    /// Gives every assigned partition its stored position.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> Result<(), String> {
        if let Some(other) = partitions.elements().iter().find(|e| e.topic() != self.feed.topic) {
            return Err(format!("the group gave a partition of topic {}, which was not asked for", other.topic()));
        }
        let stored = self
            .runtime
            .block_on(pipeline::stored_progress(&self.feed, &*self.deps.store))
            .map_err(|e| format!("the stored positions cannot be read: {e}"))?;
        let mut assignment = Assignment::default();
        for mut element in partitions.elements_for_topic(&self.feed.topic) {
            let partition = element.partition();
            let progress = match (stored.get(&partition), self.deps.settings.auto_offset_reset) {
                (Some(progress), _) => *progress,
                (None, OffsetReset::Earliest) => Progress { next: -1, max_event: Timestamp::MIN },
                (None, OffsetReset::Latest) => self.start_at_end(consumer, partition)?,
            };
            let offset = if progress.next < 0 { Offset::Beginning } else { Offset::Offset(progress.next) };
            element.set_offset(offset).map_err(|e| e.to_string())?;
            metrics::assigned(&self.feed, partition, (progress.next >= 0).then_some(progress.next));
            assignment.progress.insert(partition, progress);
            assignment.fresh.insert(partition);
        }
        *self.assignment() = assignment;
        consumer.assign(partitions).map_err(|e| e.to_string())
    }

    /// The partition's end, stored at once: a restart must not find a later end and leave out what
    /// came between.
    fn start_at_end(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<Progress, String> {
        let (_, end) = consumer
            .fetch_watermarks(&self.feed.topic, partition, BROKER_TIMEOUT)
            .map_err(|e| format!("the end of partition {partition} cannot be read: {e}"))?;
        let progress = Progress { next: end, max_event: Timestamp::MIN };
        let positions = pipeline::positions(&self.feed, &BTreeMap::from([(partition, progress)]));
        let write = WriteBatch { positions, ..WriteBatch::default() };
        self.runtime.block_on(self.deps.store.write(write)).map_err(|e| e.to_string())?;
        Ok(progress)
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.feed.topic) else { return };
        let assignment = self.assignment();
        for (&partition, progress) in &assignment.progress {
            let Some(known) = topic.partitions.get(&partition) else { continue };
            // what read_committed can read, where the broker says so
            let end = if known.ls_offset >= 0 { known.ls_offset } else { known.hi_offset };
            let start = if progress.next >= 0 { progress.next } else { known.lo_offset.max(0) };
            if end >= 0 {
                metrics::lag(&self.feed, partition, (end - start).max(0));
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(view = self.feed.view.name, %error, reason, "librdkafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: Code, partitions: &mut TopicPartitionList) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let outcome = if code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions)
        } else {
            let gone = std::mem::take(&mut *self.assignment());
            gone.progress.keys().for_each(|&partition| metrics::lag(&self.feed, partition, 0));
            let handed = self.hand_over();
            consumer.unassign().map_err(|e| e.to_string()).and(handed)
        };
        if let Err(reason) = outcome {
            let _ = consumer.unassign();
            *self.assignment() = Assignment { failed: Some(reason), ..Assignment::default() };
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(view = self.feed.view.name, %error, "Kafka did not take the offsets; ours count");
        }
    }
}

struct Loop<'a> {
    feed: &'a Arc<Feed>,
    deps: &'a Deps,
    runtime: &'a Handle,
    stop: &'a CancellationToken,
    consumer: &'a BaseConsumer<Context>,
    producer: Option<dead_letter::Producer>,
    last_error: Option<KafkaError>,
}

/// How a batch ended.
enum End {
    Written,
    /// The consumer was told to stop while the store or the broker failed.
    Dropped,
}

impl Loop<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        while !self.stop.is_cancelled() {
            let epoch = self.epoch();
            let messages = self.poll()?;
            if let Some(reason) = self.consumer.context().assignment().failed.take() {
                return Err(Stop::Restart(reason));
            }
            if epoch != self.epoch() {
                continue;
            }
            if messages.is_empty() {
                self.checkpoint_if_due(epoch)?;
                continue;
            }
            let started = Instant::now();
            let count = messages.len();
            let now = self.deps.clock.now();
            let skew = i64::try_from(self.deps.settings.future_skew.as_micros()).unwrap_or(i64::MAX);
            let progress = self.consumer.context().assignment().progress.clone();
            let wanted = Decoder::wanted(self.feed, messages.iter());
            let ask = || self.runtime.block_on(self.deps.formats.writers(&wanted)).map_err(Retry::Again);
            let Some(writers) = self.retry("the schema registry does not answer", epoch, ask)? else { continue };
            let mut batch = pipeline::prepare(self.feed, &writers, messages, &progress, now, skew);
            if let End::Written = self.write(&mut batch, epoch, count, started)? {
                self.checkpoint_if_due(epoch)?;
            }
        }
        self.checkpoint(self.epoch())
    }

    fn checkpoint_if_due(&self, epoch: u64) -> Result<(), Stop> {
        if self.consumer.context().writer().is_due() { self.checkpoint(epoch) } else { Ok(()) }
    }

    /// Writes what is pending, and tells Kafka how far that is.
    fn checkpoint(&self, epoch: u64) -> Result<(), Stop> {
        let writer = || self.consumer.context().writer();
        let write = || self.runtime.block_on(writer().checkpoint(self.deps.clock.now())).map_err(retry_or_stop);
        if let Some(positions) = self.retry("the online store is not available", epoch, write)? {
            self.commit(&positions);
        }
        Ok(())
    }

    fn epoch(&self) -> u64 {
        self.consumer.context().epoch.load(Ordering::SeqCst)
    }

    /// Waits for a message, then takes what comes within the linger time, up to the batch size.
    fn poll(&mut self) -> Result<Vec<Message>, Stop> {
        let settings = &self.deps.settings;
        let mut messages = Vec::new();
        let mut until = Instant::now() + TICK;
        let epoch = self.epoch();
        while messages.len() < settings.batch_size {
            let left = until.saturating_duration_since(Instant::now());
            match self.consumer.poll(left) {
                Some(Ok(message)) => {
                    self.last_error = None;
                    if messages.is_empty() {
                        until = Instant::now() + settings.linger;
                    }
                    self.in_order(&message)?;
                    messages.push(own(&message));
                }
                Some(Err(error)) => self.tell(error)?,
                None => {}
            }
            if epoch != self.epoch() {
                return Ok(Vec::new());
            }
            if left.is_zero() {
                break;
            }
        }
        Ok(messages)
    }

    /// Holds a message's offset against what was stored and polled before it.
    fn in_order(&self, message: &BorrowedMessage<'_>) -> Result<(), Stop> {
        let mut assignment = self.consumer.context().assignment();
        let (partition, offset) = (message.partition(), message.offset());
        let first = assignment.fresh.remove(&partition);
        let Some(progress) = assignment.progress.get_mut(&partition) else { return Ok(()) };
        let expected = progress.next;
        progress.next = offset + 1;
        if expected >= 0 && offset != expected && first {
            metrics::position_lost(self.feed, partition, expected, offset);
        } else if offset < expected {
            // start again from the store: a repeated message is left out, a topic made anew is seen
            return Err(Stop::Restart(format!("partition {partition} went back from offset {expected} to {offset}")));
        }
        Ok(())
    }

    fn tell(&mut self, error: KafkaError) -> Result<(), Stop> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(Stop::kafka("the Kafka consumer failed", &error));
        }
        metrics::broker_error(self.feed, &error, self.last_error.as_ref() == Some(&error));
        self.last_error = Some(error);
        Ok(())
    }

    /// Sends the dead letters, then writes; each is tried until it succeeds, in order.
    fn write(&mut self, batch: &mut Batch, epoch: u64, messages: usize, started: Instant) -> Result<End, Stop> {
        let (feed, deps) = (self.feed, self.deps);
        if !batch.dead.is_empty() {
            let producer = if let Some(producer) = self.producer.take() {
                producer
            } else {
                let properties = deps.settings.producer_properties();
                let _guard = self.runtime.enter();
                dead_letter::Producer::new(feed, &properties)
                    .map_err(|e| Stop::kafka("the dead-letter producer cannot be made", &e))?
            };
            let send = || async { producer.send(feed, &batch.dead).await.map_err(|e| Retry::Again(e.to_string())) };
            let sent =
                self.retry("the dead-letter topic does not take messages", epoch, || self.runtime.block_on(send()))?;
            self.producer = Some(producer);
            if sent.is_none() {
                return Ok(End::Dropped);
            }
            metrics::dead_lettered(feed, &batch.dead);
        }
        let writer = || self.consumer.context().writer();
        let apply = || self.runtime.block_on(writer().apply(batch, deps.clock.now())).map_err(retry_or_stop);
        let Some(applied) = self.retry("the online store is not available", epoch, apply)? else {
            return Ok(End::Dropped);
        };
        let mut assignment = self.consumer.context().assignment();
        for (partition, progress) in &batch.progress {
            assignment.progress.insert(*partition, *progress);
        }
        drop(assignment);
        metrics::written(feed, messages, batch, applied, started.elapsed().as_secs_f64());
        if let Content::Rows(_) = feed.content {
            self.commit(&batch.progress);
        }
        Ok(End::Written)
    }

    /// Tries until it succeeds, with growing pauses in which the consumer stays in its group. `None`
    /// where the consumer was told to stop.
    fn retry<T>(
        &self,
        what: &str,
        epoch: u64,
        mut attempt: impl FnMut() -> Result<T, Retry>,
    ) -> Result<Option<T>, Stop> {
        let mut pause = TICK;
        let mut attempts = 0;
        let mut paused = None;
        let outcome = loop {
            match attempt() {
                Ok(value) => break Some(value),
                Err(Retry::Stop(stop)) => return Err(stop),
                Err(Retry::Again(error)) => {
                    attempts += 1;
                    metrics::write_retry(self.feed, what, &error, attempts);
                }
            }
            if paused.is_none() {
                paused = self.pause();
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stop.is_cancelled() && epoch == self.epoch() {
                if let Some(Ok(_)) = self.consumer.poll(TICK) {
                    return Err(Stop::Restart("a paused partition gave a message".to_owned()));
                }
            }
            if epoch != self.epoch() {
                // a new consumer is sure to have nothing paused
                return Err(Stop::Restart(format!("{what}, and the group was rebalanced meanwhile")));
            }
            if self.stop.is_cancelled() {
                break None;
            }
            pause = (pause * 2).min(self.deps.settings.max_backoff);
        };
        if let Some(paused) = paused {
            self.consumer.resume(&paused).map_err(|e| Stop::kafka("the consumer cannot be resumed", &e))?;
        }
        Ok(outcome)
    }

    fn pause(&self) -> Option<TopicPartitionList> {
        let assigned = self.consumer.assignment().ok()?;
        self.consumer.pause(&assigned).ok()?;
        Some(assigned)
    }

    /// Tells Kafka, for lag tools.
    fn commit(&self, positions: &BTreeMap<i32, Progress>) {
        if positions.is_empty() {
            return;
        }
        let mut offsets = TopicPartitionList::with_capacity(positions.len());
        for (&partition, progress) in positions {
            let _ = offsets.add_partition_offset(&self.feed.topic, partition, Offset::Offset(progress.next));
        }
        if let Err(error) = self.consumer.commit(&offsets, CommitMode::Async) {
            tracing::debug!(view = self.feed.view.name, %error, "Kafka did not take the offsets; ours count");
        }
    }
}

enum Retry {
    Again(String),
    Stop(Stop),
}

fn retry_or_stop(failure: Failure) -> Retry {
    match failure {
        Failure::Unavailable(e) => Retry::Again(e.to_string()),
        other => Retry::Stop(other.into_stop()),
    }
}

fn own(message: &BorrowedMessage<'_>) -> Message {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect());
    Message {
        timestamp_ms: message.timestamp().to_millis(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
