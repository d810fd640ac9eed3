//! The rows and window states of the store: sorted runs in files, written one behind the other and merged in the
//! background. Each drain of the log makes a run, so that many entities that change now and then cost a sequential write
//! and not a page of the tree each, and what is held in memory does not grow with the rows. Knows the runs' order and no
//! tree: which runs there are stands in sled (the drainer puts it there, durable before the log is trimmed), and a file
//! that is not in that list is nothing's.
//!
//! A key's newest run has its row or state, or that it is removed. Runs of one level are merged once there are [`FAN_IN`]
//! of them, into one of the next level, or of the same where it is small enough; so each entry is written a few times in
//! all, and a lookup asks the filters of some dozens of runs at the most. Runs that together hold about [`TIMES`] entries
//! for each that is there are merged all, so that the files take about that many times what is there, and while they are
//! merged that and once more. Where merging falls behind, [`CROWDED`] runs make the drainer wait for it, and so who writes.

mod block;
mod build;
mod file;
mod filter;
mod index;
mod merge;
mod sample;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::layout::{self, Entry, Kind};
use build::Builder;
use file::Held;

pub(crate) use file::{Fault, Run};
pub(crate) use merge::{Merged, Plan};

/// The directory's name in the store's.
pub(crate) const DIRECTORY: &str = "runs";
/// Its name in the format before, which had window states in runs.
pub(crate) const DIRECTORY_OF_STATES: &str = "states";
/// So many runs of a level are merged.
pub(crate) const FAN_IN: usize = 8;
/// Runs that hold so many entries for each that is there are merged, whatever their levels.
const TIMES: usize = 3;
/// With so many runs it is waited for merging.
pub(crate) const CROWDED: usize = 48;

/// What the tree has of a store that was made before it was in runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InTree {
    pub(crate) rows: bool,
    pub(crate) states: bool,
}

impl InTree {
    /// Whether the tree may have this key.
    pub(crate) fn may_have(self, key: &[u8]) -> bool {
        match layout::kind(key) {
            Some(Kind::Row) => self.rows,
            Some(Kind::State) => self.states,
            None => true,
        }
    }
}

/// A run's number and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) number: u64,
    pub(crate) level: u8,
}

/// A run in the list.
#[derive(Clone, Debug)]
struct Live {
    run: Arc<Run>,
    level: u8,
}

/// All runs, the newest first.
#[derive(Debug)]
pub(crate) struct Runs {
    directory: PathBuf,
    live: RwLock<Arc<Vec<Live>>>,
    /// How often the list has changed.
    changes: AtomicU64,
    /// The next run's number.
    numbers: AtomicU64,
    in_tree: InTree,
}

/// Looks up keys one after the other, best in their order: the block of each run that was read last is not read again.
pub(crate) struct Reader<'a> {
    runs: &'a Runs,
    live: Arc<Vec<Live>>,
    /// How often the list had changed before it was taken.
    changes: u64,
    held: Vec<Held>,
}

impl Reader<'_> {
    /// A key's row or state, or that it is absent; `None` where no run says anything of it, and the tree may. Of the runs
    /// that there are when it is asked.
    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Entry>, Fault> {
        if self.changes != self.runs.changes.load(Ordering::Acquire) {
            *self = self.runs.reader();
        }
        let hash = filter::hash(key);
        for (live, held) in self.live.iter().zip(&mut self.held) {
            if let Some(found) = live.run.get(hash, key, held)? {
                return Ok(Some(found));
            }
        }
        Ok((!self.runs.in_tree.may_have(key)).then_some(Entry::Absent))
    }
}

/// The list as it is stored.
pub(crate) fn encode(list: &[Listed]) -> Vec<u8> {
    list.iter().flat_map(|listed| listed.number.to_le_bytes().into_iter().chain([listed.level])).collect()
}

/// The stored list; `None` where that is none.
pub(crate) fn decode(payload: &[u8]) -> Option<Vec<Listed>> {
    let (listed, rest) = payload.as_chunks::<9>();
    let of = |bytes: &[u8; 9]| {
        let (number, level) = bytes.split_first_chunk::<8>()?;
        Some(Listed { number: u64::from_le_bytes(*number), level: *level.first()? })
    };
    if rest.is_empty() { listed.iter().map(of).collect() } else { None }
}

impl Runs {
    /// Opens the runs of a list, the newest first.
    pub(crate) fn open(store: &Path, list: &[Listed], in_tree: InTree) -> Result<Self, Fault> {
        let directory = store.join(DIRECTORY);
        let open = |listed: &Listed| {
            let run = Run::open(&directory, listed.number).map_err(|fault| match fault {
                Fault::Io(e) if e.kind() == io::ErrorKind::NotFound => {
                    Fault::Unreadable(file::path_of(&directory, listed.number))
                }
                fault => fault,
            })?;
            Ok(Live { run: Arc::new(run), level: listed.level })
        };
        let live = list.iter().map(open).collect::<Result<Vec<_>, Fault>>()?;
        let numbers = AtomicU64::new(list.iter().map(|listed| listed.number).max().unwrap_or(0) + 1);
        Ok(Self { directory, live: RwLock::new(Arc::new(live)), changes: AtomicU64::new(0), numbers, in_tree })
    }

    /// Removes the files that are not in the list: of a crash in the middle of a drain or a merge.
    pub(crate) fn tidy(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let live = self.live();
        for file in std::fs::read_dir(&self.directory)? {
            let file = file?;
            let number = file.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| live.iter().all(|live| live.run.number != number)) {
                std::fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    fn live(&self) -> Arc<Vec<Live>> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many runs there are, their bytes, and what is held in memory of them, in bytes.
    pub(crate) fn size(&self) -> (usize, u64, usize) {
        let live = self.live();
        let memory = live.iter().map(|live| live.run.memory()).sum();
        (live.len(), live.iter().map(|live| live.run.bytes).sum(), memory)
    }

    /// What the tree has.
    pub(crate) fn in_tree(&self) -> InTree {
        self.in_tree
    }

    /// To look up keys.
    pub(crate) fn reader(&self) -> Reader<'_> {
        let changes = self.changes.load(Ordering::Acquire);
        let live = self.live();
        let held = live.iter().map(|_| Held::default()).collect();
        Reader { runs: self, live, changes, held }
    }

    /// All entries from a key on, the newest of each key; so many bytes are read at once of each run.
    pub(crate) fn from(&self, key: &[u8], ahead: u64) -> Merged {
        Merged::new(self.live().iter().map(|live| &live.run), key, ahead)
    }

    /// Reads what is looked at first for some keys that begin with a table's prefix: the waits for memory go on at the same
    /// time.
    pub(crate) fn touch<'k>(&self, prefix: &[u8], entities: impl Iterator<Item = &'k [u8]>) {
        let mut key = prefix.to_vec();
        let hash = |entity: &[u8]| {
            key.truncate(prefix.len());
            key.extend_from_slice(entity);
            filter::hash(&key)
        };
        let hashes: Vec<u64> = entities.map(hash).collect();
        let live = self.live();
        let lines = live.iter().flat_map(|live| hashes.iter().map(|hash| live.run.touch(*hash)));
        std::hint::black_box(lines.fold(0, |all, line| all ^ line));
    }

    /// Writes a run of at most so many entries, which are pushed with keys that ascend; it is on the disk on return, and not
    /// in the list yet.
    pub(crate) fn write(
        &self,
        entries: u64,
        each: impl FnOnce(&mut dyn FnMut(&[u8], Option<&[u8]>) -> io::Result<()>) -> io::Result<()>,
    ) -> Result<Run, Fault> {
        let number = self.next();
        let write = || {
            let mut builder = Builder::new(&self.directory, number, entries)?;
            each(&mut |key, value| builder.push(key, value))?;
            builder.finish()
        };
        write().inspect_err(|_| {
            // It is tried again under another number; what cannot be removed now goes at the next opening.
            let _ = std::fs::remove_file(file::path_of(&self.directory, number));
        })
    }

    /// A number that no run has or had since the store was opened.
    fn next(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The list with a new run before all.
    pub(crate) fn with(&self, run: &Run) -> Vec<Listed> {
        std::iter::once(Listed { number: run.number, level: 0 }).chain(self.list()).collect()
    }

    /// The list.
    pub(crate) fn list(&self) -> Vec<Listed> {
        self.live().iter().map(|live| Listed { number: live.run.number, level: live.level }).collect()
    }

    /// The new run is in the stored list: it is read from now on.
    pub(crate) fn add(&self, run: Run) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let new = Live { run: Arc::new(run), level: 0 };
        *live = Arc::new(std::iter::once(new).chain(live.iter().cloned()).collect());
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// What may be merged next, what should be first.
    pub(crate) fn plans(&self) -> Vec<Plan> {
        let live = self.live();
        // Only neighbours become one, for newer counts: a damaged one stays as it is, between the others.
        let whole = |a: &Live, b: &Live| !a.run.is_damaged() && !b.run.is_damaged();
        let alike = |a: &Live, b: &Live| a.level == b.level && whole(a, b);
        let hold = |runs: &[Live], times: usize| sample::hold(runs.iter().map(|live| &live.run.sample), times);
        // few runs only where little of them is there: what is written anew all the time would be merged all the time
        let wasteful = |runs: &&[Live]| match runs.len() {
            0 | 1 => false,
            2..=TIMES => hold(runs, 2 * TIMES),
            _ => hold(runs, TIMES),
        };
        let wasteful = live.chunk_by(whole).find(wasteful);
        let due = live.chunk_by(alike).filter(|runs| runs.len() >= FAN_IN).min_by_key(|runs| runs[0].level);
        let number = |live: &Live| live.run.number;
        let plan = |runs: &[Live]| {
            let oldest = runs.last().map(number) == live.last().map(number);
            let level = runs.iter().map(|live| live.level).max().unwrap_or_default();
            let inputs = runs.iter().map(|live| Arc::clone(&live.run)).collect();
            Plan::new(&self.directory, self.next(), inputs, level, oldest.then_some(self.in_tree))
        };
        wasteful.into_iter().chain(due).map(plan).collect()
    }

    /// How to leave out what is damaged of a table's keys, which begin with this, run by run.
    pub(crate) fn repairs(&self, prefix: &[u8]) -> Result<Vec<Plan>, Fault> {
        let mut plans = Vec::new();
        for Live { run, level } in self.live().iter() {
            let lost = run.damaged(prefix)?;
            if !lost.is_empty() {
                let plan = Plan::new(&self.directory, self.next(), vec![Arc::clone(run)], *level, None);
                plans.push(plan.without(lost));
            }
        }
        Ok(plans)
    }

    /// The list with what a plan made in place of what it was made of.
    pub(crate) fn without(&self, plan: &Plan, made: &Run) -> Vec<Listed> {
        let mut put = Some(Listed { number: made.number, level: plan.level_of(made) });
        let place = |listed: Listed| if plan.takes(listed.number) { put.take() } else { Some(listed) };
        self.list().into_iter().filter_map(place).collect()
    }

    /// The new list is stored: what was merged is read no more, and its files go.
    pub(crate) fn swap(&self, plan: &Plan, made: Run) -> io::Result<()> {
        let level = plan.level_of(&made);
        let mut put = Some(Live { run: Arc::new(made), level });
        {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            let place = |old: &Live| if plan.takes(old.run.number) { put.take() } else { Some(old.clone()) };
            *live = Arc::new(live.iter().filter_map(place).collect());
            self.changes.fetch_add(1, Ordering::Release);
        }
        plan.remove_inputs()
    }
}

#[cfg(test)]
mod tests;
