//! Reading the log back, and telling a torn end from damage (the rule stands in the page above). Changes
//! no file but in [`Replayed::repair`].

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::layout::{self, Entry, Kind};
use super::super::overlay::Layer;
use super::super::tier::Key;
use super::{HEADER, MAGIC, MARK, RECORD, checksum, header, segments};

/// What the log held.
#[derive(Default)]
pub(crate) struct Replayed {
    /// The last entry of every key.
    pub(crate) layer: Layer,
    /// The number of the last segment; 0 where there is none.
    pub(crate) last: u64,
    /// Where its last record ends.
    pub(crate) end: u64,
    /// Records, and the bytes that they take.
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Segments that are no longer or not yet part of the log.
    leftover: Vec<PathBuf>,
    /// A segment with a torn end, and how long it should be.
    torn: Option<(PathBuf, u64)>,
}

/// Why a log cannot be read back.
#[derive(Debug)]
pub(crate) enum Damage {
    /// What was found where.
    Found(String),
    Io(io::Error),
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the segments behind the number `trimmed`, up to which sled has everything; `None` where no
/// segment was ever trimmed from this store, nor promised to exist.
pub(crate) fn read(directory: &Path, trimmed: Option<u64>) -> Result<Replayed, Damage> {
    let first = trimmed.unwrap_or(0) + 1;
    let (old, mut live): (Vec<_>, Vec<_>) = segments(directory)?.into_iter().partition(|(number, _)| *number < first);
    let mut leftover: Vec<_> = old.into_iter().map(|(_, path)| path).collect();
    let mut contents = Vec::with_capacity(live.len());
    for (index, (number, path)) in live.iter().enumerate() {
        if *number != first + index as u64 {
            return Err(Damage::Found(format!("segment {} of its write-ahead log is missing", first + index as u64)));
        }
        contents.push(fs::read(path)?);
    }
    // The power may go while the last segment is created: then nothing was written to it yet.
    if let (Some((number, path)), Some(bytes)) = (live.last(), contents.last())
        && previous_end(bytes, *number).is_none()
        && search(bytes, *number, 0, 0).is_none()
    {
        leftover.push(path.clone());
        live.pop();
        contents.pop();
    }
    if trimmed.is_some() && live.is_empty() {
        return Err(Damage::Found(format!("segment {first} of its write-ahead log is missing")));
    }
    let mut replayed = Replayed { last: trimmed.unwrap_or(0), leftover, ..Replayed::default() };
    let mut contents = contents.into_iter().peekable();
    for (number, path) in live {
        let Some(bytes) = contents.next() else { break };
        let damaged = |at: u64| {
            Damage::Found(format!("segment {number} of its write-ahead log is damaged at byte {at} of {}", bytes.len()))
        };
        if previous_end(&bytes, number).is_none() {
            return Err(damaged(0));
        }
        let mut at = HEADER;
        while let Some(record) = Record::at(&bytes, number, at) {
            replayed.apply(record.payload).ok_or_else(|| damaged(at))?;
            replayed.records += 1;
            at = record.end;
        }
        let sealed = contents.peek().and_then(|next| previous_end(next, number + 1));
        let kept = sealed.is_some_and(|end| at < end) || search(&bytes, number, at, at).is_some();
        if kept {
            return Err(damaged(at));
        }
        if at < bytes.len() as u64 && contents.peek().is_none() {
            replayed.torn = Some((path, at));
        }
        replayed.bytes += at - HEADER;
        replayed.last = number;
        replayed.end = at;
    }
    Ok(replayed)
}

impl Replayed {
    /// Cuts a torn end off and removes what is no longer or not yet part of the log.
    pub(crate) fn repair(&mut self, directory: &Path) -> io::Result<()> {
        if let Some((path, length)) = self.torn.take() {
            tracing::warn!(path = %path.display(), length, "the write-ahead log has a torn end, which was never acknowledged");
            let file = File::options().write(true).open(path)?;
            file.set_len(length)?;
            file.sync_all()?;
        }
        for path in self.leftover.drain(..) {
            fs::remove_file(path)?;
        }
        File::open(directory)?.sync_all()
    }

    fn apply(&mut self, mut payload: &[u8]) -> Option<()> {
        while let Some((there, rest)) = payload.split_first() {
            payload = rest;
            let key_length = take_u32(&mut payload)?;
            let value_length = if *there == 1 { take_u32(&mut payload)? } else { 0 };
            let (key, rest) = payload.split_at_checked(key_length)?;
            let (value, rest) = rest.split_at_checked(value_length)?;
            payload = rest;
            let entry = match (there, key.first()?) {
                (0, _) => Entry::Absent,
                (1, 3) => {
                    self.layer.set_position(key.to_vec(), value.try_into().ok()?);
                    continue;
                }
                (1, kind) if *kind == Kind::Row as u8 => layout::entry_of(Kind::Row, Bytes::copy_from_slice(value))?,
                (1, kind) if *kind == Kind::State as u8 => {
                    layout::entry_of(Kind::State, Bytes::copy_from_slice(value))?
                }
                _ => return None,
            };
            self.layer.set(Key::from(key), entry);
        }
        Some(())
    }
}

/// What a segment's header says of the segment before; `None` where it is none.
fn previous_end(bytes: &[u8], number: u64) -> Option<u64> {
    let found = bytes.get(..HEADER as usize)?;
    let end = u64_at(found, 16)?;
    (found.starts_with(MAGIC) && found == header(number, end)).then_some(end)
}

/// A whole record.
struct Record<'a> {
    payload: &'a [u8],
    synced: u64,
    end: u64,
}

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], number: u64, at: u64) -> Option<Self> {
        let rest = bytes.get(at as usize..)?;
        let (head, payload) = rest.split_at_checked(RECORD)?;
        if head[..4] != MARK.to_le_bytes() {
            return None;
        }
        let crc = head[4..8].try_into().ok().map(u32::from_le_bytes)?;
        let (synced, length) = (u64_at(head, 8)?, u64_at(head, 16)?);
        let payload = payload.get(..usize::try_from(length).ok()?)?;
        let whole = checksum(number, at, &rest[8..RECORD + payload.len()]) == crc;
        whole.then_some(Self { payload, synced, end: at + (RECORD + payload.len()) as u64 })
    }
}

/// The first whole record at or behind `from` that says of the byte at `of` that it was synchronized.
fn search(bytes: &[u8], number: u64, from: u64, of: u64) -> Option<u64> {
    let mark = MARK.to_le_bytes();
    (from..bytes.len() as u64).find(|at| {
        bytes[*at as usize..].starts_with(&mark) && Record::at(bytes, number, *at).is_some_and(|r| r.synced > of)
    })
}

fn take_u32(rest: &mut &[u8]) -> Option<usize> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
