//! The entity frame: the rows that features are looked up for, exactly as the caller sent them.
//! Knows no view.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, Int64Array, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::memory_pool::MemoryReservation;
use model::{Error, Kind, Result, Value};

use crate::convert::micros;
use crate::error::{arrow as arrow_error, engine as engine_error};

const EVENT_TIMESTAMP: &str = "event_timestamp";

/// What a row takes beside its columns, bytes: its time and its match. A message can claim any number of rows
/// that are all null.
const PER_ROW: usize = 16;

/// Rows in memory, counted against the memory limit for as long as they live.
pub(crate) struct Frame {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    rows: usize,
    memory: MemoryReservation,
}

impl Frame {
    pub(crate) fn new(schema: SchemaRef, memory: MemoryReservation) -> Self {
        Self { schema, batches: Vec::new(), rows: 0, memory }
    }

    /// Adds rows. Errors (`TooLarge`): the memory limit.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        let rows = batch.num_rows().saturating_mul(PER_ROW);
        let nulls = batch.columns().iter().map(|c| nested_nulls(&c.to_data())).fold(0, usize::saturating_add);
        let bytes = batch.get_array_memory_size().saturating_add(rows).saturating_add(nulls);
        self.memory.try_grow(bytes).map_err(engine_error)?;
        self.rows += batch.num_rows();
        self.batches.push(batch);
        Ok(())
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// Whether it is the table that the SDK uploads where there is no entity frame
    /// (`_create_empty_table` in `feast/infra/offline_stores/remote.py`).
    pub(crate) fn is_placeholder(&self) -> bool {
        self.schema.fields().len() == 1 && self.schema.field(0).name() == "key"
    }

    /// The column of event times: `event_timestamp`, else the only datetime column
    /// (`infer_event_timestamp_from_entity_df` in `feast/infra/offline_stores/offline_utils.py`).
    pub(crate) fn time_column(&self) -> Result<&str> {
        if self.schema.index_of(EVENT_TIMESTAMP).is_ok() {
            return Ok(EVENT_TIMESTAMP);
        }
        let mut datetimes = self.schema.fields().iter().filter(|f| matches!(f.data_type(), DataType::Timestamp(..)));
        match (datetimes.next(), datetimes.next()) {
            (Some(field), None) => Ok(field.name()),
            _ => Err(Error::of_class(
                Kind::InvalidArgument,
                "EntityTimestampInferenceException",
                format!(
                    "Please provide an entity_df with a column named {EVENT_TIMESTAMP} representing the time of events."
                ),
            )),
        }
    }

    /// The event times in µs.
    pub(crate) fn times(&self, column: &str) -> Result<Int64Array> {
        micros(column, &self.column(column)?).map_err(|e| {
            if e.message().contains("is no timestamp") {
                Error::of_class(
                    Kind::InvalidArgument,
                    "EntityDFNotDateTime",
                    "The entity dataframe specified does not have the timestamp field as a datetime.",
                )
            } else {
                e
            }
        })
    }

    /// A column, whole.
    pub(crate) fn column(&self, name: &str) -> Result<ArrayRef> {
        let at = self.schema.index_of(name).map_err(arrow_error)?;
        match self.batches.as_slice() {
            [] => Ok(arrow::array::new_empty_array(self.schema.field(at).data_type())),
            [one] => Ok(one.column(at).clone()),
            many => {
                let chunks: Vec<&dyn Array> = many.iter().map(|b| b.column(at).as_ref()).collect();
                concat(&chunks).map_err(arrow_error)
            }
        }
    }

    /// Checks that all these columns are there (`FeastEntityDFMissingColumnsError`).
    pub(crate) fn expect(&self, columns: &[&str]) -> Result<()> {
        let missing: Vec<&str> = columns.iter().copied().filter(|c| self.schema.index_of(c).is_err()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let set = |names: &[&str]| {
            let quoted: Vec<String> = names.iter().map(|n| format!("'{n}'")).collect();
            format!("{{{}}}", quoted.join(", "))
        };
        Err(Error::of_class(
            Kind::InvalidArgument,
            "FeastEntityDFMissingColumnsError",
            format!(
                "The entity dataframe you have provided must contain columns {}, but {} were missing.",
                set(columns),
                set(&missing)
            ),
        ))
    }

    /// Shares it.
    pub(crate) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}

/// What the nulls inside lists take once they are values, bytes: as an array they take none.
fn nested_nulls(array: &ArrayData) -> usize {
    let own = |child: &ArrayData| match child.data_type() {
        DataType::Null => child.len().saturating_mul(size_of::<Value>()),
        _ => nested_nulls(child),
    };
    array.child_data().iter().map(own).fold(0, usize::saturating_add)
}
