//! Writes a run, entry by entry. Knows the format of a run's file and no other run.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::super::layout;
use super::block::Filling;
use super::file::{self, CHECKSUM, END, Fault, MAGIC, Run, path_of};
use super::filter::{self, Filter};
use super::index::Index;
use super::sample::Sample;
use crate::space;

/// A block that has as many bytes is full.
const BLOCK: usize = 4 << 10;
const BUFFER: usize = 1 << 20;

/// Writes a run.
pub(super) struct Builder {
    directory: PathBuf,
    number: u64,
    file: BufWriter<File>,
    filling: Filling,
    /// What all keys of the block begin with.
    table: Vec<u8>,
    block: Vec<u8>,
    index: Index,
    sample: Sample,
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
            filling: Filling::default(),
            table: Vec::new(),
            block: Vec::new(),
            index: Index::default(),
            sample: Sample::default(),
            filter: Filter::new(entries),
            entries: 0,
        })
    }

    /// Adds a row or a state, or that there is none; keys ascend.
    pub(super) fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        if !self.filling.is_empty() && !key.starts_with(&self.table) {
            self.end_block()?;
        }
        if self.filling.is_empty() {
            self.table.clear();
            self.table.extend_from_slice(layout::split(key).0);
        }
        self.filling.push(key, value);
        let hash = filter::hash(key);
        self.filter.add(hash);
        self.sample.add(hash, value.is_some());
        self.entries += 1;
        if self.filling.bytes() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    /// Adds a damaged block of another run, by its first key: it is as damaged here.
    pub(super) fn push_damaged(&mut self, run: &Run, first: &[u8]) -> Result<(), Fault> {
        if !self.filling.is_empty() {
            self.end_block()?;
        }
        let block = run.index.find(first).ok_or_else(|| Fault::Damaged(first.to_vec()))?;
        run.read(block..block + 1, &mut self.block)?;
        let crc = file::checksum(self.number, self.index.end(), self.block.get(CHECKSUM..).unwrap_or_default());
        self.block[..CHECKSUM].copy_from_slice(&crc.map(|byte| !byte));
        // nobody knows which keys it has
        self.filter = Filter::of_all();
        Ok(self.put_block(first)?)
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.block.clear();
        self.block.resize(CHECKSUM, 0);
        self.filling.write(&mut self.block);
        let crc = file::checksum(self.number, self.index.end(), &self.block[CHECKSUM..]);
        self.block[..CHECKSUM].copy_from_slice(&crc);
        let first = self.filling.first().to_vec();
        self.filling.clear();
        self.put_block(&first)
    }

    fn put_block(&mut self, first: &[u8]) -> io::Result<()> {
        let before = self.index.end();
        self.index.push(first, self.block.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all(&self.block)?;
        // A disk that is full to the end would take sled's reads with it.
        if before / BUFFER as u64 == self.index.end() / BUFFER as u64 { Ok(()) } else { self.room() }
    }

    fn room(&self) -> io::Result<()> {
        space::check(&self.directory).map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))
    }

    /// Ends the run; it is on the disk, with its directory's entry, on return.
    pub(super) fn finish(mut self) -> Result<Run, Fault> {
        if !self.filling.is_empty() {
            self.end_block()?;
        }
        self.filter.fold(self.entries);
        // of a large run each of them takes much memory: none is held longer than it is needed, nor twice
        let Self { directory, number, mut file, index, sample, filter, entries, .. } = self;
        let mut hasher = crc32fast::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            file.write_all(bytes)
        };
        let index_at = index.end();
        let mut tail = index.encode();
        drop(index);
        sample.encode(&mut tail);
        let filter_at = index_at + tail.len() as u64;
        put(&tail)?;
        drop((tail, sample));
        filter.pieces().try_for_each(|piece| put(&piece))?;
        drop(filter);
        let mut end = Vec::with_capacity(END);
        for number in [index_at, filter_at, entries, number] {
            end.extend_from_slice(&number.to_le_bytes());
        }
        hasher.update(&end);
        end.extend_from_slice(&hasher.finalize().to_le_bytes());
        end.extend_from_slice(MAGIC);
        file.write_all(&end)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        File::open(&directory)?.sync_all()?;
        Run::open(&directory, number)
    }
}
