//! Raw events pushed to a windowed view: folded into its window states, one request at a time.
//!
//! For views whose stream source is a push source; a view on Kafka is fed by `ingest`. A push that is
//! sent again counts again: there are no offsets here to tell a repeat from a new event.

use std::sync::Arc;

use model::ports::{Clock, OnlineStore, RowWrite, WriteBatch};
use model::registry::View;
use model::{EntityKey, Error, Kind, Result, Timestamp, ValueType, value};
use tokio::sync::Mutex;
use window::{Scalar, Spec};

use super::{Cell, Frame, column, read_keys, read_versions};
use crate::metrics;
use crate::windows::{self, FoldError, FoldEvent, Folded};

/// How far ahead of the server's clock an event may be, µs (WINDOWS.md).
const MAX_FUTURE_US: i64 = 5_000_000;
/// How often a push is folded anew that another process was quicker than.
const ATTEMPTS: u32 = 20;

/// One view's events of a push.
pub(super) struct ViewEvents {
    view: Arc<View>,
    spec: Spec,
    events: Vec<(EntityKey, Timestamp, Vec<Scalar>)>,
}

/// Writes what is pushed; for events, the lock makes read, fold and write of the states one step.
pub(super) struct Folder {
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    lock: Mutex<()>,
}

impl ViewEvents {
    /// Reads a frame as events of a windowed view: its join keys, its event time, and the columns
    /// that it aggregates.
    ///
    /// Errors: a missing column, a value that the column cannot hold, an event from the future.
    pub(super) fn read(view: Arc<View>, frame: &Frame, now: Timestamp) -> Result<Self> {
        let spec = windows::spec_of(&view)?;
        let versions = read_versions(&view, frame)?;
        let (_, keys) = read_keys(&view, frame)?;
        let columns = spec
            .columns()
            .iter()
            .map(|name| {
                column(&view, frame, name).map(|(_, cells)| (name, cells)).ok_or_else(|| {
                    Error::invalid(format!("Missing the column '{name}' that feature view {} aggregates", view.name))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut events = Vec::with_capacity(frame.rows);
        for (row, (key, version)) in keys.into_iter().zip(versions).enumerate() {
            if version.event.micros() > now.micros().saturating_add(MAX_FUTURE_US) {
                return Err(Error::invalid(format!(
                    "row {row}: the event time {} is more than {} s ahead of the server's clock ({now})",
                    version.event,
                    MAX_FUTURE_US / 1_000_000
                )));
            }
            let scalars = columns
                .iter()
                .map(|(name, cells)| {
                    scalar(&cells.at(row))
                        .map_err(|e| Error::invalid(format!("row {row}, column '{name}': {}", e.message())))
                })
                .collect::<Result<Vec<_>>>()?;
            spec.check(&scalars).map_err(|e| Error::invalid(format!("row {row} of {}: {e}", view.name)))?;
            events.push((key, version.event, scalars));
        }
        Ok(Self { view, spec, events })
    }
}

impl Folder {
    pub(super) fn new(store: Arc<dyn OnlineStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, lock: Mutex::new(()) }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Writes a request's rows and applies its events, in one write: all of it is there or nothing.
    pub(super) async fn write(&self, rows: Vec<RowWrite>, batches: Vec<ViewEvents>) -> Result<()> {
        if batches.is_empty() {
            self.store.write(WriteBatch { rows, ..WriteBatch::default() }).await?;
            return Ok(());
        }
        let _one_at_a_time = self.lock.lock().await;
        let mut attempts = 0;
        loop {
            let now = self.clock.now();
            let mut batch = WriteBatch { rows: rows.clone(), ..WriteBatch::default() };
            let mut counts = Vec::with_capacity(batches.len());
            for events in &batches {
                let folded = self.fold(events, now).await?;
                counts.push((folded.applied, folded.late_dropped));
                batch.states.extend(folded.states);
                batch.before.extend(folded.before);
            }
            attempts += 1;
            match self.store.write(batch).await {
                // another process was quicker with one of the entities: again, from what it wrote
                Err(e) if e.kind() == Kind::Conflict && attempts < ATTEMPTS => {}
                Err(e) if e.kind() == Kind::Conflict => {
                    let said = "other servers keep pushing events of the same entities: try again";
                    return Err(Error::new(Kind::Unavailable, said).with_cause(e));
                }
                written => {
                    written?;
                    for (events, (applied, late)) in batches.iter().zip(counts) {
                        metrics::events_pushed(&events.view.project, &events.view.name, applied, late);
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn fold(&self, batch: &ViewEvents, now: Timestamp) -> Result<Folded> {
        let ViewEvents { view, spec, events } = batch;
        let events: Vec<_> = events.iter().map(borrow).collect();
        let folded = windows::fold(view, spec, &*self.store, &events, now).await;
        folded.map_err(|(FoldError::Store(e) | FoldError::State(e))| e)
    }
}

fn borrow((key, time, columns): &(EntityKey, Timestamp, Vec<Scalar>)) -> FoldEvent<'_> {
    FoldEvent { key, time: *time, columns }
}

/// A cell as an event carries it; text is read as a number where it is one.
fn scalar(cell: &Cell) -> Result<Scalar> {
    Ok(match cell {
        Cell::Json(json) => windows::to_scalar(&value::guess_json(json)?),
        Cell::Typed(typed) => windows::to_scalar(typed),
        Cell::Text(text) => {
            let number =
                value::parse_text(text, ValueType::Int64).or_else(|_| value::parse_text(text, ValueType::Double));
            number.map_or_else(|_| Scalar::Text(text.as_str().into()), |v| windows::to_scalar(&v))
        }
    })
}
