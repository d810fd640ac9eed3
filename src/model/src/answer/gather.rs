//! From rows to blocks: every value is copied once, from the row's bytes behind the block of its
//! feature. Decides each value's status on the way (FEAST_CONTRACT.md, "Reading online").
//!
//! The common row has one time, its columns where the last row had them, and short values: that costs
//! a few loads, two compares and a store of 16 bytes per value. Everything else takes the long way.

use std::sync::Arc;

use prost::Message as _;
use prost::encoding::encoded_len_varint;
use proto::feast::serving::FieldStatus;

use super::buffers::{Buffer, Buffers};
use super::{Names, Times, ViewAnswer};
use crate::row::{Columns, RowRef, Slim, SlimColumns, Stored};
use crate::time::Timestamp;
use crate::value::{Value, ValueType, is_null};

/// What is copied of a value at once: its key and length in the block, and a short value ([`Slim::SHORT_SIZES`]).
const STEP: usize = 16;
/// The key of a value in a block: field 1 of `FeatureVector`.
const KEY: u8 = Slim::KEY;

/// A feature to take from a view's rows.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which feature of the answer it is.
    feature: u32,
    id: u32,
    /// Where the column stood in the last row.
    position: u32,
    /// The first bytes of a value of the registered type, and which of their bits count.
    tag: u16,
    mask: u16,
    value_type: ValueType,
}

impl Wanted {
    /// As this feature of the answer the column with this id, holding values of this type (`Invalid`: of
    /// any); `position` is where it probably stands among a row's columns.
    pub fn new(feature: usize, id: u32, value_type: ValueType, position: usize) -> Self {
        // A value begins with its field's key, and the fields of `Value` are numbered as the types are;
        // the lowest three bits are the wire type.
        let field = value_type as u16;
        let (tag, mask) = match field {
            0..16 => (field << 3, 0x00F8),
            _ => ((field << 3 & 0x7F) | 0x80 | field >> 4 << 8, 0xFFF8),
        };
        Self { feature: feature as u32, id, position: position as u32, tag, mask, value_type }
    }

    /// The column.
    pub fn id(&self) -> u32 {
        self.id
    }
}

/// A feature in the making. (In the code below a feature is its place among those that are in the making.)
#[derive(Clone, Copy, Debug)]
struct Feature {
    /// Where its next value goes, of all values.
    next: usize,
    /// See [`Wanted`].
    tag: u16,
    mask: u16,
}

impl Feature {
    /// Puts the value `values[start..end]` (in its frame, where it is `FRAMED`) to its place by a copy of fixed size,
    /// if it is a short value (which is known, where it is `SHORT`) of the right type; gives whether it is put.
    #[inline]
    fn put_short<const FRAMED: bool, const SHORT: bool>(
        &mut self,
        out: &mut [u8],
        values: &[u8],
        start: usize,
        end: usize,
    ) -> bool {
        let frame = if FRAMED { 2 } else { 0 };
        let (len, next) = (end.wrapping_sub(start), self.next);
        if let Some(bytes) = values.get(start..start + STEP).and_then(<[u8]>::first_chunk::<STEP>)
            && u16::from_le_bytes([bytes[frame], bytes[frame + 1]]) & self.mask == self.tag
            && (SHORT || Slim::SHORT_SIZES.contains(&len.wrapping_sub(frame)))
            && let Some(slot) = out.get_mut(next..).and_then(<[u8]>::first_chunk_mut::<STEP>)
        {
            if FRAMED {
                *slot = *bytes;
                self.next += len;
            } else {
                let framed = u128::from_le_bytes(*bytes) << 16 | (len as u128) << 8 | u128::from(KEY);
                *slot = framed.to_le_bytes();
                self.next += 2 + len;
            }
            return true;
        }
        false
    }
}

/// One view's answer in the making.
#[derive(Debug)]
pub struct Gather {
    names: Arc<Names>,
    wanted: Vec<Wanted>,
    /// The columns of `wanted`.
    ids: Vec<u32>,
    features: Vec<Feature>,
    /// Blocks of `stride` bytes each. Behind every feature's last value there is room in its block for as many
    /// short values as there are rows to come, each of which takes [`STEP`] bytes at most.
    values: Buffer,
    stride: usize,
    /// Room for this many rows, of which `times.len()` are there.
    rows: usize,
    statuses: Vec<u8>,
    times: Vec<Timestamp>,
    /// Feature after feature, once a row has times of its own for them.
    split: Vec<Timestamp>,
    ttl_us: i64,
    now: Timestamp,
}

impl Gather {
    /// Begins an answer of `rows` rows at `now`; values older than `ttl_us` are not given (0: all are).
    /// A value that was written under another type than the wanted one was never written for this
    /// feature: it is null. It is quickest where `wanted` are in the order of a row's columns.
    pub fn new(names: Arc<Names>, wanted: &[Wanted], ttl_us: i64, now: Timestamp, rows: usize) -> Self {
        Self::within(&Arc::default(), names, wanted, ttl_us, now, rows)
    }

    /// The same, with memory that others left.
    pub fn within(
        buffers: &Arc<Buffers>,
        names: Arc<Names>,
        wanted: &[Wanted],
        ttl_us: i64,
        now: Timestamp,
        rows: usize,
    ) -> Self {
        let values = buffers.take(names.len() * rows * STEP);
        Self { ttl_us, now, ..Self::with(values, names, wanted.iter().copied(), rows) }
    }

    /// Begins an answer of `rows` rows that are not read but worked out ([`Gather::push_values`]).
    pub fn of_values(names: Arc<Names>, rows: usize) -> Self {
        let wanted = (0..names.len()).map(|feature| Wanted::new(feature, 0, ValueType::Invalid, 0));
        let values = vec![0; names.len() * rows * STEP].into();
        Self::with(values, names, wanted, rows)
    }

    /// `values` are [`STEP`] bytes for each value, or more.
    fn with(values: Buffer, names: Arc<Names>, wanted: impl Iterator<Item = Wanted>, rows: usize) -> Self {
        let features = names.len();
        let stride = rows * STEP;
        let wanted: Vec<_> = wanted.collect();
        let feature =
            |(at, wanted): (usize, &Wanted)| Feature { next: at * stride, tag: wanted.tag, mask: wanted.mask };
        Self {
            ids: wanted.iter().map(Wanted::id).collect(),
            features: wanted.iter().enumerate().map(feature).collect(),
            wanted,
            values,
            stride,
            rows,
            statuses: vec![FieldStatus::Present as u8; features * rows],
            times: Vec::with_capacity(rows),
            split: Vec::new(),
            ttl_us: 0,
            now: Timestamp::default(),
            names,
        }
    }

    /// The next row as it is stored; `None` where there is none.
    pub fn push(&mut self, row: Option<RowRef<'_>>) {
        let Some(row) = row else { return self.push_nothing(FieldStatus::NotFound, Timestamp::default()) };
        let time = row.event();
        match row {
            RowRef::Stored(row) if !row.shares_time() => self.push_split(row),
            _ if self.is_outside(time) => self.push_nothing(FieldStatus::OutsideMaxAge, time),
            RowRef::Stored(row) => self.push_columns(&row.columns(), time),
            RowRef::Slim(row) => match row.columns() {
                SlimColumns::Narrow(columns) => self.push_columns(&columns, time),
                SlimColumns::Wide(columns) => self.push_columns(&columns, time),
            },
        }
    }

    /// A row of one time.
    #[inline]
    fn push_columns(&mut self, row: &impl Columns, time: Timestamp) {
        let done = if row.has(&self.ids) { self.put_whole(row) } else { self.put_some(0, row) };
        if done < self.features.len() {
            self.push_oddly(done, row);
        }
        self.end_row(time);
    }

    /// Puts the features from `feature` on, the first of which needs a closer look.
    #[cold]
    fn push_oddly(&mut self, mut feature: usize, row: &impl Columns) {
        let at = self.times.len();
        while feature < self.features.len() {
            let wanted = self.wanted[feature];
            let expected = wanted.position as usize;
            let found = match row.column(expected) {
                Some((id, start, end)) if id == wanted.id => Some((expected, start, end)),
                _ => row.find(wanted.id).and_then(|at| row.column(at).map(|(_, start, end)| (at, start, end))),
            };
            if let Some((position, start, end)) = found {
                self.wanted[feature].position = position as u32;
                self.put_checked(feature, wanted.value_type, &row.values()[start..end], at);
            } else {
                self.put_null(feature, FieldStatus::NullValue, at);
            }
            feature = self.put_some(feature + 1, row);
        }
    }

    /// Puts the values of a row of which every column is wanted, as long as they can be put by
    /// [`Feature::put_short`]; gives the first feature that is left.
    #[inline]
    fn put_whole<C: Columns>(&mut self, row: &C) -> usize {
        if row.is_short() { self.put_all::<C, true>(row) } else { self.put_all::<C, false>(row) }
    }

    #[inline]
    fn put_all<C: Columns, const SHORT: bool>(&mut self, row: &C) -> usize {
        let (values, out) = (row.values(), &mut *self.values);
        let mut start = 0;
        for (done, (feature, end)) in self.features.iter_mut().zip(row.ends()).enumerate() {
            if !put_short::<C, SHORT>(feature, out, values, start, end) {
                return done;
            }
            start = end;
        }
        self.features.len()
    }

    /// The same for the features from `first` on, as long as they stand where they are expected.
    #[inline]
    fn put_some<C: Columns>(&mut self, first: usize, row: &C) -> usize {
        let (values, out) = (row.values(), &mut *self.values);
        let features = self.features.iter_mut().zip(&self.wanted).enumerate().skip(first);
        for (done, (feature, wanted)) in features {
            let Some((id, start, end)) = row.framed(wanted.position as usize) else { return done };
            if id != wanted.id || !put_short::<C, false>(feature, out, values, start, end) {
                return done;
            }
        }
        self.features.len()
    }

    /// The next row, worked out at the request's time: null is `NULL_VALUE`.
    pub fn push_values<'a>(&mut self, time: Timestamp, values: impl Iterator<Item = &'a Value>) {
        let at = self.times.len();
        for (feature, value) in values.enumerate() {
            if is_null(value) {
                self.put_null(feature, FieldStatus::NullValue, at);
            } else {
                self.put(feature, &value.encode_to_vec());
            }
        }
        self.end_row(time);
    }

    /// The answer. Every row must have been pushed.
    pub fn finish(self) -> ViewAnswer {
        let mut blocks = vec![(0, 0); self.features.len()];
        for (at, (feature, wanted)) in self.features.iter().zip(&self.wanted).enumerate() {
            blocks[wanted.feature as usize] = (at * self.stride, feature.next);
        }
        let times = if self.split.is_empty() { Times::per_row(self.times) } else { Times::PerValue(self.split) };
        ViewAnswer { names: self.names, rows: self.rows, values: self.values, blocks, statuses: self.statuses, times }
    }

    fn is_outside(&self, time: Timestamp) -> bool {
        self.ttl_us > 0 && self.now.micros().saturating_sub(time.micros()) > self.ttl_us
    }

    /// A row of which nothing is given.
    fn push_nothing(&mut self, status: FieldStatus, time: Timestamp) {
        let at = self.times.len();
        for feature in 0..self.features.len() {
            self.put_null(feature, status, at);
        }
        self.end_row(time);
    }

    /// A row with a time per column.
    fn push_split(&mut self, row: Stored<'_>) {
        let columns = row.columns();
        let (at, newest) = (self.times.len(), row.newest().event);
        for feature in 0..self.features.len() {
            let wanted = self.wanted[feature];
            let position = row.position(wanted.id);
            let time = position.map_or(newest, |position| row.version(position).event);
            match position {
                _ if self.is_outside(time) => self.put_null(feature, FieldStatus::OutsideMaxAge, at),
                Some(position) => {
                    let (_, start, end) = columns.column(position).unwrap_or_default();
                    self.put_checked(feature, wanted.value_type, &columns.values()[start..end], at);
                }
                None => self.put_null(feature, FieldStatus::NullValue, at),
            }
            if time != newest {
                self.split(newest);
            }
            if let Some(slot) = self.split.get_mut(wanted.feature as usize * self.rows + at) {
                *slot = time;
            }
        }
        self.times.push(newest);
    }

    /// From now on every value has a time of its own; so far it is its row's, the last row's being `last`.
    fn split(&mut self, last: Timestamp) {
        if self.split.is_empty() {
            let at = self.times.len();
            self.split = vec![Timestamp::default(); self.features.len() * self.rows];
            for feature in self.split.chunks_mut(self.rows) {
                feature[..at].copy_from_slice(&self.times);
                feature[at] = last;
            }
        }
    }

    fn end_row(&mut self, time: Timestamp) {
        let at = self.times.len();
        for feature in self.split.chunks_mut(self.rows.max(1)) {
            feature[at] = time;
        }
        self.times.push(time);
    }

    fn put_checked(&mut self, feature: usize, value_type: ValueType, value: &[u8], at: usize) {
        if is_stored_null(value) || !is_of_type(value, value_type) {
            self.put_null(feature, FieldStatus::NullValue, at);
        } else {
            self.put(feature, value);
        }
    }

    fn put_null(&mut self, feature: usize, status: FieldStatus, at: usize) {
        self.put(feature, &[]);
        let of_answer = self.wanted[feature].feature as usize;
        self.statuses[of_answer * self.rows + at] = status as u8;
    }

    fn put(&mut self, feature: usize, value: &[u8]) {
        let whole = 1 + encoded_len_varint(value.len() as u64) + value.len();
        let to_come = (self.rows - self.times.len()).saturating_sub(1) * STEP;
        let (start, taken) = self.place(feature);
        if taken + whole + to_come > self.stride {
            self.grow(taken + whole + to_come);
            return self.put(feature, value);
        }
        let mut slot = &mut self.values[start + taken..start + taken + whole];
        slot[0] = KEY;
        slot = &mut slot[1..];
        prost::encoding::encode_varint(value.len() as u64, &mut slot);
        slot.copy_from_slice(value);
        self.features[feature].next += whole;
    }

    /// Where the block of a feature begins, and how much of it is taken, bytes.
    fn place(&self, feature: usize) -> (usize, usize) {
        let start = feature * self.stride;
        (start, self.features[feature].next - start)
    }

    /// Gives every block room for at least so many bytes.
    #[cold]
    fn grow(&mut self, least: usize) {
        let stride = (self.stride * 2).max(least);
        let mut values = vec![0; self.features.len() * stride];
        for feature in 0..self.features.len() {
            let (start, taken) = self.place(feature);
            values[feature * stride..][..taken].copy_from_slice(&self.values[start..start + taken]);
        }
        for (at, feature) in self.features.iter_mut().enumerate() {
            feature.next = at * stride + (feature.next - at * self.stride);
        }
        (self.values, self.stride) = (values.into(), stride);
    }
}

/// [`Feature::put_short`] of a row's values.
#[inline]
fn put_short<C: Columns, const SHORT: bool>(
    feature: &mut Feature,
    out: &mut [u8],
    values: &[u8],
    start: usize,
    end: usize,
) -> bool {
    if C::FRAMED {
        feature.put_short::<true, SHORT>(out, values, start, end)
    } else {
        feature.put_short::<false, SHORT>(out, values, start, end)
    }
}

/// Feast's explicit null, as it is stored: `null_val` (field 19) and nothing else.
fn is_stored_null(value: &[u8]) -> bool {
    value.is_empty() || value == [0x98, 0x01, 0x00]
}

/// Whether a stored value is of this type: the fields of `Value` are numbered as the types are.
fn is_of_type(value: &[u8], value_type: ValueType) -> bool {
    let key = prost::encoding::decode_varint(&mut &*value).unwrap_or_default();
    value_type == ValueType::Invalid || key >> 3 == value_type as u64
}
