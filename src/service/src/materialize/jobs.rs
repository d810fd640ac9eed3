//! What is being materialized, and what was: how far each view is, in memory only. Knows no protocol.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Error, Timestamp};

/// How many are remembered; running ones are never forgotten.
const KEPT: usize = 200;

/// The materialization of one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The view.
    pub view: String,
    /// The first instant of the interval.
    pub start: Timestamp,
    /// The end of the interval, which does not belong to it.
    pub end: Timestamp,
    /// When it began.
    pub began: Timestamp,
    /// When it ended; `None` while it runs.
    pub ended: Option<Timestamp>,
    /// Rows handed to the online store so far: one for each key.
    pub rows: u64,
    /// How many of them were newer than what was there.
    pub applied: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Which materialization.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(u64);

/// The materializations of one project since the server began.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    all: Mutex<(u64, VecDeque<(u64, Progress)>)>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<(u64, Progress)>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, view: &str, start: Timestamp, end: Timestamp, now: Timestamp) -> Id {
        let mut all = self.lock();
        let (next, jobs) = &mut *all;
        if jobs.len() >= KEPT
            && let Some(old) = jobs.iter().position(|(_, job)| job.ended.is_some())
        {
            jobs.remove(old);
        }
        *next += 1;
        let job =
            Progress { view: view.to_owned(), start, end, began: now, ended: None, rows: 0, applied: 0, error: None };
        jobs.push_back((*next, job));
        Id(*next)
    }

    /// Adds rows; gives what there is by now.
    pub(super) fn add(&self, id: Id, rows: u64, applied: u64) -> (u64, u64) {
        self.change(id, |job| {
            job.rows += rows;
            job.applied += applied;
            (job.rows, job.applied)
        })
        .unwrap_or_default()
    }

    pub(super) fn end(&self, id: Id, now: Timestamp, error: Option<&Error>) {
        self.change(id, |job| {
            job.ended = Some(now);
            job.error = error.map(|e| e.message().to_owned());
        });
    }

    /// All of them, the newest first.
    pub(super) fn list(&self) -> Vec<Progress> {
        self.lock().1.iter().rev().map(|(_, job)| job.clone()).collect()
    }

    fn change<T>(&self, id: Id, how: impl FnOnce(&mut Progress) -> T) -> Option<T> {
        self.lock().1.iter_mut().rfind(|(at, _)| *at == id.0).map(|(_, job)| how(job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_jobs_are_forgotten_in_time_and_running_ones_never() {
        let jobs = Jobs::default();
        let at = Timestamp;
        let running = jobs.begin("running", at(0), at(1), at(10));
        for n in 0..2 * KEPT as i64 {
            let id = jobs.begin(&format!("v{n}"), at(0), at(1), at(n));
            assert_eq!(jobs.add(id, 3, 1), (3, 1));
            assert_eq!(jobs.add(id, 2, 2), (5, 3));
            jobs.end(id, at(n + 1), (n % 2 == 1).then(|| Error::invalid("odd")).as_ref());
        }
        assert_eq!(jobs.add(running, 7, 7), (7, 7));
        let all = jobs.list();
        assert_eq!(all.len(), KEPT);
        let last = &all[0];
        assert_eq!((last.view.as_str(), last.rows, last.applied), (format!("v{}", 2 * KEPT - 1).as_str(), 5, 3));
        assert_eq!((last.ended, last.error.as_deref()), (Some(at(2 * KEPT as i64)), Some("odd")));
        assert_eq!(all[1].error, None);
        let still: Vec<&Progress> = all.iter().filter(|job| job.ended.is_none()).collect();
        assert_eq!(still.iter().map(|job| (job.view.as_str(), job.rows)).collect::<Vec<_>>(), [("running", 7)]);
    }
}
