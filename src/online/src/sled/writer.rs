//! The one thread that decides: it merges what is written with what is there, puts it into the log and
//! makes it visible, group by group. Being alone, it knows that what it read is still so when it writes.
//! Knows no reader but through the tier and the overlay, and writes nothing to sled itself.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use model::ports::{StateWrite, Table, WriteBatch, Written};
use model::{EntityKey, Result, row};
use tokio::sync::{mpsc, oneshot};

use super::drain::Job;
use super::layout::{self, Entry, Kind};
use super::overlay::{Layer, Positions};
use super::tier::Key;
use super::wal::{self, Wal};
use super::{Durability, Shared, closed};

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

/// Entries and positions of a group: the last of each key.
#[derive(Default)]
struct Group {
    entries: HashMap<Key, Entry>,
    positions: Positions,
}

/// A layer on its way into sled, with the last of its segments.
struct Draining {
    layer: Arc<Layer>,
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
    jobs: Sender<Job>,
    durability: Durability,
    /// Bytes of log, or of overlay, after which sled is written.
    limit: u64,
}

impl Writer {
    /// A writer behind a log that was replayed: what it held is the overlay's frozen layer.
    pub(crate) fn new(
        shared: Arc<Shared>,
        db: ::sled::Db,
        wal: Wal,
        replayed: (Arc<Layer>, u64),
        jobs: Sender<Job>,
        (durability, limit): (Durability, u64),
    ) -> Self {
        let active = shared.overlay.active();
        let mut writer = Self { shared, db, wal, active, draining: None, jobs, durability, limit };
        writer.submit(replayed.0, replayed.1);
        writer
    }

    /// Works until it is asked to close, or nobody can ask any more.
    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut next = None;
        loop {
            match next.take().or_else(|| inbox.blocking_recv()) {
                Some(Command::Write(batch, reply)) => {
                    let mut group = vec![(batch, reply)];
                    next = collect(&mut group, &mut inbox);
                    self.commit(group);
                    if next.is_none() && inbox.is_empty() {
                        self.rest();
                    }
                }
                Some(Command::Clear(table, reply)) => {
                    // Nobody waiting is no reason not to have done it.
                    let _ = reply.send(self.clear(&table));
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
                self.shared.traffic.written(written, states);
            }
            let _ = reply.send(kept.clone().map(|()| written));
        }
    }

    /// Merges a batch with what is stored and what is staged before it; all of it or nothing.
    fn stage(&self, batch: WriteBatch, group: &mut Group) -> Result<Written> {
        let mut written = Written::default();
        let mut keys = Keys::default();
        let mut before = Vec::with_capacity(batch.rows.len());
        for write in batch.rows {
            let key = keys.key(Kind::Row, &write.table, &write.key);
            let merged = match group.entries.get(&key) {
                Some(entry) => merge(entry, &write.row),
                None => match self.stored(&key) {
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
                written.stale += 1;
            }
        }
        // From here on nothing fails.
        for StateWrite { table, key, state } in batch.states {
            let key = keys.key(Kind::State, &table, &key);
            group.entries.insert(key, state.map_or(Entry::Absent, Entry::State));
        }
        for position in &batch.positions {
            group.positions.insert(layout::position_key(position), layout::position_payload(position));
        }
        Ok(written)
    }

    fn stored(&self, key: &Key) -> Result<Entry> {
        match self.shared.tier.get(key) {
            Some(entry) => Ok(entry),
            None => self.shared.fetch(&self.db, Kind::Row, key),
        }
    }

    /// Puts a group into the log, as durable as asked, and then makes it visible.
    fn keep(&mut self, group: Group) -> Result<()> {
        let Group { entries, positions } = group;
        if entries.is_empty() && positions.is_empty() {
            return Ok(());
        }
        let values = entries.iter().map(|(key, entry)| (&**key, wal::payload(entry)));
        let others = positions.iter().map(|(key, payload)| (key.as_slice(), Some(payload.as_slice())));
        self.wal.append(values.chain(others))?;
        self.sync()?;
        let tier = &self.shared.tier;
        let write = tier.begin(entries.keys());
        for (key, entry) in &entries {
            self.active.set(Key::clone(key), entry.clone());
        }
        for (key, payload) in positions {
            self.active.set_position(key, payload);
        }
        self.shared.metrics.batch_rows.record(entries.len() as f64);
        tier.end(write, entries.into_iter());
        self.shared.metrics.tier_bytes.set(tier.bytes() as f64);
        self.shared.metrics.overlay_bytes.set(self.active.bytes() as f64);
        Ok(())
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
    /// before is on its way into sled: a slow disk slows the writers down, and memory stays bounded.
    fn make_room(&mut self) -> Result<()> {
        if (self.active.bytes() as u64) < self.limit && self.wal.length() < self.limit {
            return Ok(());
        }
        self.drained()?;
        self.freeze()
    }

    /// Waits for the frozen layer; where it failed, it is tried again for the next group.
    fn drained(&mut self) -> Result<()> {
        let Some(Draining { layer, last, done }) = self.draining.take() else {
            return Ok(());
        };
        done.recv().unwrap_or_else(|_| Err(closed())).inspect_err(|_| self.submit(layer, last))
    }

    /// The frozen layer must be gone.
    fn freeze(&mut self) -> Result<()> {
        let last = self.wal.rotate()?;
        let (frozen, active) = self.shared.overlay.freeze();
        self.active = active;
        self.submit(frozen, last);
        Ok(())
    }

    fn submit(&mut self, layer: Arc<Layer>, last: u64) {
        let (done, outcome) = channel();
        // A drainer that is gone drops `done`, which is found when it is waited for.
        let _ = self.jobs.send(Job::Drain { layer: Arc::clone(&layer), last, done });
        self.draining = Some(Draining { layer, last, done: outcome });
    }

    /// Carries everything into sled.
    fn drain_all(&mut self) -> Result<()> {
        self.drained()?;
        self.freeze()?;
        self.drained()
    }

    fn clear(&mut self, table: &Table) -> Result<u64> {
        // With nothing in the log, no replay brings back what is removed.
        self.drain_all()?;
        let prefixes = [Kind::Row, Kind::State].map(|kind| layout::table_prefix(kind, table));
        let tier = &self.shared.tier;
        let write = tier.begin_all();
        let removed = self.ask(|done| Job::Clear { prefixes: prefixes.to_vec(), done });
        tier.end_forgetting(write, |key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        self.shared.metrics.tier_bytes.set(tier.bytes() as f64);
        removed
    }

    fn ask<T>(&self, job: impl FnOnce(Sender<Result<T>>) -> Job) -> Result<T> {
        let (done, outcome) = channel();
        self.jobs.send(job(done)).map_err(|_| closed())?;
        outcome.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// Carries everything into sled, makes it durable, whatever the setting, and lets go of the files.
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
