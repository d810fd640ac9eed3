//! Several runs as one: read together, and written together into a new one. Knows no list.

mod cursor;

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::build::Builder;
use super::file::{Fault, Run, path_of};
use super::{FAN_IN, InTree};
use cursor::Cursor;

/// A run of the first level has at most so many bytes; one of a further level [`FAN_IN`] times as many.
const FIRST: u64 = 64 << 20;
/// What is read at once of a run that is merged, in bytes.
const AHEAD: u64 = 256 << 10;

/// The entries of runs in the order of their keys, the newest of each key.
pub(crate) struct Merged {
    /// The newest run's first.
    cursors: Vec<Cursor>,
    /// Those whose entry has the least key.
    least: Vec<usize>,
    /// What could not be read, and is left out.
    pub(crate) faults: Vec<Fault>,
}

impl Merged {
    /// From a key on; so many bytes are read at once of each run, a block at least.
    pub(super) fn new<'a>(newest_first: impl Iterator<Item = &'a Arc<Run>>, from: &[u8], ahead: u64) -> Self {
        let cursors: Vec<Cursor> = newest_first.map(|run| Cursor::new(run, from, ahead)).collect();
        let mut merged = Self { cursors, least: Vec::new(), faults: Vec::new() };
        for at in 0..merged.cursors.len() {
            merged.advance(at);
            while merged.cursors[at].entry().is_some_and(|(key, _)| key < from) {
                merged.advance(at);
            }
        }
        merged
    }

    fn advance(&mut self, at: usize) {
        while let Err(fault) = self.cursors[at].advance() {
            self.faults.push(fault);
        }
    }

    /// The next entry, handed to `take`; says whether there was one.
    pub(crate) fn next(&mut self, take: impl FnOnce(&[u8], Option<&[u8]>)) -> bool {
        let mut least = std::mem::take(&mut self.least);
        least.clear();
        for (at, cursor) in self.cursors.iter().enumerate() {
            let Some((key, _)) = cursor.entry() else { continue };
            match least.first().and_then(|least| self.cursors[*least].entry()).map(|(least, _)| key.cmp(least)) {
                Some(Ordering::Greater) => continue,
                Some(Ordering::Equal) => {}
                None | Some(Ordering::Less) => least.clear(),
            }
            least.push(at);
        }
        let newest = least.first().and_then(|newest| self.cursors[*newest].entry());
        let found = newest.map(|(key, value)| take(key, value)).is_some();
        for at in &least {
            self.advance(*at);
        }
        self.least = least;
        found
    }
}

/// Runs to be made into one.
pub(crate) struct Plan {
    directory: PathBuf,
    number: u64,
    /// The newest first.
    inputs: Vec<Arc<Run>>,
    level: u8,
    /// Where no older run has any of the keys, whether the tree has: else what is removed need not be remembered.
    oldest: Option<InTree>,
    /// The first keys of damaged blocks that may be left out.
    lost: Vec<Vec<u8>>,
}

impl Plan {
    pub(super) fn new(directory: &Path, number: u64, inputs: Vec<Arc<Run>>, level: u8, oldest: Option<InTree>) -> Self {
        Self { directory: directory.to_owned(), number, inputs, level, oldest, lost: Vec::new() }
    }

    /// Without damaged blocks of the only input, which begin with these keys.
    pub(super) fn without(self, lost: Vec<Vec<u8>>) -> Self {
        Self { lost, ..self }
    }

    /// How many bytes it writes at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.inputs.iter().map(|run| run.bytes).sum()
    }

    /// Makes the run; it is on the disk on return, and in no list. `None` where it was stopped.
    ///
    /// Errors: an input that is damaged: what is left of it is still read, and not carried on as if it were all.
    pub(crate) fn make(&self, stop: &AtomicBool) -> Result<Option<Run>, Fault> {
        let made = self.try_make(stop);
        if !matches!(made, Ok(Some(_))) {
            // what is left of it is nothing's, and goes at the next opening else
            let _ = std::fs::remove_file(path_of(&self.directory, self.number));
        }
        made
    }

    fn try_make(&self, stop: &AtomicBool) -> Result<Option<Run>, Fault> {
        let entries = self.inputs.iter().map(|run| run.entries).sum();
        let mut builder = Builder::new(&self.directory, self.number, entries)?;
        let mut merged = Merged::new(self.inputs.iter(), &[], AHEAD);
        loop {
            for fault in merged.faults.drain(..) {
                self.pass(fault, &mut builder)?;
            }
            let mut pushed = Ok(());
            let more = merged.next(|key, value| {
                if value.is_some() || self.oldest.is_none_or(|in_tree| in_tree.may_have(key)) {
                    pushed = builder.push(key, value);
                }
            });
            pushed?;
            if !more && merged.faults.is_empty() {
                return builder.finish().map(Some);
            }
            if stop.load(Relaxed) {
                return Ok(None);
            }
        }
    }

    /// Leaves out what may be; what else is damaged of a run that is repaired stays as it is.
    fn pass(&self, fault: Fault, builder: &mut Builder) -> Result<(), Fault> {
        match (fault, self.inputs.as_slice()) {
            (Fault::Damaged(first), _) if self.lost.contains(&first) => Ok(()),
            (Fault::Damaged(first), [run]) if !self.lost.is_empty() => builder.push_damaged(run, &first),
            (fault, _) => Err(fault),
        }
    }

    pub(super) fn takes(&self, number: u64) -> bool {
        self.inputs.iter().any(|run| run.number == number)
    }

    pub(super) fn level_of(&self, made: &Run) -> u8 {
        let room = FIRST.saturating_mul((FAN_IN as u64).saturating_pow(u32::from(self.level)));
        self.level.saturating_add(u8::from(made.bytes > room))
    }

    pub(super) fn remove_inputs(&self) -> io::Result<()> {
        self.inputs.iter().try_for_each(|run| run.remove())
    }
}
