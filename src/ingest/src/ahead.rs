//! Decoding ahead: while a batch is applied and the next one polled, the one between is decoded in a thread of its own.
//! Knows no Kafka client and no store.
//!
//! Decoding depends on nothing but what it is given ([`pipeline::prepare`]): who takes the messages, and where they stand.
//! What was decoded ahead is used where those are, when its turn comes, as was assumed; else (a view came or went, a
//! partition was taken away, a view went back) it is thrown away, and what is still to be applied is decoded again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use model::Timestamp;

use crate::decode::avro::Writers;
use crate::feed::Feed;
use crate::message::Message;
use crate::pipeline::{self, Batch, Progress, Taker};

/// A view that takes messages, as [`Taker`] has it.
#[derive(Clone, Debug)]
pub struct View {
    /// Tells views apart.
    pub member: u64,
    /// What it takes of messages.
    pub feed: Arc<Feed>,
    /// Where its partitions stand.
    pub progress: BTreeMap<i32, Progress>,
    /// The partitions of which it takes nothing.
    pub elsewhere: BTreeSet<i32>,
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.member == other.member
            && Arc::ptr_eq(&self.feed, &other.feed)
            && self.progress == other.progress
            && self.elsewhere == other.elsewhere
    }
}

/// What decoding needs beside messages and views.
#[derive(Debug)]
pub struct With {
    /// The schemas with which the messages were written.
    pub writers: Writers,
    /// The time.
    pub now: Timestamp,
    /// How far after it an event may lie, µs.
    pub skew_us: i64,
}

/// A batch for each view.
pub fn prepare(views: &[View], messages: &[Message], with: &With) -> Vec<Batch> {
    let taker = |view| {
        let View { feed, progress, elsewhere, .. }: &View = view;
        Taker { feed, progress, elsewhere }
    };
    let takers: Vec<Taker<'_>> = views.iter().map(taker).collect();
    pipeline::prepare(&takers, &with.writers, messages, with.now, with.skew_us)
}

/// Messages to decode.
struct Task {
    messages: Vec<Message>,
    /// As they stand now, or, where batches before these are on their way, as they stood before those.
    views: Vec<View>,
    with: With,
    follows: bool,
    /// What was applied: it is let go of where it was made, which costs least.
    spent: Vec<Batch>,
}

/// Messages that were decoded.
struct Decoded {
    messages: Vec<Message>,
    views: Vec<View>,
    with: With,
    batches: Vec<Batch>,
}

/// The thread, and what it has: at most one batch of messages.
pub struct Ahead {
    tasks: Sender<Task>,
    decoded: Receiver<Decoded>,
    /// The epoch of the assignment by which that was polled.
    waiting: Option<u64>,
    /// What was decoded last was not used: what was handed over behind it assumes what is not so.
    astray: bool,
    spent: Vec<Batch>,
}

/// A batch for each of these views.
pub type Landed = Vec<(u64, Batch)>;

impl Ahead {
    /// Starts the thread, which ends with this.
    ///
    /// Errors: there is no thread to be had.
    pub fn start(topic: &str) -> std::io::Result<Self> {
        let (tasks, to_do) = channel();
        let (done, decoded) = channel();
        std::thread::Builder::new().name(format!("decode-{topic}")).spawn(move || run(&to_do, &done))?;
        Ok(Self { tasks, decoded, waiting: None, astray: false, spent: Vec::new() })
    }

    /// Whether messages wait to be applied.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether those should be applied before others are handed over.
    pub fn is_astray(&self) -> bool {
        self.astray
    }

    /// Hands messages over, polled at that epoch; gives those that were handed over before, decoded. `views` are as they
    /// stand now, before the latter are applied. `still` tells whether what was polled of a partition at an epoch is to be
    /// applied.
    ///
    /// Errors: the thread panicked.
    pub fn hand_over(
        &mut self,
        messages: Vec<Message>,
        epoch: u64,
        views: &[View],
        with: With,
        still: impl Fn(i32, u64) -> bool,
    ) -> Result<Landed, Gone> {
        let (follows, spent) = (self.waiting.is_some(), std::mem::take(&mut self.spent));
        self.tasks.send(Task { messages, views: views.to_vec(), with, follows, spent }).map_err(|_| Gone)?;
        match self.waiting.replace(epoch) {
            Some(before) => self.receive(before, views, still),
            None => Ok(Landed::new()),
        }
    }

    /// What was handed over, decoded for these views; as [`Self::hand_over`] has it.
    ///
    /// Errors: the thread panicked.
    pub fn land(&mut self, views: &[View], still: impl Fn(i32, u64) -> bool) -> Result<Landed, Gone> {
        let Some(epoch) = self.waiting.take() else { return Ok(Landed::new()) };
        self.spent.clear();
        let landed = self.receive(epoch, views, still);
        // what comes next follows nothing
        self.astray = false;
        landed
    }

    /// A batch was applied, and is not needed any more.
    pub fn spend(&mut self, batch: Batch) {
        if self.is_waiting() {
            self.spent.push(batch);
        }
    }

    fn receive(&mut self, epoch: u64, views: &[View], still: impl Fn(i32, u64) -> bool) -> Result<Landed, Gone> {
        let mut decoded = self.decoded.recv().map_err(|_| Gone)?;
        let before = decoded.messages.len();
        decoded.messages.retain(|message| still(message.partition, epoch));
        self.astray = decoded.messages.len() != before || decoded.views != views;
        let batches = if self.astray { prepare(views, &decoded.messages, &decoded.with) } else { decoded.batches };
        Ok(views.iter().map(|view| view.member).zip(batches).collect())
    }
}

/// The thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("the thread that decodes the topic's messages panicked; see the log above")]
pub struct Gone;

/// Decodes until nobody hands anything over any more.
fn run(tasks: &Receiver<Task>, done: &Sender<Decoded>) {
    // where views stand behind what was decoded last
    let mut behind: BTreeMap<u64, BTreeMap<i32, Progress>> = BTreeMap::new();
    while let Ok(Task { messages, mut views, with, follows, spent }) = tasks.recv() {
        drop(spent);
        for view in views.iter_mut().filter(|_| follows) {
            view.progress = behind.remove(&view.member).unwrap_or_default();
        }
        let batches = prepare(&views, &messages, &with);
        behind.clear();
        for (view, batch) in views.iter().zip(&batches) {
            let mut progress = view.progress.clone();
            progress.extend(batch.progress.iter().map(|(partition, at)| (*partition, *at)));
            behind.insert(view.member, progress);
        }
        if done.send(Decoded { messages, views, with, batches }).is_err() {
            return;
        }
    }
}
