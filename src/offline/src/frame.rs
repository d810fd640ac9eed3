//! The entity frame: the rows that features are looked up for, exactly as the caller sent them. What memory has no room
//! for is on disk. Knows no view.

mod rows;
mod stored;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array, ArrayData, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::{Error, Kind, Result, Value};

use crate::engine::blocking;
use crate::error::{engine as engine_error, spill_full};
use crate::metrics;

pub(crate) use rows::{Parts, Rows, times};
pub(crate) use stored::{Stored, Writer};

const EVENT_TIMESTAMP: &str = "event_timestamp";

/// What a row takes beside its columns, bytes: its time and its match. A message can claim any number of rows
/// that are all null.
const PER_ROW: usize = 16;

/// Rows, counted against the memory limit for as long as they are in memory.
pub(crate) struct Frame {
    schema: SchemaRef,
    rows: Kept,
    /// How many were added.
    count: usize,
    /// Rows behind them, which are still to come. Nobody waits for the lock: it is what makes a stream one that threads
    /// may share.
    rest: Option<Mutex<BoxStream<'static, Result<RecordBatch>>>>,
    memory: MemoryReservation,
    room: Option<Room>,
}

/// How much of a frame may be in memory, and where the rest goes.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Bytes that a frame may take; one that needs more goes to disk.
    pub(crate) frame: usize,
    /// Bytes that what a message claims, but does not bring, may take.
    pub(crate) claims: usize,
    /// Where files go.
    pub(crate) dir: PathBuf,
}

enum Kept {
    Held(Vec<RecordBatch>),
    Written(Stored, Option<Box<Writer<std::fs::File>>>),
}

impl Frame {
    /// An empty one. Without `room`, what does not fit into memory is refused.
    pub(crate) fn new(schema: SchemaRef, memory: MemoryReservation, room: Option<Room>) -> Self {
        Self { schema, rows: Kept::Held(Vec::new()), count: 0, rest: None, memory, room }
    }

    /// Rows that are on disk.
    pub(crate) fn stored(stored: Stored, memory: MemoryReservation) -> Result<Self> {
        let schema = stored.read()?.schema();
        Ok(Self { schema, rows: Kept::Written(stored, None), count: 0, rest: None, memory, room: None })
    }

    /// Adds rows. Errors: `TooLarge` for the memory limit, `Unavailable` for a full disk.
    pub(crate) async fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.count += batch.num_rows();
        let rows = batch.num_rows().saturating_mul(PER_ROW);
        let nulls = batch.columns().iter().map(|c| nested_nulls(&c.to_data())).fold(0, usize::saturating_add);
        let (claimed, brought) = (rows.saturating_add(nulls), bytes_of(&batch));
        let bytes = brought.saturating_add(claimed);
        if self.room.as_ref().is_some_and(|room| claimed.saturating_sub(2 * brought) > room.claims) {
            return Err(too_many(batch.num_rows()));
        }
        if let Kept::Held(batches) = &mut self.rows {
            let most = self.room.as_ref().map_or(usize::MAX, |room| room.frame);
            let fits = self.memory.size().saturating_add(bytes) <= most;
            match (fits.then(|| self.memory.try_grow(bytes)), &self.room) {
                (Some(Ok(())), _) => {
                    batches.push(batch);
                    return Ok(());
                }
                (Some(Err(full)), None) => return Err(engine_error(full)),
                _ => {}
            }
        }
        self.write(batch).await
    }

    async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        let Some(dir) = self.room.as_ref().map(|room| room.dir.clone()) else {
            return Err(Error::new(Kind::Internal, "rows were added to a table that is closed"));
        };
        let before = std::mem::replace(&mut self.rows, Kept::Held(Vec::new()));
        let schema = self.schema.clone();
        let write = move || {
            let (stored, mut writer, held) = match before {
                Kept::Written(stored, Some(writer)) => (stored, writer, Vec::new()),
                Kept::Written(_, None) => {
                    return Err(Error::new(Kind::Internal, "rows were added to a table that is closed"));
                }
                Kept::Held(held) => {
                    let (stored, writer) = Stored::nameless(&dir, &schema)?;
                    metrics::frame_spilled();
                    (stored, Box::new(writer), held)
                }
            };
            for batch in held.iter().chain([&batch]) {
                writer.write(batch)?;
            }
            Ok(Kept::Written(stored, Some(writer)))
        };
        self.rows = blocking(write).await.map_err(spill_full)?;
        self.memory.free();
        Ok(())
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// With rows that come behind those that are added, once they are asked for.
    pub(crate) fn behind(self, rest: BoxStream<'static, Result<RecordBatch>>) -> Self {
        Self { rest: Some(Mutex::new(rest)), ..self }
    }

    /// Adds of the rows that are still to come, until there are so many or no more; says whether there are so many.
    pub(crate) async fn fill(&mut self, count: usize) -> Result<bool> {
        while self.count < count {
            let Some(next) = self.next().await? else { return Ok(false) };
            self.push(next).await?;
        }
        Ok(true)
    }

    /// The next of the rows that are still to come, which are not added.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(rest) = &mut self.rest else { return Ok(None) };
        let next = rest.get_mut().unwrap_or_else(PoisonError::into_inner).next().await.transpose()?;
        if next.is_none() {
            self.rest = None;
        }
        Ok(next)
    }

    /// Whether no row was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether its rows are on disk.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.rows, Kept::Written(..))
    }

    /// All rows that were added, batch by batch; those on disk are read as they are asked for, which blocks.
    pub(crate) fn batches(&self) -> Result<Batches> {
        Ok(match &self.rows {
            Kept::Held(batches) => Box::new(batches.clone().into_iter().map(Ok)),
            Kept::Written(stored, _) => Box::new(stored.read()?),
        })
    }

    /// All rows that were added, part by part.
    pub(crate) fn parts(&self) -> Result<Parts> {
        Parts::new(self)
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
}

/// What a batch's own rows take, bytes: of a message, all columns share one piece of memory.
fn bytes_of(batch: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| match column.data_type() {
        // What the views point to is not counted among their rows.
        DataType::Utf8View | DataType::BinaryView => column.get_array_memory_size(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    };
    batch.columns().iter().map(of).fold(0, usize::saturating_add)
}

/// The batches of a frame.
pub(crate) type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

fn too_many(rows: usize) -> Error {
    Error::new(
        Kind::TooLarge,
        format!(
            "a batch of {rows} rows needs more than the offline memory limit: send smaller ones, or raise the limit"
        ),
    )
}

/// What the nulls inside lists take once they are values, bytes: as an array they take none.
fn nested_nulls(array: &ArrayData) -> usize {
    let own = |child: &ArrayData| match child.data_type() {
        DataType::Null => child.len().saturating_mul(size_of::<Value>()),
        _ => nested_nulls(child),
    };
    array.child_data().iter().map(own).fold(0, usize::saturating_add)
}
