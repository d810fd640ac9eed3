//! What the verbs count. Knows no exporter: the binary installs one.

use ::metrics::{Counter, Histogram, counter, gauge, histogram};
use model::Error;
use model::ports::Table;

/// What is counted of one project's reads.
pub(crate) struct Reads {
    rows: Counter,
    entities: Histogram,
    values: Counter,
}

impl Reads {
    pub(crate) fn of(project: &str) -> Self {
        let project = || ("project", project.to_owned());
        Self {
            rows: counter!("larder_online_features_rows_total", &[project()]),
            entities: histogram!("larder_online_features_entities", &[project()]),
            values: counter!("larder_online_features_values_total", &[project()]),
        }
    }

    /// One answered read: rows are entity rows, features are columns.
    pub(crate) fn retrieved(&self, rows: usize, features: usize) {
        self.rows.increment(rows as u64);
        self.entities.record(rows as f64);
        self.values.increment((rows * features) as u64);
    }
}

fn of_view(project: &str, view: &str) -> [(&'static str, String); 2] {
    [("project", project.to_owned()), ("view", view.to_owned())]
}

/// One answered read with features that were computed for it, by so many functions.
pub(crate) fn computed(rows: usize, functions: usize) {
    counter!("larder_on_demand_rows_total").increment((rows * functions) as u64);
}

/// One accepted write: rows as the client sent them, and columns that no view uses.
pub(crate) fn pushed(project: &str, verb: &'static str, rows: usize, ignored_columns: usize) {
    let labels = [("project", project.to_owned()), ("verb", verb.to_owned())];
    counter!("larder_pushed_rows_total", &labels).increment(rows as u64);
    if ignored_columns > 0 {
        counter!("larder_push_ignored_columns_total", &labels).increment(ignored_columns as u64);
        tracing::debug!(project, verb, ignored_columns, "columns that no feature view uses were left out");
    }
}

/// One view's materialization: the last rows of its source, how many of them were newer than what was there, and how
/// many rows of the source had no key or no time.
pub(crate) fn materialized(project: &str, view: &str, rows: u64, applied: u64, skipped: u64, seconds: f64) {
    counter!("larder_materialized_rows_total", &of_view(project, view)).increment(rows);
    histogram!("larder_materialize_seconds").record(seconds);
    tracing::info!(project, view, rows, applied, skipped, seconds, "materialized");
}

/// Events pushed to a windowed view, and how many of them were older than every window.
pub(crate) fn events_pushed(project: &str, view: &str, events: usize, late_dropped: usize) {
    let labels = of_view(project, view);
    counter!("larder_pushed_events_total", &labels).increment(events as u64);
    if late_dropped > 0 {
        counter!("larder_pushed_events_late_dropped_total", &labels).increment(late_dropped as u64);
        tracing::info!(project, view, late_dropped, "pushed events were older than every window of the view");
    }
}

/// An entity's stored window state cannot be read: its bytes are not those that were written.
pub(crate) fn state_damaged(project: &str, view: &str, entity: &str, error: &window::Error) {
    counter!("larder_window_states_damaged_total", &of_view(project, view)).increment(1);
    tracing::error!(project, view, entity, %error, "a stored window state is damaged: the entity cannot be answered");
}

/// One change of the registry: `verb` is apply or delete, `kind` the object's class.
pub(crate) fn registry_changed(verb: &'static str, kind: &'static str, project: &str, name: &str) {
    counter!("larder_registry_changes_total", "verb" => verb, "kind" => kind).increment(1);
    tracing::info!(verb, kind, project, name, "registry changed");
}

/// A dataset job has come to a status; `error` says why where that is `failed`.
pub(crate) fn dataset_job(project: &str, dataset: &str, status: &'static str, error: &str) {
    counter!("larder_dataset_jobs_total", "status" => status).increment(1);
    tracing::info!(project, dataset, status, error, "dataset job");
}

/// How many tables of deleted views still have rows.
pub(crate) fn clears_pending(tables: usize) {
    gauge!("larder_online_clears_pending").set(tables as f64);
}

/// A deleted view's rows and states are gone.
pub(crate) fn cleared(table: &Table, removed: u64) {
    counter!("larder_online_cleared_rows_total").increment(removed);
    tracing::info!(project = table.project, table = table.view, removed, "removed the rows of a deleted view");
}

/// A deleted view was registered again before its rows were removed: they are its own now.
pub(crate) fn clear_dropped(table: &Table) {
    tracing::info!(project = table.project, table = table.view, "the deleted view is there again: keeping its rows");
}

/// A deleted view's rows could not be removed; it is tried again.
pub(crate) fn clear_failed(table: &Table, error: &Error) {
    counter!("larder_online_clear_failures_total").increment(1);
    tracing::warn!(project = table.project, table = table.view, %error, "a deleted view's rows could not be removed");
}
