//! A pause in reading while something fails, in which the consumer stays in its group, and what is said of it. Knows no
//! message.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use service::streams::{Board, State};

use crate::client::TICK;
use crate::context::Client;
use crate::error::Stop;
use crate::feed::Feed;
use crate::metrics;

/// Says of a view that it waits, and for what.
pub(crate) fn told(board: &Board, feed: &Feed, why: String) {
    metrics::waits(feed);
    board.state(&feed.view.project, &feed.view.name, State::Retrying(why));
}

/// Says that it goes on.
pub(crate) fn over(board: &Board, feed: &Feed) {
    metrics::goes_on(feed);
    board.state(&feed.view.project, &feed.view.name, State::Running);
}

/// A pause in reading, while something fails.
pub(crate) struct Waiting<'a> {
    consumer: &'a Client,
    longest: Duration,
    epoch: u64,
    pause: Duration,
    paused: Option<TopicPartitionList>,
    pub(crate) attempts: u32,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(consumer: &'a Client, longest: Duration) -> Self {
        Self { consumer, longest, epoch: consumer.context().epoch(), pause: TICK, paused: None, attempts: 0 }
    }

    /// Waits, a little longer each time, or until a view should stop.
    ///
    /// Errors: the group was rebalanced meanwhile.
    pub(crate) fn wait(&mut self) -> Result<(), Stop> {
        self.attempts += 1;
        if self.paused.is_none()
            && let Ok(assigned) = self.consumer.assignment()
            && self.consumer.pause(&assigned).is_ok()
        {
            self.paused = Some(assigned);
        }
        let until = Instant::now() + self.pause;
        let stopped = || self.consumer.context().state().members.iter().any(|member| member.stop.is_cancelled());
        while Instant::now() < until && !stopped() {
            if let Some(Ok(_)) = self.consumer.poll(TICK) {
                return Err(Stop::Restart("a paused partition gave a message".to_owned()));
            }
            if self.consumer.context().epoch() != self.epoch {
                // a new consumer is sure to have nothing paused
                return Err(Stop::Restart("writes failed, and the group was rebalanced meanwhile".to_owned()));
            }
        }
        self.pause = (self.pause * 2).min(self.longest);
        Ok(())
    }

    /// Reading goes on.
    pub(crate) fn over(self) -> Result<(), Stop> {
        let context = self.consumer.context();
        if self.attempts > 0 {
            context.state().members.iter().for_each(|member| over(&context.deps.board, &member.feed));
        }
        let Some(paused) = self.paused else { return Ok(()) };
        self.consumer.resume(&paused).map_err(|e| Stop::kafka("the consumer cannot be resumed", &e))
    }
}
