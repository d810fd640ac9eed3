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
    /// Keys that are removed so far.
    pub(super) removed: u64,
    pub(super) reply: oneshot::Sender<Result<u64>>,
}

impl Clearing {
    pub(super) fn new(shared: &Shared, table: &Table, reply: oneshot::Sender<Result<u64>>) -> Self {
        let prefixes = [Kind::Row, Kind::State].map(|kind| layout::table_prefix(kind, table)).to_vec();
        // What sled gets of these from now on, it has before the overlay loses it, and so before the search.
        let waiting = shared.overlay.keys(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        Self { prefixes, cursor: None, waiting, removed: 0, reply }
    }

    /// Whether every key was looked at.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.prefixes.is_empty()
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
                    // Its absence may have been carried into sled since it was found.
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
