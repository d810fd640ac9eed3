//! What was known at a time: the point-in-time join over rows that count only from when they became known on.
//!
//! Such rows come in the order (key, later of event time and the time when they became known), so that all rows so far are known at an
//! entity row's time; the one that counts is the greatest by (event time, created time, arrival) among them. Knows no
//! files and no plan.
//!
//! Source: `filter_by_created_timestamp` in `feast/feature_store.py`.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, UInt64Array};
use arrow::datatypes::UInt64Type;
use model::Result;

use crate::asof::{Fold, Latest, Pick};
use crate::convert::micros;
use crate::engine::Cut;

/// [`Latest`], of rows in the order of their event times or in that in which they became known.
#[derive(Debug)]
pub(crate) struct Known {
    latest: Latest,
    chunk: Option<Ranks>,
    best: Option<Rank>,
}

/// Event time and created time in µs (the least where there is none), and the place in the files.
type Rank = (i64, i64, u64);

/// The ranks of a chunk's rows.
#[derive(Debug)]
struct Ranks {
    times: Int64Array,
    created: Option<Int64Array>,
    rows: UInt64Array,
}

impl Known {
    /// Before the first chunk.
    pub(crate) fn new(latest: Latest) -> Self {
        Self { latest, chunk: None, best: None }
    }

    /// Takes the ranks of the next chunk, where its order is not theirs.
    pub(crate) fn chunk(&mut self, chunk: &RecordBatch, cut: &Cut) -> Result<()> {
        if cut.known.is_some() {
            let created = cut.created.as_ref().zip(cut.created_at());
            self.chunk = Some(Ranks {
                times: micros(&cut.time, chunk.column(cut.time_at()))?,
                created: created.map(|(name, at)| micros(name, chunk.column(at))).transpose()?,
                rows: chunk.column(chunk.num_columns() - 1).as_primitive::<UInt64Type>().clone(),
            });
        }
        Ok(())
    }

    /// See [`Latest::drain`].
    pub(crate) fn drain(&mut self) -> (Vec<Pick>, Option<usize>) {
        self.latest.drain()
    }

    /// See [`Latest::slots`].
    pub(crate) fn slots(self) -> Vec<Option<u32>> {
        self.latest.slots()
    }
}

impl Fold for Known {
    fn new_key(&mut self) {
        self.best = None;
        self.latest.new_key();
    }

    fn add(&mut self, row: usize, time: i64) -> Result<()> {
        let Some(chunk) = &self.chunk else { return self.latest.add(row, time) };
        let created = chunk.created.as_ref().filter(|created| created.is_valid(row));
        let created = created.map_or(i64::MIN, |created| created.value(row));
        let rank = (chunk.times.value(row), created, chunk.rows.value(row));
        if self.best.is_some_and(|best| best > rank) {
            return Ok(());
        }
        self.best = Some(rank);
        self.latest.add(row, rank.0)
    }

    fn settle(&mut self, probe: u32, time: i64) {
        self.latest.settle(probe, time);
    }
}
