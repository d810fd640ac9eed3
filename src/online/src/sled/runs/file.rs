//! One run: a file of rows and window states in the order of their keys, written once ([`super::build`]) and never
//! changed. Knows no other run.
//!
//! Blocks of about 4 KiB, of one table each: `u32` CRC-32 of the run's number, the block's place and what follows, then
//! entries ([`super::block`]). Behind them where they begin ([`super::index`]), one key of many ([`super::sample`]), the
//! filter's words ([`super::filter`]); then the end: `u64` where the index begins, `u64` where the filter begins, `u64`
//! entries, `u64` the run's number, `u32` CRC-32 of index, sample, filter and these, `"LARDRUN\x02"`. All numbers are
//! little-endian. What stands behind the blocks is held in memory: 10 to 20 bits a key, and some 30 bytes a block.
//!
//! `"LARDRUN\x01"` is a run of window states of a store of the format before: with blocks of 8 KiB, and without a sample.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;

use super::super::layout::{self, Entry};
use super::block::{self, Found, Version};
use super::filter::Filter;
use super::index::Index;
use super::sample::Sample;

pub(super) const MAGIC: &[u8; 8] = b"LARDRUN\x02";
const FIRST_MAGIC: &[u8; 8] = b"LARDRUN\x01";
pub(super) const END: usize = 44;
pub(super) const CHECKSUM: usize = 4;

/// What is wrong with a run.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    /// A block is not what was written, which begins with this key, or has it.
    Damaged(Vec<u8>),
    /// The whole file is not what was written.
    Unreadable(PathBuf),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) number: u64,
    path: PathBuf,
    file: File,
    pub(super) version: Version,
    pub(super) index: Index,
    pub(super) sample: Sample,
    filter: Filter,
    /// Entries, removed ones included.
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// A damaged block was met.
    damaged: AtomicBool,
}

/// The block of a run that was read last.
#[derive(Debug, Default)]
pub(super) struct Held {
    block: Option<usize>,
    bytes: Vec<u8>,
}

/// A run's path.
pub(super) fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}"))
}

impl Run {
    /// Opens a run; its blocks are looked at when they are read.
    pub(super) fn open(directory: &Path, number: u64) -> Result<Self, Fault> {
        let path = path_of(directory, number);
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        let unreadable = || Fault::Unreadable(path.clone());
        let end_at = bytes.checked_sub(END as u64).ok_or_else(unreadable)?;
        let mut end = [0; END];
        file.read_exact_at(&mut end, end_at)?;
        let version = match end.last_chunk() {
            Some(MAGIC) => Version::Second,
            Some(FIRST_MAGIC) => Version::First,
            _ => return Err(unreadable()),
        };
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| end[at + i]));
        let (index_at, filter_at, entries) = (word(0), word(8), word(16));
        if word(24) != number || index_at > filter_at || filter_at > end_at {
            return Err(unreadable());
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut at = index_at;
        let mut take = |bytes: &mut [u8]| {
            file.read_exact_at(bytes, at)?;
            at += bytes.len() as u64;
            hasher.update(bytes);
            Ok(())
        };
        let mut head = vec![0; (filter_at - index_at) as usize];
        take(&mut head)?;
        let filter = Filter::read(end_at - filter_at, take)?;
        hasher.update(&end[..32]);
        if hasher.finalize().to_le_bytes() != end[32..36] {
            return Err(unreadable());
        }
        let mut head = head.as_slice();
        let index = Index::take(version, &mut head).filter(|index| index.end() == index_at).ok_or_else(unreadable)?;
        let sample = match version {
            Version::First => Sample::default(),
            Version::Second => Sample::take(&mut head).ok_or_else(unreadable)?,
        };
        let filter = filter.filter(|_| head.is_empty()).ok_or_else(unreadable)?;
        Ok(Self { number, path, file, version, index, sample, filter, entries, bytes, damaged: AtomicBool::new(false) })
    }

    /// What is stored under a key whose hash this is, or that it is absent; `None` where this run says nothing of it.
    pub(super) fn get(&self, hash: u64, key: &[u8], held: &mut Held) -> Result<Option<Entry>, Fault> {
        if !self.filter.may_have(hash) {
            return Ok(None);
        }
        let Some(block) = self.index.find(key) else {
            return Ok(None);
        };
        if held.block != Some(block) {
            held.block = None;
            self.read(block..block + 1, &mut held.bytes)?;
            self.whole(block, &held.bytes)?;
            held.block = Some(block);
        }
        match block::find(self.version, &held.bytes[CHECKSUM..], key) {
            Found::Nothing => Ok(None),
            Found::Removed => Ok(Some(Entry::Absent)),
            Found::Value(value) => {
                let entry = layout::kind(key).and_then(|kind| layout::entry_of(kind, Bytes::copy_from_slice(value)));
                entry.map(Some).ok_or_else(|| Fault::Damaged(key.to_vec()))
            }
        }
    }

    /// Reads what [`Self::get`] looks at first.
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.filter.touch(hash)
    }

    /// Reads blocks that follow one another.
    pub(super) fn read(&self, blocks: Range<usize>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let (from, to) = (self.index.place(blocks.start).start, self.index.place(blocks.end - 1).end);
        bytes.resize((to - from) as usize, 0);
        self.file.read_exact_at(bytes, from)
    }

    /// What stands in a block behind its checksum.
    pub(super) fn whole<'a>(&self, block: usize, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        match bytes.split_first_chunk::<CHECKSUM>() {
            Some((crc, entries)) if *crc == checksum(self.number, self.index.place(block).start, entries) => {
                Ok(entries)
            }
            _ => {
                self.damaged.store(true, Relaxed);
                Err(Fault::Damaged(self.index.first(block)))
            }
        }
    }

    /// Whether a damaged block was met: it cannot be merged.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Relaxed)
    }

    /// The first keys of damaged blocks of the table whose keys begin with this.
    pub(super) fn damaged(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let (mut found, mut bytes) = (Vec::new(), Vec::new());
        for block in self.index.blocks(prefix) {
            self.read(block..block + 1, &mut bytes)?;
            match self.whole(block, &bytes) {
                Err(Fault::Damaged(first)) => found.push(first),
                read => drop(read?),
            }
        }
        Ok(found)
    }

    /// What is held in memory of it, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.index.bytes() + self.sample.bytes() + self.filter.size()
    }

    /// Removes the file; whoever reads it still may go on.
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// The CRC of a block that begins here.
pub(super) fn checksum(number: u64, at: u64, entries: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    hasher.update(entries);
    hasher.finalize().to_le_bytes()
}
