//! A view among those that share a topic: where it stands, what it writes, and who waits for its end. Knows no group.
//!
//! A view that stands before the others reads the messages between with a client of its own ([`Member::read`]), until
//! it has come to where they are; from then on it takes what they take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::ahead::View;
use crate::client;
use crate::error::Stop;
use crate::feed::Feed;
use crate::message::{Copies, Message};
use crate::pipeline::Progress;
use crate::settings::Settings;
use crate::writer::Writer;
use crate::{metrics, start};

/// How a view's part in a share ended.
pub(crate) type Outcome = Result<(), Stop>;

pub(crate) struct Member {
    /// Tells members of one share apart.
    pub(crate) id: u64,
    pub(crate) feed: Arc<Feed>,
    pub(crate) writer: Writer,
    /// Where the share's partitions stand for this view.
    pub(crate) progress: BTreeMap<i32, Progress>,
    /// The partitions in which it is behind the others.
    pub(crate) behind: BTreeSet<i32>,
    /// Whether it should leave.
    pub(crate) stop: CancellationToken,
    tell: oneshot::Sender<Outcome>,
    /// Its own client, from when it is needed on.
    client: Option<BaseConsumer>,
    /// What that client reads, and the partitions of which it gave nothing yet.
    reads: BTreeSet<i32>,
    fresh: BTreeSet<i32>,
}

impl Member {
    pub(crate) fn new(
        id: u64,
        feed: Arc<Feed>,
        writer: Writer,
        stop: CancellationToken,
        tell: oneshot::Sender<Outcome>,
    ) -> Self {
        Self {
            id,
            feed,
            writer,
            progress: BTreeMap::new(),
            behind: BTreeSet::new(),
            stop,
            tell,
            client: None,
            reads: BTreeSet::new(),
            fresh: BTreeSet::new(),
        }
    }

    /// As it takes messages: of those that the others take too, or of its own.
    pub(crate) fn view(&self, alone: bool) -> View {
        View {
            member: self.id,
            feed: Arc::clone(&self.feed),
            progress: self.progress.clone(),
            elsewhere: if alone { BTreeSet::new() } else { self.behind.clone() },
        }
    }

    /// Whether it reads anything by itself, or has just ceased to.
    pub(crate) fn is_behind(&self) -> bool {
        !(self.behind.is_empty() && self.reads.is_empty())
    }

    /// The partitions are no longer this process's: what was pending is written, or comes again.
    pub(crate) fn lose(&mut self, partitions: &BTreeSet<i32>) {
        self.writer.forget();
        self.progress.retain(|partition, _| !partitions.contains(partition));
        self.behind.retain(|partition| !partitions.contains(partition));
        for &partition in partitions {
            metrics::lost(&self.feed, partition);
        }
    }

    /// Goes back to these positions, to read by itself what lies between them and where the others stand.
    pub(crate) fn rewind(&mut self, stored: &BTreeMap<i32, Progress>, reached: &[(i32, i64)]) {
        // its client starts again, too
        self.reads.clear();
        for &(partition, next) in reached {
            // a start that may move is stored: where nothing is, it was the oldest message
            let oldest = Progress { next: -1, max_event: Timestamp::MIN };
            let at = stored.get(&partition).copied().unwrap_or(oldest);
            self.progress.insert(partition, at);
            if at.next < next {
                self.behind.insert(partition);
            }
        }
    }

    /// Ends: nothing is written any more, and who waits is told.
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.writer.forget();
        for &partition in self.progress.keys() {
            metrics::lost(&self.feed, partition);
        }
        // its states are gone before it is: whoever is told may remove the view
        drop(self.writer);
        let _ = self.tell.send(outcome);
        if let Some(client) = self.client {
            // closing waits for a broker that may be away; the client writes nothing of ours
            std::thread::spawn(move || drop(client));
        }
    }

    /// Writes what is pending, for the last time; what cannot be written comes again.
    pub(crate) async fn leave(mut self, now: Timestamp) {
        if let Err(failure) = self.writer.checkpoint(now).await {
            metrics::left_unwritten(&self.feed, &failure);
        }
        self.end(Ok(()));
    }

    /// Tells Kafka how far it is.
    pub(crate) fn commit(&mut self, settings: &Settings, positions: &BTreeMap<i32, Progress>) {
        if positions.is_empty() {
            return;
        }
        let (feed, idle) = (Arc::clone(&self.feed), self.reads.is_empty());
        let Ok(client) = self.client(settings) else { return };
        if idle {
            // serves what the broker answered to earlier ones
            let _ = client.poll(Duration::ZERO);
        }
        client::commit(client, &feed, positions);
    }

    /// Up to `most` messages of the partitions in which it is behind. `reached` is where the others stand: a partition
    /// that has come there is no longer behind.
    ///
    /// Errors: a client that cannot be, or a partition that went back.
    pub(crate) fn read(
        &mut self,
        settings: &Settings,
        reached: impl Fn(i32) -> i64,
        most: usize,
    ) -> Result<Vec<Message>, Stop> {
        self.behind.retain(|p| self.progress.get(p).is_some_and(|progress| progress.next < reached(*p)));
        if self.reads != self.behind {
            let behind = self.progress.iter().filter(|(p, _)| self.behind.contains(p)).map(|(p, at)| (*p, at));
            let list = client::at(&self.feed.topic, behind)?;
            let client = self.client(settings)?;
            let assigned = if list.count() == 0 { client.unassign() } else { client.assign(&list) };
            assigned.map_err(|e| Stop::kafka("the view's own client cannot read", &e))?;
            self.reads.clone_from(&self.behind);
            self.fresh.clone_from(&self.behind);
        }
        let Some(client) = self.client.as_ref().filter(|_| !self.reads.is_empty()) else { return Ok(Vec::new()) };
        let (mut messages, mut copies, mut next) = (Vec::new(), Copies::default(), BTreeMap::new());
        while messages.len() < most {
            match client.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    if !self.behind.contains(&partition) {
                        continue;
                    }
                    let Some(progress) = self.progress.get_mut(&partition) else { continue };
                    if self.fresh.remove(&partition) {
                        let oldest = || start::oldest(client, &self.feed.topic, partition);
                        if start::is_lost(progress.next, offset, oldest) {
                            metrics::position_lost(&self.feed, partition, progress.next, offset);
                            // the topic may have been made anew
                            if offset < progress.next {
                                self.writer.begin_anew(partition);
                            }
                            progress.next = progress.next.min(offset);
                        }
                    } else if next.get(&partition).is_some_and(|next| offset < *next) {
                        return Err(Stop::Restart(format!("partition {partition} went back to offset {offset}")));
                    }
                    next.insert(partition, offset + 1);
                    if offset >= reached(partition) {
                        self.behind.remove(&partition);
                    } else {
                        messages.push(client::own(&message, &mut copies));
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return Err(Stop::Restart(format!("the view's own client failed: {code}")));
                }
                Some(Err(error)) => {
                    metrics::broker_error(&self.feed, &error, true);
                    break;
                }
            }
        }
        Ok(messages)
    }

    fn client(&mut self, settings: &Settings) -> Result<&BaseConsumer, Stop> {
        if self.client.is_none() {
            let made = client::of_view(&self.feed, settings).create();
            self.client = Some(made.map_err(|e| Stop::kafka("the view's own client cannot be made", &e))?);
        }
        self.client.as_ref().ok_or_else(|| Stop::Restart("the view has no client".to_owned()))
    }
}

/// What becomes of a view that alone cannot be written.
pub(crate) fn given_up(error: &model::Error, attempts: u32) -> Stop {
    Stop::Restart(format!(
        "its writes failed {attempts} times while those of the topic's other views did not, which go on without it: {error}"
    ))
}
