//! States built from history, entity by entity: one state is in memory at a time. The same kernel as for the stream and
//! for training sets. Knows no store and no file: it is given events and gives writes.

use std::sync::Arc;

use model::ports::{EventBatches, RawEvent, StateWrite, Table};
use model::registry::View;
use model::{EntityKey, Error, Result, Timestamp};
use window::{Event, Outcome, Scalar, Spec, State};

/// What the events leave at a time, in a table of the caller's.
pub struct Rebuild<'a> {
    view: &'a View,
    spec: &'a Spec,
    table: Arc<Table>,
    now: Timestamp,
    whole: Vec<bool>,
    open: Option<(EntityKey, State)>,
    ended: bool,
    /// Events that are in states.
    pub applied: u64,
    /// Events that were too old for every window.
    pub too_old: u64,
}

impl<'a> Rebuild<'a> {
    /// For reads from `now` on.
    pub fn new(view: &'a View, spec: &'a Spec, table: Arc<Table>, now: Timestamp) -> Self {
        let whole = whole_columns(spec);
        Self { view, spec, table, now, whole, open: None, ended: false, applied: 0, too_old: 0 }
    }

    /// Folds the next batch of events: the states of the entities of which no more come, perhaps of none; `None` at
    /// the end. Event values must be those of [`super::columns`].
    ///
    /// Errors: those of the events' source; an event whose value is of another type than its column.
    pub async fn next(&mut self, events: &mut dyn EventBatches) -> Result<Option<Vec<StateWrite>>> {
        if self.ended {
            return Ok(None);
        }
        let Some(batch) = events.next().await? else {
            self.ended = true;
            return Ok(Some(self.close().into_iter().collect()));
        };
        let mut done = Vec::new();
        for event in batch {
            if self.open.as_ref().is_none_or(|(key, _)| *key != event.key) {
                done.extend(self.close());
            }
            self.take(event)?;
        }
        Ok(Some(done))
    }

    fn take(&mut self, event: RawEvent) -> Result<()> {
        let read = |(value, whole_number): (&_, &bool)| {
            let scalar = super::to_scalar(value);
            if *whole_number { whole(scalar) } else { scalar }
        };
        let columns: Vec<Scalar> = event.values.iter().zip(&self.whole).map(read).collect();
        let (_, state) = self.open.get_or_insert_with(|| (event.key, State::new(self.spec)));
        let taken = Event { ts_us: event.time.micros(), columns: &columns };
        let outcome = state.apply(self.spec, taken, self.now.micros()).map_err(|e| {
            Error::invalid(format!("the batch source of feature view '{}' at {}: {e}", self.view.name, event.time))
        })?;
        match outcome {
            Outcome::Applied => self.applied += 1,
            Outcome::LateDropped => self.too_old += 1,
        }
        Ok(())
    }

    fn close(&mut self) -> Option<StateWrite> {
        let (key, mut state) = self.open.take()?;
        state.evict(self.spec, self.now.micros());
        let bytes = super::encode(&state, self.spec)?;
        Some(StateWrite { table: Arc::clone(&self.table), key, state: Some(bytes) })
    }
}

/// The columns of [`Spec::columns`] that the definition reads as integers: in a file, a float column carries them where
/// pandas had nulls.
pub fn whole_columns(spec: &Spec) -> Vec<bool> {
    let width = spec.columns().len();
    let refuses_floats = |i| {
        let mut probe = vec![Scalar::Null; width];
        probe[i] = Scalar::Float(0.5);
        spec.check(&probe).is_err()
    };
    (0..width).map(refuses_floats).collect()
}

/// A whole number that came as a float, as an integer; NaN is pandas' null.
pub fn whole(scalar: Scalar) -> Scalar {
    match scalar {
        Scalar::Float(v) if v.is_nan() => Scalar::Null,
        Scalar::Float(v) if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 => Scalar::Int(v as i64),
        other => other,
    }
}
