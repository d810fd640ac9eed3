//! The embedded online store: runs of rows and window states behind a memory tier and a write-ahead log, and a small sled
//! tree that says which runs there are. Knows no request and no window; `layout` is how it lies in the tree, `runs` in
//! files, `wal` in the log, `disk` how sled becomes durable.
//!
//! **Writes** go to the writer thread, which takes what is waiting (group commit), merges each row
//! with what is stored, appends the group to the log as one record, makes that durable once, then makes
//! it visible and only then answers. So a [`WriteBatch`] is there whole or not at all after a crash, and
//! with [`Durability::Fsync`] no reader sees what a power loss takes back. A read beside a write may see
//! some keys before it and some after it. A write that failed, or whose future is dropped, may be there
//! after a restart; writing the same again is harmless.
//!
//! Behind that, by the drainer thread, whenever the log or what it holds in memory (the overlay) reaches
//! [`Settings::log_bytes`], the overlay's last entry of each key goes into a run ([`runs`]) in the order of the keys, and
//! positions into sled; sled is made durable, and the log loses those segments. Keys that are written again and again so
//! cost little. A disk that cannot keep up slows the writers down.
//!
//! **Reads** never wait for the writer's or the drainer's flush. They ask the tier, without a lock, then
//! the overlay, and fetch what is missing from the runs (and from sled, what an older store has there): a few µs a key from
//! the system's memory, up to a disk access for each without. That blocks the calling task, so a large read yields after
//! every 64 keys; what is missing of one request is fetched in the order of the keys, so that a block is read once.
//!
//! **Damage**: every block of a run, which has keys of one view only, and every value in sled carry a checksum of ours. One
//! that fails is an `Internal` error that names the view, never a wrong or a missing value; a write that would have to merge
//! with it fails too. `clear` removes damaged values like any other.
//! A log that is damaged where it was acknowledged, or of which a segment is missing, does not open; a torn end
//! that was never acknowledged is cut off.

mod check;
mod disk;
mod drain;
mod layout;
mod overlay;
mod read;
mod runs;
mod tier;
mod wal;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use model::ports::{BoxFuture, OnlineStore, Position, Read, RowSink, Table, WriteBatch, Written};
use model::{EntityKeys, Kind as ErrorKind, Result, Row};
use tokio::sync::{mpsc, oneshot};

pub use check::{Report, check};

use crate::error::Error;
use crate::metrics::{Disk, Traffic};
use layout::{Entry, Kind};
use overlay::Overlay;
use runs::Runs;
use tier::Tier;
use writer::Command;

/// Batches that may wait for the writer thread before a write waits for room.
const WAITING: usize = 256;

/// What an answered write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing is promised. (It costs what `Flush` costs: the log is handed to the operating system.)
    Memory,
    /// The end of the process: it was handed to the operating system.
    Flush,
    /// The end of the power supply: it was synchronized to the disk.
    #[default]
    Fsync,
}

/// Where a store is and how it behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store's directory; created if it is not there. Nothing else should be in it.
    pub path: PathBuf,
    /// sled's page cache, in bytes. It matters to a store that an older version wrote, whose rows are in sled: with less
    /// than their size, memory use grows rather than shrinks.
    pub cache_bytes: u64,
    /// The memory tier, in bytes; 0 turns it off.
    pub tier_bytes: u64,
    /// What an answered write survives.
    pub durability: Durability,
    /// How large the write-ahead log, or what it holds in memory, grows before a run is written, in
    /// bytes. Twice that may be there while it is written.
    pub log_bytes: u64,
    /// How often sled flushes and collects garbage by itself, in ms; `None` turns both off. A time takes it some
    /// ms, which requests on the same core wait for; what is acknowledged does not depend on it.
    pub flush_every_ms: Option<u64>,
}

impl Settings {
    /// A store in this directory: 64 MiB of page cache, 256 MiB of memory tier, [`Durability::Fsync`],
    /// 64 MiB of log, sled's own flush every 5 s.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache_bytes: 64 << 20,
            tier_bytes: 256 << 20,
            durability: Durability::default(),
            log_bytes: 64 << 20,
            flush_every_ms: Some(5_000),
        }
    }
}

/// What the readers and the writer thread share.
struct Shared {
    /// `None` once the store is closed.
    db: RwLock<Option<::sled::Db>>,
    tier: Tier,
    overlay: Overlay,
    runs: Runs,
    traffic: Traffic,
    metrics: Disk,
}

impl Shared {
    fn with_db<T>(&self, work: impl FnOnce(&::sled::Db) -> Result<T>) -> Result<T> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        work(db.as_ref().ok_or_else(closed)?)
    }

    fn positions(&self, group: &str) -> Result<Vec<Position>> {
        let prefix = layout::group_prefix(group);
        self.with_db(|db| {
            // The overlay first: what it loses meanwhile, sled has by then.
            let waiting = self.overlay.positions(&prefix);
            let mut out = Vec::new();
            for stored in db.scan_prefix(&prefix) {
                let (key, value) = stored.map_err(disk::failed_to("read"))?;
                if !waiting.contains_key(&*key) {
                    out.push(layout::open_position(&key, &value).ok_or_else(|| self.damaged(&key))?);
                }
            }
            for (key, payload) in &waiting {
                out.push(layout::position_of(key, payload).ok_or_else(|| self.damaged(key))?);
            }
            out.sort_unstable();
            Ok(out)
        })
    }
}

/// An online store in a directory of its own.
pub struct Store {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store, or creates it. Blocks: for a recovery, as long as that takes.
    ///
    /// Errors: `Conflict` where another process has it open, `Internal` where it is damaged,
    /// `Unsupported` where it has another format, `Unavailable` where the operating system refuses.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let disk = disk::open(&settings)?;
        let (replayed, wal) = disk.open_log()?;
        let runs = disk.read_runs()?;
        runs.tidy().map_err(|source| Error::Io { path: settings.path.join(runs::DIRECTORY), source })?;
        let db = disk.db.clone();
        let shared = Arc::new(Shared {
            db: RwLock::new(Some(db.clone())),
            overlay: Overlay::with_frozen(Arc::new(replayed.layer)),
            runs,
            tier: Tier::new(settings.tier_bytes),
            traffic: Traffic::new("sled"),
            metrics: Disk::new(),
        });
        let (commands, inbox) = mpsc::channel(WAITING);
        let (jobs, work) = std::sync::mpsc::channel();
        let log = disk.log();
        let drainer = drain::Drainer::new(Arc::clone(&shared), disk, log);
        let limits = (settings.durability, settings.log_bytes);
        let writer = writer::Writer::new(Arc::clone(&shared), db, wal, replayed.last, jobs, limits);
        let path = settings.path;
        let failed = |source| Error::Io { path: path.clone(), source };
        // It ends when the writer does.
        std::thread::Builder::new().name("online-drain".into()).spawn(move || drainer.run(&work)).map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("online-writer".into())
            .spawn(move || writer.run(inbox))
            .map_err(failed)?;
        Ok(Self { shared, commands, thread: Mutex::new(Some(thread)) })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the online store's writer thread panicked");
        }
    }
}

impl Drop for Store {
    /// Without `close`: lets the writer finish what is waiting, and waits for it.
    fn drop(&mut self) {
        self.commands = mpsc::channel(1).0;
        self.join();
    }
}

impl OnlineStore for Store {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        Box::pin(async move {
            let pick = |entry| {
                if let Entry::Row(row) = entry { Some(row) } else { None }
            };
            let answer = self.shared.read_all(Kind::Row, reads, pick).await?;
            self.shared.traffic.rows(&answer);
            Ok(answer)
        })
    }

    fn read_rows<'a>(
        &'a self,
        tables: &'a [Arc<Table>],
        keys: &'a EntityKeys,
        sink: &'a mut dyn RowSink,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.shared.read_rows(tables, keys, sink))
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        Box::pin(async move {
            let pick = |entry| {
                if let Entry::State(state) = entry { Some(state) } else { None }
            };
            let answer = self.shared.read_all(Kind::State, reads, pick).await?;
            self.shared.traffic.states(&answer);
            Ok(answer)
        })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(self.ask(|reply| Command::Write(batch, reply)))
    }

    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        Box::pin(async move { self.shared.positions(group) })
    }

    /// Removes in slices, with the writes of others between them: after a crash in the middle some of the
    /// table may be left, and a second call removes it.
    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.ask(|reply| Command::Clear(table.clone(), reply)))
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let closed = self.ask(Command::Close).await;
            self.join();
            closed
        })
    }
}

fn closed() -> model::Error {
    model::Error::new(
        ErrorKind::Unavailable,
        "the online store is closed: Larder is shutting down, or its writer thread failed (the log says why)",
    )
}

#[cfg(test)]
mod tests;
