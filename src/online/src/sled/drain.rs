//! The thread that carries what the log holds into sled, and the only one that writes to sled. Knows no
//! request; the writer tells it what to do, one thing at a time.
//!
//! A frozen layer goes into sled entry by entry, in the order of the keys (half the cost of arrival
//! order, and no reader is held back as by a batch): should the power go in between, the log has all of
//! it still. Once sled is durable, sled is told the last segment that it has all of, is made durable
//! again, and only then does the log lose its segments up to that one. Where the disk has no room it stops before sled
//! finds out, which would end its reads too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use model::{Kind as ErrorKind, Result};

use super::Shared;
use super::disk::{Disk, failed_to};
use super::layout::{self, TRIMMED_KEY};
use super::overlay::Layer;
use super::wal;

/// So many bytes go into sled until it is asked again whether the disk has room.
const CHECKED: usize = 1 << 20;

/// What the thread can be asked.
pub(crate) enum Job {
    /// Carry the frozen layer into sled, and trim the log up to this segment.
    Drain { layer: Arc<Layer>, last: u64, done: Sender<Result<()>> },
    /// Make sled durable and let go of its files.
    Close { done: Sender<Result<()>> },
}

/// The thread's own things.
pub(crate) struct Drainer {
    shared: Arc<Shared>,
    disk: Disk,
    log: PathBuf,
}

impl Drainer {
    pub(crate) fn new(shared: Arc<Shared>, disk: Disk, log: PathBuf) -> Self {
        Self { shared, disk, log }
    }

    /// Works until it is asked to close, or nobody can ask any more.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            // Nobody waiting is no reason not to have done it.
            match job {
                Job::Drain { layer, last, done } => {
                    let drained = self.drain(&layer, last);
                    let _ = done.send(drained);
                }
                Job::Close { done } => {
                    let durable = self.disk.make_durable();
                    let released = self.disk.close();
                    let _ = done.send(durable.and(released));
                    return;
                }
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
        for (key, entry) in layer.sorted() {
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
        self.disk.make_durable()?;
        self.disk.db.insert(TRIMMED_KEY, layout::seal(TRIMMED_KEY, &last.to_le_bytes())).map_err(&failed)?;
        self.disk.make_durable()?;
        wal::trim(&self.log, last).map_err(|e| {
            model::Error::new(ErrorKind::Unavailable, "the online store's write-ahead log cannot be trimmed")
                .with_cause(e)
        })
    }
}
