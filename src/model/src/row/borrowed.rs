//! A row's bytes, borrowed from whoever keeps them: as a row is stored, or slim. A slim row is without its
//! ids, which its keeper has once for many rows, and with ends of two bytes: what is read most, half as large.

use bytes::Bytes;

use super::{HEADER, Row, TIME_PER_COLUMN, Version};
use crate::time::Timestamp;

/// A row, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum RowRef<'a> {
    /// As it is stored.
    Stored(Stored<'a>),
    /// Without its ids.
    Slim(Slim<'a>),
}

/// The columns of a row, in the order of their ids.
pub(crate) trait Columns {
    /// Whether values stand in their frames ([`Slim::KEY`], length).
    const FRAMED: bool;

    /// The column's id, and where its value (in its frame, if there are any) begins and ends in
    /// [`Columns::values`]; `None` behind the last.
    fn framed(&self, position: usize) -> Option<(u32, usize, usize)>;

    /// The same without the frame.
    fn column(&self, position: usize) -> Option<(u32, usize, usize)>;

    /// Whether the columns are those with these ids and no others, in this order.
    fn has(&self, ids: &[u32]) -> bool;

    /// Whether all values are short ([`Slim::SHORT_SIZES`]); no where that is not known.
    fn is_short(&self) -> bool {
        false
    }

    /// Where the values end, as [`Columns::framed`].
    fn ends(&self) -> impl ExactSizeIterator<Item = usize>;

    /// The place of the column with this id; `None` where it was never written.
    fn find(&self, id: u32) -> Option<usize>;

    /// The values, one behind the other (and what stands behind the row).
    fn values(&self) -> &[u8];
}

impl RowRef<'_> {
    /// The row, copied.
    pub fn to_row(self) -> Row {
        match self {
            Self::Stored(row) => row.to_row(),
            Self::Slim(row) => row.to_row(),
        }
    }

    /// The event time of [`RowRef::newest`].
    #[inline]
    pub(crate) fn event(self) -> Timestamp {
        match self {
            Self::Stored(row) => row.newest().event,
            Self::Slim(row) => row.event(),
        }
    }

    /// Whether all columns have the time [`RowRef::newest`].
    pub fn shares_time(self) -> bool {
        match self {
            Self::Stored(row) => row.shares_time(),
            Self::Slim(_) => true,
        }
    }

    /// The newest version among the columns.
    pub fn newest(self) -> Version {
        match self {
            Self::Stored(row) => row.newest(),
            Self::Slim(row) => row.version(),
        }
    }

    /// The place of the column with this id among the columns; `None` where it was never written.
    pub fn position(self, id: u32) -> Option<usize> {
        match self {
            Self::Stored(row) => row.position(id),
            Self::Slim(row) => row.find(id),
        }
    }
}

/// The bytes of a [`Row`], borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a>(&'a [u8]);

impl<'a> Stored<'a> {
    /// The bytes of a row that was checked before ([`Row::open`]), perhaps with others behind them;
    /// reading what is no row may panic.
    pub fn of_checked(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn to_row(self) -> Row {
        Row(Bytes::copy_from_slice(&self.0[..self.values_start() + self.length()]))
    }

    /// The bytes of all values.
    fn length(self) -> usize {
        self.len().checked_sub(1).map_or(0, |last| self.end(last))
    }

    /// The number of columns.
    pub fn len(self) -> usize {
        usize::from(u16::from_le_bytes([self.0[2], self.0[3]]))
    }

    /// Whether the row has no column.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether all columns have the time [`Stored::newest`].
    pub fn shares_time(self) -> bool {
        self.0[1] & TIME_PER_COLUMN == 0
    }

    /// The newest version among the columns.
    pub fn newest(self) -> Version {
        version_at(self.0, 4)
    }

    /// The place of the column with this id among the columns; `None` where it was never written.
    pub fn position(self, id: u32) -> Option<usize> {
        self.columns().find(id)
    }

    /// The columns' ids and the ends of their values ([`entry`]), in the order of the ids; and the
    /// values, one behind the other (and what stands behind the row).
    #[inline]
    fn parts(self) -> (&'a [[u8; 8]], &'a [u8]) {
        let ids = HEADER + self.len() * 8;
        let values = if self.shares_time() { ids } else { ids + self.len() * 16 };
        (self.0[HEADER..ids].as_chunks().0, &self.0[values..])
    }

    /// The row's columns, to be read several times.
    #[inline]
    pub(crate) fn columns(self) -> impl Columns {
        self.parts()
    }

    /// The version of the column at this place.
    pub fn version(self, position: usize) -> Version {
        if self.shares_time() { self.newest() } else { version_at(self.0, HEADER + self.len() * 8 + position * 16) }
    }

    pub(super) fn values_start(self) -> usize {
        HEADER + self.len() * if self.shares_time() { 8 } else { 24 }
    }

    pub(super) fn id(self, index: usize) -> u32 {
        u32_at(self.0, HEADER + index * 8)
    }

    pub(super) fn end(self, index: usize) -> usize {
        u32_at(self.0, HEADER + index * 8 + 4) as usize
    }

    pub(super) fn span(self, index: usize) -> (usize, usize) {
        let start = if index == 0 { 0 } else { self.end(index - 1) };
        let base = self.values_start();
        (base + start, base + self.end(index))
    }
}

impl Columns for (&[[u8; 8]], &[u8]) {
    const FRAMED: bool = false;

    #[inline]
    fn framed(&self, position: usize) -> Option<(u32, usize, usize)> {
        self.column(position)
    }

    #[inline]
    fn column(&self, position: usize) -> Option<(u32, usize, usize)> {
        let (id, end) = entry(*self.0.get(position)?);
        let start = if position == 0 { 0 } else { entry(*self.0.get(position - 1)?).1 };
        Some((id, start, end))
    }

    #[inline]
    fn has(&self, ids: &[u32]) -> bool {
        ids.len() == self.0.len() && self.0.iter().zip(ids).all(|(bytes, id)| entry(*bytes).0 == *id)
    }

    #[inline]
    fn ends(&self) -> impl ExactSizeIterator<Item = usize> {
        self.0.iter().map(|bytes| entry(*bytes).1)
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.0.binary_search_by_key(&id, |bytes| entry(*bytes).0).ok()
    }

    #[inline]
    fn values(&self) -> &[u8] {
        self.1
    }
}

/// A row of one time and of short values, without its ids.
///
/// Layout, little-endian: `u8` form (1: ends of two bytes, 2: a created time, 4: all values short), `i64` event time µs, the created
/// time where there is one, n ends of values (`u8` or `u16` each), the values: each as field 1 of a message (key
/// [`Slim::KEY`], length, bytes), for so they stand in answers.
#[derive(Clone, Copy, Debug)]
pub struct Slim<'a> {
    ids: &'a [u32],
    bytes: &'a [u8],
}

impl<'a> Slim<'a> {
    const WIDE: u8 = 1;
    const CREATED: u8 = 2;
    const SHORT: u8 = 4;
    /// The sizes of short values, bytes.
    pub(crate) const SHORT_SIZES: std::ops::RangeInclusive<usize> = 2..=14;
    /// The key of a value.
    pub(crate) const KEY: u8 = 0x0A;

    /// A row that [`Slim::put`] wrote, perhaps with other bytes behind it; reading other bytes, or with
    /// other ids, may panic or give what is no value.
    pub fn of(ids: &'a [u32], bytes: &'a [u8]) -> Self {
        Self { ids, bytes }
    }

    /// The ids that [`Slim::of`] needs beside what [`Slim::put`] writes; `None` where the row has no such form.
    pub fn ids(row: &Row) -> Option<Vec<u32>> {
        let row = row.stored();
        // In its frame every value has a key and up to three bytes of length.
        let fits = row.shares_time() && u16::try_from(row.length() + 4 * row.len()).is_ok();
        fits.then(|| (0..row.len()).map(|index| row.id(index)).collect())
    }

    /// Writes a row that has [`Slim::ids`], without them.
    pub fn put(out: &mut Vec<u8>, row: &Row) {
        let row = row.stored();
        let (version, columns) = (row.newest(), row.parts());
        let values =
            || (0..row.len()).filter_map(|at| columns.column(at)).map(|(_, start, end)| &columns.1[start..end]);
        let head = |value: &[u8]| 1 + prost::encoding::encoded_len_varint(value.len() as u64);
        let length: usize = values().map(|value| head(value) + value.len()).sum();
        let wide = if length > usize::from(u8::MAX) { Self::WIDE } else { 0 };
        let created = if version.created.0 == 0 { 0 } else { Self::CREATED };
        let short = if values().all(|value| Self::SHORT_SIZES.contains(&value.len())) { Self::SHORT } else { 0 };
        out.push(wide | created | short);
        out.extend_from_slice(&version.event.0.to_le_bytes());
        if created != 0 {
            out.extend_from_slice(&version.created.0.to_le_bytes());
        }
        let mut end = 0;
        for value in values() {
            end += head(value) + value.len();
            let bytes = (end as u16).to_le_bytes();
            out.extend_from_slice(if wide == 0 { &bytes[..1] } else { &bytes });
        }
        for value in values() {
            out.push(Self::KEY);
            prost::encoding::encode_varint(value.len() as u64, out);
            out.extend_from_slice(value);
        }
    }

    /// The event time of all columns.
    #[inline]
    pub(crate) fn event(self) -> Timestamp {
        time_at(self.bytes, 1)
    }

    /// The version of all columns.
    pub fn version(self) -> Version {
        let has_created = self.bytes[0] & Self::CREATED != 0;
        let created = if has_created { time_at(self.bytes, 9) } else { Timestamp::default() };
        Version { event: self.event(), created }
    }

    fn to_row(self) -> Row {
        match self.columns() {
            SlimColumns::Narrow(columns) => self.pack(&columns),
            SlimColumns::Wide(columns) => self.pack(&columns),
        }
    }

    fn pack(self, columns: &impl Columns) -> Row {
        let spans = (0..self.ids.len()).filter_map(|position| columns.column(position));
        Row::pack_shared(self.version(), self.ids, spans.map(|(_, start, end)| &columns.values()[start..end]))
    }

    fn find(self, id: u32) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    /// The row's columns, to be read several times.
    #[inline]
    pub(crate) fn columns(self) -> SlimColumns<'a> {
        let form = self.bytes[0];
        let short = form & Self::SHORT != 0;
        let ends = &self.bytes[if form & Self::CREATED == 0 { 9 } else { 17 }..];
        if form & Self::WIDE == 0 {
            let (ends, values) = ends.split_at(self.ids.len());
            SlimColumns::Narrow(Ended { ids: self.ids, ends, values, short })
        } else {
            let (ends, values) = ends.split_at(self.ids.len() * 2);
            SlimColumns::Wide(Ended { ids: self.ids, ends: ends.as_chunks().0, values, short })
        }
    }
}

/// The columns of a slim row, by the size of their ends.
pub(crate) enum SlimColumns<'a> {
    Narrow(Ended<'a, u8>),
    Wide(Ended<'a, [u8; 2]>),
}

/// Columns with ids that stand elsewhere.
pub(crate) struct Ended<'a, E> {
    ids: &'a [u32],
    ends: &'a [E],
    values: &'a [u8],
    short: bool,
}

/// Where a value ends.
trait End: Copy {
    fn place(self) -> usize;
}

impl End for u8 {
    #[inline]
    fn place(self) -> usize {
        usize::from(self)
    }
}

impl End for [u8; 2] {
    #[inline]
    fn place(self) -> usize {
        usize::from(u16::from_le_bytes(self))
    }
}

impl<E: End> Columns for Ended<'_, E> {
    const FRAMED: bool = true;

    #[inline]
    fn framed(&self, position: usize) -> Option<(u32, usize, usize)> {
        let (id, end) = (*self.ids.get(position)?, self.ends.get(position)?.place());
        let start = if position == 0 { 0 } else { self.ends.get(position - 1)?.place() };
        Some((id, start, end))
    }

    fn column(&self, position: usize) -> Option<(u32, usize, usize)> {
        let (id, start, end) = self.framed(position)?;
        let length = self.values.get(start + 1..end)?;
        let head = 1 + length.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        Some((id, start + head, end))
    }

    #[inline]
    fn has(&self, ids: &[u32]) -> bool {
        // One compare for many ids: mostly they are the same.
        ids.len() == self.ids.len() && ids.iter().zip(self.ids).fold(0, |other, (a, b)| other | (a ^ b)) == 0
    }

    #[inline]
    fn is_short(&self) -> bool {
        self.short
    }

    #[inline]
    fn ends(&self) -> impl ExactSizeIterator<Item = usize> {
        self.ends.iter().map(|end| end.place())
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    #[inline]
    fn values(&self) -> &[u8] {
        self.values
    }
}

/// A column's id and the end of its value.
#[inline]
fn entry(bytes: [u8; 8]) -> (u32, usize) {
    let both = u64::from_le_bytes(bytes);
    (both as u32, (both >> 32) as usize)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn version_at(bytes: &[u8], at: usize) -> Version {
    Version { event: time_at(bytes, at), created: time_at(bytes, at + 8) }
}

#[inline]
fn time_at(bytes: &[u8], at: usize) -> Timestamp {
    let micros = bytes[at..].first_chunk().map_or(0, |micros| i64::from_le_bytes(*micros));
    Timestamp(micros)
}
