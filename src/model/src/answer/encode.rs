//! From blocks to the message: lengths, names, and whole blocks copied behind one another.

use bytes::BufMut;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
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
        let mut own = Vec::new();
        for feature in 0..self.names.len() {
            let times = match &self.times {
                Times::PerRow(_, encoded) => encoded,
                Times::PerValue(times) => {
                    own = encode_times(&times[feature * self.rows..][..self.rows]);
                    &own
                }
            };
            let values = self.block(feature);
            let statuses = &self.statuses[feature * self.rows..][..self.rows];
            put_head(out, RESULTS, values.len() + packed_len(self.rows) + times.len());
            out.put_slice(values);
            if !statuses.is_empty() {
                put_head(out, STATUSES, statuses.len());
                out.put_slice(statuses);
            }
            out.put_slice(times);
        }
        drop(own);
    }

    fn encoded_len(&self) -> usize {
        let times = |feature: usize| match &self.times {
            Times::PerRow(_, encoded) => encoded.len(),
            Times::PerValue(times) => encode_times(&times[feature * self.rows..][..self.rows]).len(),
        };
        let len = |feature| whole(self.block(feature).len() + packed_len(self.rows) + times(feature));
        (0..self.names.len()).map(len).sum()
    }
}

impl Times {
    /// One time per row.
    pub(super) fn per_row(times: Vec<Timestamp>) -> Self {
        let encoded = encode_times(&times);
        Self::PerRow(times, encoded)
    }
}

/// The `event_timestamps` of a feature.
fn encode_times(times: &[Timestamp]) -> Vec<u8> {
    let mut out = Vec::with_capacity(times.len() * 16);
    for time in times {
        put_message(&mut out, TIMES, &time.to_proto());
    }
    out
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

fn put_head(out: &mut impl BufMut, key: u8, len: usize) {
    out.put_u8(key);
    encode_varint(len as u64, out);
}

fn put_message(out: &mut impl BufMut, key: u8, message: &impl Message) {
    put_head(out, key, message.encoded_len());
    message.encode_raw(out);
}
