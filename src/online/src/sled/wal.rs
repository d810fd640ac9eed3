//! The write-ahead log: what was acknowledged and is in neither a run nor sled yet. Knows keys and values as bytes, no
//! tree and no thread; `replay` is how it is read back.
//!
//! The directory `wal` holds segments, files named by their number (20 digits). A segment is a header,
//! `"LARDWAL\x01"`, `u64` number, `u64` where the segment before it ends, `u32` CRC-32 of these; then
//! records, each one group of writes that are there together or not at all: `u32` mark, `u32` CRC-32 of
//! all that follows and of the segment's number and the record's place in it, `u64` synced, `u64` length,
//! and that many bytes of entries: `u8` 1, `u32` key length, `u32` value length, key, value, or, for a key
//! that is removed, `u8` 0, `u32` key length, key. All numbers are little-endian.
//!
//! An entry is the merged row, the whole state, the position itself, never a difference: applying it
//! again changes nothing.
//!
//! **What may be missing after a power loss.** `synced` says how much of the segment was on the disk when
//! the record was written. So a record that cannot be read is damage if anything behind it says that it
//! was synchronized (a later record, or the next segment's header, for a segment is synchronized before
//! the next begins), and else the torn end of what nobody was told to be kept. After the last group of a
//! burst an empty record says it of that group too.

mod replay;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model::Kind;

pub(crate) use replay::{Damage, Replayed, read};

use super::layout::Entry;

/// The directory's name in the store's.
pub(crate) const DIRECTORY: &str = "wal";
const MAGIC: &[u8; 8] = b"LARDWAL\x01";
const HEADER: u64 = 28;
const MARK: u32 = 0x4c57_4152;
const RECORD: usize = 24;
/// A buffer larger than this is not kept for the next group.
const KEEP: usize = 32 << 20;

/// The segment that is written.
pub(crate) struct Wal {
    directory: PathBuf,
    file: File,
    number: u64,
    /// Where the next record begins.
    length: u64,
    /// How much of the file is on the disk.
    synced: u64,
    buffer: Vec<u8>,
    /// A synchronization failed: what the disk holds is not known any more.
    broken: bool,
}

impl Wal {
    /// Begins a segment; it is on the disk, with its directory's entry, on return.
    pub(crate) fn create(directory: &Path, number: u64, previous_end: u64) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).open(segment_path(directory, number))?;
        file.write_all_at(&header(number, previous_end), 0)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        let directory = directory.to_owned();
        Ok(Self { directory, file, number, length: HEADER, synced: HEADER, buffer: Vec::new(), broken: false })
    }

    /// The segment's length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Hands a group to the operating system, as one record; where that fails, nothing was written. A key may stand in two
    /// places, its table's prefix and the rest.
    pub(crate) fn append<'a>(
        &mut self,
        entries: impl Iterator<Item = ([&'a [u8]; 2], Option<&'a [u8]>)>,
    ) -> model::Result<()> {
        self.check()?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(RECORD, 0);
        for ([prefix, key], value) in entries {
            let mut head = [0; 9];
            head[0] = u8::from(value.is_some());
            head[1..5].copy_from_slice(&((prefix.len() + key.len()) as u32).to_le_bytes());
            head[5..].copy_from_slice(&(value.unwrap_or_default().len() as u32).to_le_bytes());
            buffer.extend_from_slice(if value.is_some() { &head } else { &head[..5] });
            buffer.extend_from_slice(prefix);
            buffer.extend_from_slice(key);
            buffer.extend_from_slice(value.unwrap_or_default());
        }
        let written = self.write(&mut buffer);
        if buffer.capacity() <= KEEP {
            self.buffer = buffer;
        }
        written
    }

    /// Makes every group so far survive a power loss.
    pub(crate) fn sync(&mut self) -> model::Result<()> {
        self.check()?;
        if self.synced == self.length {
            return Ok(());
        }
        match self.file.sync_data() {
            Ok(()) => {
                self.synced = self.length;
                Ok(())
            }
            Err(e) => {
                // The system may have dropped what it could not write, and would say so only once.
                self.broken = true;
                Err(failed("synchronize", e))
            }
        }
    }

    /// Says of the last group that it is on the disk, for a reader after a crash.
    pub(crate) fn mark(&mut self) -> model::Result<()> {
        self.append(std::iter::empty())
    }

    /// Ends the segment and begins the next; gives the number of the one that ended, which is on the
    /// disk whole.
    pub(crate) fn rotate(&mut self) -> model::Result<u64> {
        self.sync()?;
        let ended = self.number;
        let next = Self::create(&self.directory, ended + 1, self.length).map_err(|e| failed("extend", e))?;
        *self = Self { buffer: std::mem::take(&mut self.buffer), ..next };
        Ok(ended)
    }

    fn check(&self) -> model::Result<()> {
        if self.broken {
            return Err(model::Error::new(
                Kind::Unavailable,
                "the online store's write-ahead log could not be synchronized to disk, and nothing is written until \
                 Larder is restarted: check the disk first",
            ));
        }
        Ok(())
    }

    fn write(&mut self, record: &mut [u8]) -> model::Result<()> {
        let length = (record.len() - RECORD) as u64;
        record[..4].copy_from_slice(&MARK.to_le_bytes());
        record[8..16].copy_from_slice(&self.synced.to_le_bytes());
        record[16..24].copy_from_slice(&length.to_le_bytes());
        let crc = checksum(self.number, self.length, &record[8..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        // What a failure leaves behind is overwritten by the next record, or is no record.
        self.file.write_all_at(record, self.length).map_err(|e| failed("write", e))?;
        self.length += record.len() as u64;
        Ok(())
    }
}

/// Removes the segments up to a number; the disk knows on return.
pub(crate) fn trim(directory: &Path, last: u64) -> io::Result<()> {
    for (number, path) in segments(directory)? {
        if number <= last {
            fs::remove_file(path)?;
        }
    }
    File::open(directory)?.sync_all()
}

/// An entry as the log holds it.
pub(crate) fn payload(entry: &Entry) -> Option<&[u8]> {
    entry.payload().map(|payload| &**payload)
}

/// The segments of a directory, by number.
fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        if let Some(number) = file.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push((number, file.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}"))
}

fn header(number: u64, previous_end: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&number.to_le_bytes());
    header.extend_from_slice(&previous_end.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header
}

fn checksum(number: u64, at: u64, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest);
    hasher.update(&number.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    hasher.finalize()
}

fn failed(verb: &str, error: io::Error) -> model::Error {
    model::Error::new(
        Kind::Unavailable,
        format!("the online store failed to {verb} its write-ahead log: check the disk and its free space"),
    )
    .with_cause(error)
}

#[cfg(test)]
mod tests;
