//! The reader of a topic for all views that share it: a thread that polls, and writes for each view what it polled before
//! it polls again; where there is more to come, what it polled is decoded meanwhile ([`Ahead`]), and written a batch later.
//! Knows no registry.

mod poll;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use crate::ahead::{self, Ahead, View, With};
use crate::client::TICK;
use crate::context::{self, Client, State};
use crate::decode::Decoder;
use crate::error::Stop;
use crate::feed::Feed;
use crate::member::{Member, given_up};
use crate::message::Message;
use crate::pipeline::{self, Batch, Failure};
use crate::readers::{Deps, Join, Place};
use crate::waiting::{self, Waiting};
use crate::writer::{Pace, Writer};
use crate::{dead_letter, marker, metrics};
use poll::Polled;

/// After so many attempts a view whose writes fail is given up, where those of others succeed.
const PATIENCE: u32 = 5;
/// A view that is behind reads so many batches for each one of the others, to come nearer.
const HASTE: usize = 4;

/// Reads until the last view has left. Blocks its thread, which must not be one of the runtime's.
///
/// A view's outcome is told before the client is closed: nothing is written after it, and closing waits for a broker
/// that may be away.
pub(crate) fn run(first: Join, place: &Place, deps: &Deps, runtime: &Handle) {
    let consumer = match context::open(&first.feed, deps, runtime) {
        Ok(consumer) => consumer,
        Err(stop) => {
            let _ = first.tell.send(Err(stop));
            refuse(place, "the Kafka consumer cannot be made");
            return;
        }
    };
    let pace = Pace::new(deps.settings.checkpoints);
    let mut reader = Reader {
        deps,
        runtime,
        consumer: &consumer,
        place,
        joined: 0,
        producer: None,
        pace,
        last_error: None,
        ahead: None,
    };
    reader.admit(first);
    if let Err(stop) = reader.run() {
        let reason = stop.to_string();
        for member in std::mem::take(&mut consumer.context().state().members) {
            member.end(Err(Stop::Restart(reason.clone())));
        }
        refuse(place, &reason);
    }
}

/// Tells views that joined a reader that cannot go on.
fn refuse(place: &Place, reason: &str) {
    while let Some(join) = place.end() {
        let _ = join.tell.send(Err(Stop::Restart(reason.to_owned())));
    }
}

struct Reader<'a> {
    deps: &'a Deps,
    runtime: &'a Handle,
    consumer: &'a Client,
    place: &'a Place,
    /// How many views ever joined.
    joined: u64,
    producer: Option<dead_letter::Producer>,
    pace: Pace,
    last_error: Option<KafkaError>,
    ahead: Option<Ahead>,
}

/// What is to be written for a view.
struct Work {
    member: u64,
    job: Job,
}

enum Job {
    Batch { batch: Box<Batch>, started: Instant },
    Checkpoint,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        loop {
            while let Some(join) = self.place.next() {
                self.admit(join);
            }
            self.dismiss();
            if self.state().members.is_empty() {
                match self.place.end() {
                    Some(join) => self.admit(join),
                    None => return Ok(()),
                }
                continue;
            }
            let busy = self.catch_up()?;
            let waits = self.ahead.as_ref().is_some_and(Ahead::is_waiting);
            let polled = self.poll(if busy || waits { Duration::ZERO } else { TICK })?;
            if let Some(reason) = self.state().failed.take() {
                return Err(Stop::Restart(reason));
            }
            if polled.full && !busy {
                self.hand_over(polled)?;
            } else {
                self.land()?;
                self.apply(&polled.messages, None)?;
            }
            self.checkpoint()?;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.consumer.context().state()
    }

    /// Takes a view in, if its state may be continued, at its own positions.
    fn admit(&mut self, join: Join) {
        let Join { feed, stop, tell } = join;
        let assigned: BTreeSet<i32> = self.state().tracks.keys().copied().collect();
        let context = self.consumer.context();
        let claim = || {
            let fences = context.claim(&feed, &assigned)?;
            Ok((fences, context.stored(self.consumer, &feed, &assigned)?))
        };
        let checked = self.runtime.block_on(marker::check(&feed, &*self.deps.store));
        let stored = checked.and_then(|()| claim().map_err(Stop::Restart));
        let (fences, progress) = match stored {
            Ok(stored) => stored,
            Err(stop) => {
                let _ = tell.send(Err(stop));
                return;
            }
        };
        let writer = Writer::new(&feed, self.deps.store.clone(), &self.deps.live, self.deps.settings.checkpoints);
        let mut writer = writer.with_log(self.deps.event_log.clone());
        writer.claimed(fences);
        self.joined += 1;
        metrics::started(&feed);
        let mut member = Member::new(self.joined, feed, writer, stop, tell);
        let mut state = self.state();
        for (partition, at) in progress {
            let others = state.tracks.get(&partition).map_or(-1, |track| track.next);
            if at.next < others {
                metrics::behind(&member.feed, partition, at.next, others);
                member.behind.insert(partition);
            }
            member.progress.insert(partition, at);
        }
        state.members.push(member);
    }

    /// Lets those go that were told to stop.
    fn dismiss(&self) {
        let told = |member: &Member| member.stop.is_cancelled().then_some(member.id);
        let told: Vec<u64> = self.state().members.iter().filter_map(told).collect();
        for member in told.into_iter().filter_map(|id| self.remove(id)) {
            self.runtime.block_on(member.leave(self.deps.clock.now()));
        }
    }

    fn remove(&self, id: u64) -> Option<Member> {
        let mut state = self.state();
        let at = state.members.iter().position(|member| member.id == id)?;
        Some(state.members.remove(at))
    }

    /// Some batches for each view that is behind; says whether there were any.
    fn catch_up(&mut self) -> Result<bool, Stop> {
        let ids: Vec<u64> = self.state().members.iter().filter(|m| m.is_behind()).map(|m| m.id).collect();
        let mut busy = false;
        for id in ids {
            for _ in 0..HASTE {
                let mut state = self.state();
                let State { members, tracks, .. } = &mut *state;
                let Some(member) = members.iter_mut().find(|member| member.id == id) else { break };
                let reached = |partition: i32| tracks.get(&partition).map_or(-1, |track| track.next);
                let read = member.read(&self.deps.settings, reached, self.deps.settings.batch_size);
                drop(state);
                match read {
                    Ok(messages) if messages.is_empty() => break,
                    Ok(messages) => {
                        busy = true;
                        self.apply(&messages, Some(id))?;
                    }
                    Err(stop) => {
                        self.give_up(id, stop);
                        break;
                    }
                }
            }
        }
        Ok(busy)
    }

    fn give_up(&self, id: u64, stop: Stop) {
        if let Some(member) = self.remove(id) {
            member.end(Err(stop));
        }
    }

    /// Applies messages for all views, or for one alone that is behind.
    fn apply(&mut self, messages: &[Message], alone: Option<u64>) -> Result<(), Stop> {
        if messages.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let Some(feed) = self.state().members.first().map(|member| member.feed.clone()) else { return Ok(()) };
        let with = self.with(&feed, messages)?;
        let of = |member: &&Member| alone.is_none_or(|id| member.id == id);
        let state = self.state();
        let views: Vec<View> = state.members.iter().filter(of).map(|m| m.view(alone.is_some())).collect();
        drop(state);
        let batches = ahead::prepare(&views, messages, &with);
        self.write(views.iter().map(|view| view.member).zip(batches), started)
    }

    /// Has a batch decoded, and applies the one that was before it.
    fn hand_over(&mut self, polled: Polled) -> Result<(), Stop> {
        let Some(feed) = self.state().members.first().map(|member| member.feed.clone()) else { return Ok(()) };
        // schemas may have to be waited for, which should keep nothing back
        let alone = !Decoder::wanted(&feed, polled.messages.iter()).is_empty();
        if alone || self.ahead.as_ref().is_some_and(Ahead::is_astray) {
            self.land()?;
        }
        let started = Instant::now();
        let with = self.with(&feed, &polled.messages)?;
        let views = self.views();
        let context = self.consumer.context();
        let ahead = match &mut self.ahead {
            Some(ahead) => ahead,
            none => none.insert(
                Ahead::start(&context.topic).map_err(|e| Stop::Restart(format!("no thread to decode in: {e}")))?,
            ),
        };
        let landed = ahead
            .hand_over(polled.messages, polled.epoch, &views, with, |partition, epoch| {
                context.is_since(partition, epoch)
            })
            .map_err(|gone| Stop::Restart(gone.to_string()))?;
        self.write(landed, started)
    }

    /// Applies the batch that was handed over last.
    fn land(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        let (views, context) = (self.views(), self.consumer.context());
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let landed = ahead
            .land(&views, |partition, epoch| context.is_since(partition, epoch))
            .map_err(|gone| Stop::Restart(gone.to_string()))?;
        self.write(landed, started)
    }

    /// All views, as they stand.
    fn views(&self) -> Vec<View> {
        self.state().members.iter().map(|member| member.view(false)).collect()
    }

    fn write(&mut self, batches: impl IntoIterator<Item = (u64, Batch)>, started: Instant) -> Result<(), Stop> {
        let work: Vec<(u64, Batch)> = batches.into_iter().filter(|(_, batch)| batch.messages > 0).collect();
        let mut state = self.state();
        let batch_of = |id: u64| work.iter().find(|(member, _)| *member == id).map(|(_, batch)| batch);
        let views = state.members.iter_mut().filter_map(|member| Some((&mut member.writer, batch_of(member.id)?)));
        Writer::join(&mut views.collect::<Vec<_>>());
        drop(state);
        let job = |batch| Job::Batch { batch: Box::new(batch), started };
        self.persist(work.into_iter().map(|(member, batch)| Work { member, job: job(batch) }).collect())
    }

    fn with(&mut self, feed: &Feed, messages: &[Message]) -> Result<With, Stop> {
        let writers = self.writers(feed, messages)?;
        let skew_us = i64::try_from(self.deps.settings.future_skew.as_micros()).unwrap_or(i64::MAX);
        Ok(With { writers, now: self.deps.clock.now(), skew_us })
    }

    /// The schemas with which these messages were written.
    fn writers(&self, feed: &Feed, messages: &[Message]) -> Result<crate::decode::avro::Writers, Stop> {
        let wanted = Decoder::wanted(feed, messages.iter());
        let mut waiting = Waiting::new(self.consumer, self.deps.settings.max_backoff);
        loop {
            match self.runtime.block_on(self.deps.formats.writers(&wanted)) {
                Ok(writers) => {
                    waiting.over()?;
                    return Ok(writers);
                }
                Err(error) => {
                    let what = "the schema registry does not answer";
                    for member in &self.state().members {
                        metrics::write_retry(&member.feed, what, &error, waiting.attempts + 1);
                        waiting::told(&self.deps.board, &member.feed, format!("{what}: {error}"));
                    }
                    waiting.wait()?;
                    self.dismiss();
                    if self.state().members.is_empty() {
                        return Ok(crate::decode::avro::Writers::new());
                    }
                }
            }
        }
    }

    /// Writes for each view what is pending and due, and tells Kafka how far that is.
    fn checkpoint(&mut self) -> Result<(), Stop> {
        let due = |m: &Member| self.pace.is_due(&m.writer).then_some(Work { member: m.id, job: Job::Checkpoint });
        let due: Vec<Work> = self.state().members.iter().filter_map(due).collect();
        if due.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.persist(due)?;
        self.pace.done(began);
        Ok(())
    }

    /// Tries until it succeeds, with growing pauses in which the consumer stays in its group. A view whose writes fail
    /// while no others do is given up after some attempts, and starts again by itself.
    fn persist(&mut self, mut todo: Vec<Work>) -> Result<(), Stop> {
        let mut waiting = Waiting::new(self.consumer, self.deps.settings.max_backoff);
        while !todo.is_empty() {
            let mut again = Vec::new();
            for mut work in todo {
                match self.attempt(&mut work, waiting.attempts + 1) {
                    Ok(()) => self.spend(work),
                    Err(Failure::Unavailable(error)) => again.push((work, error)),
                    Err(Failure::Contended(_)) => self.rewind(work.member)?,
                    Err(Failure::Fenced(error)) => {
                        if let Some(member) = self.state().members.iter().find(|member| member.id == work.member) {
                            metrics::fenced(&member.feed);
                        }
                        return Err(Failure::Fenced(error).into_stop());
                    }
                    Err(failure) => self.give_up(work.member, failure.into_stop()),
                }
            }
            let attempts = waiting.attempts + 1;
            let alone = again.len() < self.state().members.len();
            todo = Vec::with_capacity(again.len());
            for (work, error) in again {
                if alone && attempts >= PATIENCE {
                    self.give_up(work.member, given_up(&error, attempts));
                } else {
                    todo.push(work);
                }
            }
            if !todo.is_empty() {
                waiting.wait()?;
                self.dismiss();
                let state = self.state();
                todo.retain(|work| state.members.iter().any(|member| member.id == work.member));
                // whether the others can be written shows whose fault it is
                let idle = |member: &&Member| !todo.iter().any(|work| work.member == member.id);
                let others = state.members.iter().filter(idle).filter(|member| member.writer.is_pending());
                let others: Vec<_> = others.map(|m| Work { member: m.id, job: Job::Checkpoint }).collect();
                todo.extend(others);
            }
        }
        waiting.over()
    }

    fn spend(&mut self, work: Work) {
        if let (Job::Batch { batch, .. }, Some(ahead)) = (work.job, &mut self.ahead) {
            ahead.spend(*batch);
        }
    }

    /// Another process wrote a state that a view changed here: the view goes back to its stored positions, and reads from
    /// there by itself.
    fn rewind(&self, id: u64) -> Result<(), Stop> {
        let mut state = self.state();
        let State { members, tracks, .. } = &mut *state;
        let Some(member) = members.iter_mut().find(|member| member.id == id) else { return Ok(()) };
        metrics::contended(&member.feed);
        member.writer.contend();
        let stored = self.runtime.block_on(pipeline::stored_progress(&member.feed, &*self.deps.store));
        let stored = stored.map_err(|e| Stop::Restart(format!("the stored positions cannot be read: {e}")))?;
        let reached: Vec<(i32, i64)> = tracks.iter().map(|(partition, track)| (*partition, track.next)).collect();
        member.rewind(&stored, &reached);
        Ok(())
    }

    /// Sends a batch's dead letters, then writes it; or writes a checkpoint.
    fn attempt(&mut self, work: &mut Work, attempts: u32) -> Result<(), Failure> {
        let (deps, runtime) = (self.deps, self.runtime);
        let mut state = self.consumer.context().state();
        let Some(member) = state.members.iter_mut().find(|member| member.id == work.member) else { return Ok(()) };
        let what;
        let outcome = match &mut work.job {
            Job::Checkpoint => {
                what = "the online store is not available";
                let written = runtime.block_on(member.writer.checkpoint(deps.clock.now()));
                written.map(|positions| member.commit(&deps.settings, &positions))
            }
            Job::Batch { batch, started } => {
                what = "the online store or the dead-letter topic does not take what is written";
                bury(&mut self.producer, deps, runtime, &member.feed, batch).and_then(|()| {
                    let applied = runtime.block_on(member.writer.apply(batch, deps.clock.now()))?;
                    member.progress.extend(batch.progress.iter().map(|(partition, at)| (*partition, *at)));
                    metrics::written(&member.feed, batch, &applied, started.elapsed().as_secs_f64());
                    if !member.writer.has_checkpoints() {
                        member.commit(&deps.settings, &batch.progress);
                    }
                    Ok(())
                })
            }
        };
        if let Err(Failure::Unavailable(error)) = &outcome {
            metrics::write_retry(&member.feed, what, &error.to_string(), attempts);
            waiting::told(&deps.board, &member.feed, format!("{what}: {error}"));
        }
        outcome
    }
}
/// Sends a batch's dead letters, once.
pub(crate) fn bury(
    producer: &mut Option<dead_letter::Producer>,
    deps: &Deps,
    runtime: &Handle,
    feed: &Feed,
    batch: &mut Batch,
) -> Result<(), Failure> {
    if batch.dead.is_empty() {
        return Ok(());
    }
    let unavailable = |what: &str, error: KafkaError| {
        Failure::Unavailable(model::Error::new(model::Kind::Unavailable, what.to_owned()).with_cause(error))
    };
    let producer = if let Some(producer) = producer {
        producer
    } else {
        let _guard = runtime.enter();
        let made = dead_letter::Producer::new(feed, &deps.settings.producer_properties());
        producer.insert(made.map_err(|e| unavailable("the dead-letter producer cannot be made", e))?)
    };
    let sent = runtime.block_on(producer.send(feed, &batch.dead));
    sent.map_err(|e| unavailable("the dead-letter topic does not take messages", e))?;
    metrics::dead_lettered(feed, &batch.dead);
    batch.dead.clear();
    Ok(())
}
