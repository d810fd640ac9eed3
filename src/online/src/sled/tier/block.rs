//! All that the tier knows of one entity, in one piece of memory, so that a read of several views finds
//! it with one look and reads it in a row. Knows no map and no lock.
//!
//! Most rows stand there slim: the keeper of the blocks has their ids, under a number.
//!
//! Layout, little-endian: `u32` parts n, `u32` length of the entity's key, n × (`u32` table, `u32` kind
//! and end of the payload), the key, the payloads, and [`SLACK`] zeros, so that a reader of short
//! values may load more than the value.

use std::borrow::Cow;

use bytes::Bytes;
use model::row::{RowRef, Slim, Stored};

use super::super::layout::Entry;

const HEAD: usize = 8;
const PART: usize = 8;
const SLACK: usize = 16;
/// The kind stands above the end of a part's payload.
const KIND: u32 = 30;
const END: u32 = (1 << KIND) - 1;
const ABSENT: u32 = 0;
const ROW: u32 = 1;
const STATE: u32 = 2;
/// A row without its ids, behind the number (`u32`) of their sequence.
const SLIM: u32 = 3;

/// What is known of one entity.
pub(super) struct Block(Box<[u8]>);

/// What a block has under a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    Absent,
    Row(RowRef<'a>),
    State(&'a [u8]),
}

impl Part<'_> {
    pub(crate) fn to_entry(self) -> Entry {
        match self {
            Self::Absent => Entry::Absent,
            Self::Row(row) => Entry::Row(row.to_row()),
            Self::State(state) => Entry::State(Bytes::copy_from_slice(state)),
        }
    }
}

/// What is put under a table.
pub(super) struct Payload<'a> {
    kind: u32,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Payload<'a> {
    /// An entry as it stands in a block. `shape` gives the number of a row's ids; where it gives none, the row
    /// stands there as it is stored.
    pub(super) fn of(entry: &'a Entry, shape: impl FnOnce(&[u32]) -> Option<u32>) -> Self {
        let (kind, bytes) = match entry {
            Entry::Absent => (ABSENT, [].as_slice().into()),
            Entry::State(state) => (STATE, state[..].into()),
            Entry::Row(row) => match Slim::ids(row).and_then(|ids| shape(&ids)) {
                None => (ROW, row.as_bytes()[..].into()),
                Some(number) => {
                    let mut slim = number.to_le_bytes().to_vec();
                    Slim::put(&mut slim, row);
                    (SLIM, slim.into())
                }
            },
        };
        Self { kind, bytes }
    }
}

/// A part of a block: table, kind, payload.
type Raw<'a> = (u32, u32, &'a [u8]);

impl Block {
    /// The block of an entity of which one thing is known.
    pub(super) fn of(key: &[u8], table: u32, payload: &Payload<'_>) -> Option<Self> {
        Self::build(key, std::iter::once((table, payload.kind, &*payload.bytes)))
    }

    /// The block with a part replaced or added; `None` where it would be too large for its numbers.
    pub(super) fn with(&self, table: u32, payload: &Payload<'_>) -> Option<Self> {
        let new = (table, payload.kind, &*payload.bytes);
        let old = self.open();
        let kept = old.raws().filter(|(other, ..)| *other != table);
        // Where it was, so that one view stands at one place in the blocks of all entities.
        let at = old.position(table).unwrap_or(old.parts.len());
        let (before, after) = (kept.clone().take(at), kept.skip(at));
        Self::build(old.key, before.chain(std::iter::once(new)).chain(after))
    }

    /// The block without the tables that meet the condition; `None` where nothing is left.
    pub(super) fn without(&self, goes: impl Fn(u32) -> bool) -> Option<Self> {
        let old = self.open();
        let left: Vec<_> = old.raws().filter(|(table, ..)| !goes(*table)).collect();
        if left.is_empty() { None } else { Self::build(old.key, left.iter().copied()) }
    }

    fn build<'a>(key: &[u8], parts: impl Iterator<Item = Raw<'a>> + Clone) -> Option<Self> {
        let (count, payloads) = parts.clone().fold((0, 0), |(n, sum), (.., payload)| (n + 1, sum + payload.len()));
        if payloads > END as usize {
            return None;
        }
        let mut out = Vec::with_capacity(HEAD + count * PART + key.len() + payloads + SLACK);
        out.extend_from_slice(&(count as u32).to_le_bytes());
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        let mut end = 0;
        for (table, kind, payload) in parts.clone() {
            end += payload.len() as u32;
            out.extend_from_slice(&table.to_le_bytes());
            out.extend_from_slice(&(kind << KIND | end).to_le_bytes());
        }
        out.extend_from_slice(key);
        for (.., payload) in parts {
            out.extend_from_slice(payload);
        }
        out.extend_from_slice(&[0; SLACK]);
        Some(Self(out.into()))
    }

    /// The block's bytes: what it takes of memory.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The entity's key.
    pub(super) fn key(&self) -> &[u8] {
        self.open().key
    }

    /// The block, to be read.
    #[inline]
    pub(super) fn open(&self) -> Opened<'_> {
        let (head, rest) = self.0.split_at(HEAD);
        let (parts, rest) = rest.split_at(u32_at(head, 0) as usize * PART);
        let (key, payloads) = rest.split_at(u32_at(head, 4) as usize);
        Opened { parts: parts.as_chunks().0, key, payloads }
    }
}

/// A block that is read.
#[derive(Clone, Copy)]
pub(super) struct Opened<'a> {
    /// Table, and kind and end.
    parts: &'a [[u8; PART]],
    /// The entity's key.
    pub(super) key: &'a [u8],
    /// The payloads, and what stands behind them.
    payloads: &'a [u8],
}

impl<'a> Opened<'a> {
    /// The tables of the parts.
    pub(super) fn tables(self) -> impl Iterator<Item = u32> + Clone {
        self.parts.iter().map(|part| u32_at(part, 0))
    }

    /// Where the part of a table stands; `hint` is where it probably does.
    #[inline]
    pub(super) fn position_near(self, table: u32, hint: usize) -> Option<usize> {
        let here = self.parts.get(hint).is_some_and(|part| u32_at(part, 0) == table);
        if here { Some(hint) } else { self.position(table) }
    }

    /// The payloads of the parts from one position to another, which need not be there.
    pub(super) fn payloads(self, first: usize, last: usize) -> &'a [u8] {
        let end = |position: usize| self.parts.get(position).map(|part| (u32_at(part, 4) & END) as usize);
        let start = first.checked_sub(1).and_then(end).unwrap_or(0);
        self.payloads.get(start..end(last).unwrap_or(start)).unwrap_or_default()
    }

    /// The part at a position; `ids` gives the ids with a number. `None` where it gives none.
    #[inline]
    pub(super) fn part(self, position: usize, ids: impl FnOnce(u32) -> Option<&'a [u32]>) -> Option<Part<'a>> {
        let (kind, start, end) = self.span(position);
        let bytes = &self.payloads[start..];
        // What stands behind a row is not the row's, and harmless to load.
        Some(match kind {
            SLIM => {
                let (shape, row) = bytes.split_first_chunk()?;
                Part::Row(RowRef::Slim(Slim::of(ids(u32::from_le_bytes(*shape))?, row)))
            }
            ROW => Part::Row(RowRef::Stored(Stored::of_checked(bytes))),
            ABSENT => Part::Absent,
            _ => Part::State(&bytes[..end - start]),
        })
    }

    /// The part of a table.
    pub(super) fn get(self, table: u32, ids: impl FnOnce(u32) -> Option<&'a [u32]>) -> Option<Part<'a>> {
        self.position(table).and_then(|position| self.part(position, ids))
    }

    fn position(self, table: u32) -> Option<usize> {
        self.tables().position(|other| other == table)
    }

    fn raws(self) -> impl Iterator<Item = Raw<'a>> + Clone {
        (0..self.parts.len()).map(move |position| {
            let (kind, start, end) = self.span(position);
            (u32_at(&self.parts[position], 0), kind, &self.payloads[start..end])
        })
    }

    /// Kind, start and end of a part's payload.
    #[inline]
    fn span(self, position: usize) -> (u32, usize, usize) {
        let word = |position: usize| u32_at(&self.parts[position], 4);
        let start = if position == 0 { 0 } else { word(position - 1) & END };
        (word(position) >> KIND, start as usize, (word(position) & END) as usize)
    }
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
