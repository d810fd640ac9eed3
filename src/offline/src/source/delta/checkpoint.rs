//! A checkpoint: the actions of a whole log in one Parquet file, read by way of JSON.

use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use model::{Error, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::actions::Action;

/// The columns that [`Action`] has.
const COLUMNS: [&str; 7] = [
    "add.path",
    "add.partitionValues.",
    "add.size",
    "add.deletionVector.",
    "metaData.schemaString",
    "metaData.partitionColumns.",
    "metaData.configuration.",
];

/// The actions of a checkpoint. Blocks.
///
/// Errors: one that is no Parquet, or damaged.
pub(super) fn actions(bytes: Bytes, name: &str) -> Result<Vec<Action>> {
    let bad = |e: &dyn std::fmt::Display| Error::invalid(format!("the Delta checkpoint {name} cannot be read: {e}"));
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| bad(&e))?;
    let columns = builder.parquet_schema().columns().iter().enumerate();
    let wanted = columns.filter(|(_, c)| {
        let path = c.path().string();
        path.starts_with("protocol.") || COLUMNS.iter().any(|w| path == *w || (w.ends_with('.') && path.starts_with(w)))
    });
    let mask = ProjectionMask::leaves(builder.parquet_schema(), wanted.map(|(i, _)| i).collect::<Vec<_>>());
    let mut actions = Vec::new();
    for batch in builder.with_projection(mask).build().map_err(|e| bad(&e))? {
        let mut lines = LineDelimitedWriter::new(Vec::new());
        lines.write(&batch.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
        lines.finish().map_err(|e| bad(&e))?;
        for line in lines.into_inner().split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            actions.push(serde_json::from_slice(line).map_err(|e| bad(&e))?);
        }
    }
    Ok(actions)
}
