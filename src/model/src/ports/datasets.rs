//! The port for saved datasets that the server itself retrieves and keeps. Knows no file format.

use std::ops::RangeInclusive;

use super::{BoxFuture, NamedColumn, TypedColumn};
use crate::error::Result;
use crate::registry::FeatureRequest;
use crate::time::Timestamp;

/// A historical retrieval whose result is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetRetrieval {
    /// The project of the features.
    pub project: String,
    /// What is retrieved.
    pub features: FeatureRequest,
    /// For whom, and for when.
    pub entities: EntityRows,
    /// Columns of the entity rows that have the same value in every row: one value each.
    pub constants: Vec<TypedColumn>,
    /// Where the result goes, as a file source would say it.
    pub path: String,
    /// Whether what is there may be replaced.
    pub overwrite: bool,
}

/// The entity rows of a retrieval.
#[derive(Clone, Debug, PartialEq)]
pub enum EntityRows {
    /// As values.
    Given {
        /// Entity keys; each as long as `times`.
        columns: Vec<TypedColumn>,
        /// Each row's event time.
        times: Vec<Timestamp>,
    },
    /// In a file, as a file source would say where.
    File(String),
}

/// A dataset that was retrieved and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDataset {
    /// The features as `view:feature`, a view with an alias by that.
    pub refs: Vec<String>,
    /// The columns of the entity rows that are join keys.
    pub join_keys: Vec<String>,
    /// The first and the last event time of the entity rows.
    pub span: RangeInclusive<Timestamp>,
    /// How many rows.
    pub rows: u64,
}

/// Which part of a dataset's rows to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetPreview {
    /// Where the dataset is, as a file source would say it.
    pub path: String,
    /// Its join keys.
    pub join_keys: Vec<String>,
    /// Its features' columns.
    pub features: Vec<String>,
    /// The first event time, inclusive; `None` is from the beginning.
    pub from: Option<Timestamp>,
    /// The last event time, inclusive; `None` is to the end.
    pub to: Option<Timestamp>,
    /// At most this many rows.
    pub limit: usize,
}

/// The first rows of a dataset, column by column; times as text in ISO 8601 with a space.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatasetRows {
    /// Join keys, features, event time.
    pub columns: Vec<NamedColumn>,
    /// How many rows the dataset has altogether.
    pub total: u64,
}

/// Where saved datasets are made and kept.
pub trait DatasetStore: Send + Sync {
    /// Retrieves, and keeps the result. All or nothing; dropping the future stops the work.
    ///
    /// Errors: those of the retrieval; `SavedDatasetLocationAlreadyExists` where something is there.
    fn keep(&self, retrieval: DatasetRetrieval) -> BoxFuture<'_, Result<KeptDataset>>;

    /// Removes what is left beside this place of a result that a killed process was writing; not what is being written.
    ///
    /// Errors: our own.
    fn clear<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The first rows of a dataset.
    ///
    /// Errors (`InvalidArgument`, `Unsupported`): a place that has no such rows, or cannot be read.
    fn preview(&self, preview: DatasetPreview) -> BoxFuture<'_, Result<DatasetRows>>;
}
