//! One run: a file of window states in the order of their keys, written once and never changed. Knows no other run.
//!
//! Blocks of about 8 KiB, of one table each: `u32` CRC-32 of the run's number, the block's place and what follows, then
//! entries: `u32` key length, `u32` value length and one, or 0 for a state that is removed, key, value. Behind them the
//! index: for each block `u64` place, `u32` length, `u32` key length, first key; then the filter's words
//! ([`super::filter`]); then the end: `u64` where the index begins, `u64` where the filter begins, `u64` entries, `u64` the
//! run's number, `u32` CRC-32 of index, filter and these, `"LARDRUN\x01"`. All numbers are little-endian. Index and filter
//! are held in memory: about 14 bits a state and a hundredth of the file.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;

use super::super::layout::{self, Entry};
use super::filter::{self, Filter};
use crate::space;

const MAGIC: &[u8; 8] = b"LARDRUN\x01";
const END: usize = 44;
const CHECKSUM: usize = 4;
/// A block that has as many bytes is full.
const BLOCK: usize = 8 << 10;
const BUFFER: usize = 1 << 20;

/// What is wrong with a run.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    /// A block is not what was written, which begins with this key.
    Damaged(Vec<u8>),
    /// The whole file is not what was written.
    Unreadable(PathBuf),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A block of a run.
#[derive(Debug)]
struct Block {
    first: Box<[u8]>,
    at: u64,
    length: u32,
}

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) number: u64,
    path: PathBuf,
    file: File,
    blocks: Vec<Block>,
    filter: Filter,
    /// Entries, removed ones included.
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// A damaged block was met.
    damaged: AtomicBool,
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
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| end[at + i]));
        let (index_at, filter_at, entries) = (word(0), word(8), word(16));
        let ordered = index_at <= filter_at && filter_at <= end_at;
        if end[36..] != *MAGIC || word(24) != number || !ordered {
            return Err(unreadable());
        }
        let mut tail = vec![0; (end_at - index_at) as usize];
        file.read_exact_at(&mut tail, index_at)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&tail);
        hasher.update(&end[..32]);
        if hasher.finalize().to_le_bytes() != end[32..36] {
            return Err(unreadable());
        }
        let (mut index, words) = tail.split_at((filter_at - index_at) as usize);
        let mut blocks = Vec::new();
        while !index.is_empty() {
            blocks.push(take_block(&mut index).ok_or_else(unreadable)?);
        }
        let filter = Filter::open(words).ok_or_else(unreadable)?;
        let damaged = AtomicBool::new(false);
        Ok(Self { number, path, file, blocks, filter, entries, bytes, damaged })
    }

    /// The state of a key whose hash this is, or that it is absent; `None` where this run says nothing of it.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Result<Option<Entry>, Fault> {
        if !self.filter.may_have(hash) {
            return Ok(None);
        }
        let Some(block) = self.blocks.partition_point(|block| &*block.first <= key).checked_sub(1) else {
            return Ok(None);
        };
        let bytes = self.block(block)?;
        let mut rest = &bytes[CHECKSUM..];
        while let Some((found, value)) = take_entry(&mut rest) {
            if found >= key {
                let entry = value.map_or(Entry::Absent, |value| Entry::State(Bytes::copy_from_slice(value)));
                return Ok((found == key).then_some(entry));
            }
        }
        Ok(None)
    }

    fn block(&self, at: usize) -> Result<Vec<u8>, Fault> {
        let block = &self.blocks[at];
        let mut bytes = vec![0; block.length as usize];
        self.file.read_exact_at(&mut bytes, block.at)?;
        let found = bytes.first_chunk::<CHECKSUM>().map(|crc| u32::from_le_bytes(*crc));
        if found == Some(checksum(self.number, block.at, bytes.get(CHECKSUM..).unwrap_or_default())) {
            Ok(bytes)
        } else {
            self.damaged.store(true, Relaxed);
            Err(Fault::Damaged(block.first.to_vec()))
        }
    }

    /// Whether a damaged block was met: it cannot be merged.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Relaxed)
    }

    /// The first keys of damaged blocks whose keys all begin with this.
    pub(super) fn damaged(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let begins = self.blocks.partition_point(|block| &*block.first < prefix);
        let mut found = Vec::new();
        for at in begins..self.blocks.len() {
            if !self.blocks[at].first.starts_with(prefix) {
                break;
            }
            match self.block(at) {
                Err(Fault::Damaged(first)) => found.push(first),
                read => drop(read?),
            }
        }
        Ok(found)
    }

    /// Removes the file; whoever reads it still may go on.
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

fn checksum(number: u64, at: u64, entries: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    hasher.update(entries);
    hasher.finalize()
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    Some(u32::from_le_bytes(*number))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

fn take_block(rest: &mut &[u8]) -> Option<Block> {
    let at = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    let (length, key) = (take_number(rest)?, take_number(rest)?);
    Some(Block { first: take(rest, key as usize)?.into(), at, length })
}

/// The next entry of a block, which is whole.
fn take_entry<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let (key, value) = (take_number(rest)?, take_number(rest)?);
    let key = take(rest, key as usize)?;
    let value = match value.checked_sub(1) {
        Some(length) => Some(take(rest, length as usize)?),
        None => None,
    };
    Some((key, value))
}

/// Writes a run.
pub(super) struct Builder {
    directory: PathBuf,
    number: u64,
    file: BufWriter<File>,
    at: u64,
    /// The block that is filled, behind room for its checksum.
    block: Vec<u8>,
    first: Vec<u8>,
    /// What all keys of the block begin with.
    table: Vec<u8>,
    index: Vec<u8>,
    filter: Filter,
    entries: u64,
}

impl Builder {
    /// Begins a run of at most so many entries.
    pub(super) fn new(directory: &Path, number: u64, entries: u64) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).open(path_of(directory, number))?;
        Ok(Self {
            directory: directory.to_owned(),
            number,
            file: BufWriter::with_capacity(BUFFER, file),
            at: 0,
            block: vec![0; CHECKSUM],
            first: Vec::new(),
            table: Vec::new(),
            index: Vec::new(),
            filter: Filter::new(entries),
            entries: 0,
        })
    }

    /// Adds a state, or that there is none; keys ascend.
    pub(super) fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        if self.block.len() > CHECKSUM && !key.starts_with(&self.table) {
            self.end_block()?;
        }
        if self.block.len() == CHECKSUM {
            self.first.clear();
            self.first.extend_from_slice(key);
            self.table.clear();
            self.table.extend_from_slice(layout::split(key).0);
        }
        let length =
            |bytes: &[u8]| u32::try_from(bytes.len()).ok().filter(|n| *n < u32::MAX).ok_or(io::ErrorKind::FileTooLarge);
        self.block.extend_from_slice(&length(key)?.to_le_bytes());
        let stored = value.map(|value| length(value).map(|n| n + 1)).transpose()?.unwrap_or(0);
        self.block.extend_from_slice(&stored.to_le_bytes());
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value.unwrap_or_default());
        self.filter.add(filter::hash(key));
        self.entries += 1;
        if self.block.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        let length = u32::try_from(self.block.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let crc = checksum(self.number, self.at, &self.block[CHECKSUM..]);
        self.block[..CHECKSUM].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all(&self.block)?;
        self.index.extend_from_slice(&self.at.to_le_bytes());
        self.index.extend_from_slice(&length.to_le_bytes());
        self.index.extend_from_slice(&(self.first.len() as u32).to_le_bytes());
        self.index.extend_from_slice(&self.first);
        let before = self.at;
        self.at += u64::from(length);
        self.block.truncate(CHECKSUM);
        // A disk that is full to the end would take sled's reads with it.
        if before / BUFFER as u64 == self.at / BUFFER as u64 { Ok(()) } else { self.room() }
    }

    fn room(&self) -> io::Result<()> {
        space::check(&self.directory).map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))
    }

    /// Ends the run; it is on the disk, with its directory's entry, on return.
    pub(super) fn finish(mut self) -> Result<Run, Fault> {
        if self.block.len() > CHECKSUM {
            self.end_block()?;
        }
        let mut tail = std::mem::take(&mut self.index);
        let filter_at = self.at + tail.len() as u64;
        tail.extend(self.filter.bytes());
        let mut end = Vec::with_capacity(END);
        for number in [self.at, filter_at, self.entries, self.number] {
            end.extend_from_slice(&number.to_le_bytes());
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&tail);
        hasher.update(&end);
        end.extend_from_slice(&hasher.finalize().to_le_bytes());
        end.extend_from_slice(MAGIC);
        self.file.write_all(&tail)?;
        self.file.write_all(&end)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        Run::open(&self.directory, self.number)
    }
}

/// Reads a run's entries in their order.
pub(super) struct Cursor {
    run: Arc<Run>,
    /// The block behind the one that is read.
    next: usize,
    bytes: Vec<u8>,
    /// Where the entry's key stands in the bytes, where its value begins if it has one, and where it ends.
    key: std::ops::Range<usize>,
    value: Option<usize>,
    end: usize,
    over: bool,
}

impl Cursor {
    /// Before the block in which this key would be: [`Cursor::advance`] gives its first entry.
    pub(super) fn new(run: &Arc<Run>, from: &[u8]) -> Self {
        let next = run.blocks.partition_point(|block| &*block.first <= from).saturating_sub(1);
        Self { run: Arc::clone(run), next, bytes: Vec::new(), key: 0..0, value: None, end: 0, over: false }
    }

    /// The entry; `None` behind the last.
    pub(super) fn entry(&self) -> Option<(&[u8], Option<&[u8]>)> {
        (!self.over).then(|| (&self.bytes[self.key.clone()], self.value.map(|at| &self.bytes[at..self.end])))
    }

    /// Goes on to the next entry. What an error says is skipped by the next call.
    pub(super) fn advance(&mut self) -> Result<(), Fault> {
        if self.end >= self.bytes.len() {
            self.bytes.clear();
            self.end = 0;
            self.over = self.next >= self.run.blocks.len();
            if self.over {
                return Ok(());
            }
            self.next += 1;
            self.bytes = self.run.block(self.next - 1)?;
            self.end = CHECKSUM;
        }
        let mut rest = &self.bytes[self.end..];
        let Some((key, value)) = take_entry(&mut rest) else {
            self.bytes.clear();
            return Err(Fault::Damaged(self.run.blocks[self.next - 1].first.to_vec()));
        };
        let start = self.end + 2 * size_of::<u32>();
        (self.key, self.value) = (start..start + key.len(), value.map(|_| start + key.len()));
        self.end = self.bytes.len() - rest.len();
        Ok(())
    }
}
