//! A cut of a source that is read in pieces, several at the same time. Knows no join.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::DataFrame;
use model::Result;

use super::{Cut, damaged, explained};
use crate::error::engine;
use crate::keys::KeyType;
use crate::scan::Pieces;

/// Pieces, planned.
pub(crate) struct InPieces {
    plan: Arc<dyn ExecutionPlan>,
    /// The same pieces, of which only the rows come that are not read in vain.
    narrow: Option<Arc<dyn ExecutionPlan>>,
    context: Arc<TaskContext>,
    pieces: Arc<Pieces>,
    source: String,
}

impl InPieces {
    pub(super) async fn new(
        frame: DataFrame,
        narrow: Option<DataFrame>,
        pieces: Arc<Pieces>,
        source: String,
    ) -> Result<Self> {
        let context = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await.map_err(engine)?;
        let narrow = match narrow {
            Some(narrow) => Some(narrow.create_physical_plan().await.map_err(engine)?),
            None => None,
        };
        Ok(Self { plan, narrow, context, pieces, source })
    }

    /// How many there are. A piece's rows stand in the files behind those of the pieces before it.
    pub(crate) fn count(&self) -> usize {
        self.plan.output_partitioning().partition_count()
    }

    /// What a reader of a piece holds of a file, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.largest()
    }

    /// How many rows the files have.
    pub(crate) fn rows(&self) -> usize {
        self.pieces.rows()
    }

    /// Reads a piece in the order of its files; where it is `narrow`, rows that are read in vain may be left out before
    /// their values are decoded.
    pub(crate) fn read(&self, piece: usize, narrow: bool) -> Result<SendableRecordBatchStream> {
        let plan = self.narrow.as_ref().filter(|_| narrow).unwrap_or(&self.plan);
        let rows = plan.execute(piece, self.context.clone()).map_err(engine)?;
        let (pieces, source) = (self.pieces.clone(), self.source.clone());
        Ok(explained(rows, move |what| damaged(&source, what, &pieces.names(piece))))
    }
}

impl Cut {
    /// Whether a row that no filter lets through harms nobody who leaves it out by himself: neither its keys nor its
    /// time can fail to be read.
    pub(super) fn is_tolerant(&self, schema: &Schema) -> bool {
        use DataType as D;
        let type_of = |name: &str| schema.field_with_name(name).map(|field| field.data_type().clone()).ok();
        let safe = |(name, key): &(String, KeyType)| {
            type_of(name).is_some_and(|column| {
                let small = matches!(column, D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 | D::UInt32);
                let text = matches!(column, D::LargeUtf8 | D::Utf8View);
                key.sort_type(&column) == column || (*key == KeyType::Int && small) || (*key == KeyType::Text && text)
            })
        };
        let fine = |column: D| matches!(column, D::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, _));
        self.known.is_none() && self.only_keyed && type_of(&self.time).is_some_and(fine) && self.keys.iter().all(safe)
    }
}

#[cfg(test)]
mod tests;
