//! The answer to a read of online features: per view and feature one block of values, as the bytes
//! that `feast.serving.GetOnlineFeaturesResponse` has of them, with their statuses and times. Knows no
//! store and no protocol but the message's bytes.
//!
//! `gather` makes it from rows, copying every value once; `encode` joins the blocks to the message.
//! Whatever is encoded is byte for byte what prost makes of [`Answer::to_message`]; the tests hold it.

mod buffers;
mod encode;
mod gather;

use std::sync::{Arc, OnceLock};

use prost::Message as _;
use proto::feast::serving::get_online_features_response::FeatureVector;
use proto::feast::serving::{
    FeatureList, FeatureViewMetadata, FieldStatus, GetOnlineFeaturesResponse, GetOnlineFeaturesResponseMetadata,
};

use crate::error::{Error, Result};
use crate::time::Timestamp;
use crate::value::Value;

pub use buffers::Buffers;
pub use gather::{Gather, Wanted};

use buffers::Buffer;

/// The whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The entity columns, as the request gave them.
    pub columns: Vec<(String, Vec<Value>)>,
    /// The views, in order.
    pub views: Vec<ViewAnswer>,
    /// Each view's version, where the request asks for it.
    pub versions: Vec<(String, i32)>,
}

/// The features of one view, for every row of the request.
#[derive(Clone, Debug)]
pub struct ViewAnswer {
    names: Arc<Names>,
    rows: usize,
    /// The features' values: each feature's block is its part of `values`, row after row, every value
    /// as field 1 of `FeatureVector` (key, length, bytes). Null is empty.
    values: Buffer,
    /// Where each feature's block begins and ends.
    blocks: Vec<(usize, usize)>,
    /// `FieldStatus` numbers, feature after feature.
    statuses: Vec<u8>,
    times: Times,
}

/// When the values were true.
#[derive(Clone, Debug)]
enum Times {
    /// One time per row for all features; and as bytes, what follows a feature's values where all are there:
    /// the statuses and the `event_timestamps`.
    PerRow(Vec<Timestamp>, Vec<u8>),
    /// One time per value, feature after feature.
    PerValue(Vec<Timestamp>),
}

/// The names of a view's features in the answer.
#[derive(Clone, Debug, Default)]
pub struct Names {
    list: Vec<String>,
    /// Each as field 1 of `FeatureList`.
    encoded: Vec<u8>,
    /// The list as a face writes it.
    written: OnceLock<Box<[u8]>>,
}

/// One feature of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<'a> {
    /// The protobuf bytes of the `feast.types.Value`; empty is null.
    pub value: &'a [u8],
    /// Whether and why there is a value.
    pub status: FieldStatus,
    /// When it was true.
    pub time: Timestamp,
}

impl Names {
    /// Keeps the names.
    pub fn new(names: Vec<String>) -> Self {
        let encoded = FeatureList { val: names.clone() }.encode_to_vec();
        Self { list: names, encoded, written: OnceLock::new() }
    }

    /// What `write` makes of the names, made once: there must be one way to write them.
    pub fn written(&self, write: impl FnOnce(&[String]) -> Vec<u8>) -> &[u8] {
        self.written.get_or_init(|| write(&self.list).into())
    }
}

impl std::ops::Deref for Names {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.list
    }
}

impl ViewAnswer {
    /// Columns of values worked out at the request's time, in the order of the names: one value per
    /// row each, null is `NULL_VALUE`; one time per row.
    pub fn of_columns(names: Arc<Names>, columns: &[Vec<Value>], times: &[Timestamp]) -> Self {
        let mut gather = Gather::of_values(names, times.len());
        for (row, time) in times.iter().enumerate() {
            gather.push_values(*time, columns.iter().map(|column| &column[row]));
        }
        gather.finish()
    }

    /// What a function gave, as Feast answers it: every value is `PRESENT`, null too, and at the epoch. One
    /// value per row in every column.
    pub fn computed(columns: Vec<(String, Vec<Value>)>, rows: usize) -> Self {
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let mut answer = Self::of_columns(Arc::new(Names::new(names)), &values, &vec![Timestamp::default(); rows]);
        answer.statuses.fill(FieldStatus::Present as u8);
        answer
    }

    /// A feature's values, one per row of the request.
    ///
    /// Errors: stored bytes that are no value: the row is damaged.
    pub fn column(&self, feature: usize) -> Result<Vec<Value>> {
        self.feature(feature).map(|c| Value::decode(c.value)).collect::<Result<_, _>>().map_err(|e| {
            let name = &self.names[feature];
            Error::internal(format!("a stored value of {name} is damaged: write the row again"), e)
        })
    }

    /// A feature's values, for readers that take fixed steps: they end where the number says, what lies behind
    /// them is of other features. Row after row, each is field 1 of `FeatureVector`: key, length, bytes.
    pub fn values(&self, feature: usize) -> (&[u8], usize) {
        let (start, end) = self.blocks[feature];
        (&self.values[start..], end - start)
    }

    /// A feature's `FieldStatus` numbers, row after row.
    pub fn statuses(&self, feature: usize) -> &[u8] {
        &self.statuses[feature * self.rows..][..self.rows]
    }

    /// When a feature's values were true, row after row.
    pub fn times(&self, feature: usize) -> &[Timestamp] {
        match &self.times {
            Times::PerRow(times, _) => times,
            Times::PerValue(times) => &times[feature * self.rows..][..self.rows],
        }
    }

    /// See [`Names::written`].
    pub fn names_written(&self, write: impl FnOnce(&[String]) -> Vec<u8>) -> &[u8] {
        self.names.written(write)
    }

    /// The features' names in the answer.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A feature's values, statuses and times, row after row.
    pub fn feature(&self, feature: usize) -> impl ExactSizeIterator<Item = Cell<'_>> + Clone {
        let mut block = self.block(feature);
        (0..self.rows).map(move |row| Cell {
            value: next_value(&mut block),
            status: FieldStatus::try_from(i32::from(self.statuses[feature * self.rows + row])).unwrap_or_default(),
            time: self.time(feature, row),
        })
    }

    /// The answer for other rows: row `i` of it is row `rows[i]` of this.
    #[must_use]
    pub fn fanned_out(&self, rows: &[usize]) -> Self {
        let features = self.names.len();
        let mut values = Vec::with_capacity(features * rows.len() * 16);
        let (mut blocks, mut statuses) = (Vec::with_capacity(features), Vec::with_capacity(features * rows.len()));
        for feature in 0..features {
            let (block, start) = (self.block(feature), values.len());
            let mut spans = Vec::with_capacity(self.rows);
            let mut rest = block;
            while !rest.is_empty() {
                let at = block.len() - rest.len();
                next_value(&mut rest);
                spans.push(at..block.len() - rest.len());
            }
            for &row in rows {
                values.extend_from_slice(&block[spans[row].clone()]);
                statuses.push(self.statuses[feature * self.rows + row]);
            }
            blocks.push((start, values.len()));
        }
        let times = self.times.fanned_out(self.rows, features, rows);
        Self { names: Arc::clone(&self.names), rows: rows.len(), values: values.into(), blocks, statuses, times }
    }

    fn block(&self, feature: usize) -> &[u8] {
        let (start, end) = self.blocks[feature];
        &self.values[start..end]
    }

    fn time(&self, feature: usize, row: usize) -> Timestamp {
        match &self.times {
            Times::PerRow(times, _) => times[row],
            Times::PerValue(times) => times[feature * self.rows + row],
        }
    }
}

impl Times {
    fn fanned_out(&self, stored: usize, features: usize, rows: &[usize]) -> Self {
        match self {
            Self::PerRow(times, _) => Self::per_row(rows.iter().map(|row| times[*row]).collect()),
            Self::PerValue(times) => {
                let of = |feature| rows.iter().map(move |row| times[feature * stored + row]);
                Self::PerValue((0..features).flat_map(of).collect())
            }
        }
    }
}

/// Takes the first value off a block.
fn next_value<'a>(block: &mut &'a [u8]) -> &'a [u8] {
    let mut rest = block.get(1..).unwrap_or_default();
    let len = prost::encoding::decode_varint(&mut rest).unwrap_or_default();
    let (value, rest) = rest.split_at(len as usize);
    *block = rest;
    value
}

impl Answer {
    /// The answer as a message. Errors where stored bytes are no value: the row is damaged.
    pub fn to_message(&self) -> Result<GetOnlineFeaturesResponse> {
        let mut results: Vec<FeatureVector> = self.columns.iter().map(|(_, values)| entity_vector(values)).collect();
        for view in &self.views {
            for (feature, name) in view.names().iter().enumerate() {
                let cells = || view.feature(feature);
                let values = cells().map(|c| Value::decode(c.value)).collect::<Result<_, _>>().map_err(|e| {
                    Error::internal(format!("a stored value of {name} is damaged: write the row again"), e)
                })?;
                results.push(FeatureVector {
                    values,
                    statuses: cells().map(|c| c.status.into()).collect(),
                    event_timestamps: cells().map(|c| c.time.to_proto()).collect(),
                });
            }
        }
        let entities = self.columns.iter().map(|(name, _)| name);
        let names = entities.chain(self.views.iter().flat_map(ViewAnswer::names)).cloned().collect();
        let metadata = GetOnlineFeaturesResponseMetadata {
            feature_names: Some(FeatureList { val: names }),
            feature_view_metadata: self.view_metadata().collect(),
        };
        Ok(GetOnlineFeaturesResponse { metadata: Some(metadata), results, status: false })
    }

    fn view_metadata(&self) -> impl Iterator<Item = FeatureViewMetadata> {
        self.versions.iter().map(|(name, version)| FeatureViewMetadata { name: name.clone(), version: *version })
    }
}

fn entity_vector(values: &[Value]) -> FeatureVector {
    FeatureVector {
        values: values.to_vec(),
        statuses: vec![FieldStatus::Present.into(); values.len()],
        event_timestamps: vec![prost_types::Timestamp::default(); values.len()],
    }
}

#[cfg(test)]
mod tests;
