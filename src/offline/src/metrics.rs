//! What the offline side counts: `larder_offline_…`. Knows no exporter: the binary installs one.

use std::time::Instant;

use ::metrics::{counter, gauge, histogram};
use model::Error;

/// Rows read from a view's source: what filters leave of its files, row groups and pages.
pub(crate) fn scanned(view: &str, rows: u64) {
    counter!("larder_offline_rows_scanned_total", "view" => view.to_owned()).increment(rows);
}

/// A view whose history had to be sorted: what is kept of it otherwise does not fit, or it counts from its created time.
pub(crate) fn sorted(view: &str) {
    counter!("larder_offline_sorts_total", "view" => view.to_owned()).increment(1);
    tracing::info!(view, "the history is sorted before it is joined");
}

/// An entity frame that memory has no room for, and so is on disk.
pub(crate) fn frame_spilled() {
    counter!("larder_offline_frames_spilled_total").increment(1);
}

/// A part of an entity frame that was joined.
pub(crate) fn part_joined() {
    counter!("larder_offline_parts_joined_total").increment(1);
}

/// Entity rows that a view was joined to, and how many of them found a row.
pub(crate) fn joined(view: &str, rows: u64, matched: u64) {
    counter!("larder_offline_rows_joined_total", "view" => view.to_owned()).increment(rows);
    counter!("larder_offline_rows_matched_total", "view" => view.to_owned()).increment(matched);
}

/// Rows of results that left through Flight.
pub(crate) fn exported(rows: u64) {
    counter!("larder_offline_rows_exported_total").increment(rows);
}

/// Rows appended to a source.
pub(crate) fn appended(source: &str, rows: u64) {
    counter!("larder_offline_rows_appended_total", "source" => source.to_owned()).increment(rows);
    tracing::info!(source, rows, "appended to the batch source");
}

/// Events appended to a view's event log.
pub(crate) fn logged(view: &str, events: u64) {
    counter!("larder_offline_events_logged_total", "view" => view.to_owned()).increment(events);
}

/// Rows of a source that have no key or no time, and so belong to no entity.
pub(crate) fn skipped(view: &str, rows: u64) {
    if rows > 0 {
        counter!("larder_offline_rows_skipped_total", "view" => view.to_owned()).increment(rows);
        tracing::warn!(view, rows, "rows of the batch source with a null key or timestamp were left out");
    }
}

/// One Flight call, from its first message to the end of its result: counted when dropped.
#[derive(Debug)]
pub(crate) struct Call {
    api: &'static str,
    start: Instant,
    outcome: &'static str,
}

impl Call {
    /// A call that began now; a client that hangs up leaves it "cancelled".
    pub(crate) fn begin(api: &'static str) -> Self {
        Self { api, start: Instant::now(), outcome: "cancelled" }
    }

    /// The result is all sent.
    pub(crate) fn ok(&mut self) {
        self.outcome = "ok";
    }

    /// The result is at its end: all sent, if nothing failed before.
    pub(crate) fn ok_unless_failed(&mut self) {
        if self.outcome == "cancelled" {
            self.outcome = "ok";
        }
    }

    /// It failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.outcome = error.kind().as_str();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let seconds = self.start.elapsed().as_secs_f64();
        counter!("larder_offline_requests_total", "api" => self.api, "outcome" => self.outcome).increment(1);
        histogram!("larder_offline_seconds", "api" => self.api).record(seconds);
        if !matches!(self.outcome, "ok" | "cancelled") {
            counter!("larder_offline_errors_total", "api" => self.api, "kind" => self.outcome).increment(1);
        }
        tracing::info!(api = self.api, outcome = self.outcome, seconds, "flight call");
    }
}

/// One call of an on-demand view's function.
#[derive(Debug)]
pub(crate) struct Transformed {
    runner: &'static str,
    start: Instant,
}

impl Transformed {
    /// A call that began now.
    pub(crate) fn begin(runner: &'static str) -> Self {
        Self { runner, start: Instant::now() }
    }

    /// It is done.
    pub(crate) fn end<T>(self, result: &Result<T, Error>) {
        let outcome = result.as_ref().map_or_else(|e| e.kind().as_str(), |_| "ok");
        counter!("larder_transformations_total", "runner" => self.runner, "outcome" => outcome).increment(1);
        let seconds = self.start.elapsed().as_secs_f64();
        histogram!("larder_transformation_seconds", "runner" => self.runner).record(seconds);
    }
}

/// A transformation worker that is ready.
pub(crate) fn worker_started() {
    counter!("larder_transformation_workers_started_total").increment(1);
    tracing::info!("a transformation worker is ready");
}

/// A transformation worker that is of no more use, and why.
pub(crate) fn worker_replaced(reason: &'static str) {
    counter!("larder_transformation_workers_replaced_total", "reason" => reason).increment(1);
    tracing::warn!(reason, "a transformation worker is replaced");
}

/// Calls that wait for a worker.
pub(crate) fn waiting(calls: usize) {
    gauge!("larder_transformation_calls_waiting").set(calls as f64);
}
