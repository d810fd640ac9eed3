//! The one thread that decides: it merges what is written with what is there, puts it into the log and
//! makes it visible, group by group. Being alone, it knows that what it read is still so when it writes.
//! Knows no reader but through the tier and the overlay, and writes nothing to sled itself.

mod clear;

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;
use model::ports::{StateWrite, Table, WriteBatch, Written};
use model::{EntityKey, Result, row};
use tokio::sync::{mpsc, oneshot};

use super::drain::Job;
use super::layout::{self, Entry, Kind};
use super::overlay::{Layer, Positions};
use super::runs::Reader;
use super::tier::{self, Key};
use super::wal::{self, Wal};
use super::{Durability, Shared, closed};
use clear::Clearing;

/// How long a clear that waits for the drainer lets those wait who write.
const LOOK: Duration = Duration::from_millis(5);
/// Rows and states after which a group is made durable, however many batches wait.
const GROUP: usize = 4096;

/// What the writer can be asked.
pub(crate) enum Command {
    Write(WriteBatch, oneshot::Sender<Result<Written>>),
    Clear(Table, oneshot::Sender<Result<u64>>),
    Close(oneshot::Sender<Result<()>>),
}

type Waiting = (WriteBatch, oneshot::Sender<Result<Written>>);
/// What a batch did, the states in it, and who waits for it.
type Staged = (Written, usize, oneshot::Sender<Result<Written>>);

/// The last entry of each key.
type Entries = HashMap<Key, Entry, RandomState>;

/// Entries and positions of a group, the last of each key, and window states, as they came.
#[derive(Default)]
struct Group {
    entries: Entries,
    states: Vec<OfTable>,
    positions: Positions,
}

/// Window states of one table; without bytes they are removed.
struct OfTable {
    table: Arc<Table>,
    /// What their keys begin with.
    prefix: Vec<u8>,
    states: Vec<(EntityKey, Option<Bytes>)>,
}

/// A write of more than so many keys is taken to touch every stripe of the tier.
const MANY: usize = 256;

/// The overlay's frozen layer is on its way into a run and sled, with the last of its segments.
struct Draining {
    last: u64,
    done: Receiver<Result<()>>,
}

/// The thread's own things.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    db: ::sled::Db,
    wal: Wal,
    active: Arc<Layer>,
    draining: Option<Draining>,
    /// Tables to clear, the first of them begun.
    clearing: VecDeque<Clearing>,
    jobs: Sender<Job>,
    durability: Durability,
    /// Bytes of log, or of overlay, after which a run is written.
    limit: u64,
}

impl Writer {
    /// A writer behind a log that was replayed up to this segment: what it held is the overlay's frozen layer.
    pub(crate) fn new(
        shared: Arc<Shared>,
        db: ::sled::Db,
        wal: Wal,
        replayed: u64,
        jobs: Sender<Job>,
        (durability, limit): (Durability, u64),
    ) -> Self {
        let active = shared.overlay.active();
        let mut writer =
            Self { shared, db, wal, active, draining: None, clearing: VecDeque::new(), jobs, durability, limit };
        writer.submit(replayed);
        writer
    }

    /// Works until it is asked to close, or nobody can ask any more.
    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut next = None;
        loop {
            let command = match next.take() {
                None if !self.clearing.is_empty() => match inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => {
                        self.clear_some();
                        continue;
                    }
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                },
                None => inbox.blocking_recv(),
                command => command,
            };
            match command {
                Some(Command::Write(batch, reply)) => {
                    let mut group = vec![(batch, reply)];
                    next = collect(&mut group, &mut inbox);
                    self.commit(group);
                    // A clear goes on, however many write.
                    self.clear_some();
                    if next.is_none() && inbox.is_empty() && self.clearing.is_empty() {
                        self.rest();
                    }
                }
                Some(Command::Clear(table, reply)) => {
                    self.clearing.push_back(Clearing::new(&self.shared, &table, reply));
                }
                Some(Command::Close(reply)) => {
                    let _ = reply.send(self.finish());
                    return;
                }
                None => {
                    if let Err(error) = self.finish() {
                        tracing::error!(%error, "the online store was not closed well");
                    }
                    return;
                }
            }
        }
    }

    fn commit(&mut self, waiting: Vec<Waiting>) {
        let room = self.make_room();
        let mut group = Group::default();
        let mut staged: Vec<Staged> = Vec::with_capacity(waiting.len());
        for (batch, reply) in waiting {
            let states = batch.states.len();
            match room.clone().and_then(|()| self.stage(batch, &mut group)) {
                Ok(written) => staged.push((written, states, reply)),
                Err(error) => {
                    // Whoever stopped waiting does not want to know.
                    let _ = reply.send(Err(error));
                }
            }
        }
        let kept = self.keep(group);
        for (written, states, reply) in staged {
            if kept.is_ok() {
                self.shared.traffic.written(&written, states);
            }
            let _ = reply.send(kept.clone().map(|()| written));
        }
    }

    /// Merges a batch with what is stored and what is staged before it; all of it or nothing.
    fn stage(&self, batch: WriteBatch, group: &mut Group) -> Result<Written> {
        let mut written = Written::default();
        let mut keys = Keys::default();
        let mut before = Vec::with_capacity(batch.rows.len());
        let mut reader = self.shared.runs.reader();
        for (at, write) in (0..).zip(batch.rows) {
            let key = keys.key(Kind::Row, &write.table, &write.key);
            let merged = match group.entries.get(&key) {
                Some(entry) => merge(entry, &write.row),
                None => match self.stored(&mut reader, &key) {
                    Ok(entry) => merge(&entry, &write.row),
                    Err(error) => {
                        undo(group, before);
                        return Err(error);
                    }
                },
            };
            if let Some(merged) = merged {
                let old = group.entries.insert(Key::clone(&key), merged);
                before.push((key, old));
                written.applied += 1;
            } else {
                written.stale.push(at);
            }
        }
        // From here on nothing fails.
        let mut room = batch.states.len();
        for StateWrite { table, key, state } in batch.states {
            let known = group.states.last_mut().filter(|last| Arc::ptr_eq(&last.table, &table) || last.table == table);
            if let Some(last) = known {
                last.states.push((key, state));
            } else {
                let mut states = Vec::with_capacity(room);
                states.push((key, state));
                group.states.push(OfTable { prefix: layout::table_prefix(Kind::State, &table), table, states });
            }
            room -= 1;
        }
        for position in &batch.positions {
            group.positions.insert(layout::position_key(position), layout::position_payload(position));
        }
        Ok(written)
    }

    fn stored(&self, reader: &mut Reader<'_>, key: &Key) -> Result<Entry> {
        match self.shared.tier.get(key) {
            Some(entry) => Ok(entry),
            None => self.shared.fetch(&self.db, reader, Kind::Row, key),
        }
    }

    /// Puts a group into the log, as durable as asked, and then makes it visible.
    fn keep(&mut self, group: Group) -> Result<()> {
        let Group { entries, states, positions } = group;
        let count = entries.len() + states.iter().map(|of| of.states.len()).sum::<usize>();
        if count == 0 && positions.is_empty() {
            return Ok(());
        }
        let write = self.log_and_show(&entries, states, positions)?;
        self.shared.metrics.batch_rows.record(count as f64);
        self.shared.tier.end(write, entries.into_iter());
        self.shared.metrics.tier_bytes.set(self.shared.tier.bytes() as f64);
        Ok(())
    }

    /// Puts entries, states and positions into the log and the overlay; the tier is still to be told of the entries.
    fn log_and_show(&mut self, entries: &Entries, states: Vec<OfTable>, positions: Positions) -> Result<tier::Write> {
        let values = entries.iter().map(|(key, entry)| ([&**key, &[]], wal::payload(entry)));
        let keyed = || {
            states.iter().flat_map(|of| {
                let prefix = of.prefix.as_slice();
                of.states.iter().map(move |(key, state)| ((prefix, key.as_bytes()), state.as_deref()))
            })
        };
        let of_states = keyed().map(|((prefix, key), state)| ([prefix, key], state));
        let others = positions.iter().map(|(key, payload)| ([key.as_slice(), &[]], Some(payload.as_slice())));
        self.wal.append(values.chain(of_states).chain(others))?;
        self.sync()?;
        let tier = &self.shared.tier;
        let write = if entries.len() + states.iter().map(|of| of.states.len()).sum::<usize>() > MANY {
            tier.begin_all()
        } else {
            let entities = entries.keys().map(|key| layout::split(key).1);
            tier.begin(entities.chain(keyed().map(|((_, entity), _)| entity)))
        };
        // states are mostly read where they grow: whoever asks for one here makes the tier keep it
        tier.forget_of(keyed().map(|(key, _)| key));
        for (key, entry) in entries {
            self.active.set(Key::clone(key), entry.clone());
        }
        for of in states {
            self.active.set_states(&of.prefix, of.states);
        }
        for (key, payload) in positions {
            self.active.set_position(key, payload);
        }
        self.shared.metrics.overlay_bytes.set(self.active.bytes() as f64);
        Ok(write)
    }

    fn sync(&mut self) -> Result<()> {
        if self.durability != Durability::Fsync {
            return Ok(());
        }
        let start = Instant::now();
        let synced = self.wal.sync();
        self.shared.metrics.flush_seconds.record(start.elapsed());
        if let Err(error) = &synced {
            self.shared.metrics.flush_failed(error);
        }
        synced
    }

    /// Nobody waits: says that the last group is on the disk.
    fn rest(&mut self) {
        if self.durability == Durability::Fsync
            && let Err(error) = self.wal.mark()
        {
            tracing::warn!(%error, "the write-ahead log could not be marked as synchronized");
        }
    }

    /// Begins a new layer and a new segment where the active ones are full. Waits while the layer
    /// before is on its way into a run: a slow disk slows the writers down, and memory stays bounded.
    fn make_room(&mut self) -> Result<()> {
        if self.filled() < self.limit {
            return Ok(());
        }
        self.drained()?;
        self.freeze()
    }

    /// Bytes of the active layer, or of its segment.
    fn filled(&self) -> u64 {
        self.wal.length().max(self.active.bytes() as u64)
    }

    /// Waits for the frozen layer; where it failed, it is tried again for the next group.
    fn drained(&mut self) -> Result<()> {
        let Some(Draining { last, done }) = self.draining.take() else {
            return Ok(());
        };
        done.recv().unwrap_or_else(|_| Err(closed())).inspect_err(|_| self.submit(last))
    }

    /// The frozen layer must be gone.
    fn freeze(&mut self) -> Result<()> {
        let last = self.wal.rotate()?;
        self.active = self.shared.overlay.freeze();
        self.submit(last);
        Ok(())
    }

    fn submit(&mut self, last: u64) {
        let (done, outcome) = channel();
        // A drainer that is gone drops `done`, which is found when it is waited for.
        let _ = self.jobs.send(Job::Drain { last, done });
        self.draining = Some(Draining { last, done: outcome });
    }

    /// Carries everything into runs and sled.
    fn drain_all(&mut self) -> Result<()> {
        self.drained()?;
        self.freeze()?;
        self.drained()
    }

    /// Goes on with what is to be cleared, by a slice.
    fn clear_some(&mut self) {
        let Some(mut clearing) = self.clearing.pop_front() else { return };
        match self.clear_slice(&mut clearing) {
            Ok(()) if !clearing.is_done() => self.clearing.push_front(clearing),
            cleared => {
                // Nobody waiting is no reason not to have done it.
                let _ = clearing.reply.send(cleared.map(|()| clearing.removed));
            }
        }
    }

    fn clear_slice(&mut self, clearing: &mut Clearing) -> Result<()> {
        // Half of the room is left to those who write, who would have to wait for all of the drain.
        if self.filled() > self.limit / 2 && !self.drain_ended()? {
            return Ok(());
        }
        self.make_room()?;
        let keys = clearing.slice(&self.shared, &self.db)?;
        if !keys.is_empty() {
            let entries: Entries = keys.into_iter().map(|key| (key, Entry::Absent)).collect();
            clearing.removed += entries.len() as u64;
            let write = self.log_and_show(&entries, Vec::new(), Positions::new())?;
            self.shared.tier.end_without(write, entries.keys());
            self.shared.metrics.tier_bytes.set(self.shared.tier.bytes() as f64);
        }
        if clearing.is_done() {
            // Whoever asked forgets that there was something to clear, and a power loss may not bring it back.
            self.wal.sync()?;
            self.wal.mark()?;
            for prefix in std::mem::take(&mut clearing.damaged) {
                let (done, outcome) = channel();
                self.jobs.send(Job::Repair { prefix, done }).map_err(|_| closed())?;
                outcome.recv().unwrap_or_else(|_| Err(closed()))?;
            }
        }
        Ok(())
    }

    /// Whether the frozen layer is gone; waits a moment for it.
    fn drain_ended(&mut self) -> Result<bool> {
        let Some(draining) = self.draining.take() else { return Ok(true) };
        match draining.done.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {
                self.draining = Some(draining);
                Ok(false)
            }
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => {
                self.submit(draining.last);
                Err(error)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.submit(draining.last);
                Err(closed())
            }
        }
    }

    /// Carries everything into runs and sled, makes it durable, whatever the setting, and lets go of the files.
    fn finish(mut self) -> Result<()> {
        let drained = self.drain_all();
        drop(self.shared.db.write().unwrap_or_else(PoisonError::into_inner).take());
        self.shared.tier.end_forgetting(self.shared.tier.begin_all(), |_| true);
        let Self { db, jobs, .. } = self;
        drop(db);
        let (done, outcome) = channel();
        jobs.send(Job::Close { done }).map_err(|_| closed())?;
        drained.and(outcome.recv().unwrap_or_else(|_| Err(closed())))
    }
}

/// The entry after a write; `None` where nothing of it is applied.
fn merge(stored: &Entry, written: &model::Row) -> Option<Entry> {
    let stored = if let Entry::Row(row) = stored { Some(row) } else { None };
    row::merge(stored, written).map(Entry::Row)
}

/// Takes entries out again, the last first.
fn undo(group: &mut Group, before: Vec<(Key, Option<Entry>)>) {
    for (key, old) in before.into_iter().rev() {
        match old {
            Some(entry) => group.entries.insert(key, entry),
            None => group.entries.remove(&key),
        };
    }
}

/// Takes the batches that are waiting; gives the first thing that is none.
fn collect(group: &mut Vec<Waiting>, inbox: &mut mpsc::Receiver<Command>) -> Option<Command> {
    let mut rows: usize = group.iter().map(|(batch, _)| size(batch)).sum();
    while rows < GROUP {
        match inbox.try_recv() {
            Ok(Command::Write(batch, reply)) => {
                rows += size(&batch);
                group.push((batch, reply));
            }
            Ok(other) => return Some(other),
            Err(_) => return None,
        }
    }
    None
}

fn size(batch: &WriteBatch) -> usize {
    batch.rows.len() + batch.states.len() + batch.positions.len()
}

/// Makes keys; rows of one table usually follow one another, so its prefix is kept.
#[derive(Default)]
struct Keys {
    last: Option<(Kind, Arc<Table>)>,
    key: Vec<u8>,
    prefix: usize,
}

impl Keys {
    fn key(&mut self, kind: Kind, table: &Arc<Table>, entity: &EntityKey) -> Key {
        let same = self.last.as_ref().is_some_and(|(k, t)| *k == kind && (Arc::ptr_eq(t, table) || t == table));
        if !same {
            self.key = layout::table_prefix(kind, table);
            self.prefix = self.key.len();
            self.last = Some((kind, Arc::clone(table)));
        }
        self.key.truncate(self.prefix);
        self.key.extend_from_slice(entity.as_bytes());
        Key::from(self.key.as_slice())
    }
}
