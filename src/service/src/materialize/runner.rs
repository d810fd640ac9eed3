//! Does the jobs: a few views of each at a time, each from its batch source into the online store. Knows no protocol.

use std::sync::Arc;

use model::ports::{RowWrite, WriteBatch};
use model::registry::View;
use model::{Error, Kind, Result, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::jobs::{Handle, Phase, State};
use super::record::Part;
use super::{Begun, Shared, choose, stopped};
use crate::catalog::gone;
use crate::metrics;

/// Views of one job that are materialized at the same time.
const AT_ONCE: usize = 2;

/// How long until the log says again how far a view is, µs.
const QUIET_US: i64 = 10_000_000;

/// Does what the materializers of all projects accept.
#[must_use]
pub struct Runner {
    shared: Arc<Shared>,
    begun: mpsc::UnboundedReceiver<Begun>,
}

/// Why a view's rows are not all written.
pub(super) enum Broken {
    /// It failed.
    Failed(Error),
    /// Somebody wanted the job to end.
    Cancelled,
    /// The server stops.
    Stopped,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Failed(error) => error,
            Broken::Cancelled => Self::new(Kind::Conflict, "the materialization was cancelled: what it wrote stays"),
            Broken::Stopped => stopped(),
        }
    }
}

impl Runner {
    pub(super) fn new(shared: Arc<Shared>, begun: mpsc::UnboundedReceiver<Begun>) -> Self {
        Self { shared, begun }
    }

    /// Works until `shutdown`: then what is not done waits for the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(begun) = self.begun.recv() => {
                    let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
                    running.spawn(async move { shared.job(begun, &shutdown).await });
                }
                Some(_) = running.join_next() => {}
            }
        }
        drop(self.begun);
        while running.join_next().await.is_some() {}
    }
}

/// What reads, unless there is no need of it any more. Writes are not left half-way: rows of a deleted view are removed
/// when all writes that began before have ended.
pub(super) async fn unless_stopped<T>(
    handle: &Handle,
    shutdown: &CancellationToken,
    read: impl Future<Output = Result<T>>,
) -> Result<T, Broken> {
    tokio::select! {
        done = read => Ok(done?),
        () = handle.cancel.cancelled() => Err(Broken::Cancelled),
        () = shutdown.cancelled() => Err(Broken::Stopped),
    }
}

impl Shared {
    async fn job(self: &Arc<Self>, begun: Begun, shutdown: &CancellationToken) {
        let Begun { handle, done } = begun;
        let result = self.views(&handle, shutdown).await;
        if let Err(why) = &result
            && !matches!(why, Broken::Stopped)
        {
            let now = self.ports.clock.now();
            for at in 0..self.jobs.parts(&handle).len() {
                self.jobs.change(&handle, at, |part| {
                    if !part.state().has_ended() {
                        part.finish(State::Cancelled, now, Some("the job ended before this view's turn".to_owned()));
                    }
                });
            }
        }
        self.jobs.leave(&handle).await;
        if let Some(done) = done {
            // who hung up is told nothing
            let _ = done.send(result.map_err(Error::from));
        }
    }

    async fn views(self: &Arc<Self>, handle: &Handle, shutdown: &CancellationToken) -> Result<(), Broken> {
        let parts = self.jobs.parts(handle).into_iter().enumerate();
        let mut open = parts.filter(|(_, part)| !part.state().has_ended());
        let (mut running, mut broken) = (JoinSet::new(), None);
        loop {
            while broken.is_none() && running.len() < AT_ONCE {
                let Some((at, part)) = open.next() else { break };
                let (shared, handle, shutdown) = (self.clone(), handle.clone(), shutdown.clone());
                running.spawn(async move { shared.part(&handle, at, &part, &shutdown).await });
            }
            let lost = |e| Broken::Failed(Error::internal("the materialization stopped unexpectedly", e));
            match running.join_next().await.map(|done| done.map_err(lost).flatten()) {
                None => return broken.map_or(Ok(()), Err),
                Some(Err(why)) => broken = broken.or(Some(why)),
                Some(Ok(())) => {}
            }
        }
    }

    async fn part(&self, handle: &Handle, at: usize, part: &Part, shutdown: &CancellationToken) -> Result<(), Broken> {
        let began = self.ports.clock.now();
        self.jobs.change(handle, at, |part| {
            part.set_state(State::Running);
            part.began_us = began.micros();
            part.begin(Phase::Reading);
            (part.rows, part.applied, part.skipped) = (0, 0, 0);
        });
        self.jobs.save(handle).await;
        let done = match self.view_of(handle, part).await {
            Ok(view) if view.is_windowed() => self.states(handle, at, part, &view, shutdown).await,
            Ok(view) => self.rows(handle, at, part, &view, shutdown).await,
            Err(error) => Err(error.into()),
        };
        let now = self.ports.clock.now();
        self.jobs.change(handle, at, |part| match &done {
            Ok(()) => part.finish(State::Done, now, None),
            Err(Broken::Failed(error)) => part.finish(State::Failed, now, Some(error.message().to_owned())),
            Err(Broken::Cancelled) => part.finish(State::Cancelled, now, None),
            Err(Broken::Stopped) => {
                part.set_state(State::Waiting);
                part.begin(Phase::Reading);
            }
        });
        self.jobs.save(handle).await;
        if let Err(Broken::Failed(error)) = &done {
            tracing::error!(project = handle.project, view = part.view, "materialization failed: {error}");
        }
        done
    }

    async fn view_of(&self, handle: &Handle, part: &Part) -> Result<Arc<View>> {
        let registry = self.ports.catalog.refreshed().await?;
        choose::view(&registry, &handle.project, &part.view, part.version)
    }

    /// A view's rows from the source to the store, and the interval into the registry.
    async fn rows(
        &self,
        handle: &Handle,
        at: usize,
        part: &Part,
        view: &View,
        shutdown: &CancellationToken,
    ) -> Result<(), Broken> {
        let (start, end) = (Timestamp(part.start_us), Timestamp(part.end_us));
        let began = self.ports.clock.now();
        let (mut rows, mut applied, mut told) = (0, 0, began.micros());
        let mut batches = unless_stopped(handle, shutdown, self.ports.log.latest(view, start..end)).await?;
        while let Some(batch) = unless_stopped(handle, shutdown, batches.next()).await? {
            let count = batch.len() as u64;
            let writes = batch.into_iter().map(|(key, row)| RowWrite { table: view.table.clone(), key, row }).collect();
            let _until_written = self.ports.catalog.writing_rows().await;
            self.check_unchanged(view)?;
            let written = self.ports.store.write(WriteBatch { rows: writes, ..WriteBatch::default() }).await?;
            rows += count;
            applied += written.applied as u64;
            let skipped = batches.skipped();
            self.jobs.change(handle, at, |part| (part.rows, part.applied, part.skipped) = (rows, applied, skipped));
            let now = self.ports.clock.now().micros();
            if now - told >= QUIET_US {
                told = now;
                tracing::info!(project = view.project, view = view.name, rows, applied, "materializing");
            }
        }
        let skipped = batches.skipped();
        self.jobs.change(handle, at, |part| part.skipped = skipped);
        let seconds = (self.ports.clock.now().micros() - began.micros()) as f64 / 1e6;
        metrics::materialized(&view.project, &view.name, rows, applied, skipped, seconds);
        let registry = self.ports.catalog.snapshot();
        let now = registry.projects.get(&handle.project).and_then(|p| p.views.get(&view.name));
        // the intervals are those of the version that is the view now
        if now.is_some_and(|now| now.table == view.table) {
            self.ports.catalog.materialized(&handle.project, &view.name, start, end).await?;
        }
        Ok(())
    }

    /// A view that was deleted meanwhile gets no more rows, and one that was changed none that are not its own.
    pub(super) fn check_unchanged(&self, view: &View) -> Result<()> {
        self.unchanged(view, |now| choose::same_rows(view, now)).map(drop)
    }

    /// The view as it is registered now, where that is the version that is materialized.
    ///
    /// Errors: it was deleted, or changed so that what was made is not its own.
    pub(super) fn unchanged(&self, view: &View, is_same: impl Fn(&View) -> bool) -> Result<Option<Arc<View>>> {
        let registry = self.ports.catalog.snapshot();
        if !gone::in_use(&registry, &view.table) {
            return Err(Error::feature_view_not_found(&view.name, &view.project));
        }
        let now = registry.projects.get(&view.project).and_then(|p| p.views.get(&view.name));
        match now.filter(|now| now.table == view.table) {
            Some(now) if !is_same(now) => Err(Error::new(
                Kind::Conflict,
                format!("feature view {} was changed while it was materialized: ask again", view.name),
            )),
            now => Ok(now.cloned()),
        }
    }
}
