//! Rows into a source, all or nothing: a new file in a directory, or a single file written anew with
//! the rows behind its own. What a reader sees is always whole. Knows no request.
//!
//! Source: `FileSource` and `offline_write_batch` in `feast/infra/offline_stores/dask.py`.

mod columns;
pub(crate) mod local;
mod object;
pub(crate) mod partitions;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use model::ports::AppendRows;
use model::registry::View;
use model::value::coerce;
use model::{Error, Kind, Result, ValueType};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use proto::feast::core::DataSource;

use crate::convert::{
    arrow_type, from_values, in_column, micros, plain, strict_cast, timestamps, to_registered, utc_micros,
};
use crate::engine::blocking;
use crate::error::arrow as arrow_error;
use crate::history::Export;
use crate::metrics;
use crate::scan::schema_of;
use crate::source::Location;
use crate::source::glob::SPECIAL;
use crate::store::Stores;

/// Writers of one path wait for each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Arc<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>>);

impl Locks {
    async fn lock(&self, path: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(path.to_path_buf()).or_default().clone()
        };
        mutex.lock_owned().await
    }
}

/// What writing needs.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) repo: PathBuf,
    pub(crate) stores: Stores,
    pub(crate) locks: Locks,
}

/// Appends a push's rows: columns by the view's names, times from the versions.
///
/// Errors (`InvalidArgument`): columns that the source lacks, or columns of it that are not given.
pub(crate) async fn values(writer: &Writer, source: Arc<DataSource>, view: &View, rows: AppendRows) -> Result<u64> {
    let location = appendable(writer, &source)?;
    let _guard = writer.locks.lock(&location.path()).await;
    let (times, created): (Vec<i64>, Vec<Option<i64>>) =
        rows.versions.iter().map(|v| (v.event.micros(), Some(v.created.micros()).filter(|c| *c != 0))).unzip();
    let time_name = if source.timestamp_field.is_empty() { view.event_time_column() } else { &source.timestamp_field };
    let mut columns: Vec<(String, ValueType, ArrayRef)> = Vec::new();
    for column in rows.columns {
        if column.name == time_name || column.name == source.created_timestamp_column {
            continue;
        }
        let key = view.join_keys.iter().find(|k| k.name == column.name).map(|k| k.value_type);
        let value_type = key.or_else(|| view.feature(&column.name).map(|f| f.value_type)).unwrap_or(ValueType::Invalid);
        let values = column
            .values
            .into_iter()
            .map(|v| coerce(v, value_type))
            .collect::<Result<Vec<_>>>()
            .map_err(|e| in_column(&column.name, &e))?;
        let sample = values.iter().map(model::value::type_of).find(|t| *t != ValueType::Invalid);
        let written = if value_type == ValueType::Invalid { sample.unwrap_or(ValueType::Null) } else { value_type };
        let array = from_values(&values, &arrow_type(written, None)).map_err(|e| in_column(&column.name, &e))?;
        columns.push((column.name, written, array));
    }
    columns.push((time_name.to_owned(), ValueType::UnixTimestamp, timestamps(Int64Array::from(times), &utc_micros())));
    if !source.created_timestamp_column.is_empty() {
        let created = timestamps(Int64Array::from(created), &utc_micros());
        columns.push((source.created_timestamp_column.clone(), ValueType::UnixTimestamp, created));
    }
    let schema = existing_schema(&location, &source.name).await?;
    // By the source's names: the field mapping backwards.
    let renamed: Vec<(String, ArrayRef)> = columns
        .into_iter()
        .map(|(name, _, array)| {
            let from = source
                .field_mapping
                .iter()
                .find(|(from, to)| **to == name && schema.as_ref().is_none_or(|s| s.index_of(from).is_ok()));
            (from.map_or(name, |(from, _)| from.clone()), array)
        })
        .collect();
    let batch = match schema {
        Some(schema) => fit(&source.name, &schema, &renamed)?,
        None => RecordBatch::try_from_iter_with_nullable(renamed.into_iter().map(|(n, a)| (n, a, true)))
            .map_err(arrow_error)?,
    };
    write(location, source.name.clone(), vec![batch]).await
}

/// Appends batches by the source's own names.
///
/// Errors: as [`values`].
pub(crate) async fn batches(writer: &Writer, source: Arc<DataSource>, batches: Vec<RecordBatch>) -> Result<u64> {
    let location = appendable(writer, &source)?;
    let _guard = writer.locks.lock(&location.path()).await;
    let fitted = match existing_schema(&location, &source.name).await? {
        None => batches,
        Some(schema) => batches
            .into_iter()
            .map(|batch| {
                let names = batch.schema();
                let columns = names.fields().iter().map(|f| f.name().clone()).zip(batch.columns().iter().cloned());
                fit(&source.name, &schema, &columns.collect::<Vec<_>>())
            })
            .collect::<Result<Vec<_>>>()?,
    };
    write(location, source.name.clone(), fitted).await
}

/// Where rows of a source can be appended.
///
/// Errors (`Unsupported`): a pattern, a Delta table.
fn appendable(writer: &Writer, source: &DataSource) -> Result<Location> {
    let location = Location::of(source, &writer.repo, &writer.stores)?;
    writable(&location, &source.name)?;
    Ok(location)
}

fn writable(location: &Location, source: &str) -> Result<()> {
    let what = match location {
        Location::Glob(_) => "pattern",
        Location::Object(_, key) if key.contains(SPECIAL) => "pattern",
        Location::Delta(..) => "Delta table",
        _ => return Ok(()),
    };
    Err(Error::new(
        Kind::Unsupported,
        format!(
            "data source '{source}' is the {what} {}: rows can be written to a Parquet file or a directory of them",
            location.path().display()
        ),
    ))
}

/// Writes batches as one new file in a directory (logged features).
pub(crate) async fn new_file(directory: Location, name: String, batches: Vec<RecordBatch>) -> Result<u64> {
    if let Some(first) = batches.first() {
        columns::check(first.schema_ref())?;
    }
    write(directory, name, batches).await
}

/// Writes a result where nothing was, or over what was there.
///
/// Errors: `SavedDatasetLocationAlreadyExists` unless overwriting is allowed.
pub(crate) async fn export(
    locks: &Locks,
    location: &Location,
    uri: &str,
    overwrite: bool,
    export: Export,
) -> Result<u64> {
    writable(location, uri)?;
    columns::check(&export.schema)?;
    let _guard = locks.lock(&location.path()).await;
    let exists = || {
        Error::of_class(
            Kind::Conflict,
            "SavedDatasetLocationAlreadyExists",
            format!("Saved dataset location {uri} already exists."),
        )
    };
    if let Location::Object(bucket, key) = location {
        return object::export(bucket, key, overwrite, export, exists).await;
    }
    let path = location.path();
    if path.exists() && !overwrite {
        return Err(exists());
    }
    local::export(path, export).await
}

/// The schema that appended rows must have: that of the last file; `None` where there is none yet.
async fn existing_schema(location: &Location, source: &str) -> Result<Option<SchemaRef>> {
    let mut tries = object::TRIES;
    loop {
        let mut listing = location.list().await?;
        if let Some(partition) = listing.partitions.first() {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "data source '{source}' at {} is partitioned by {}: rows can be appended to a Parquet file or a \
                     directory without partitions",
                    location.path().display(),
                    partition.name()
                ),
            ));
        }
        let Some(last) = listing.files.pop() else { return Ok(None) };
        match schema_of(last).await {
            // Another writer replaced it between the two.
            Err(e) if e.kind() == Kind::Conflict && tries > 0 => tries -= 1,
            schema => return Ok(Some(schema?)),
        }
    }
}

/// Columns in the source's order and types.
fn fit(source: &str, schema: &SchemaRef, columns: &[(String, ArrayRef)]) -> Result<RecordBatch> {
    let given = |name: &str| columns.iter().find(|(n, _)| n == name);
    let is_index = |name: &str| name.starts_with("__index_level_");
    let wanted = schema.fields().iter().map(|f| f.name().as_str());
    let missing: Vec<&str> = wanted.filter(|n| given(n).is_none() && !is_index(n)).collect();
    let extra: Vec<&str> =
        columns.iter().map(|(n, _)| n.as_str()).filter(|n| schema.index_of(n).is_err() && !is_index(n)).collect();
    if !missing.is_empty() || !extra.is_empty() {
        let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Error::invalid(format!(
            "the columns do not match those of data source '{source}': missing {}, not in the source {}",
            list(&missing),
            list(&extra)
        )));
    }
    let rows = columns.first().map_or(0, |(_, c)| c.len());
    let arrays = schema
        .fields()
        .iter()
        .map(|field| match given(field.name()) {
            Some((name, array)) => as_column(name, array, field.data_type()),
            None => Ok(arrow::array::new_null_array(field.data_type(), rows)),
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(field) = schema.fields().iter().zip(&arrays).find(|(f, a)| !f.is_nullable() && a.null_count() > 0) {
        return Err(Error::invalid(format!("column '{}' of data source '{source}' takes no nulls", field.0.name())));
    }
    RecordBatch::try_new(schema.clone(), arrays).map_err(arrow_error)
}

/// A column in the type that the file has it in, without loss.
fn as_column(name: &str, array: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    if matches!(target, DataType::Timestamp(..)) {
        return Ok(timestamps(micros(name, array)?, target));
    }
    let plain_array = plain(array)?;
    let value_type = match target {
        DataType::Int32 => ValueType::Int32,
        DataType::Int64 => ValueType::Int64,
        DataType::Float32 => ValueType::Float,
        DataType::Float64 => ValueType::Double,
        DataType::Boolean => ValueType::Bool,
        DataType::Utf8 => ValueType::String,
        DataType::Binary => ValueType::Bytes,
        _ => return strict_cast(&plain_array, target).map_err(|e| in_column(name, &e)),
    };
    to_registered(name, &plain_array, value_type)
}

/// Writes the batches as a location wants them. Gives the number of rows.
async fn write(location: Location, source: String, batches: Vec<RecordBatch>) -> Result<u64> {
    let Some(first) = batches.first() else { return Ok(0) };
    let bare = Arc::new(Schema::new_with_metadata(
        first.schema().fields().iter().map(|f| f.as_ref().clone()).collect::<Vec<Field>>(),
        HashMap::new(),
    ));
    let rows = match &location {
        Location::Object(bucket, key) => object::append(bucket, key, &bare, &batches).await?,
        _ => blocking(move || local::append(&location, &bare, &batches)).await?,
    };
    metrics::appended(&source, rows);
    Ok(rows)
}

/// A batch as the schema of the file has it that it goes behind.
///
/// Errors (`Conflict`): the file has other columns than when the batch was fitted to it.
fn behind(batch: &RecordBatch, schema: &SchemaRef, file: &str) -> Result<RecordBatch> {
    let columns = |schema: &Schema| -> Vec<(String, DataType)> {
        schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect()
    };
    if columns(&batch.schema()) != columns(schema) {
        return Err(Error::new(
            Kind::Conflict,
            format!("{file} was written with other columns in the meantime: try again"),
        ));
    }
    RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).map_err(arrow_error)
}

/// How files are written.
fn properties() -> WriterProperties {
    WriterProperties::builder().set_compression(Compression::SNAPPY).build()
}
