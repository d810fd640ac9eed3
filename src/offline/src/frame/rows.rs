//! Some of an entity frame's rows, one behind the other, in memory: what is joined at a time. Knows no view.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, new_empty_array};
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;
use datafusion::execution::memory_pool::MemoryReservation;
use model::{Error, Kind, Result};

use super::{Batches, Frame, PER_ROW, bytes_of};
use crate::convert::micros;
use crate::error::{arrow as arrow_error, engine as engine_error};

/// Rows in memory, in the frame's order.
pub(crate) struct Rows {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    count: usize,
    memory: Arc<MemoryReservation>,
}

impl Rows {
    /// A batch on its way.
    pub(crate) fn of(batch: RecordBatch, memory: MemoryReservation) -> Self {
        let (schema, count) = (batch.schema(), batch.num_rows());
        Self { schema, batches: vec![batch], count, memory: Arc::new(memory) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// A column, whole.
    pub(crate) fn column(&self, name: &str) -> Result<ArrayRef> {
        let at = self.schema.index_of(name).map_err(arrow_error)?;
        match self.batches.as_slice() {
            [] => Ok(new_empty_array(self.schema.field(at).data_type())),
            [one] => Ok(one.column(at).clone()),
            many => {
                let chunks: Vec<&dyn Array> = many.iter().map(|b| b.column(at).as_ref()).collect();
                concat(&chunks).map_err(arrow_error)
            }
        }
    }

    /// The event times in µs.
    pub(crate) fn times(&self, column: &str) -> Result<Int64Array> {
        times(column, &self.column(column)?)
    }

    /// The first `count` rows, and those behind them.
    pub(crate) fn split(self, count: usize) -> (Self, Self) {
        let (mut first, mut rest, mut missing) = (Vec::new(), Vec::new(), count);
        for batch in self.batches {
            let here = missing.min(batch.num_rows());
            missing -= here;
            if here > 0 {
                first.push(batch.slice(0, here));
            }
            if here < batch.num_rows() {
                rest.push(batch.slice(here, batch.num_rows() - here));
            }
        }
        let count = count.min(self.count);
        let behind =
            Self { schema: self.schema.clone(), batches: rest, count: self.count - count, memory: self.memory.clone() };
        (Self { schema: self.schema, batches: first, count, memory: self.memory }, behind)
    }
}

/// A column of event times in µs.
pub(crate) fn times(name: &str, column: &ArrayRef) -> Result<Int64Array> {
    micros(name, column).map_err(|e| {
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

/// A frame from its first row on.
pub(crate) struct Parts {
    schema: SchemaRef,
    batches: Batches,
    /// What a batch has beyond the part that it ended.
    rest: Option<RecordBatch>,
    /// Rows that come from disk are counted once they are here.
    counted: bool,
    begun: bool,
}

impl Parts {
    pub(super) fn new(frame: &Frame) -> Result<Self> {
        let (schema, counted) = (frame.schema().clone(), !frame.is_on_disk());
        Ok(Self { schema, batches: frame.batches()?, rest: None, counted, begun: false })
    }

    /// The next rows, at most `most` of them, and fewer where they come from disk and would take more than so many `bytes`,
    /// or more than `memory` can: the rest is for what they are joined with. Of an empty frame there is one part without
    /// rows.
    pub(crate) fn next(&mut self, most: usize, bytes: usize, memory: MemoryReservation) -> Result<Option<Rows>> {
        let (mut batches, mut count) = (Vec::new(), 0);
        while count < most {
            let next = self.rest.take().map(Ok).or_else(|| self.batches.next());
            let Some(batch) = next.transpose()? else { break };
            let fits = batch.num_rows().min(most - count);
            let taken = batch.slice(0, fits);
            if !self.counted {
                let size = bytes_of(&taken) + fits * PER_ROW;
                let has_room = count == 0 || memory.size().saturating_add(size) <= bytes;
                match has_room.then(|| memory.try_grow(size)) {
                    Some(Ok(())) => {}
                    Some(Err(full)) if count == 0 => return Err(engine_error(full)),
                    _ => {
                        self.rest = Some(batch);
                        break;
                    }
                }
            }
            if fits < batch.num_rows() {
                self.rest = Some(batch.slice(fits, batch.num_rows() - fits));
            }
            count += fits;
            batches.push(taken);
        }
        if count == 0 && std::mem::replace(&mut self.begun, true) {
            return Ok(None);
        }
        self.begun = true;
        Ok(Some(Rows { schema: self.schema.clone(), batches, count, memory: Arc::new(memory) }))
    }
}
