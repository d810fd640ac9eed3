//! The online store in an SQLite file, in Feast's layout ([`layout`]): Larder serves what Feast wrote,
//! and Feast what Larder wrote, also at the same time. Knows no feature views and no configuration files.
//!
//! SQLite runs on blocking threads: reads on connections of their own (the file is in WAL mode, so that
//! they do not wait for writes), writes on one, which commits what came in meanwhile in one transaction.
//! A commit is on the disk (`synchronous=FULL`) when it is answered. A file that is deleted under us
//! (`feast teardown`) is an error until the restart.
//!
//! What the layout cannot hold: a row without any column leaves nothing; of tables whose `project_view` is
//! the same (but for upper and lower case) the second is refused; of rows that Feast writes there are only
//! whole seconds, and where it writes over a row of ours in the same second, the fraction is still ours.

mod database;
mod layout;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::ports::{BoxFuture, OnlineStore, Position, Read, Table, WriteBatch, Written};
use model::{Error, Kind, Result, Row, Timestamp};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::oneshot;

use crate::metrics::Traffic;
use database::{Database, Failure, clear, read_rows, read_states};
use layout::Known;

/// How many connections are kept for reading.
const READERS: usize = 8;
/// How many prepared statements a connection keeps.
const STATEMENTS: usize = 256;

/// Where the file is, and how long to wait for other processes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file; it is created where there is none.
    pub path: PathBuf,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
}

impl Settings {
    /// With a timeout of ten seconds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), busy_timeout: Duration::from_secs(10) }
    }
}

/// An online store in an SQLite file.
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    readers: Mutex<Vec<Database>>,
    /// `None` when the store is closed.
    writer: Mutex<Option<Database>>,
    /// The same, for readers: they do not wait for a writer.
    is_closed: AtomicBool,
    waiting: Mutex<Vec<Waiting>>,
    /// Which file was opened, once it was.
    opened: OnceLock<Option<(u64, u64)>>,
    traffic: Traffic,
}

struct Waiting {
    batch: WriteBatch,
    reply: oneshot::Sender<Result<Written>>,
}

impl Store {
    /// Opens the file, or creates it. Blocks.
    ///
    /// Errors: `Unavailable` where it cannot be opened, `Internal` where it is no SQLite file.
    pub fn open(settings: Settings) -> Result<Self> {
        if let Some(parent) = settings.path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| crate::Error::Io { path: parent.to_owned(), source })?;
        }
        let shared = Shared {
            readers: Mutex::default(),
            writer: Mutex::default(),
            is_closed: AtomicBool::new(false),
            waiting: Mutex::default(),
            opened: OnceLock::new(),
            traffic: Traffic::new("sqlite"),
            settings,
        };
        let writer = shared.connect()?;
        let prepared = writer
            .connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
            .and_then(|()| writer.connection.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| writer.connection.execute_batch(layout::OURS));
        prepared.map_err(|e| shared.failed(e.into()))?;
        *lock(&shared.writer) = Some(writer);
        shared.opened.get_or_init(|| shared.file());
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs on a blocking thread.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Shared) -> T + Send + 'static) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|e| Error::internal("a thread of the online store failed", e))
    }

    async fn read_with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, &mut Known) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        self.blocking(|shared| shared.read(read)).await?
    }
}

impl Shared {
    fn connect(&self) -> Result<Database> {
        let open = || {
            let connection = Connection::open(&self.settings.path)?;
            connection.busy_timeout(self.settings.busy_timeout)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
            Ok(connection)
        };
        let connection = open().map_err(|e: rusqlite::Error| self.failed(e.into()))?;
        Ok(Database { connection, known: Known::default() })
    }

    /// Which file is at the path now: device and inode.
    fn file(&self) -> Option<(u64, u64)> {
        std::fs::metadata(&self.settings.path).ok().map(|m| (m.dev(), m.ino()))
    }

    /// Whether reading and writing still makes sense. `feast teardown` deletes the file under us: what
    /// would be written into what is left of it would be lost.
    fn check(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        if self.opened.get().is_some_and(|opened| *opened != self.file()) {
            let path = self.settings.path.display();
            let message = format!("{path} was deleted or replaced while Larder had it open: restart Larder");
            return Err(Error::new(Kind::Unavailable, message));
        }
        Ok(())
    }

    /// Reads at one point in time: a batch is seen whole or not at all.
    fn read<T>(&self, read: impl FnOnce(&Connection, &mut Known) -> Result<T, Failure>) -> Result<T> {
        self.check()?;
        let idle = lock(&self.readers).pop();
        let mut database = idle.map_or_else(|| self.connect(), Ok)?;
        let Database { connection, known } = &mut database;
        let answer = (|| {
            let transaction = connection.transaction()?;
            known.refresh(&transaction)?;
            read(&transaction, known)
        })();
        let answer = answer.map_err(|e| self.failed(e))?;
        let mut readers = lock(&self.readers);
        if readers.len() < READERS {
            readers.push(database);
        }
        Ok(answer)
    }

    /// Writes what is waiting, in one transaction: each batch whole or not at all.
    fn write_waiting(&self) {
        let mut writer = lock(&self.writer);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        let database = match self.check().and_then(|()| writer.as_mut().ok_or_else(|| self.closed())) {
            Ok(database) => database,
            Err(error) => {
                for w in waiting {
                    drop(w.reply.send(Err(error.clone())));
                }
                return;
            }
        };
        let (batches, replies): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.batch, w.reply)).unzip();
        let results = database.write(&batches).map_err(|e| self.failed(e));
        let results = results.map(|all| all.into_iter().map(|r| r.map_err(|e| self.failed(e))).collect::<Vec<_>>());
        match results {
            Ok(results) => {
                for ((result, reply), batch) in results.into_iter().zip(replies).zip(&batches) {
                    if let Ok(written) = &result {
                        self.traffic.written(written, batch.states.len());
                    }
                    drop(reply.send(result));
                }
            }
            Err(error) => {
                database.known.forget();
                for reply in replies {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }

    fn closed(&self) -> Error {
        let path = self.settings.path.display();
        Error::new(Kind::Unavailable, format!("the online store in {path} is closed: Larder is shutting down"))
    }

    fn failed(&self, failure: Failure) -> Error {
        let error = match failure {
            Failure::Ours(error) => return error,
            Failure::Sqlite(error) => error,
        };
        let path = self.settings.path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                let waited = self.settings.busy_timeout.as_secs_f32();
                let message =
                    format!("{path} is being written by another process (waited {waited} s): try again later");
                Error::new(Kind::Unavailable, message).with_cause(error)
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::internal(
                format!("{path} is no sound SQLite file ({error}): restore it, or materialize into a new one"),
                error,
            ),
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::PermissionDenied,
            ) => {
                let advice = "check that it exists, its permissions and the free space";
                Error::new(Kind::Unavailable, format!("cannot use {path} for the online store ({error}): {advice}"))
                    .with_cause(error)
            }
            _ => Error::internal(format!("SQLite refused a statement on {path} ({error})"), error),
        }
    }
}

impl OnlineStore for Store {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        let reads = reads.to_vec();
        Box::pin(async move {
            let all = move |connection: &Connection, known: &mut Known| {
                reads.iter().map(|read| read_rows(connection, known, read)).collect::<Result<Vec<_>, _>>()
            };
            let answer = self.read_with(all).await?;
            self.shared.traffic.rows(&answer);
            Ok(answer)
        })
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        let reads = reads.to_vec();
        Box::pin(async move {
            let all = move |connection: &Connection, _: &mut Known| {
                reads.iter().map(|read| read_states(connection, read)).collect::<Result<Vec<_>, _>>()
            };
            let answer = self.read_with(all).await?;
            self.shared.traffic.states(&answer);
            Ok(answer)
        })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            lock(&self.shared.waiting).push(Waiting { batch, reply });
            self.blocking(Shared::write_waiting).await?;
            answer.await.map_err(|e| Error::internal("the online store's writer failed", e))?
        })
    }

    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        let group = group.to_owned();
        Box::pin(self.read_with(move |connection, _| {
            let mut select = connection.prepare_cached(
                "SELECT topic, partition, \"offset\", max_event FROM _larder_positions WHERE \"group\" = ?1",
            )?;
            let positions = select.query_map([&group], |row| {
                Ok(Position {
                    group: group.clone(),
                    topic: row.get(0)?,
                    partition: row.get(1)?,
                    offset: row.get(2)?,
                    max_event: Timestamp(row.get(3)?),
                })
            })?;
            Ok(positions.collect::<rusqlite::Result<_>>()?)
        }))
    }

    /// One transaction: readers see all of the table until it is gone.
    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>> {
        let table = table.clone();
        Box::pin(async move {
            let work = move |shared: &Shared| {
                let mut writer = lock(&shared.writer);
                shared.check()?;
                let Database { connection, known } = writer.as_mut().ok_or_else(|| shared.closed())?;
                let cleared = (|| {
                    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    known.refresh(&transaction)?;
                    let removed = clear(&transaction, known, &table)?;
                    transaction.commit()?;
                    Ok(removed)
                })();
                cleared.map_err(|e| shared.failed(e))
            };
            self.blocking(work).await?
        })
    }

    /// Also moves what is in the write-ahead log into the file, where nobody else reads it.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let work = |shared: &Shared| {
                let Some(writer) = lock(&shared.writer).take() else { return Ok(()) };
                shared.is_closed.store(true, Ordering::Release);
                lock(&shared.readers).clear();
                let checkpoint = writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                checkpoint.map_err(|e| shared.failed(e.into()))
            };
            self.blocking(work).await?
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
