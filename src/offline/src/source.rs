//! A view's batch source: where its files are, and what its columns are called there. Knows no query.
//!
//! Source: `feast/infra/offline_stores/file_source.py` (paths), `offline_utils.py` (field mapping).

mod delta;
pub(crate) mod glob;
pub(crate) mod listing;
pub(crate) mod location;

use arrow::datatypes::{DataType, Schema};
use model::{Error, Result};
use proto::feast::core::DataSource;

pub(crate) use location::Location;

/// The name in the source of what the view calls `name`: the field mapping backwards, where the
/// source has such a column.
///
/// Errors: the source has no such column; the message lists those that it has.
pub(crate) fn column(source: &DataSource, schema: &Schema, name: &str) -> Result<String> {
    let mapped = source.field_mapping.iter().find(|(from, to)| *to == name && schema.index_of(from).is_ok());
    if let Some((from, _)) = mapped {
        return Ok(from.clone());
    }
    if schema.index_of(name).is_ok() {
        return Ok(name.to_owned());
    }
    let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    Err(Error::invalid(format!(
        "data source '{}' has no column '{name}': its columns are {}",
        source.name,
        known.join(", ")
    )))
}

/// The source's name for a timestamp column that the registry names; `None` where it names none.
pub(crate) fn time_column(source: &DataSource, schema: &Schema, name: &str) -> Result<Option<String>> {
    if name.is_empty() {
        return Ok(None);
    }
    let name = column(source, schema, name)?;
    match schema.field_with_name(&name).map(arrow::datatypes::Field::data_type) {
        Ok(DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) => Ok(Some(name)),
        Ok(other) => Err(Error::invalid(format!(
            "column '{name}' of data source '{}' is of type {other}, not a timestamp: write it as one",
            source.name
        ))),
        Err(e) => Err(Error::internal("a column vanished", e)),
    }
}

/// What a missing source looks like to the caller.
pub(crate) fn missing(source: &DataSource, location: &Location) -> Error {
    Error::invalid(format!(
        "data source '{}' has no Parquet file at {}: create it, or correct the path and apply again",
        source.name,
        location.path().display()
    ))
}
