//! Clearing a table slice by slice, so that nobody is held up for more than a slice. Knows which keys are
//! the table's, and not how they are removed.
//!
//! A slice is a write of absences like any other: it goes into the log and the overlay, and is carried
//! into a run behind that. So a crash in between leaves the slices that were done, and a second call finds
//! the rest.

use std::ops::Bound;

use model::Result;
use model::ports::Table;
use tokio::sync::oneshot;

use super::super::Shared;
use super::super::disk::failed_to;
use super::super::layout::{self, Entry, Kind};
use super::super::runs::{Fault, Merged, Reader};
use super::super::tier::Key;

/// Keys that are looked at in one go.
const SLICE: usize = 1024;
/// What is read at once of each run, in bytes.
const AHEAD: u64 = 32 << 10;

/// A table that is being cleared.
pub(super) struct Clearing {
    /// Those of the table that runs and sled have still to be searched for, the last of them begun.
    in_runs: Vec<Vec<u8>>,
    in_tree: Vec<Vec<u8>>,
    /// The first key of a run to be looked at next, and the last that was found in sled.
    next: Option<Vec<u8>>,
    cursor: Option<Vec<u8>>,
    /// The table's keys that were neither in runs nor in sled when it began.
    waiting: Vec<Key>,
    /// The prefixes of those of which some could not be read: they are still to go.
    pub(super) damaged: Vec<Vec<u8>>,
    /// Keys that are removed so far.
    pub(super) removed: u64,
    pub(super) reply: oneshot::Sender<Result<u64>>,
}

impl Clearing {
    pub(super) fn new(shared: &Shared, table: &Table, reply: oneshot::Sender<Result<u64>>) -> Self {
        let prefixes = [Kind::Row, Kind::State].map(|kind| layout::table_prefix(kind, table)).to_vec();
        // What runs get of these from now on, they have before the overlay loses it, and so before the search.
        let waiting = shared.overlay.keys(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        let in_runs = prefixes.clone();
        Self { in_runs, in_tree: prefixes, next: None, cursor: None, waiting, damaged: Vec::new(), removed: 0, reply }
    }

    /// Whether every key was looked at.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.in_runs.is_empty() && self.in_tree.is_empty()
    }

    /// The next keys to remove; there may be none before it is done.
    pub(super) fn slice(&mut self, shared: &Shared, db: &::sled::Db) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        let mut left = SLICE;
        while left > 0
            && let Some(key) = self.waiting.pop()
        {
            left -= 1;
            if shared.overlay.get(&key).is_some_and(|entry| entry != Entry::Absent) {
                keys.push(key);
            }
        }
        while left > 0
            && let Some(prefix) = self.in_runs.last()
        {
            let from = self.next.take().unwrap_or_else(|| prefix.clone());
            let mut merged = shared.runs.from(&from, AHEAD);
            self.next = from_runs(shared, &mut merged, prefix, &mut left, &mut keys)?;
            if !merged.faults.is_empty() && self.damaged.last() != Some(prefix) {
                self.damaged.push(prefix.clone());
            }
            if self.next.is_none() {
                self.in_runs.pop();
            }
        }
        while left > 0
            && let Some(prefix) = self.in_tree.last()
        {
            let from = self.cursor.take().map_or_else(|| Bound::Included(prefix.clone()), Bound::Excluded);
            let mut found = db.range::<Vec<u8>, _>((from, Bound::Unbounded)).keys();
            let mut reader = shared.runs.reader();
            loop {
                let Some(key) = found.next().transpose().map_err(failed_to("read"))?.filter(|k| k.starts_with(prefix))
                else {
                    self.in_tree.pop();
                    break;
                };
                left -= 1;
                // Its absence may have been carried into a run since it was found.
                if is_there(shared, &mut reader, &key)? {
                    keys.push(Key::from(&*key));
                }
                if left == 0 {
                    self.cursor = Some(key.to_vec());
                    break;
                }
            }
        }
        Ok(keys)
    }
}

/// The keys of a table that runs have and that are there: as many as are left to look at, and where to go on.
fn from_runs(
    shared: &Shared,
    merged: &mut Merged,
    prefix: &[u8],
    left: &mut usize,
    keys: &mut Vec<Key>,
) -> Result<Option<Vec<u8>>> {
    let (mut found, mut next, mut over) = (Vec::new(), None, false);
    while next.is_none()
        && !over
        && merged.next(|key, value| {
            if !key.starts_with(prefix) {
                over = true;
            } else if *left == 0 {
                next = Some(key.to_vec());
            } else {
                *left -= 1;
                found.extend(value.is_some().then(|| Key::from(key)));
            }
        })
    {}
    let mut reader = shared.runs.reader();
    for key in found {
        if is_there(shared, &mut reader, &key)? {
            keys.push(key);
        }
    }
    Ok(next)
}

/// Whether something is there, which some run or the tree had: it may have been removed since. What cannot be read is.
fn is_there(shared: &Shared, reader: &mut Reader<'_>, key: &[u8]) -> Result<bool> {
    let entry = match shared.overlay.get(key) {
        Some(entry) => Some(entry),
        None => match reader.get(key) {
            Err(Fault::Damaged(_)) => None,
            read => read.map_err(|fault| shared.fault(fault))?,
        },
    };
    Ok(entry != Some(Entry::Absent))
}
