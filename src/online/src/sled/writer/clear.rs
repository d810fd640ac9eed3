//! Clearing a table slice by slice, so that nobody is held up for more than a slice. Knows which keys are
//! the table's, and not how they are removed.
//!
//! A slice is a write of absences like any other: it goes into the log and the overlay, and is carried
//! into sled behind that. So a crash in between leaves the slices that were done, and a second call finds
//! the rest.

use std::ops::Bound;

use model::Result;
use model::ports::Table;
use tokio::sync::oneshot;

use super::super::Shared;
use super::super::disk::failed_to;
use super::super::layout::{self, Entry, Kind};
use super::super::runs::{Fault, Merged};
use super::super::tier::Key;

/// Keys that are looked at in one go.
const SLICE: usize = 1024;

/// A table that is being cleared.
pub(super) struct Clearing {
    /// Those of the table that sled has still to be searched for.
    prefixes: Vec<Vec<u8>>,
    /// The last key that was found under the last prefix.
    cursor: Option<Vec<u8>>,
    /// The table's keys that were not in sled when it began.
    waiting: Vec<Key>,
    /// Where runs have still to be searched for its states.
    in_runs: Option<Vec<u8>>,
    /// The prefix of its states, where some of them could not be read: they are still to go.
    pub(super) damaged: Option<Vec<u8>>,
    /// Keys that are removed so far.
    pub(super) removed: u64,
    pub(super) reply: oneshot::Sender<Result<u64>>,
}

impl Clearing {
    pub(super) fn new(shared: &Shared, table: &Table, reply: oneshot::Sender<Result<u64>>) -> Self {
        let prefixes = [Kind::Row, Kind::State].map(|kind| layout::table_prefix(kind, table)).to_vec();
        // What sled gets of these from now on, it has before the overlay loses it, and so before the search.
        let waiting = shared.overlay.keys(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        let in_runs = Some(layout::table_prefix(Kind::State, table));
        Self { prefixes, cursor: None, waiting, in_runs, damaged: None, removed: 0, reply }
    }

    /// Whether every key was looked at.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.in_runs.is_none() && self.prefixes.is_empty()
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
        if left > 0
            && let Some(from) = self.in_runs.take()
        {
            let mut merged = shared.runs.from(&from);
            self.in_runs = from_runs(shared, &mut merged, layout::split(&from).0, left, &mut keys)?;
            if !merged.faults.is_empty() {
                self.damaged = Some(layout::split(&from).0.to_vec());
            }
            left = if self.in_runs.is_some() { 0 } else { left };
        }
        while left > 0
            && let Some(prefix) = self.prefixes.last()
        {
            let from = self.cursor.take().map_or_else(|| Bound::Included(prefix.clone()), Bound::Excluded);
            let mut found = db.range::<Vec<u8>, _>((from, Bound::Unbounded)).keys();
            loop {
                let Some(key) = found.next().transpose().map_err(failed_to("read"))?.filter(|k| k.starts_with(prefix))
                else {
                    self.prefixes.pop();
                    break;
                };
                left -= 1;
                let there = match shared.overlay.get(&key) {
                    Some(entry) => entry != Entry::Absent,
                    // Its absence may have been carried into sled, or into a run, since it was found.
                    None if layout::is_state(&key) && !is_there(shared, &key)? => false,
                    None => db.contains_key(&key).map_err(failed_to("read"))?,
                };
                if there {
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

/// The states of a table that runs have and that are there: some, and where to go on.
fn from_runs(
    shared: &Shared,
    merged: &mut Merged,
    prefix: &[u8],
    left: usize,
    keys: &mut Vec<Key>,
) -> Result<Option<Vec<u8>>> {
    let mut found = Vec::new();
    let (mut looked, mut next) = (0, None);
    while next.is_none()
        && merged.next(|key, state| {
            if !key.starts_with(prefix) || looked == left {
                next = Some(key.to_vec());
            } else if state.is_some() {
                found.push(Key::from(key));
            }
            looked += 1;
        })
    {}
    for key in found {
        if is_there(shared, &key)? {
            keys.push(key);
        }
    }
    Ok(next.filter(|key| key.starts_with(prefix)))
}

/// Whether a state is there, which some run had: it may have been removed since. One that cannot be read is.
fn is_there(shared: &Shared, key: &[u8]) -> Result<bool> {
    let entry = match shared.overlay.get(key) {
        Some(entry) => Some(entry),
        None => match shared.runs.get(key) {
            Err(Fault::Damaged(_)) => None,
            read => read.map_err(|fault| shared.fault(fault))?,
        },
    };
    Ok(entry != Some(Entry::Absent))
}
