//! The [`OfflineLog`] port: the latest row per entity for materialization, the raw events for a
//! backfill, and rows of a push appended to the batch source.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use model::ports::{AppendRows, BoxFuture, EventBatches, KeyedRow, OfflineLog, RawEvent, RowBatches};
use model::registry::{Field, JoinKey, View};
use model::row::{Column, Version, column_id};
use model::{EntityKey, Error, Kind, Result, Row, Timestamp, Value, ValueType};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::convert::{in_column, micros, to_values};
use crate::engine::{Cut, Order};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::history::{open, sides};
use crate::keys::{KeyRows, KeyType};
use crate::latest::Latest;
use crate::source::column;
use crate::{Offline, metrics};

/// Batches of rows that may wait for the online store.
const READY: usize = 2;

impl OfflineLog for Offline {
    fn append<'a>(&'a self, view: &'a View, rows: AppendRows) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.append_rows(view, rows))
    }

    fn latest<'a>(&'a self, view: &'a View, range: Range<Timestamp>) -> BoxFuture<'a, Result<Box<dyn RowBatches>>> {
        Box::pin(async move {
            let (table, mut cut) = open(&self.engine, view).await?;
            cut.values =
                view.features.iter().map(|f| column(&table.source, &table.schema, &f.name)).collect::<Result<_>>()?;
            cut.from = Some(range.start.micros());
            cut.to = Some(range.end.micros().saturating_sub(1));
            let (send, receive) = mpsc::channel(READY);
            let skipped = Arc::new(AtomicU64::new(0));
            let counter = skipped.clone();
            let engine = self.engine.clone();
            let (name, keys, features) = (view.name.clone(), keys_of(view), view.features.clone());
            let reader = self.background.handle().spawn(async move {
                let (memory, size) = (engine.hash_bytes(), engine.batch_rows());
                let rows = async {
                    let latest = Latest::read(&engine, &table, cut.clone(), &name, memory, size).await?;
                    LatestRows { latest, cut, keys, features, skipped: counter }.send(&send).await
                };
                // nobody is left to be told where the receiver has gone
                let _ = send.send(rows.await.map(|()| None)).await;
            });
            let reader = AbortOnDropHandle::new(reader);
            Ok(Box::new(Ahead { receive, skipped, _reader: reader }) as Box<dyn RowBatches>)
        })
    }

    fn events<'a>(
        &'a self,
        view: &'a View,
        columns: &'a [String],
        range: Range<Timestamp>,
    ) -> BoxFuture<'a, Result<Box<dyn EventBatches>>> {
        Box::pin(async move {
            let (table, mut cut) = open(&self.engine, view).await?;
            cut.created = None;
            cut.values = columns.iter().map(|c| column(&table.source, &table.schema, c)).collect::<Result<_>>()?;
            cut.from = Some(range.start.micros());
            cut.to = Some(range.end.micros().saturating_sub(1));
            let chunks = self.engine.read(&table, &cut, Order::KeyTime).await?;
            Ok(Box::new(Events { chunks, cut, keys: keys_of(view), view: view.name.clone(), skipped: 0 })
                as Box<dyn EventBatches>)
        })
    }

    fn windows_at<'a>(
        &'a self,
        view: &'a View,
        keys: &'a [EntityKey],
        at: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Vec<Value>>>> {
        let (offline, view, keys) = (self.clone(), view.clone(), keys.to_vec());
        let asked = self.background.handle().spawn(async move { offline.windows_of(&view, &keys, at).await });
        Box::pin(async move { asked.await.map_err(|e| Error::internal("the training set broke off", e))? })
    }
}

/// The join keys in the order of the cut's key columns; none without entities.
fn keys_of(view: &View) -> Vec<JoinKey> {
    if view.is_entityless() { Vec::new() } else { view.join_keys.clone() }
}

/// The last row of each key of a stream sorted by key and time; rows without key or time are
/// counted and left out.
pub(crate) struct LastPerKey {
    chunks: SendableRecordBatchStream,
    cut: Cut,
    rows: KeyRows,
    carry: Option<RecordBatch>,
    view: String,
    scanned: u64,
    skipped: u64,
    done: bool,
}

impl LastPerKey {
    pub(crate) fn new(chunks: SendableRecordBatchStream, cut: Cut, view: &str) -> Result<Self> {
        let types: Vec<KeyType> = cut.keys.iter().map(|(_, t)| *t).collect();
        let rows = KeyRows::new(&types)?;
        Ok(Self { chunks, cut, rows, carry: None, view: view.to_owned(), scanned: 0, skipped: 0, done: false })
    }

    /// Rows that were left out so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next batch of last rows; never an empty one.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while !self.done {
            let Some(chunk) = self.chunks.next().await else {
                self.done = true;
                metrics::scanned(&self.view, self.scanned);
                metrics::skipped(&self.view, self.skipped);
                return Ok(self.carry.take());
            };
            let chunk = chunk.map_err(engine_error)?;
            self.scanned += chunk.num_rows() as u64;
            let chunk = self.keyed(&chunk)?;
            if chunk.num_rows() == 0 {
                continue;
            }
            let chunk = match self.carry.take() {
                Some(carry) => concat_batches(&chunk.schema(), [&carry, &chunk]).map_err(arrow_error)?,
                None => chunk,
            };
            let (keys, _) = sides(&chunk, &self.cut, &self.rows)?;
            let end = chunk.num_rows() - 1;
            let last: UInt32Array = (0..end).filter(|&i| keys.row(i) != keys.row(i + 1)).map(|i| i as u32).collect();
            self.carry = Some(take_record_batch(&chunk, &UInt32Array::from(vec![end as u32])).map_err(arrow_error)?);
            if !last.is_empty() {
                return Ok(Some(take_record_batch(&chunk, &last).map_err(arrow_error)?));
            }
        }
        Ok(None)
    }

    fn keyed(&mut self, chunk: &RecordBatch) -> Result<RecordBatch> {
        let (kept, skipped) = keyed(chunk, &self.cut)?;
        self.skipped += skipped;
        Ok(kept)
    }
}

/// The rows that have a key and a time, and how many have not.
fn keyed(chunk: &RecordBatch, cut: &Cut) -> Result<(RecordBatch, u64)> {
    let parts = &chunk.columns()[..=cut.time_at()];
    if parts.iter().all(|c| c.null_count() == 0) {
        return Ok((chunk.clone(), 0));
    }
    let kept: UInt32Array =
        (0..chunk.num_rows()).filter(|&i| parts.iter().all(|c| c.is_valid(i))).map(|i| i as u32).collect();
    let skipped = (chunk.num_rows() - kept.len()) as u64;
    Ok((take_record_batch(chunk, &kept).map_err(arrow_error)?, skipped))
}

/// Rows that are made on the background's threads, at most [`READY`] batches ahead of who takes them.
struct Ahead {
    receive: mpsc::Receiver<Result<Option<Vec<KeyedRow>>>>,
    skipped: Arc<AtomicU64>,
    /// Who takes no more rows ends the scan, or the sort, that makes them.
    _reader: AbortOnDropHandle<()>,
}

impl RowBatches for Ahead {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeyedRow>>>> {
        Box::pin(async move {
            // the end is a message: a channel that closes without it was left by a task that broke off
            let lost = || Err(Error::new(Kind::Internal, "reading the batch source broke off"));
            self.receive.recv().await.unwrap_or_else(lost)
        })
    }

    fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

struct LatestRows {
    latest: Latest,
    cut: Cut,
    keys: Vec<JoinKey>,
    features: Vec<Field>,
    skipped: Arc<AtomicU64>,
}

impl LatestRows {
    /// Sends all batches, unless the receiver goes.
    async fn send(mut self, to: &mpsc::Sender<Result<Option<Vec<KeyedRow>>>>) -> Result<()> {
        while let Some(batch) = self.latest.next().await? {
            self.skipped.store(self.latest.skipped(), Ordering::Relaxed);
            if to.send(Ok(Some(self.rows(&batch)?))).await.is_err() {
                break;
            }
        }
        self.skipped.store(self.latest.skipped(), Ordering::Relaxed);
        Ok(())
    }

    fn rows(&self, batch: &RecordBatch) -> Result<Vec<KeyedRow>> {
        let cut = &self.cut;
        let keys = entity_keys(batch, &self.keys)?;
        let times = micros(&cut.time, batch.column(cut.time_at()))?;
        let created = match cut.created_at() {
            Some(at) => Some(micros(cut.created.as_deref().unwrap_or_default(), batch.column(at))?),
            None => None,
        };
        let features = self
            .features
            .iter()
            .enumerate()
            .map(|(i, f)| values(&f.name, batch.column(cut.values_at() + i), f.value_type))
            .collect::<Result<Vec<_>>>()?;
        let ids: Vec<u32> = self.features.iter().map(|f| column_id(&f.name)).collect();
        let rows = keys.into_iter().enumerate().map(|(row, key)| {
            let created = created.as_ref().filter(|c| c.is_valid(row)).map_or(0, |c| c.value(row));
            let version = Version { event: Timestamp(times.value(row)), created: Timestamp(created) };
            let columns = features
                .iter()
                .zip(&ids)
                .map(|(values, &id)| Column { id, value: Bytes::from(values[row].encode_to_vec()), version })
                .collect();
            (key, Row::pack(columns))
        });
        Ok(rows.collect())
    }
}

struct Events {
    chunks: SendableRecordBatchStream,
    cut: Cut,
    keys: Vec<JoinKey>,
    view: String,
    skipped: u64,
}

impl EventBatches for Events {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<RawEvent>>>> {
        Box::pin(async move {
            let Some(chunk) = self.chunks.next().await else {
                metrics::skipped(&self.view, self.skipped);
                return Ok(None);
            };
            let chunk = chunk.map_err(engine_error)?;
            metrics::scanned(&self.view, chunk.num_rows() as u64);
            let (chunk, skipped) = keyed(&chunk, &self.cut)?;
            self.skipped += skipped;
            let keys = entity_keys(&chunk, &self.keys)?;
            let times = micros(&self.cut.time, chunk.column(self.cut.time_at()))?;
            let columns = self
                .cut
                .values
                .iter()
                .enumerate()
                .map(|(i, name)| values(name, chunk.column(self.cut.values_at() + i), ValueType::Invalid))
                .collect::<Result<Vec<_>>>()?;
            let events = keys.into_iter().enumerate().map(|(row, key)| RawEvent {
                key,
                time: Timestamp(times.value(row)),
                values: columns.iter().map(|c| c[row].clone()).collect(),
            });
            Ok(Some(events.collect()))
        })
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// The entity keys of a batch whose first columns are the join keys.
fn entity_keys(batch: &RecordBatch, keys: &[JoinKey]) -> Result<Vec<EntityKey>> {
    if keys.is_empty() {
        return Ok(vec![EntityKey::dummy(); batch.num_rows()]);
    }
    let columns = keys
        .iter()
        .enumerate()
        .map(|(i, key)| values(&key.name, batch.column(i), key.value_type))
        .collect::<Result<Vec<_>>>()?;
    (0..batch.num_rows())
        .map(|row| {
            let parts: Vec<(&str, &Value)> =
                keys.iter().zip(&columns).map(|(k, c)| (k.name.as_str(), &c[row])).collect();
            EntityKey::encode(&parts)
        })
        .collect()
}

fn values(name: &str, column: &ArrayRef, value_type: ValueType) -> Result<Vec<Value>> {
    to_values(column, value_type).map_err(|e| in_column(name, &e))
}

impl Offline {
    /// Rows by the view's names as a batch by the source's names and types.
    async fn append_rows(&self, view: &View, rows: AppendRows) -> Result<u64> {
        let source = view
            .batch_source
            .as_ref()
            .ok_or_else(|| Error::invalid(format!("Feature view '{}' has no batch_source to append to", view.name)))?;
        let (writer, source, view) = (self.writer(), Arc::clone(source), view.clone());
        let append = async move { crate::append::values(&writer, source, &view, rows).await };
        let done = self.background.handle().spawn(append).await;
        done.map_err(|e| Error::internal("appending to the batch source broke off", e))?
    }
}
