//! The actions of a Delta log, as far as a reader of the newest state needs them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One line of a commit: one of these, or another that does not concern a reader.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Action {
    pub(super) add: Option<Add>,
    pub(super) remove: Option<Remove>,
    pub(super) meta_data: Option<MetaData>,
    pub(super) protocol: Option<Protocol>,
}

/// A file that belongs to the table.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Add {
    /// Relative to the table, percent-encoded.
    pub(super) path: String,
    #[serde(default)]
    pub(super) partition_values: BTreeMap<String, Option<String>>,
    /// Bytes.
    pub(super) size: u64,
    pub(super) deletion_vector: Option<Vector>,
}

/// A file that does so no more.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remove {
    pub(super) path: String,
    pub(super) deletion_vector: Option<Vector>,
}

/// Where it is written which rows of a file are gone.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Vector {
    /// `i` (in the log), `u` (in a file below the table) or `p` (in a file by its whole path).
    pub(super) storage_type: String,
    pub(super) path_or_inline_dv: String,
    /// Where it begins in its file, bytes.
    pub(super) offset: Option<u64>,
    pub(super) size_in_bytes: u64,
    /// How many rows are gone.
    pub(super) cardinality: u64,
}

impl Vector {
    /// What tells it from the others of its file: as the protocol has it, for a checkpoint does not keep the order of fields.
    pub(super) fn id(&self) -> String {
        let at = self.offset.map(|offset| format!("@{offset}")).unwrap_or_default();
        format!("{}{}{at}", self.storage_type, self.path_or_inline_dv)
    }
}

/// The table's columns.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetaData {
    /// JSON.
    pub(super) schema_string: String,
    #[serde(default)]
    pub(super) partition_columns: Vec<String>,
    #[serde(default)]
    pub(super) configuration: BTreeMap<String, String>,
}

/// What a reader must be able to do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Protocol {
    pub(super) min_reader_version: u32,
    pub(super) reader_features: Option<Vec<String>>,
}
