//! The verb "materialize": the latest row per key of a view's batch source goes into the online
//! store, batch by batch; last write wins, so reads go on untouched and a repeat changes nothing. Of a windowed view the
//! state is built from the raw events, beside the one that is read ([`backfill`]).
//!
//! A job is written down before it is accepted, and done by the [`Runner`]: what a stop or a crash interrupts goes on
//! by itself after the next start. Knows no file format and no protocol. Sources: `materialize`,
//! `materialize_incremental` and `_get_feature_views_to_materialize` in `feast/feature_store.py`.

mod backfill;
mod catch_up;
mod choose;
mod jobs;
mod record;
mod runner;

use std::sync::Arc;

use model::ports::{Clock, JobStore, OfflineLog, OnlineStore};
use model::{Error, Kind, Result, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::catalog::Catalog;
pub use catch_up::{CatchingUp, Level, Standing, Streams};
pub use choose::Start;
pub(crate) use choose::same_stream;
pub use jobs::{Phase, Progress, State};
use record::{Part, Record};
pub use runner::Runner;

/// What materializations are made of.
#[derive(Clone)]
pub struct Ports {
    /// What is registered.
    pub catalog: Arc<Catalog>,
    /// Where rows go.
    pub store: Arc<dyn OnlineStore>,
    /// Where they come from.
    pub log: Arc<dyn OfflineLog>,
    /// With what a backfill catches up, if this process reads streams.
    pub streams: Option<Arc<dyn Streams>>,
    /// Where jobs are written down; `None` forgets them with the process.
    pub jobs: Option<Arc<dyn JobStore>>,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
}

/// What all projects share.
struct Shared {
    ports: Ports,
    jobs: jobs::Jobs,
}

/// A job for the runner, and who waits for its end.
struct Begun {
    handle: jobs::Handle,
    done: Option<oneshot::Sender<Result<()>>>,
}

/// Materializes views of one project.
#[derive(Clone)]
pub struct Materializer {
    shared: Arc<Shared>,
    runner: mpsc::UnboundedSender<Begun>,
    project: String,
}

/// A job that was accepted. It is done whether or not anybody waits for it.
#[must_use]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Its views' names.
    pub views: Vec<String>,
    done: oneshot::Receiver<Result<()>>,
}

impl Job {
    /// Waits for its end.
    ///
    /// Errors: that of the first view that failed, by when no others are begun; `Conflict` where it was cancelled,
    /// `Unavailable` where the server stops before.
    pub async fn done(self) -> Result<()> {
        self.done.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// The server stops, and the job will go on.
fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping: the materialization goes on by itself when it is back")
}

impl Materializer {
    /// For `project`, with the runner of all projects' jobs; those that were interrupted are its first.
    ///
    /// Errors: the job store's.
    pub async fn open(ports: Ports, project: String) -> Result<(Self, Runner)> {
        let (jobs, open, broken) = jobs::Jobs::open(ports.jobs.clone(), ports.clock.now()).await?;
        for handle in broken {
            for part in jobs.parts(&handle).into_iter().filter(|part| part.generation != 0) {
                if let Err(error) = ports.catalog.forsake(&handle.project, &part.view, part.generation).await {
                    tracing::warn!(view = part.view, %error, "what an unfinished backfill left is not removed");
                }
            }
        }
        let shared = Arc::new(Shared { ports, jobs });
        let (runner, begun) = mpsc::unbounded_channel();
        for handle in open {
            tracing::info!(project = handle.project, job = handle.id, "a materialization goes on that was interrupted");
            // the receiver is still here
            let _ = runner.send(Begun { handle, done: None });
        }
        let runner_of_all = Runner::new(shared.clone(), begun);
        Ok((Self { shared, runner, project }, runner_of_all))
    }

    /// The same for another project.
    #[must_use]
    pub fn of_project(&self, project: &str) -> Self {
        Self { project: project.to_owned(), ..self.clone() }
    }

    /// How far the project's materializations are, view by view, the newest job first.
    pub fn progress(&self) -> Vec<Progress> {
        self.shared.jobs.list(&self.project)
    }

    /// Ends a job before its time; what it has written stays. Gives how far its views came.
    ///
    /// Errors: `NotFound`; `Conflict` where it has ended.
    pub async fn cancel(&self, id: &str) -> Result<Vec<Progress>> {
        self.shared.jobs.cancel(&self.project, id).await
    }

    /// Now, by the server's clock: the end of a materialization without event timestamps.
    pub fn now(&self) -> Timestamp {
        self.shared.ports.clock.now()
    }

    /// Accepts to materialize the views named (all that can be materialized where none are), or one view's `version`,
    /// in `[start, end)`; the intervals are recorded in the registry.
    ///
    /// Errors: an unknown view, one that is not online or has no batch source, an empty interval; `Conflict` where one
    /// of them is being materialized; `Unavailable` where the job cannot be written down, or the server stops.
    pub async fn submit(
        &self,
        names: Option<&[String]>,
        version: Option<&str>,
        start: Start,
        end: Timestamp,
    ) -> Result<Job> {
        let registry = self.shared.ports.catalog.refreshed().await?;
        let (views, version) = choose::views(&registry, &self.project, names, version)?;
        let names: Vec<String> = views.iter().map(|view| view.name.clone()).collect();
        let now = self.now();
        let mut parts = Vec::new();
        for view in &views {
            // what the stream brings from now on is not in a file yet
            let end = if view.is_windowed() { end.min(now) } else { end };
            let Some(start) = choose::start(view, start, end, now)? else { continue };
            let (start_us, end_us) = (start.micros(), end.micros());
            let generation = if view.is_windowed() { now.micros() } else { 0 };
            parts.push(Part { view: view.name.clone(), version, start_us, end_us, generation, ..Part::default() });
        }
        let (send, done) = oneshot::channel();
        let id = uuid::Uuid::new_v4().to_string();
        let job = Job { id: id.clone(), views: names, done };
        if parts.is_empty() {
            // who waits is here, or wants to know nothing
            let _ = send.send(Ok(()));
            return Ok(job);
        }
        let (project, accepted_us) = (self.project.clone(), now.micros());
        let handle = self.shared.jobs.add(Record { id, project, parts, accepted_us, interrupted: 0 }).await?;
        if let Err(unsent) = self.runner.send(Begun { handle, done: Some(send) }) {
            self.shared.jobs.forget(&unsent.0.handle).await;
            return Err(Error::new(Kind::Unavailable, "the server is stopping: ask again when it is back"));
        }
        Ok(job)
    }
}
