//! All that the tier knows of one entity, in one piece of memory, so that a read of several views finds
//! it with one look and reads it in a row. Knows no map and no lock.
//!
//! Layout, little-endian: `u32` parts n, `u32` length of the entity's key, n × (`u32` table, `u32` kind
//! and end of the payload), the key, the payloads, and [`SLACK`] zeros, so that a reader of short
//! values may load more than the value.

use bytes::Bytes;
use model::row::RowRef;

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

/// A part to put into a block: table, kind, payload.
type Raw<'a> = (u32, u32, &'a [u8]);

fn raw(table: u32, entry: &Entry) -> Raw<'_> {
    match entry {
        Entry::Absent => (table, ABSENT, &[]),
        Entry::Row(row) => (table, ROW, row.as_bytes()),
        Entry::State(state) => (table, STATE, state),
    }
}

impl Block {
    /// The block of an entity of which one thing is known.
    pub(super) fn of(key: &[u8], table: u32, entry: &Entry) -> Option<Self> {
        Self::build(key, std::iter::once(raw(table, entry)))
    }

    /// The block with a part replaced or added; `None` where it would be too large for its numbers.
    pub(super) fn with(&self, table: u32, entry: &Entry) -> Option<Self> {
        let kept = self.raws().filter(|(other, ..)| *other != table);
        // Where it was, so that one view stands at one place in the blocks of all entities.
        let at = self.position(table).unwrap_or(self.len());
        let (before, after) = (kept.clone().take(at), kept.skip(at));
        Self::build(self.key(), before.chain(std::iter::once(raw(table, entry))).chain(after))
    }

    /// The block without the tables that meet the condition; `None` where nothing is left.
    pub(super) fn without(&self, goes: impl Fn(u32) -> bool) -> Option<Self> {
        let left: Vec<_> = self.raws().filter(|(table, ..)| !goes(*table)).collect();
        if left.is_empty() { None } else { Self::build(self.key(), left.iter().copied()) }
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

    /// The number of parts.
    pub(super) fn len(&self) -> usize {
        self.u32_at(0) as usize
    }

    /// The entity's key.
    pub(super) fn key(&self) -> &[u8] {
        let start = HEAD + self.len() * PART;
        &self.0[start..start + self.u32_at(4) as usize]
    }

    /// The tables of the parts.
    pub(super) fn tables(&self) -> impl Iterator<Item = u32> {
        (0..self.len()).map(|position| self.u32_at(HEAD + position * PART))
    }

    /// Where the part of a table stands; `hint` is where it probably does.
    pub(super) fn position_near(&self, table: u32, hint: usize) -> Option<usize> {
        let here = hint < self.len() && self.u32_at(HEAD + hint * PART) == table;
        if here { Some(hint) } else { self.position(table) }
    }

    /// The part at a position.
    pub(super) fn part(&self, position: usize) -> Part<'_> {
        let (kind, start, end) = self.span(position);
        match kind {
            ABSENT => Part::Absent,
            // What stands behind it is not the row's, and harmless to load.
            ROW => Part::Row(RowRef::of_checked(&self.0[start..])),
            _ => Part::State(&self.0[start..end]),
        }
    }

    /// The part of a table.
    pub(super) fn get(&self, table: u32) -> Option<Part<'_>> {
        self.position(table).map(|position| self.part(position))
    }

    fn position(&self, table: u32) -> Option<usize> {
        self.tables().position(|other| other == table)
    }

    fn raws(&self) -> impl Iterator<Item = Raw<'_>> + Clone {
        (0..self.len()).map(|position| {
            let (kind, start, end) = self.span(position);
            (self.u32_at(HEAD + position * PART), kind, &self.0[start..end])
        })
    }

    /// Kind, start and end of a part's payload.
    fn span(&self, position: usize) -> (u32, usize, usize) {
        let at = HEAD + position * PART + 4;
        let word = self.u32_at(at);
        let start = if position == 0 { 0 } else { self.u32_at(at - PART) & END };
        let base = HEAD + self.len() * PART + self.u32_at(4) as usize;
        (word >> KIND, base + start as usize, base + (word & END) as usize)
    }

    fn u32_at(&self, at: usize) -> u32 {
        self.0.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}
