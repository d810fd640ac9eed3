//! The thread that carries what the log holds into sled and into runs, and the only one that writes to sled. Knows no
//! request; the writer tells it what to do, one thing at a time.
//!
//! A frozen layer's window states become a run ([`super::runs`]); all else goes into sled entry by entry, in the order of the keys (half the cost of arrival
//! order, and no reader is held back as by a batch): should the power go in between, the log has all of
//! it still. Once sled is durable, sled is told the last segment that it has all of, is made durable
//! again, and only then does the log lose its segments up to that one. Where the disk has no room it stops before sled
//! finds out, which would end its reads too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::{Kind as ErrorKind, Result};

use super::Shared;
use super::disk::{Disk, failed_to};
use super::layout::{self, TRIMMED_KEY};
use super::overlay::Layer;
use super::runs::{Fault, Plan, Run};
use super::wal;

/// So many bytes go into sled until it is asked again whether the disk has room.
const CHECKED: usize = 1 << 20;

/// What the thread can be asked.
pub(crate) enum Job {
    /// Carry the frozen layer into sled, and trim the log up to this segment.
    Drain { layer: Arc<Layer>, last: u64, done: Sender<Result<()>> },
    /// Leave out what is damaged of the window states whose keys begin with this: their table is cleared.
    Repair { prefix: Vec<u8>, done: Sender<Result<()>> },
    /// Make sled durable and let go of its files.
    Close { done: Sender<Result<()>> },
}

/// A merge under way.
struct Merging {
    thread: JoinHandle<(Plan, std::result::Result<Option<Run>, Fault>)>,
    began: Instant,
}

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
        loop {
            self.merged();
            self.merge();
            let job = match &self.merging {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => jobs.recv_timeout(LOOK),
            };
            match job {
                Ok(Job::Drain { layer, last, done }) => {
                    let drained = self.drain(&layer, last);
                    // Nobody waiting is no reason not to have done it.
                    let _ = done.send(drained);
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
            Ok(()) => self.shared.overlay.drop_frozen(),
            Err(error) => self.shared.metrics.drain_failed(error),
        }
        drained
    }

    fn try_drain(&mut self, layer: &Layer, last: u64) -> Result<()> {
        let failed = failed_to("write");
        let db = &self.disk.db;
        let mut value = Vec::new();
        self.disk.room(false)?;
        let (sparing, mut unchecked) = (self.disk.is_short_of(layer.bytes() as u64), 0);
        let (states, rows): (Vec<_>, Vec<_>) = layer.sorted().into_iter().partition(|(key, _)| layout::is_state(key));
        for (key, entry) in rows {
            unchecked += key.len() + entry.payload().map_or(0, bytes::Bytes::len);
            if unchecked > CHECKED {
                unchecked = 0;
                self.disk.room(sparing)?;
            }
            match entry.payload() {
                Some(payload) => {
                    layout::seal_into(&mut value, &key, payload);
                    db.insert(&*key, value.as_slice()).map_err(&failed)?;
                }
                None => {
                    db.remove(&*key).map_err(&failed)?;
                }
            }
        }
        let positions = layer.positions().clone();
        for (key, payload) in positions {
            db.insert(&*key, layout::seal(&key, &payload)).map_err(&failed)?;
        }
        if states.is_empty() {
            self.disk.make_durable()?;
        } else {
            self.disk.room(sparing)?;
            let entries = states.iter().map(|(key, entry)| (&**key, entry.payload().map(Bytes::as_ref)));
            let runs = &self.shared.runs;
            let run = runs.write(entries).map_err(|fault| self.shared.fault(fault))?;
            self.disk.store_runs(&runs.with(&run))?;
            runs.add(run);
            self.count_runs();
        }
        self.disk.db.insert(TRIMMED_KEY, layout::seal(TRIMMED_KEY, &last.to_le_bytes())).map_err(&failed)?;
        self.disk.make_durable()?;
        wal::trim(&self.log, last).map_err(|e| {
            model::Error::new(ErrorKind::Unavailable, "the online store's write-ahead log cannot be trimmed")
                .with_cause(e)
        })
    }

    /// Begins the next merge, where one is due and none is under way.
    fn merge(&mut self) {
        if self.merging.is_some() {
            return;
        }
        let (runs, _) = self.shared.runs.size();
        let Some(plan) = self.shared.runs.plan().filter(|_| self.refused != Some(runs)) else { return };
        self.refused = (!self.disk.has_room_for(plan.bytes())).then_some(runs);
        if self.refused.is_some() {
            self.shared.metrics.merge_failed("the disk has no room for it");
            return;
        }
        let stop = Arc::clone(&self.stop);
        let work = move || {
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
        let Some(Merging { thread, began }) = self.merging.take_if(|merging| merging.thread.is_finished()) else {
            return;
        };
        if let Err(error) = self.take_over(thread) {
            self.refused = Some(self.shared.runs.size().0);
            self.shared.metrics.merge_failed(error.message());
            return;
        }
        self.shared.metrics.merge_seconds.record(began.elapsed());
        self.count_runs();
    }

    fn take_over(&mut self, thread: JoinHandle<(Plan, std::result::Result<Option<Run>, Fault>)>) -> Result<()> {
        let panicked = |_| model::Error::new(ErrorKind::Internal, "the thread that merged window states panicked");
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
            tracing::warn!(%error, "merged window states stay on the disk until the next start");
        }
        Ok(())
    }

    /// Breaks off a merge.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.merging.take().is_some_and(|merging| merging.thread.join().is_err()) {
            tracing::error!("the thread that merged window states panicked");
        }
    }

    fn count_runs(&self) {
        let (count, bytes) = self.shared.runs.size();
        self.shared.metrics.runs.set(count as f64);
        self.shared.metrics.run_bytes.set(bytes as f64);
    }
}
