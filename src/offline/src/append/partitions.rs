//! Rows by the folders that they belong in: `column=value/…`, as pyarrow's hive partitions are written. Knows no files.

use std::collections::BTreeMap;

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use model::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::arrow as arrow_error;
use crate::source::listing::HIVE_NULL;

/// How many folders one upload may have (pyarrow's `max_partitions`).
const MOST: usize = 1024;

/// What a folder's name has as it is.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':').remove(b' ');

/// A text as a folder's name.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// The rows of each folder, without the columns that its name says.
///
/// Errors: a column that the rows have not, more folders than pyarrow would make.
pub(crate) fn split(batches: &[RecordBatch], by: &[String]) -> Result<BTreeMap<String, Vec<RecordBatch>>> {
    let mut split: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches {
        let schema = batch.schema_ref();
        let mut rest: Vec<usize> = (0..schema.fields().len()).collect();
        let mut columns = Vec::with_capacity(by.len());
        for name in by {
            let at = schema.index_of(name).map_err(|_| {
                Error::invalid(format!("the rows are partitioned by '{name}', which is none of their columns: add it"))
            })?;
            rest.retain(|other| *other != at);
            let column = batch.column(at).as_ref();
            columns.push((name, column, ArrayFormatter::try_new(column, &FormatOptions::new()).map_err(arrow_error)?));
        }
        let mut rows: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let folder_of = |(name, column, text): &(&String, &dyn Array, ArrayFormatter<'_>)| {
                let value = if column.is_null(row) { HIVE_NULL.to_owned() } else { text.value(row).to_string() };
                format!("{}={}", segment(name), segment(&value))
            };
            let folder = columns.iter().map(folder_of).collect::<Vec<_>>().join("/");
            rows.entry(folder).or_default().push(row as u32);
        }
        let batch = batch.project(&rest).map_err(arrow_error)?;
        for (folder, rows) in rows {
            let rows = take_record_batch(&batch, &UInt32Array::from(rows)).map_err(arrow_error)?;
            split.entry(folder).or_default().push(rows);
        }
        if split.len() > MOST {
            let by = by.join(", ");
            return Err(Error::invalid(format!(
                "the rows are of more than {MOST} partitions by {by}: partition by columns of fewer values"
            )));
        }
    }
    Ok(split)
}
