//! The one thread that writes: it merges, applies and makes durable, group by group. Being alone, it
//! knows that what it read is still so when it writes. Knows no reader but through the tier.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use model::ports::{StateWrite, Table, WriteBatch, Written};
use model::{EntityKey, Result, row};
use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, failed_to};
use super::layout::{self, Entry, Kind};
use super::tier::Key;
use super::{Durability, Shared};

/// Rows and states that small batches are collected to before they are applied together: sled holds
/// back its readers meanwhile. A larger batch is applied alone, and whole.
const PIECE: usize = 64;
/// Rows and states after which a group is made durable, however many batches wait.
const GROUP: usize = 4096;

/// What the writer can be asked.
pub(crate) enum Command {
    Write(WriteBatch, oneshot::Sender<Result<Written>>),
    Clear(Table, oneshot::Sender<Result<u64>>),
    Close(oneshot::Sender<Result<()>>),
}

type Waiting = (WriteBatch, oneshot::Sender<Result<Written>>);

/// Entries and positions to be applied together: the last of each key.
#[derive(Default)]
struct Staged {
    entries: HashMap<Key, Entry>,
    positions: HashMap<Vec<u8>, [u8; 16]>,
}

impl Staged {
    fn len(&self) -> usize {
        self.entries.len() + self.positions.len()
    }

    fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.positions.extend(other.positions);
    }
}

/// The thread's own things.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    durability: Durability,
    /// Something is applied that was not made durable.
    dirty: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, disk: Disk, durability: Durability) -> Self {
        Self { shared, disk, durability, dirty: false }
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

    fn commit(&mut self, group: Vec<Waiting>) {
        let mut answers = Vec::with_capacity(group.len());
        let mut piece: Vec<(Written, usize, oneshot::Sender<Result<Written>>)> = Vec::new();
        let mut staged = Staged::default();
        for (batch, reply) in group {
            let states = batch.states.len();
            if !piece.is_empty() && staged.len() + size(&batch) > PIECE {
                self.apply_piece(std::mem::take(&mut staged), &mut piece, &mut answers);
            }
            match self.stage(batch, &staged) {
                Ok((own, written)) => {
                    staged.extend(own);
                    piece.push((written, states, reply));
                }
                Err(error) => answers.push((Err(error), reply)),
            }
        }
        self.apply_piece(staged, &mut piece, &mut answers);
        let durable = self.make_durable(self.durability);
        for (answer, reply) in answers {
            // Whoever stopped waiting does not want to know.
            let _ = reply.send(answer.and_then(|written| durable.clone().map(|()| written)));
        }
    }

    /// Merges a batch with what is stored and what is staged before it.
    fn stage(&self, batch: WriteBatch, before: &Staged) -> Result<(Staged, Written)> {
        let mut own = Staged::default();
        let mut written = Written::default();
        let mut keys = Keys::default();
        for write in batch.rows {
            let key = keys.key(Kind::Row, &write.table, &write.key);
            let stored = match own.entries.get(&key).or_else(|| before.entries.get(&key)) {
                Some(entry) => entry.clone(),
                None => self.stored(&key)?,
            };
            let stored = if let Entry::Row(row) = &stored { Some(row) } else { None };
            if let Some(merged) = row::merge(stored, &write.row) {
                own.entries.insert(key, Entry::Row(merged));
                written.applied += 1;
            } else {
                written.stale += 1;
            }
        }
        for StateWrite { table, key, state } in batch.states {
            let key = keys.key(Kind::State, &table, &key);
            own.entries.insert(key, state.map_or(Entry::Absent, Entry::State));
        }
        for position in &batch.positions {
            own.positions.insert(layout::position_key(position), layout::position_payload(position));
        }
        Ok((own, written))
    }

    fn stored(&self, key: &Key) -> Result<Entry> {
        match self.shared.tier.get(key) {
            Some(entry) => Ok(entry),
            None => self.shared.fetch(&self.disk.db, Kind::Row, key),
        }
    }

    /// Applies what is staged and passes the answers of its batches on.
    fn apply_piece(
        &mut self,
        staged: Staged,
        piece: &mut Vec<(Written, usize, oneshot::Sender<Result<Written>>)>,
        answers: &mut Vec<(Result<Written>, oneshot::Sender<Result<Written>>)>,
    ) {
        let applied = if staged.len() == 0 { Ok(()) } else { self.apply(staged) };
        for (written, states, reply) in piece.drain(..) {
            if applied.is_ok() {
                self.shared.traffic.written(written, states);
            }
            answers.push((applied.clone().map(|()| written), reply));
        }
    }

    fn apply(&mut self, staged: Staged) -> Result<()> {
        let mut batch = ::sled::Batch::default();
        for (key, entry) in &staged.entries {
            match entry.payload() {
                Some(payload) => batch.insert(&**key, layout::seal(key, payload)),
                None => batch.remove(&**key),
            }
        }
        for (key, payload) in &staged.positions {
            batch.insert(key.as_slice(), layout::seal(key, payload));
        }
        let tier = &self.shared.tier;
        let write = tier.begin(staged.entries.keys());
        self.dirty = true;
        match self.disk.db.apply_batch(batch) {
            Ok(()) => {
                self.shared.metrics.batch_rows.record(staged.entries.len() as f64);
                tier.end(write, staged.entries.into_iter());
                self.shared.metrics.tier_bytes.set(tier.bytes() as f64);
                Ok(())
            }
            Err(error) => {
                tier.end_forgetting(write, |key| staged.entries.contains_key(key));
                Err(failed_to("write")(error))
            }
        }
    }

    fn clear(&mut self, table: &Table) -> Result<u64> {
        let prefixes = [Kind::Row, Kind::State].map(|kind| layout::table_prefix(kind, table));
        let write = self.shared.tier.begin_all();
        let removed: Result<u64> = prefixes.iter().try_fold(0, |sum, prefix| Ok(sum + self.remove_prefix(prefix)?));
        self.shared.tier.end_forgetting(write, |key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        self.shared.metrics.tier_bytes.set(self.shared.tier.bytes() as f64);
        let removed = removed?;
        self.make_durable(self.durability)?;
        Ok(removed)
    }

    fn remove_prefix(&mut self, prefix: &[u8]) -> Result<u64> {
        self.dirty = true;
        let mut keys = self.disk.db.scan_prefix(prefix).keys();
        let mut removed = 0;
        loop {
            let mut batch = ::sled::Batch::default();
            let mut count = 0;
            for key in keys.by_ref().take(PIECE) {
                batch.remove(key.map_err(failed_to("read"))?);
                count += 1;
            }
            if count == 0 {
                return Ok(removed);
            }
            self.disk.db.apply_batch(batch).map_err(failed_to("write"))?;
            removed += count;
        }
    }

    fn make_durable(&mut self, durability: Durability) -> Result<()> {
        if !self.dirty || durability == Durability::Memory {
            return Ok(());
        }
        let start = Instant::now();
        let done = self.disk.make_durable(durability);
        self.shared.metrics.flush_seconds.record(start.elapsed());
        match &done {
            Ok(()) => self.dirty = false,
            Err(error) => self.shared.metrics.flush_failed(error),
        }
        done
    }

    /// Makes everything durable, whatever the setting, and lets go of the files.
    fn finish(mut self) -> Result<()> {
        // Under `Memory` and `Flush` there may be things on their way to the disk from long ago.
        self.dirty = true;
        let durable = self.make_durable(Durability::Fsync);
        drop(self.shared.db.write().unwrap_or_else(PoisonError::into_inner).take());
        self.shared.tier.end_forgetting(self.shared.tier.begin_all(), |_| true);
        let released = self.disk.close();
        durable.and(released)
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
