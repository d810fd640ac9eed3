//! What a reader polls: a batch of messages in the order of their partitions, none of a partition that went meanwhile.
//! Knows no store.

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;

use super::Reader;
use crate::client;
use crate::context::{State, Track};
use crate::error::Stop;
use crate::message::{Copies, Message};
use crate::{metrics, start};

/// A batch is of no more than this, bytes; two of them may wait to be applied.
const LARGEST_BATCH: usize = 8 << 20;

/// What was polled.
pub(super) struct Polled {
    pub(super) messages: Vec<Message>,
    /// The epoch of the assignment by then.
    pub(super) epoch: u64,
    /// Whether more may be there.
    pub(super) full: bool,
}

impl Reader<'_> {
    /// Waits for a message, then takes what comes within the linger time, up to the batch size.
    pub(super) fn poll(&mut self, wait: Duration) -> Result<Polled, Stop> {
        let settings = &self.deps.settings;
        let (mut messages, mut copies): (Vec<Message>, _) = (Vec::new(), Copies::default());
        let mut bytes = 0;
        let mut until = Instant::now() + wait;
        let mut epoch = self.consumer.context().epoch();
        while messages.len() < settings.batch_size && bytes < LARGEST_BATCH {
            // what is here is taken without a look at the clock
            let mut left = Duration::ZERO;
            let polled = self.consumer.poll(left).or_else(|| {
                left = until.saturating_duration_since(Instant::now());
                if left.is_zero() { None } else { self.consumer.poll(left) }
            });
            let now = self.consumer.context().epoch();
            if now != epoch {
                // of partitions that went, and of those that came back: they start from the store. What this poll gave
                // comes behind the change: a partition's first message may come with its assignment.
                let state = self.state();
                messages.retain(|message| state.has_since(message.partition, epoch));
                epoch = now;
            }
            match polled {
                Some(Ok(message)) => {
                    self.last_error = None;
                    if messages.is_empty() && !wait.is_zero() {
                        until = Instant::now() + settings.linger;
                    }
                    bytes += message.payload_len();
                    messages.push(client::own(&message, &mut copies));
                }
                Some(Err(error)) => self.tell(error)?,
                None if left.is_zero() => break,
                None => {}
            }
            // errors, and messages of partitions that went, are no reason to stay
            if messages.is_empty() && Instant::now() >= until {
                break;
            }
        }
        let full = messages.len() >= settings.batch_size || bytes >= LARGEST_BATCH;
        self.in_order(&mut messages)?;
        Ok(Polled { messages, epoch, full })
    }

    /// Holds the messages' offsets against what was polled before them; leaves out those of partitions that are not
    /// assigned.
    fn in_order(&self, messages: &mut Vec<Message>) -> Result<(), Stop> {
        let mut state = self.state();
        let mut outcome = Ok(());
        messages.retain(|message| {
            let next = self.is_next(&mut state, message.partition, message.offset);
            next.unwrap_or_else(|stop| {
                outcome = Err(stop);
                false
            })
        });
        outcome
    }

    fn is_next(&self, state: &mut State, partition: i32, offset: i64) -> Result<bool, Stop> {
        let State { members, tracks, .. } = state;
        let Some(Track { next, fresh, .. }) = tracks.get_mut(&partition) else { return Ok(false) };
        let expected = std::mem::replace(next, offset + 1);
        if std::mem::take(fresh) {
            // for all members once, and only where one asks
            let oldest = LazyCell::new(|| start::oldest(self.consumer, &self.consumer.context().topic, partition));
            for member in members.iter_mut().filter(|member| !member.behind.contains(&partition)) {
                let Some(progress) = member.progress.get_mut(&partition) else { continue };
                // what comes before a member's position comes again, and is left out; no other member has less than this
                let again = offset < progress.next && offset >= expected;
                if !again && start::is_lost(progress.next, offset, || *oldest) {
                    metrics::position_lost(&member.feed, partition, progress.next, offset);
                    if offset < progress.next {
                        // what a topic made anew has is new
                        member.writer.begin_anew(partition);
                    }
                    progress.next = progress.next.min(offset);
                }
            }
        } else if offset < expected {
            // start again from the store: a repeated message is left out, a topic made anew is seen
            return Err(Stop::Restart(format!("partition {partition} went back from offset {expected} to {offset}")));
        }
        Ok(true)
    }

    fn tell(&mut self, error: KafkaError) -> Result<(), Stop> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(Stop::kafka("the Kafka consumer failed", &error));
        }
        let mut repeated = self.last_error.as_ref() == Some(&error);
        let mut state = self.state();
        state.trouble = Some(error.to_string());
        for member in &state.members {
            metrics::broker_error(&member.feed, &error, repeated);
            repeated = true;
        }
        drop(state);
        self.last_error = Some(error);
        Ok(())
    }
}
