//! What is being materialized, and what was: how far each view is. Written down whenever a view begins or ends, so that
//! a job outlives the server. Knows no source and no online store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::ports::JobStore;
use model::{Error, Kind, Result, Timestamp};
use tokio_util::sync::CancellationToken;

use super::record::{Part, Record};
pub use super::record::{Phase, State};

/// How many jobs are remembered that have ended; others are never forgotten.
const KEPT: usize = 200;
/// A job that was being done this often when the server went down is not begun again: it may be why.
const INTERRUPTIONS: u32 = 3;

/// The materialization of one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The job that it belongs to.
    pub job: String,
    /// The view.
    pub view: String,
    /// The first instant of the interval.
    pub start: Timestamp,
    /// The end of the interval, which does not belong to it.
    pub end: Timestamp,
    /// Where it stands.
    pub state: State,
    /// What is done while it runs.
    pub phase: Phase,
    /// Messages of the stream that wait to be caught up with, where that is known.
    pub lag: Option<u64>,
    /// What does not answer, so that it does not come nearer.
    pub waits: Option<String>,
    /// When it began; `None` while it waits.
    pub began: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Rows handed to the online store so far: one for each key. Those of the last attempt, where there were several.
    pub rows: u64,
    /// How many of them were newer than what was there.
    pub applied: u64,
    /// Rows of the source without a key or a time, which were left out.
    pub skipped: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What a task of a job needs of it.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) id: String,
    pub(super) project: String,
    /// Somebody wants it to end.
    pub(super) cancel: CancellationToken,
    /// It has ended, or it waits for the server's next start.
    over: CancellationToken,
}

struct Entry {
    record: Record,
    handle: Handle,
}

/// The materializations of all projects.
pub(super) struct Jobs {
    /// The oldest first.
    all: Mutex<VecDeque<Entry>>,
    store: Option<Arc<dyn JobStore>>,
    /// Held while a record is written: a later one must not be overtaken by an earlier one.
    saving: tokio::sync::Mutex<()>,
}

fn entry(record: Record) -> Entry {
    let (id, project) = (record.id.clone(), record.project.clone());
    let handle = Handle { id, project, cancel: CancellationToken::new(), over: CancellationToken::new() };
    Entry { record, handle }
}

impl Jobs {
    /// With what was written down before. Gives the jobs that are to go on, the oldest first, and those that are not,
    /// though they were interrupted.
    ///
    /// Errors: the store's.
    pub(super) async fn open(
        store: Option<Arc<dyn JobStore>>,
        now: Timestamp,
    ) -> Result<(Self, Vec<Handle>, Vec<Handle>)> {
        let mut records = Vec::new();
        let stored = match &store {
            Some(store) => store.load().await?,
            None => Vec::new(),
        };
        for (id, bytes) in stored {
            match Record::read(&id, bytes) {
                Ok(record) => records.push(record),
                // it can neither be done nor told of: it stays where it is
                Err(error) => tracing::error!(%error, "a job is left out"),
            }
        }
        records.sort_by(|a, b| (a.accepted_us, &a.id).cmp(&(b.accepted_us, &b.id)));
        let jobs = Self { all: Mutex::default(), store, saving: tokio::sync::Mutex::default() };
        let (mut open, mut broken) = (Vec::new(), Vec::new());
        for mut record in records {
            let interrupted = interrupt(&mut record, now);
            let entry = entry(record);
            let (handle, ended) = (entry.handle.clone(), entry.record.has_ended());
            jobs.lock().push_back(entry);
            if interrupted {
                jobs.save(&handle).await;
            }
            if !ended {
                open.push(handle);
                continue;
            }
            handle.over.cancel();
            if interrupted {
                broken.push(handle);
            }
        }
        Ok((jobs, open, broken))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job on, durably.
    ///
    /// Errors: `Conflict` where one of its views is being materialized; the store's.
    pub(super) async fn add(&self, record: Record) -> Result<Handle> {
        let (handle, forgotten) = {
            let mut all = self.lock();
            let busy = |view: &str| {
                let of_project = all.iter().filter(|entry| entry.record.project == record.project);
                let mut open = of_project.flat_map(|e| &e.record.parts).filter(|part| !part.state().has_ended());
                open.any(|part| part.view == view)
            };
            let busy: Vec<_> = record.parts.iter().map(|part| part.view.as_str()).filter(|view| busy(view)).collect();
            if !busy.is_empty() {
                let message = format!(
                    "feature views {busy:?} are already being materialized: wait for that to end, then ask again"
                );
                return Err(Error::new(Kind::Conflict, message));
            }
            let ended = all.iter().filter(|entry| entry.record.has_ended()).count();
            let oldest = (ended >= KEPT).then(|| all.iter().position(|entry| entry.record.has_ended())).flatten();
            let forgotten = oldest.and_then(|at| all.remove(at)).map(|entry| entry.record.id);
            let entry = entry(record);
            let handle = entry.handle.clone();
            all.push_back(entry);
            (handle, forgotten)
        };
        if let Err(error) = self.put(&handle).await {
            self.lock().retain(|entry| entry.record.id != handle.id);
            return Err(error);
        }
        if let Some(id) = forgotten {
            self.remove(&id).await;
        }
        Ok(handle)
    }

    /// Forgets a job that was not begun.
    pub(super) async fn forget(&self, handle: &Handle) {
        self.lock().retain(|entry| entry.record.id != handle.id);
        self.remove(&handle.id).await;
    }

    async fn remove(&self, id: &str) {
        let Some(store) = &self.store else { return };
        if let Err(error) = store.delete(id).await {
            tracing::warn!(%error, id, "a job that has ended could not be forgotten");
        }
    }

    async fn put(&self, handle: &Handle) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let _one_at_a_time = self.saving.lock().await;
        let record = self.lock().iter().find(|e| e.record.id == handle.id).map(|entry| entry.record.bytes());
        match record {
            Some(record) => store.put(&handle.id, record).await,
            None => Ok(()),
        }
    }

    /// Writes down how far a job is. Where that fails, the job is done over after a restart, which changes nothing.
    pub(super) async fn save(&self, handle: &Handle) {
        if let Err(error) = self.put(handle).await {
            tracing::warn!(%error, id = handle.id, "how far a job is could not be written down");
        }
    }

    /// Changes a part of a job; `None` where there is none.
    pub(super) fn change<T>(&self, handle: &Handle, at: usize, how: impl FnOnce(&mut Part) -> T) -> Option<T> {
        let mut all = self.lock();
        let part = all.iter_mut().rfind(|entry| entry.record.id == handle.id)?.record.parts.get_mut(at)?;
        Some(how(part))
    }

    /// The parts of a job.
    pub(super) fn parts(&self, handle: &Handle) -> Vec<Part> {
        let all = self.lock();
        all.iter().rfind(|e| e.record.id == handle.id).map(|e| e.record.parts.clone()).unwrap_or_default()
    }

    /// Nothing more is done for a job, for good or until the server's next start.
    pub(super) async fn leave(&self, handle: &Handle) {
        self.save(handle).await;
        handle.over.cancel();
    }

    /// Ends a job of a project, and waits for that.
    ///
    /// Errors: `NotFound`; `Conflict` where it has ended.
    pub(super) async fn cancel(&self, project: &str, id: &str) -> Result<Vec<Progress>> {
        let handle = {
            let all = self.lock();
            let found = all.iter().find(|entry| entry.record.id == id && entry.record.project == project);
            let entry = found.ok_or_else(|| {
                let message = format!("There is no job with the id {id} in project {project}: GET /jobs lists them");
                Error::new(Kind::NotFound, message)
            })?;
            if entry.record.has_ended() {
                return Err(Error::new(Kind::Conflict, format!("the job {id} has ended already: see GET /jobs")));
            }
            entry.handle.clone()
        };
        handle.cancel.cancel();
        handle.over.cancelled().await;
        Ok(self.list(project).into_iter().filter(|progress| progress.job == id).collect())
    }

    /// Those of a project, the newest first.
    pub(super) fn list(&self, project: &str) -> Vec<Progress> {
        let all = self.lock();
        let records = all.iter().rev().map(|entry| &entry.record).filter(|record| record.project == project);
        records.flat_map(|record| record.parts.iter().map(|part| progress(&record.id, part))).collect()
    }
}

/// What becomes of a job that did not end when the server did. Gives whether anything.
fn interrupt(record: &mut Record, now: Timestamp) -> bool {
    if !record.parts.iter().any(|part| part.state() == State::Running) {
        return false;
    }
    record.interrupted += 1;
    let times = record.interrupted;
    let why = format!("the server went down {times} times while this was being done: ask again, if that is not why");
    for part in record.parts.iter_mut().filter(|part| !part.state().has_ended()) {
        if times < INTERRUPTIONS {
            part.set_state(State::Waiting);
        } else {
            part.finish(State::Failed, now, Some(why.clone()));
        }
    }
    true
}

fn progress(id: &str, part: &Part) -> Progress {
    let began = (part.began_us != 0).then_some(Timestamp(part.began_us));
    Progress {
        job: id.to_owned(),
        view: part.view.clone(),
        start: Timestamp(part.start_us),
        end: Timestamp(part.end_us),
        state: part.state(),
        phase: part.phase(),
        lag: part.lag,
        waits: part.waits.clone(),
        began,
        ended: part.ended_us.map(Timestamp),
        rows: part.rows,
        applied: part.applied,
        skipped: part.skipped,
        error: part.error.clone(),
    }
}

#[cfg(test)]
mod tests;
