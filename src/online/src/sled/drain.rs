//! The thread that carries what the log holds into sled and into runs, and the only one that writes to sled. Knows no
//! request; the writer tells it what to do, one thing at a time.
//!
//! A frozen layer's rows and window states become a run ([`super::runs`]), its positions go into sled: should the power go
//! in between, the log has all of it still. Once sled is durable, with the run in its list, sled is told the last segment
//! that it has all of, is made durable again, and only then does the log lose its segments up to that one. What the tree of
//! an older store has of these keys goes. Where the disk has no room it stops before sled finds out, which would end its
//! reads too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::{Kind as ErrorKind, Result};
use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};

use super::Shared;
use super::disk::{Disk, failed_to};
use super::layout::{self, TRIMMED_KEY};
use super::overlay::Layer;
use super::runs::{CROWDED, Fault, Plan, Run};
use super::wal;

/// What the thread can be asked.
pub(crate) enum Job {
    /// Carry the overlay's frozen layer into a run and sled, and trim the log up to this segment.
    Drain { last: u64, done: Sender<Result<()>> },
    /// Leave out what is damaged of the rows or window states whose keys begin with this: their table is cleared.
    Repair { prefix: Vec<u8>, done: Sender<Result<()>> },
    /// Make sled durable and let go of its files.
    Close { done: Sender<Result<()>> },
}

/// A merge under way.
struct Merging {
    thread: JoinHandle<(Plan, std::result::Result<Option<Run>, Fault>)>,
    began: Instant,
}

/// Of the threads that drain and merge, between 0 and 99, where half is what a thread has by itself: about nice 5.
const PRIORITY: u8 = 36;
/// How often the end of a merge is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// The thread's own things.
pub(crate) struct Drainer {
    shared: Arc<Shared>,
    disk: Disk,
    log: PathBuf,
    merging: Option<Merging>,
    stop: Arc<AtomicBool>,
    /// How many runs there were when they could not be merged, or the disk had no room for it: it is tried again when
    /// there are others.
    refused: Option<usize>,
}

impl Drainer {
    pub(crate) fn new(shared: Arc<Shared>, disk: Disk, log: PathBuf) -> Self {
        Self { shared, disk, log, merging: None, stop: Arc::default(), refused: None }
    }

    /// Works until it is asked to close, or nobody can ask any more.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        give_way();
        self.count_runs();
        loop {
            self.merged();
            self.merge();
            let job = match &self.merging {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => jobs.recv_timeout(LOOK),
            };
            match job {
                Ok(Job::Drain { last, done }) => {
                    let frozen = self.shared.overlay.frozen();
                    let drained = frozen.as_ref().map_or(Ok(()), |layer| self.drain(layer, last));
                    // Nobody waiting is no reason not to have done it.
                    let _ = done.send(drained);
                    // Here, where nobody waits for what it takes.
                    drop(frozen);
                }
                Ok(Job::Repair { prefix, done }) => {
                    let _ = done.send(self.repair(&prefix));
                }
                Ok(Job::Close { done }) => {
                    self.stop();
                    let durable = self.disk.make_durable();
                    let released = self.disk.close();
                    let _ = done.send(durable.and(released));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.stop(),
            }
        }
    }

    fn drain(&mut self, layer: &Layer, last: u64) -> Result<()> {
        let start = Instant::now();
        let drained = self.try_drain(layer, last);
        self.shared.metrics.drain_seconds.record(start.elapsed());
        match &drained {
            Ok(()) => drop(self.shared.overlay.take_frozen()),
            Err(error) => self.shared.metrics.drain_failed(error),
        }
        drained
    }

    fn try_drain(&mut self, layer: &Layer, last: u64) -> Result<()> {
        let failed = failed_to("write");
        self.disk.room(false)?;
        self.catch_up();
        self.disk.room(self.disk.is_short_of(layer.bytes() as u64))?;
        for (key, payload) in layer.positions().iter() {
            self.disk.db.insert(key.as_slice(), layout::seal(key, payload)).map_err(&failed)?;
        }
        let entries = layer.len();
        if entries == 0 {
            self.disk.make_durable()?;
        } else {
            let runs = &self.shared.runs;
            let run = runs.write(entries as u64, |push| layer.each(push)).map_err(|fault| self.shared.fault(fault))?;
            self.disk.store_runs(&runs.with(&run))?;
            runs.add(run);
            self.count_runs();
        }
        let in_tree = self.shared.runs.in_tree();
        if in_tree.rows || in_tree.states {
            layer.each(|key, _| {
                if in_tree.may_have(key) && self.disk.db.contains_key(key).map_err(&failed)? {
                    self.disk.db.remove(key).map_err(&failed)?;
                }
                Ok::<(), model::Error>(())
            })?;
        }
        self.disk.db.insert(TRIMMED_KEY, layout::seal(TRIMMED_KEY, &last.to_le_bytes())).map_err(&failed)?;
        self.disk.make_durable()?;
        wal::trim(&self.log, last).map_err(|e| {
            model::Error::new(ErrorKind::Unavailable, "the online store's write-ahead log cannot be trimmed")
                .with_cause(e)
        })
    }

    /// Waits for merging while there are too many runs, and what can be done about it.
    fn catch_up(&mut self) {
        while self.shared.runs.size().0 >= CROWDED {
            self.merge();
            let Some(merging) = self.merging.take() else { return };
            self.end_merge(merging);
        }
    }

    /// Begins the next merge, where one is due and none is under way.
    fn merge(&mut self) {
        if self.merging.is_some() {
            return;
        }
        let (runs, _, _) = self.shared.runs.size();
        let plans = self.shared.runs.plans();
        if plans.is_empty() || self.refused == Some(runs) {
            return;
        }
        let Some(plan) = plans.into_iter().find(|plan| self.disk.has_room_for(plan.bytes())) else {
            self.refused = Some(runs);
            self.shared.metrics.merge_failed("the disk has no room for it");
            return;
        };
        self.refused = None;
        let stop = Arc::clone(&self.stop);
        let work = move || {
            give_way();
            let made = plan.make(&stop);
            (plan, made)
        };
        match std::thread::Builder::new().name("online-merge".into()).spawn(work) {
            Ok(thread) => self.merging = Some(Merging { thread, began: Instant::now() }),
            Err(error) => self.shared.metrics.merge_failed(&error.to_string()),
        }
    }

    /// Puts what a merge made into the list, once it has ended.
    fn merged(&mut self) {
        if let Some(merging) = self.merging.take_if(|merging| merging.thread.is_finished()) {
            self.end_merge(merging);
        }
    }

    /// Waits for a merge, and puts what it made into the list.
    fn end_merge(&mut self, Merging { thread, began }: Merging) {
        if let Err(error) = self.take_over(thread) {
            self.refused = Some(self.shared.runs.size().0);
            self.shared.metrics.merge_failed(error.message());
            return;
        }
        self.shared.metrics.merge_seconds.record(began.elapsed());
        self.count_runs();
    }

    fn take_over(&mut self, thread: JoinHandle<(Plan, std::result::Result<Option<Run>, Fault>)>) -> Result<()> {
        let panicked = |_| model::Error::new(ErrorKind::Internal, "the thread that merged runs panicked");
        let (plan, made) = thread.join().map_err(panicked)?;
        match made.map_err(|fault| self.shared.fault(fault))? {
            Some(made) => self.replace(&plan, made),
            None => Ok(()),
        }
    }

    fn repair(&mut self, prefix: &[u8]) -> Result<()> {
        if let Some(Merging { thread, .. }) = self.merging.take() {
            // one that reads a damaged run fails
            if let Err(error) = self.take_over(thread) {
                self.shared.metrics.merge_failed(error.message());
            }
        }
        for plan in self.shared.runs.repairs(prefix).map_err(|fault| self.shared.fault(fault))? {
            if let Some(made) = plan.make(&self.stop).map_err(|fault| self.shared.fault(fault))? {
                self.replace(&plan, made)?;
            }
        }
        self.refused = None;
        Ok(())
    }

    fn replace(&mut self, plan: &Plan, made: Run) -> Result<()> {
        let runs = &self.shared.runs;
        self.disk.store_runs(&runs.without(plan, &made))?;
        if let Err(error) = runs.swap(plan, made) {
            tracing::warn!(%error, "runs that were merged stay on the disk until the next start");
        }
        Ok(())
    }

    /// Breaks off a merge.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.merging.take().is_some_and(|merging| merging.thread.join().is_err()) {
            tracing::error!("the thread that merged runs panicked");
        }
    }

    fn count_runs(&self) {
        let (count, bytes, memory) = self.shared.runs.size();
        self.shared.metrics.runs.set(count as f64);
        self.shared.metrics.run_bytes.set(bytes as f64);
        self.shared.metrics.run_memory.set(memory as f64);
    }
}

/// Lowers the priority of this thread, where the system knows that of single threads: requests get the processor first.
fn give_way() {
    let lower = ThreadPriorityValue::try_from(PRIORITY).map(ThreadPriority::Crossplatform);
    if cfg!(target_os = "linux")
        && let Ok(lower) = lower
        && let Err(error) = set_current_thread_priority(lower)
    {
        tracing::debug!(?error, "runs are written and merged at the priority of requests");
    }
}
