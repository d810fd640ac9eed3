//! Our own workers: calls wait for a free one, up to a bound; a worker that broke is replaced, with
//! growing pauses where replacements do not start.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{Error, Kind, Result};
use proto::feast::serving::{TransformFeaturesRequest, TransformFeaturesResponse};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::worker::{SCRIPT, Starter, Worker};
use super::{Python, Settings};
use crate::metrics;
use crate::scratch::Directory;

/// The pauses between starts that fail: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The workers.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    waiting: Waiting,
}

#[derive(Debug)]
struct Shared {
    interpreter: PathBuf,
    memory_bytes: u64,
    settings: Settings,
    starter: Starter,
    directory: Directory,
    /// The registered functions that stand in the directory, with their files' names.
    spooled: Lock<HashMap<Bytes, String>>,
    /// Workers that are free.
    free: Mutex<mpsc::UnboundedReceiver<Worker>>,
    freed: mpsc::UnboundedSender<Worker>,
    names: AtomicUsize,
    /// Why the last start failed, empty once one succeeded; `None` while the first ones are under way.
    start_error: watch::Sender<Option<String>>,
}

impl Pool {
    /// Starts the workers in the background. Must be called in a tokio runtime.
    ///
    /// Errors: no directory or thread can be made.
    pub(super) fn start(settings: Settings) -> Result<Self> {
        let Python::Workers { interpreter, workers, memory_bytes } = settings.python.clone() else {
            return Err(Error::invalid("transformations: no interpreter is named"));
        };
        let failed =
            |e: std::io::Error| Error::internal(format!("the transformation workers cannot be set up: {e}"), e);
        let (freed, free) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            interpreter,
            memory_bytes,
            settings,
            starter: Starter::new().map_err(failed)?,
            // among the system's temporary files, for a socket's path must be short
            directory: Directory::below(&std::env::temp_dir(), "larder-workers-", |path| {
                std::fs::write(path.join(SCRIPT), include_str!("worker.py"))
            })
            .map_err(|(_, e)| failed(e))?,
            spooled: Lock::default(),
            free: Mutex::new(free),
            freed,
            names: AtomicUsize::new(0),
            start_error: watch::Sender::default(),
        });
        for _ in 0..workers {
            tokio::spawn(shared.clone().add_worker());
        }
        Ok(Self { shared, waiting: Waiting::default() })
    }

    /// Puts a registered view where workers find it; gives the file's name.
    pub(super) fn spool(&self, message: &Bytes) -> Result<String> {
        let shared = &self.shared;
        let mut spooled = shared.spooled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = spooled.get(message) {
            return Ok(name.clone());
        }
        let name = format!("{}.view", spooled.len());
        let path = shared.directory.path().join(&name);
        std::fs::write(&path, message).map_err(|e| crate::error::io("writing", &path, e))?;
        spooled.insert(message.clone(), name.clone());
        Ok(name)
    }

    /// Waits until the first start of a worker has come to its end.
    ///
    /// Errors: `Unavailable` where it failed, and none has succeeded since.
    pub(super) async fn ready(&self) -> Result<()> {
        let mut told = self.shared.start_error.subscribe();
        // the sender is ours: it never closes
        let error = told.wait_for(Option::is_some).await.map(|error| error.clone().unwrap_or_default());
        match error.unwrap_or_default() {
            error if error.is_empty() => Ok(()),
            error => Err(Error::new(Kind::Unavailable, error)),
        }
    }

    /// Makes one call on a free worker.
    pub(super) async fn run(
        &self,
        request: TransformFeaturesRequest,
        about: Vec<u8>,
    ) -> Result<TransformFeaturesResponse> {
        let worker = {
            let _waiting = self.waiting.enter(self.shared.settings.queue)?;
            let deadline = self.shared.settings.deadline;
            timeout(deadline, self.shared.clone().next_free()).await.map_err(|_| self.shared.none_free())?
        };
        // a task of its own: who asked may go away, and the worker must come back all the same
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            let mut worker = worker;
            let settings = &shared.settings;
            let outcome = worker.run(request, &about, settings.deadline, shared.memory_bytes).await;
            match outcome.broken {
                None => {
                    let _ = shared.freed.send(worker); // fails only where the pool is gone
                }
                Some(reason) => {
                    drop(worker);
                    metrics::worker_replaced(reason);
                    tokio::spawn(shared.clone().add_worker());
                }
            }
            outcome.result
        });
        task.await.map_err(|e| Error::internal("a transformation call was cut short", e))?
    }
}

impl Shared {
    /// A worker that is free and alive.
    async fn next_free(self: Arc<Self>) -> Worker {
        let mut free = self.free.lock().await;
        loop {
            // the sender is ours: it never closes
            let Some(mut worker) = free.recv().await else { return std::future::pending().await };
            if worker.is_alive() {
                return worker;
            }
            metrics::worker_replaced("ended idle");
            tokio::spawn(self.clone().add_worker());
        }
    }

    /// Starts a worker, however often it takes.
    async fn add_worker(self: Arc<Self>) {
        let mut pause = PAUSE.0;
        loop {
            let name = format!("{}.sock", self.names.fetch_add(1, Ordering::Relaxed));
            let started = Worker::start(&self.starter, &self.interpreter, self.directory.path(), &name).await;
            match started {
                Ok(worker) => {
                    self.note_start(String::new());
                    metrics::worker_started();
                    let _ = self.freed.send(worker); // fails only where the pool is gone
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, retry_ms = pause.as_millis() as u64, "no transformation worker started");
                    self.note_start(error.message().to_owned());
                }
            }
            metrics::worker_replaced("start failed");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn note_start(&self, error: String) {
        self.start_error.send_replace(Some(error));
    }

    fn none_free(&self) -> Error {
        let within = self.settings.deadline.as_millis();
        let message = match self.start_error.borrow().as_deref() {
            None => format!("no transformation worker has started yet, within {within} ms: try again in a moment"),
            Some("") => format!(
                "no transformation worker was free within {within} ms: try again, or raise transformations.workers"
            ),
            Some(error) => error.to_owned(),
        };
        Error::new(Kind::Unavailable, message)
    }
}

/// How many calls wait for their turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<AtomicUsize>);

/// One call that waits; its turn has come when this is dropped.
#[derive(Debug)]
pub(super) struct Waits(Arc<AtomicUsize>);

impl Waiting {
    /// Errors: `Unavailable` where `most` wait already.
    pub(super) fn enter(&self, most: usize) -> Result<Waits> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        metrics::waiting(before + 1);
        let waits = Waits(self.0.clone());
        if before < most {
            return Ok(waits);
        }
        let message =
            format!("{before} transformation calls wait already, the limit (transformations.queue): try again");
        Err(Error::new(Kind::Unavailable, message))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let before = self.0.fetch_sub(1, Ordering::Relaxed);
        metrics::waiting(before.saturating_sub(1));
    }
}
