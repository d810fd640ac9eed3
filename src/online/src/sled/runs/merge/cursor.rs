//! Reads a run's entries in their order. Knows no other run.

use std::ops::Range;
use std::sync::Arc;

use super::super::block::{take_entry, take_shared};
use super::super::file::{Fault, Run};

/// A place in a run.
pub(super) struct Cursor {
    run: Arc<Run>,
    /// How many bytes are read at once, a block at least.
    ahead: u64,
    /// The block behind the one that is gone through.
    next: usize,
    /// The blocks that were read, and their bytes.
    read: Range<usize>,
    bytes: Vec<u8>,
    /// Where the entries that follow stand in these.
    rest: Range<usize>,
    key: Vec<u8>,
    /// How much of the key all of the block have in common.
    shared: usize,
    /// Where the value stands in the bytes.
    value: Option<Range<usize>>,
    over: bool,
}

impl Cursor {
    /// Before the block in which this key would be: [`Cursor::advance`] gives its first entry.
    pub(super) fn new(run: &Arc<Run>, from: &[u8], ahead: u64) -> Self {
        Self {
            run: Arc::clone(run),
            ahead,
            next: run.index.from(from),
            read: 0..0,
            bytes: Vec::new(),
            rest: 0..0,
            key: Vec::new(),
            shared: 0,
            value: None,
            over: false,
        }
    }

    /// The entry; `None` behind the last.
    pub(super) fn entry(&self) -> Option<(&[u8], Option<&[u8]>)> {
        (!self.over).then(|| (self.key.as_slice(), self.value.clone().map(|value| &self.bytes[value])))
    }

    /// Goes on to the next entry. What an error says is skipped by the next call.
    pub(super) fn advance(&mut self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            self.over = self.next >= self.run.index.len();
            if self.over {
                return Ok(());
            }
            self.next += 1;
            self.begin(self.next - 1)?;
        }
        let mut rest = &self.bytes[self.rest.clone()];
        let Some((key, value)) = take_entry(self.run.version, &mut rest) else {
            self.rest = 0..0;
            return Err(Fault::Damaged(self.run.index.first(self.next - 1)));
        };
        self.key.truncate(self.shared);
        self.key.extend_from_slice(key);
        self.rest.start = self.rest.end - rest.len();
        self.value = value.map(|value| self.rest.start - value.len()..self.rest.start);
        Ok(())
    }

    /// Goes to the begin of a block.
    fn begin(&mut self, block: usize) -> Result<(), Fault> {
        let index = &self.run.index;
        if !self.read.contains(&block) {
            let most = index.place(block).start + self.ahead;
            let fits = |end: &usize| index.place(*end).end <= most;
            let end = (block + 1..index.len()).take_while(fits).last().unwrap_or(block) + 1;
            self.read = 0..0;
            self.run.read(block..end, &mut self.bytes)?;
            self.read = block..end;
        }
        let before = index.place(self.read.start).start;
        let place = index.place(block);
        let (start, end) = ((place.start - before) as usize, (place.end - before) as usize);
        let mut entries = self.run.whole(block, &self.bytes[start..end])?;
        let shared = take_shared(self.run.version, &mut entries).ok_or_else(|| Fault::Damaged(index.first(block)))?;
        self.key.clear();
        self.key.extend_from_slice(shared);
        self.shared = shared.len();
        self.rest = end - entries.len()..end;
        Ok(())
    }
}
