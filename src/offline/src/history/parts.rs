//! An entity frame, part by part: how many rows are joined at a time, and their way out. A part is joined whole, to one
//! view after the other, and given out before the next one begins, so the frame's order is kept and memory is that of a
//! part. Each part reads the sources anew, by its own span of time and keys. Knows no source and no join.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use futures::{StreamExt, stream};
use model::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::held::Held;
use super::{Export, Joined, Probes, Ready, join};
use crate::asof::unsorted::Slots;
use crate::engine::{Engine, blocking};
use crate::error::arrow as arrow_error;
use crate::frame::{Frame, Rows};
use crate::metrics;

/// Parts are not made smaller than so many batches of the result.
const LEAST: usize = 1;
/// What a row takes of its keys, their order, their times and their matches, bytes.
const KEYS: usize = 32;
/// What a value is taken to have whose length is its own, bytes. Where that is too little the part is halved.
const VARIABLE: usize = 32;

/// What is to be done.
pub(super) struct Work {
    pub(super) engine: Arc<Engine>,
    pub(super) parts: Vec<Ready>,
    /// The result's columns.
    pub(super) schema: SchemaRef,
    /// The column of event times.
    pub(super) time: String,
    pub(super) batch_rows: usize,
}

/// Begins the work on a frame in the background. Dropping what it gives stops it.
pub(super) fn stream(work: Work, frame: Frame) -> Export {
    let schema = work.schema.clone();
    let (sender, receiver) = mpsc::channel::<Result<RecordBatch>>(2);
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = work.run(frame, &sender).await {
            // Nobody is left to be told when the send fails.
            let _ = sender.send(Err(error)).await;
        }
    }));
    let batches = stream::unfold((receiver, task), |(mut receiver, task)| async move {
        receiver.recv().await.map(|batch| (batch, (receiver, task)))
    });
    Export { schema, batches: batches.boxed() }
}

/// Too many entity rows for what memory there is: fewer may do.
pub(super) fn too_many() -> Error {
    Error::new(
        Kind::TooLarge,
        "the entity rows and their features need more than the offline memory limit: ask for fewer rows or views, or \
         raise the limit in larder.yaml",
    )
}

impl Work {
    async fn run(&self, mut frame: Frame, sender: &mpsc::Sender<Result<RecordBatch>>) -> Result<()> {
        let least = (LEAST * self.batch_rows).max(1);
        let mut most = usize::MAX;
        let mut held = self.hold(&mut frame).await?;
        if held.iter().all(Option::is_some) {
            // Nothing else waits for them.
            most = least;
        } else {
            frame.fill(usize::MAX).await?;
        }
        let mut parts = frame.parts()?;
        loop {
            let fitting = most.min(self.fitting(&frame, &held)).max(least);
            let (memory, bytes) = (self.engine.reservation("entity rows"), self.engine.room().frame);
            let rows;
            if frame.is_on_disk() {
                let read = blocking(move || {
                    let rows = parts.next(fitting, bytes, memory)?;
                    Ok((parts, rows))
                });
                (parts, rows) = read.await?;
            } else {
                rows = parts.next(fitting, bytes, memory)?;
            }
            let Some(rows) = rows else { break };
            let mut waiting = vec![rows];
            while let Some(rows) = waiting.pop() {
                match self.join(&rows, &mut held, rows.count() <= least).await {
                    Ok(joined) => {
                        metrics::part_joined();
                        if !self.give(&rows, &joined, sender).await? {
                            return Ok(());
                        }
                    }
                    Err(error) if error.kind() == Kind::TooLarge && rows.count() > least => {
                        most = rows.count().div_ceil(2).max(least);
                        let (first, rest) = rows.split(most);
                        waiting.extend([rest, first]);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        while let Some(batch) = frame.next().await? {
            let rows = Rows::of(batch, self.engine.reservation("entity rows"));
            let joined = self.join(&rows, &mut held, true).await?;
            if !self.give(&rows, &joined, sender).await? {
                break;
            }
        }
        Ok(())
    }

    /// The histories that are held in memory: of views that have far fewer rows than the frame.
    async fn hold(&self, frame: &mut Frame) -> Result<Vec<Option<Held>>> {
        let mut held = Vec::with_capacity(self.parts.len());
        for ready in &self.parts {
            let is_held = match ready.held_for(&self.engine) {
                Some(rows) => frame.fill(rows).await?,
                None => false,
            };
            held.push(if is_held { Held::read(&self.engine, ready).await? } else { None });
        }
        Ok(held)
    }

    /// How many rows are taken to fit into what memory is free: not more than three quarters of it are planned with.
    fn fitting(&self, frame: &Frame, held: &[Option<Held>]) -> usize {
        let free = self.engine.memory_limit().saturating_sub(self.engine.reserved());
        // Those in memory are counted already.
        let fields = frame.schema().fields().iter().filter(|_| frame.is_on_disk());
        let of_frame: usize = fields.map(|field| width(field.data_type())).sum();
        let joined = || self.parts.iter().zip(held).filter(|(_, held)| held.is_none()).map(|(part, _)| part.width());
        let features: usize = joined().sum();
        let widest = joined().max().unwrap_or_default();
        // Superseded rows of the view that is joined last are kept for a while.
        (free / 4 * 3) / (of_frame + KEYS + Slots::EACH + features + widest / 2).max(1)
    }

    async fn join(&self, rows: &Rows, held: &mut [Option<Held>], last_resort: bool) -> Result<Vec<Joined>> {
        let times = rows.times(&self.time)?;
        let mut joined = Vec::with_capacity(self.parts.len());
        let mut probes = Probes::default();
        for (part, held) in self.parts.iter().zip(held) {
            if let Some(held) = held {
                joined.push(held.join(rows, &times, part)?);
                continue;
            }
            let keyed = probes.of(&self.engine, rows, &times, part)?;
            joined.push(join(&self.engine, keyed, part, last_resort).await?);
        }
        Ok(joined)
    }

    /// Gives the rows of a part out; says whether anybody takes them.
    async fn give(&self, rows: &Rows, joined: &[Joined], sender: &mpsc::Sender<Result<RecordBatch>>) -> Result<bool> {
        for batch in assemble(&self.schema, rows, joined, self.batch_rows) {
            if sender.send(Ok(batch?)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Ready {
    /// About what this view's features of a row take, and their place, bytes.
    pub(super) fn width(&self) -> usize {
        if self.spec.is_some() {
            return size_of::<model::Value>() * self.part.features.len();
        }
        let columns = self.cut.values.iter().filter_map(|name| self.table.schema.field_with_name(name).ok());
        columns.map(|field| width(field.data_type())).sum::<usize>() + size_of::<u32>()
    }
}

/// About what a value takes, bytes.
fn width(data_type: &DataType) -> usize {
    data_type.primitive_width().unwrap_or(VARIABLE)
}

/// The rows' batches with the features behind their columns, at most `batch_rows` rows each.
fn assemble<'a>(
    schema: &'a SchemaRef,
    rows: &'a Rows,
    joined: &'a [Joined],
    batch_rows: usize,
) -> impl Iterator<Item = Result<RecordBatch>> + 'a {
    let mut start = 0;
    let offsets = rows.batches().iter().map(move |b| {
        let offset = start;
        start += b.num_rows();
        (offset, b)
    });
    offsets.flat_map(move |(offset, batch)| {
        (0..batch.num_rows()).step_by(batch_rows.max(1)).map(move |at| {
            let rows = batch_rows.max(1).min(batch.num_rows() - at);
            let mut columns: Vec<ArrayRef> = batch.columns().iter().map(|c| c.slice(at, rows)).collect();
            for view in joined {
                let index = view.index.as_ref().map(|i| i.slice(offset + at, rows));
                for column in &view.columns {
                    columns.push(match &index {
                        Some(index) => take(column.as_ref(), index, None).map_err(arrow_error)?,
                        None => column.slice(offset + at, rows),
                    });
                }
            }
            RecordBatch::try_new(schema.clone(), columns).map_err(arrow_error)
        })
    })
}
