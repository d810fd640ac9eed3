//! A row's bytes, borrowed from whoever keeps them: as a row is stored, or slim. A slim row is without its
//! ids, which its keeper has once for many rows, and with ends of two bytes: what is read most, half as large.

use bytes::Bytes;

use super::{HEADER, Row, TIME_PER_COLUMN, Version, put_version};
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
    /// The column's id, and where its value begins and ends in [`Columns::values`]; `None` behind the last.
    fn column(&self, position: usize) -> Option<(u32, usize, usize)>;

    /// All columns: their ids, and where their values end.
    fn all(&self) -> impl ExactSizeIterator<Item = (u32, usize)>;

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
            Self::Slim(row) => row.columns().find(id),
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
        let values = self.len().checked_sub(1).map_or(0, |last| self.end(last));
        Row(Bytes::copy_from_slice(&self.0[..self.values_start() + values]))
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
    #[inline]
    fn column(&self, position: usize) -> Option<(u32, usize, usize)> {
        let (id, end) = entry(*self.0.get(position)?);
        let start = if position == 0 { 0 } else { entry(*self.0.get(position - 1)?).1 };
        Some((id, start, end))
    }

    #[inline]
    fn all(&self) -> impl ExactSizeIterator<Item = (u32, usize)> {
        self.0.iter().map(|bytes| entry(*bytes))
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
/// Layout, little-endian: `i64` event time µs, `i64` created time µs, a 0 and n ends of values (`u16` each),
/// the values.
#[derive(Clone, Copy, Debug)]
pub struct Slim<'a> {
    ids: &'a [u32],
    bytes: &'a [u8],
}

impl<'a> Slim<'a> {
    const VERSION: usize = 16;
    const END: usize = 2;

    /// A row that [`Slim::put`] wrote, perhaps with other bytes behind it; reading other bytes, or with
    /// other ids, may panic or give what is no value.
    pub fn of(ids: &'a [u32], bytes: &'a [u8]) -> Self {
        Self { ids, bytes }
    }

    /// The ids that [`Slim::of`] needs beside what [`Slim::put`] writes; `None` where the row has no such form.
    pub fn ids(row: &Row) -> Option<Vec<u32>> {
        let row = row.stored();
        let length = row.len().checked_sub(1).map_or(0, |last| row.end(last));
        let fits = row.shares_time() && u16::try_from(length).is_ok();
        fits.then(|| (0..row.len()).map(|index| row.id(index)).collect())
    }

    /// Writes a row that has [`Slim::ids`], without them.
    pub fn put(out: &mut Vec<u8>, row: &Row) {
        let row = row.stored();
        put_version(out, row.newest());
        out.extend_from_slice(&[0; Self::END]);
        let mut ends = (0..row.len()).map(|index| row.end(index));
        for end in ends.clone() {
            out.extend_from_slice(&(end as u16).to_le_bytes());
        }
        let start = row.values_start();
        out.extend_from_slice(&row.0[start..start + ends.next_back().unwrap_or(0)]);
    }

    /// The version of all columns.
    pub fn version(self) -> Version {
        version_at(self.bytes, 0)
    }

    fn to_row(self) -> Row {
        let columns = self.columns();
        let spans = (0..self.ids.len()).filter_map(|position| columns.column(position));
        Row::pack_shared(self.version(), self.ids, spans.map(|(_, start, end)| &columns.values()[start..end]))
    }

    /// The row's columns, to be read several times.
    #[inline]
    pub(crate) fn columns(self) -> impl Columns {
        let values = Self::VERSION + (self.ids.len() + 1) * Self::END;
        SlimColumns { ids: self.ids, ends: &self.bytes[Self::VERSION..values], values: &self.bytes[values..] }
    }
}

struct SlimColumns<'a> {
    ids: &'a [u32],
    ends: &'a [u8],
    values: &'a [u8],
}

impl Columns for SlimColumns<'_> {
    #[inline]
    fn column(&self, position: usize) -> Option<(u32, usize, usize)> {
        let id = *self.ids.get(position)?;
        // The end of the value before it, and its own.
        let both = u32::from_le_bytes(*self.ends.get(position * Slim::END..)?.first_chunk()?);
        Some((id, (both & 0xFFFF) as usize, (both >> 16) as usize))
    }

    #[inline]
    fn all(&self) -> impl ExactSizeIterator<Item = (u32, usize)> {
        let (ends, _) = self.ends.get(Slim::END..).unwrap_or_default().as_chunks();
        self.ids.iter().zip(ends).map(|(id, end)| (*id, usize::from(u16::from_le_bytes(*end))))
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
    let (times, _) = bytes[at..at + 16].as_chunks::<8>();
    Version { event: Timestamp(i64::from_le_bytes(times[0])), created: Timestamp(i64::from_le_bytes(times[1])) }
}
