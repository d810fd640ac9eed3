//! What the online stores count, and the log lines that go with it. Knows no exporter.
//!
//! | name | type | unit | labels |
//! |---|---|---|---|
//! | `larder_online_rows_read_total` | counter | keys read | `store`, `result`: `found`, `missing` |
//! | `larder_online_states_read_total` | counter | keys read | `store`, `result` |
//! | `larder_online_rows_written_total` | counter | rows | `store`, `result`: `applied`, `stale` |
//! | `larder_online_states_written_total` | counter | states set or removed | `store` |
//! | `larder_online_tier_reads_total` | counter | keys looked up in the memory tier | `result`: `hit`, `miss` |
//! | `larder_online_tier_bytes` | gauge | bytes in the memory tier, overhead included | |
//! | `larder_online_overlay_bytes` | gauge | bytes that wait in memory and in the log for a run | |
//! | `larder_online_batch_rows` | histogram | rows and states in one group of writes | |
//! | `larder_online_flush_seconds` | histogram | seconds to make a group of batches durable | |
//! | `larder_online_flush_failures_total` | counter | groups that could not be made durable | |
//! | `larder_online_drain_seconds` | histogram | seconds to carry what the log held into a run and sled | |
//! | `larder_online_drain_failures_total` | counter | times that failed, to be tried again | |
//! | `larder_online_state_runs` | gauge | runs of rows and window states | |
//! | `larder_online_state_run_bytes` | gauge | bytes of their files | |
//! | `larder_online_run_memory_bytes` | gauge | bytes of their indexes and filters, in memory | |
//! | `larder_online_merge_seconds` | histogram | seconds to merge some of them into one | |
//! | `larder_online_merge_failures_total` | counter | times that failed or found no room | |
//! | `larder_online_checksum_failures_total` | counter | stored values found damaged | |
//!
//! Handles are made once, when a store is made: install the recorder before that.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use model::Row;
use model::ports::Written;

/// A store's reads and writes.
pub(crate) struct Traffic {
    rows_found: Counter,
    rows_missing: Counter,
    states_found: Counter,
    states_missing: Counter,
    applied: Counter,
    stale: Counter,
    states_written: Counter,
}

impl Traffic {
    /// Counters with the label `store`.
    pub(crate) fn new(store: &'static str) -> Self {
        let read = |name: &'static str, result: &'static str| counter!(name, "store" => store, "result" => result);
        Self {
            rows_found: read("larder_online_rows_read_total", "found"),
            rows_missing: read("larder_online_rows_read_total", "missing"),
            states_found: read("larder_online_states_read_total", "found"),
            states_missing: read("larder_online_states_read_total", "missing"),
            applied: read("larder_online_rows_written_total", "applied"),
            stale: read("larder_online_rows_written_total", "stale"),
            states_written: counter!("larder_online_states_written_total", "store" => store),
        }
    }

    /// Rows were read.
    pub(crate) fn rows_counted(&self, found: usize, missing: usize) {
        self.rows_found.increment(found as u64);
        self.rows_missing.increment(missing as u64);
    }

    /// The same, counted here.
    pub(crate) fn rows(&self, answer: &[Vec<Option<Row>>]) {
        count(answer, &self.rows_found, &self.rows_missing);
    }

    /// Window states were read.
    pub(crate) fn states<T>(&self, answer: &[Vec<Option<T>>]) {
        count(answer, &self.states_found, &self.states_missing);
    }

    /// A batch was applied.
    pub(crate) fn written(&self, written: &Written, states: usize) {
        self.applied.increment(written.applied as u64);
        self.stale.increment(written.stale.len() as u64);
        self.states_written.increment(states as u64);
    }
}

fn count<T>(answer: &[Vec<Option<T>>], found: &Counter, missing: &Counter) {
    let there = answer.iter().flatten().filter(|entry| entry.is_some()).count();
    let asked = answer.iter().map(Vec::len).sum::<usize>();
    found.increment(there as u64);
    missing.increment((asked - there) as u64);
}

/// What only the store on disk has.
pub(crate) struct Disk {
    pub(crate) tier_hits: Counter,
    pub(crate) tier_misses: Counter,
    pub(crate) tier_bytes: Gauge,
    pub(crate) batch_rows: Histogram,
    pub(crate) flush_seconds: Histogram,
    pub(crate) overlay_bytes: Gauge,
    pub(crate) drain_seconds: Histogram,
    pub(crate) runs: Gauge,
    pub(crate) run_bytes: Gauge,
    pub(crate) run_memory: Gauge,
    pub(crate) merge_seconds: Histogram,
    merge_failures: Counter,
    drain_failures: Counter,
    flush_failures: Counter,
    checksum_failures: Counter,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            tier_hits: counter!("larder_online_tier_reads_total", "result" => "hit"),
            tier_misses: counter!("larder_online_tier_reads_total", "result" => "miss"),
            tier_bytes: gauge!("larder_online_tier_bytes"),
            batch_rows: histogram!("larder_online_batch_rows"),
            flush_seconds: histogram!("larder_online_flush_seconds"),
            overlay_bytes: gauge!("larder_online_overlay_bytes"),
            drain_seconds: histogram!("larder_online_drain_seconds"),
            runs: gauge!("larder_online_state_runs"),
            run_bytes: gauge!("larder_online_state_run_bytes"),
            run_memory: gauge!("larder_online_run_memory_bytes"),
            merge_seconds: histogram!("larder_online_merge_seconds"),
            merge_failures: counter!("larder_online_merge_failures_total"),
            drain_failures: counter!("larder_online_drain_failures_total"),
            flush_failures: counter!("larder_online_flush_failures_total"),
            checksum_failures: counter!("larder_online_checksum_failures_total"),
        }
    }

    /// A stored value is not what was written.
    pub(crate) fn damaged(&self, what: &str) {
        self.checksum_failures.increment(1);
        tracing::error!(what, "a stored value is damaged: its checksum does not match");
    }

    /// Making a group of batches durable failed.
    pub(crate) fn flush_failed(&self, error: &model::Error) {
        self.flush_failures.increment(1);
        tracing::error!(error = %error, cause = ?std::error::Error::source(error), "the online store could not be flushed");
    }

    /// Merging runs failed: they are read as they are.
    pub(crate) fn merge_failed(&self, why: &str) {
        self.merge_failures.increment(1);
        tracing::error!(why, "runs could not be merged: rows and window states are read from more files than need be");
    }

    /// Carrying what the log held into sled failed.
    pub(crate) fn drain_failed(&self, error: &model::Error) {
        self.drain_failures.increment(1);
        tracing::error!(error = %error, cause = ?std::error::Error::source(error), "what the write-ahead log holds could not be carried on: it is tried again");
    }
}
