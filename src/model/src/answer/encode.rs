//! From blocks to the message: lengths, names, and whole blocks copied behind one another.

use bytes::BufMut;
use prost::Message;
use prost::encoding::encoded_len_varint;
use proto::feast::serving::FieldStatus;

use super::{Answer, Times, ViewAnswer};
use crate::time::Timestamp;
use crate::value::Value;

/// Keys of the message's fields: `metadata`, `results`. Its `status` stays unset, as with Feast's servers.
const METADATA: u8 = 0x0A;
const RESULTS: u8 = 0x12;
/// Keys in `FeatureVector`.
const VALUES: u8 = 0x0A;
const STATUSES: u8 = 0x12;
const TIMES: u8 = 0x1A;
/// The most bytes of one of the `event_timestamps` from 1970 to 3058, and what is written of it at once.
const TIME: usize = 16;

impl Answer {
    /// The answer as the message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode_to(&mut out);
        out
    }

    /// Writes the message's bytes.
    pub fn encode_to(&self, out: &mut impl BufMut) {
        self.put_metadata(out);
        for (_, values) in &self.columns {
            put_entities(out, values);
        }
        for view in &self.views {
            view.encode_to(out);
        }
    }

    /// The number of the message's bytes.
    pub fn encoded_len(&self) -> usize {
        let columns: usize = self.columns.iter().map(|(_, values)| whole(entities_len(values))).sum();
        whole(self.metadata_len()) + columns + self.views.iter().map(ViewAnswer::encoded_len).sum::<usize>()
    }

    fn names_len(&self) -> usize {
        let columns: usize = self.columns.iter().map(|(name, _)| whole(name.len())).sum();
        columns + self.views.iter().map(|view| view.names.encoded.len()).sum::<usize>()
    }

    fn metadata_len(&self) -> usize {
        whole(self.names_len()) + self.view_metadata().map(|view| whole(view.encoded_len())).sum::<usize>()
    }

    fn put_metadata(&self, out: &mut impl BufMut) {
        put_head(out, METADATA, self.metadata_len());
        put_head(out, 0x0A, self.names_len());
        for (name, _) in &self.columns {
            put_head(out, 0x0A, name.len());
            out.put_slice(name.as_bytes());
        }
        for view in &self.views {
            out.put_slice(&view.names.encoded);
        }
        for view in self.view_metadata() {
            put_message(out, 0x12, &view);
        }
    }
}

impl ViewAnswer {
    fn encode_to(&self, out: &mut impl BufMut) {
        let statuses_len = packed_len(self.rows);
        for feature in 0..self.names.len() {
            let values = self.block(feature);
            let statuses = &self.statuses[feature * self.rows..][..self.rows];
            let own;
            let tail = match &self.times {
                Times::PerRow(_, tail) => tail,
                Times::PerValue(times) => {
                    own = tail_of(&times[feature * self.rows..][..self.rows]);
                    &own
                }
            };
            put_head(out, RESULTS, values.len() + tail.len());
            out.put_slice(values);
            if tail[statuses_len - self.rows..].starts_with(statuses) {
                out.put_slice(tail);
            } else {
                put_head(out, STATUSES, statuses.len());
                out.put_slice(statuses);
                out.put_slice(&tail[statuses_len..]);
            }
        }
    }

    fn encoded_len(&self) -> usize {
        let tail = |feature: usize| match &self.times {
            Times::PerRow(_, tail) => tail.len(),
            Times::PerValue(times) => tail_of(&times[feature * self.rows..][..self.rows]).len(),
        };
        (0..self.names.len()).map(|feature| whole(self.block(feature).len() + tail(feature))).sum()
    }
}

impl Times {
    /// One time per row.
    pub(super) fn per_row(times: Vec<Timestamp>) -> Self {
        let tail = tail_of(&times);
        Self::PerRow(times, tail)
    }
}

/// What stands behind the values of a feature that are all there: their statuses and their times.
fn tail_of(times: &[Timestamp]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed_len(times.len()) + times.len() * TIME);
    if !times.is_empty() {
        put_head(&mut out, STATUSES, times.len());
        out.put_bytes(FieldStatus::Present as u8, times.len());
    }
    // Rows were often written together: a time is mostly the one before it.
    let mut last = (Timestamp::default(), encoded_time(Timestamp::default()));
    for time in times {
        if last.0 != *time {
            last = (*time, encoded_time(*time));
        }
        match last.1 {
            Some((bytes, length)) => {
                let end = out.len() + length;
                out.extend_from_slice(&bytes);
                out.truncate(end);
            }
            None => put_message(&mut out, TIMES, &time.to_proto()),
        }
    }
    out
}

/// One of the `event_timestamps` in an array's first bytes, and how many they are; `None` where they are more.
fn encoded_time(time: Timestamp) -> Option<([u8; TIME], usize)> {
    let time = time.to_proto();
    let (seconds, length) = short_varint(time.seconds)?;
    let (nanos, more) = short_varint(time.nanos.into())?;
    // Fields 1 and 2 of `Timestamp`; one that is 0 does not stand there.
    let (first, second) = (if seconds == 0 { 0 } else { 1 + length }, if nanos == 0 { 0 } else { 1 + more });
    let fields = if seconds == 0 { 0 } else { u128::from(seconds << 8 | 0x08) };
    let fields = if nanos == 0 { fields } else { fields | u128::from(nanos << 8 | 0x10) << (8 * first) };
    let whole = fields << 16 | u128::from(first + second) << 8 | u128::from(TIMES);
    Some((whole.to_le_bytes(), 2 + (first + second) as usize))
}

/// The varint of a number below 2^35, in an integer's first bytes, and how many they are.
fn short_varint(number: i64) -> Option<(u64, u32)> {
    let n = u64::try_from(number).ok().filter(|n| *n < 1 << 35)?;
    let spread = n & 0x7F | n << 1 & 0x7F00 | n << 2 & 0x7F_0000 | n << 3 & 0x7F00_0000 | n << 4 & 0x7F_0000_0000;
    let length = ((n | 1).ilog2() / 7) + 1;
    let more = 0x80_8080_8080 & ((1 << (8 * (length - 1))) - 1);
    Some((spread | more, length))
}

/// An entity column: every value is there, and has no time.
fn put_entities(out: &mut impl BufMut, values: &[Value]) {
    put_head(out, RESULTS, entities_len(values));
    for value in values {
        put_message(out, VALUES, value);
    }
    if !values.is_empty() {
        put_head(out, STATUSES, values.len());
        out.put_bytes(FieldStatus::Present as u8, values.len());
    }
    for _ in values {
        out.put_slice(&[TIMES, 0]);
    }
}

fn entities_len(values: &[Value]) -> usize {
    values.iter().map(|value| whole(value.encoded_len())).sum::<usize>() + packed_len(values.len()) + 2 * values.len()
}

/// The length of a field with a key of one byte, a length and `len` bytes.
fn whole(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// The length of `len` packed statuses, each of one byte; nothing where there are none.
fn packed_len(len: usize) -> usize {
    if len == 0 { 0 } else { whole(len) }
}

/// The key and the length of a field.
fn put_head(out: &mut impl BufMut, key: u8, len: usize) {
    let mut head = [key; 11];
    let (mut rest, mut size) = (len, 1);
    while rest >= 0x80 {
        head[size] = rest as u8 | 0x80;
        (rest, size) = (rest >> 7, size + 1);
    }
    head[size] = rest as u8;
    out.put_slice(&head[..=size]);
}

fn put_message(out: &mut impl BufMut, key: u8, message: &impl Message) {
    put_head(out, key, message.encoded_len());
    message.encode_raw(out);
}
