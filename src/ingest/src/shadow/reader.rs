//! The thread of a state that catches up: polls, applies, writes checkpoints, and says how far it is. Whatever fails, it
//! begins again at the stored positions, until it is told to end; once it is level, whatever fails ends it. Knows no group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Timestamp;
use model::ports::WriteBatch;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::metadata::MetadataPartition;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use service::materialize::Standing;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ends::Ends;
use super::{Old, Orders, Report, Target};
use crate::client;
use crate::decode::Decoder;
use crate::error::Stop;
use crate::feed::Feed;
use crate::gate::Running;
use crate::message::{Copies, Message};
use crate::pipeline::{self, Failure, Progress, Taker};
use crate::reader::bury;
use crate::readers::Deps;
use crate::writer::{Pace, Writer};
use crate::{dead_letter, marker, metrics, start};

/// How long a poll waits, and so how long an order may.
const TICK: Duration = Duration::from_millis(20);
/// How often the broker is asked how far the topic goes.
const LOOK: Duration = Duration::from_millis(250);
/// How long it may take to answer.
const BROKER: Duration = Duration::from_secs(2);
/// An old state that did not grow for so long is not fed.
const FED: Duration = Duration::from_secs(5);
/// What can be taken in so long is not much.
const MOMENT: Duration = Duration::from_secs(1);
/// How often is told how far it is, where nothing else is new.
const TELL: Duration = Duration::from_millis(200);
/// How long it reads on before it is tried again to bring it level.
const AGAIN: Duration = Duration::from_secs(2);
/// The pause behind a failure, the first time and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// How the thread is told what to do, and tells.
pub(super) struct Told {
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) stop: CancellationToken,
    pub(super) tell: watch::Sender<Report>,
}

/// Takes what librdkafka says aside: ends of partitions are no errors, and of others the polls tell.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Quiet {}

type Client = BaseConsumer<Quiet>;

struct Reader<'a> {
    feed: &'a Arc<Feed>,
    old: Old,
    deps: &'a Deps,
    runtime: &'a Handle,
    told: Told,
    writer: Writer,
    pace: Pace,
    producer: Option<dead_letter::Producer>,
    /// What is applied.
    progress: BTreeMap<i32, Progress>,
    ends: Ends,
    /// Where the old state stands, while its stream is paused: it is not read further.
    limits: Option<BTreeMap<i32, i64>>,
    /// Partitions of which no message came yet.
    fresh: BTreeSet<i32>,
    /// Partitions that are at their limit.
    resting: BTreeSet<i32>,
    looked: Option<Instant>,
    /// Messages that it took since then, and in a second.
    taken: u64,
    rate: f64,
    /// What the old state had at its last checkpoint, and when that was last seen to grow.
    fed: (BTreeMap<i32, i64>, Option<Instant>),
    reported: Instant,
    /// The attempt to bring it level that came to nothing, and the time before which there is no other.
    missed: Option<Instant>,
    again: Instant,
    /// It is level, and goes on until then, or until another process reads one of its partitions.
    follows: Option<Instant>,
    waits: Option<String>,
}

/// Reads until it is level with the old state and all is in the store, or until it is told to stop. Blocks its thread.
pub(super) fn run(feed: &Arc<Feed>, old: Old, deps: &Deps, runtime: &Handle, told: Told, running: Running) {
    let writer = Writer::new(feed, deps.store.clone(), &deps.live, deps.settings.checkpoints);
    let now = Instant::now();
    let mut reader = Reader {
        feed,
        old,
        deps,
        runtime,
        told,
        writer,
        pace: Pace::new(deps.settings.checkpoints),
        producer: None,
        progress: BTreeMap::new(),
        ends: Ends::default(),
        limits: None,
        fresh: BTreeSet::new(),
        resting: BTreeSet::new(),
        looked: None,
        taken: 0,
        rate: 0.0,
        fed: (BTreeMap::new(), None),
        reported: now,
        missed: None,
        again: now,
        follows: None,
        waits: None,
    };
    let ended = reader.run();
    let Reader { mut writer, told, .. } = reader;
    // nothing is written any more, and the states are gone, when the table may be entered
    writer.forget();
    drop(writer);
    drop(running);
    told.tell.send_modify(|report| report.ended = Some(ended));
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), String> {
        let mut pause = PAUSES.0;
        loop {
            match self.read(&mut pause) {
                Ok(()) => return Ok(()),
                Err(Stop::Blocked(why) | Stop::Restart(why)) if self.follows.is_some() => {
                    // what is not in the store comes again, to whoever goes on
                    tracing::info!(view = self.feed.view.name, group = self.feed.group, why, "handed over");
                    return Ok(());
                }
                Err(Stop::Blocked(why)) => return Err(why),
                Err(Stop::Restart(why)) => {
                    tracing::warn!(view = self.feed.view.name, group = self.feed.group, why, "catching up: once more");
                    self.writer.forget();
                    self.waits = Some(why);
                }
            }
            let until = Instant::now() + pause;
            pause = (pause * 2).min(PAUSES.1);
            while Instant::now() < until {
                // a paused view whose old state was never fed needs no broker
                match self.obey(None) {
                    Ok(true) => return Ok(()),
                    Ok(false) | Err(Stop::Restart(_)) => {}
                    Err(Stop::Blocked(why)) => return Err(why),
                }
                self.tell(false);
                let stopped = async { tokio::time::timeout(TICK, self.told.stop.cancelled()).await.is_ok() };
                if self.runtime.block_on(stopped) {
                    return Ok(());
                }
            }
        }
    }

    fn read(&mut self, pause: &mut Duration) -> Result<(), Stop> {
        self.runtime.block_on(marker::check(self.feed, &*self.deps.store))?;
        let made = client::of_shadow(self.feed, &self.deps.settings).create_with_context(Quiet);
        let client: Client = made.map_err(|e| Stop::kafka("the Kafka consumer cannot be made", &e))?;
        let done = self.read_with(&client, pause);
        // closing waits for a broker that may be away; it writes nothing of ours
        std::thread::spawn(move || drop(client));
        done
    }

    fn read_with(&mut self, client: &Client, pause: &mut Duration) -> Result<(), Stop> {
        self.open(client)?;
        while !self.told.stop.is_cancelled() {
            if self.obey(Some(client))? {
                return Ok(());
            }
            let messages = self.poll(client)?;
            if !messages.is_empty() {
                self.apply(&messages)?;
                *pause = PAUSES.0;
            }
            // who hears of the commit goes on from what is in the store
            if self.follows.is_some() || self.pace.is_due(&self.writer) {
                let began = Instant::now();
                self.checkpoint()?;
                self.pace.done(began);
            }
            self.look(client);
            self.tell(false);
        }
        Ok(())
    }

    /// From the stored positions, or where the view's reading says.
    fn open(&mut self, client: &Client) -> Result<(), Stop> {
        let (feed, store) = (self.feed, &*self.deps.store);
        let topic = &feed.topic;
        let away = |e| Stop::kafka(&format!("the broker does not say what partitions topic {topic} has"), &e);
        let metadata = client.fetch_metadata(Some(topic), BROKER).map_err(away)?;
        let partitions =
            metadata.topics().iter().flat_map(|topic| topic.partitions().iter().map(MetadataPartition::id));
        let partitions: Vec<i32> = partitions.collect();
        if partitions.is_empty() {
            return Err(Stop::Restart(format!("the broker has no topic {topic}")));
        }
        let failed = |e: model::Error| Stop::Restart(format!("the online store: {e}"));
        let fences = self.runtime.block_on(store.claim(&feed.group, topic, &partitions)).map_err(failed)?;
        self.writer.claimed(fences);
        let stored = self.runtime.block_on(pipeline::stored_progress(feed, store)).map_err(failed)?;
        self.progress.clear();
        let mut begun = BTreeMap::new();
        for partition in partitions {
            let at = if let Some(at) = stored.get(&partition) {
                *at
            } else {
                let next = start::offset(client, feed, partition, &self.deps.settings).map_err(Stop::Restart)?;
                let at = Progress { next, max_event: Timestamp::MIN };
                // who goes on from here must not find a later place by then
                if next >= 0 {
                    begun.insert(partition, at);
                }
                at
            };
            self.progress.insert(partition, at);
        }
        if !begun.is_empty() {
            let positions = pipeline::positions(feed, &begun);
            let write = WriteBatch { positions, ..WriteBatch::default() };
            self.runtime.block_on(store.write(write)).map_err(failed)?;
        }
        self.ends = Ends::new(self.progress.iter().map(|(partition, at)| (*partition, at.next)));
        self.looked = None;
        self.assign(client)
    }

    /// Reads on from what is applied.
    fn assign(&mut self, client: &Client) -> Result<(), Stop> {
        self.resting.clear();
        self.fresh = self.progress.keys().copied().collect();
        let list = client::at(&self.feed.topic, self.progress.iter().map(|(partition, at)| (*partition, at)))?;
        client.assign(&list).map_err(|e| Stop::kafka("the partitions cannot be read", &e))
    }

    /// Does as it is told; says whether it is level with the old state and all is in the store.
    fn obey(&mut self, client: Option<&Client>) -> Result<bool, Stop> {
        let Orders { paused, level } = self.told.orders.borrow().clone();
        if paused != self.limits.is_some() {
            let failed = |e| Stop::Restart(format!("where the old state is cannot be read: {e}"));
            let limits = || self.runtime.block_on(self.old.positions(&*self.deps.store)).map_err(failed);
            self.limits = if paused { Some(limits()?) } else { None };
            if let Some(client) = client {
                self.assign(client)?;
            }
        }
        if let Some(until) = self.follows {
            return Ok(Instant::now() >= until);
        }
        let Some(Target { offsets, until, follow }) = level.filter(|target| self.missed != Some(target.until)) else {
            return Ok(false);
        };
        if self.limits.as_ref().is_some_and(|limits| *limits != offsets) {
            // the old state came further after the pause was wanted
            self.limits = Some(offsets.clone());
            if let Some(client) = client {
                self.assign(client)?;
            }
        }
        let unknown = |partition| Stop::Restart(format!("the topic gained partition {partition}"));
        let reached = self.ends.has_all(&offsets);
        if reached == Ok(true) && self.checkpoint().is_ok() {
            self.told.tell.send_modify(|report| report.level = true);
            self.follows = Some(Instant::now() + follow);
            return Ok(follow.is_zero());
        }
        if Instant::now() >= until || reached.is_err() {
            // the old state goes on, until this one is near again
            self.missed = Some(until);
            self.again = Instant::now() + AGAIN;
            self.tell(true);
        }
        reached.map(|_| false).map_err(unknown)
    }

    fn checkpoint(&mut self) -> Result<(), Stop> {
        let written = self.runtime.block_on(self.writer.checkpoint(self.deps.clock.now()));
        written.map(drop).map_err(Failure::into_stop)
    }

    /// Takes what comes, up to the batch size.
    fn poll(&mut self, client: &Client) -> Result<Vec<Message>, Stop> {
        let (mut messages, mut copies) = (Vec::new(), Copies::default());
        let until = Instant::now() + TICK;
        while messages.len() < self.deps.settings.batch_size {
            let left =
                if messages.is_empty() { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            match client.poll(left) {
                None => break,
                Some(Ok(message)) => {
                    self.waits = None;
                    if self.take(client, message.partition(), message.offset())? {
                        messages.push(client::own(&message, &mut copies));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if self.ends.is_open(partition)
                        && let Ok((_, end)) = client.fetch_watermarks(&self.feed.topic, partition, BROKER)
                    {
                        self.ends.end_is_here(partition, end);
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return Err(Stop::Restart(format!("the Kafka consumer failed: {code}")));
                }
                Some(Err(error)) => {
                    self.waits = Some(format!("the broker: {error}"));
                    break;
                }
            }
        }
        Ok(messages)
    }

    /// Whether a message is to be applied: not behind the limit, nor again.
    fn take(&mut self, client: &Client, partition: i32, offset: i64) -> Result<bool, Stop> {
        let Some(expected) = self.ends.reached(partition).map(|reached| reached.next) else { return Ok(false) };
        if self.fresh.remove(&partition) {
            if start::is_lost(expected, offset, || start::oldest(client, &self.feed.topic, partition)) {
                metrics::position_lost(self.feed, partition, expected, offset);
            }
        } else if offset < expected {
            return Err(Stop::Restart(format!("partition {partition} went back from offset {expected} to {offset}")));
        }
        let is_behind = |limits: &BTreeMap<i32, i64>| limits.get(&partition).is_none_or(|limit| offset >= *limit);
        if self.limits.as_ref().is_some_and(is_behind) {
            if self.resting.insert(partition) {
                let at = Progress { next: offset, max_event: Timestamp::MIN };
                let list = client::at(&self.feed.topic, std::iter::once((partition, &at)))?;
                client.pause(&list).map_err(|e| Stop::kafka("a partition cannot be paused", &e))?;
            }
            return Ok(false);
        }
        self.ends.read(partition, offset + 1);
        Ok(true)
    }

    fn apply(&mut self, messages: &[Message]) -> Result<(), Stop> {
        let started = Instant::now();
        let (feed, deps) = (self.feed, self.deps);
        let wanted = Decoder::wanted(feed, messages.iter());
        let writers = self.runtime.block_on(deps.formats.writers(&wanted));
        let writers = writers.map_err(|e| Stop::Restart(format!("the schema registry does not answer: {e}")))?;
        let now = deps.clock.now();
        let skew = i64::try_from(deps.settings.future_skew.as_micros()).unwrap_or(i64::MAX);
        let taker = Taker { feed, progress: &self.progress, elsewhere: &BTreeSet::new() };
        let batches = pipeline::prepare(&[taker], &writers, messages, now, skew);
        self.taken += messages.len() as u64;
        for mut batch in batches {
            bury(&mut self.producer, deps, self.runtime, feed, &mut batch).map_err(Failure::into_stop)?;
            let applied = self.runtime.block_on(self.writer.apply(&batch, now)).map_err(Failure::into_stop)?;
            self.progress.extend(batch.progress.iter().map(|(partition, at)| (*partition, *at)));
            metrics::counted(feed, &batch, &applied, started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Asks the broker how far the topic goes, now and then.
    fn look(&mut self, client: &Client) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        if let Ok(old) = self.runtime.block_on(self.old.positions(&*self.deps.store))
            && old != self.fed.0
        {
            // what is there at first may have been there for long
            let seen = !self.fed.0.is_empty();
            self.fed = (old, seen.then(Instant::now));
        }
        let asked = Instant::now();
        let known = self.ends_of(client);
        let seconds = self.looked.map_or(LOOK, |at| asked.saturating_duration_since(at)).as_secs_f64();
        self.rate = self.rate.midpoint(std::mem::take(&mut self.taken) as f64 / seconds);
        self.looked = Some(asked);
        match known {
            Ok(known) => {
                self.waits = None;
                self.ends.told(known, asked);
            }
            Err(error) => self.waits = Some(format!("the broker does not say how far the topic goes: {error}")),
        }
    }

    /// The offsets behind the newest messages, by one question.
    fn ends_of(&self, client: &Client) -> KafkaResult<BTreeMap<i32, i64>> {
        let mut wanted = TopicPartitionList::new();
        for partition in self.ends.partitions() {
            // asked for as a time, it is the latest
            wanted.add_partition_offset(&self.feed.topic, partition, Offset::End)?;
        }
        let mut known = BTreeMap::new();
        for element in client.offsets_for_times(wanted, BROKER)?.elements() {
            element.error()?;
            known.extend(element.offset().to_raw().map(|end| (element.partition(), end)));
        }
        Ok(known)
    }

    /// Whether it can have in a moment all that the old state has, which is fed: where more comes than can be taken,
    /// neither comes to the end.
    fn is_beside(&self, now: Instant) -> bool {
        let (old, grew) = &self.fed;
        let fed = grew.is_some_and(|at| now.saturating_duration_since(at) < FED);
        fed && self.ends.lacks(old) as f64 <= self.rate * MOMENT.as_secs_f64()
    }

    /// Says how far it is, where that is new.
    fn tell(&mut self, missed: bool) {
        let now = Instant::now();
        let (lag, near) = match &self.limits {
            Some(limits) if limits.is_empty() || self.ends.has_all(limits) == Ok(true) => (Some(0), true),
            Some(_) => (self.ends.lag(), false),
            None => (self.ends.lag(), self.ends.is_near(now) || self.is_beside(now)),
        };
        let near = near && now >= self.again;
        let due = self.reported.elapsed() >= TELL;
        let standing = Standing { lag, near, waits: self.waits.clone() };
        let told = self.told.tell.send_if_modified(|report| {
            let new = missed || due || report.standing.near != near;
            if new {
                report.standing = standing;
                report.missed += u64::from(missed);
            }
            new
        });
        if told {
            self.reported = now;
        }
    }
}
