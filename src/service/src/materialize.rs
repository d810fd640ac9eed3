//! The verb "materialize": the latest row per key of a view's batch source goes into the online
//! store, batch by batch; last write wins, so reads go on untouched and a repeat changes nothing.
//!
//! Knows no file format and no protocol. Sources: `materialize`, `materialize_incremental` and
//! `_get_feature_views_to_materialize` in `feast/feature_store.py`.

mod jobs;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use model::ports::{Clock, OfflineLog, OnlineStore, RowWrite, WriteBatch};
use model::registry::{Registry, View, ViewKind};
use model::{Error, Kind, Result, Timestamp};
use tokio::task::JoinSet;

use crate::catalog::{Catalog, gone, versions};
use crate::metrics;
pub use jobs::Progress;

/// From when to materialize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From a given time on.
    At(Timestamp),
    /// From the view's last materialization on; else its ttl back; else a year back.
    Incremental,
}

/// A year, as Feast's default look-back counts it: 52 weeks, in µs.
const YEAR_US: i64 = 52 * 7 * 86_400 * 1_000_000;

/// Views of one job that are materialized at the same time.
const AT_ONCE: usize = 2;

/// How long until the log says again how far a view is, µs.
const QUIET_US: i64 = 10_000_000;

/// Materializes views of one project.
pub struct Materializer {
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    log: Arc<dyn OfflineLog>,
    clock: Arc<dyn Clock>,
    project: String,
    running: Arc<Mutex<BTreeSet<String>>>,
    jobs: jobs::Jobs,
}

/// Views reserved for one materialization; dropping it lets them go.
#[must_use]
pub struct Job {
    views: Vec<Arc<View>>,
    running: Arc<Mutex<BTreeSet<String>>>,
}

impl Job {
    /// The reserved views' names.
    pub fn names(&self) -> Vec<String> {
        self.views.iter().map(|v| v.name.clone()).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for view in &self.views {
            running.remove(&view.name);
        }
    }
}

impl Materializer {
    /// Reads `project`'s batch sources through `log` and writes to `store`.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<dyn OnlineStore>,
        log: Arc<dyn OfflineLog>,
        clock: Arc<dyn Clock>,
        project: String,
    ) -> Self {
        Self { catalog, store, log, clock, project, running: Arc::default(), jobs: jobs::Jobs::default() }
    }

    /// The same for another project.
    #[must_use]
    pub fn of_project(&self, project: &str) -> Self {
        let (catalog, store, log) = (self.catalog.clone(), self.store.clone(), self.log.clone());
        Self::new(catalog, store, log, self.clock.clone(), project.to_owned())
    }

    /// How far the materializations are that were asked for here, the newest first.
    pub fn progress(&self) -> Vec<Progress> {
        self.jobs.list()
    }

    /// Now, by the server's clock: the end of a materialization without event timestamps.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reserves the views named (all that can be materialized where none are), or one view's `version`.
    ///
    /// Errors: an unknown view, one that is not online or has no batch source, and `Conflict` where
    /// one of them is being materialized.
    pub async fn reserve(&self, names: Option<&[String]>, version: Option<&str>) -> Result<Job> {
        let registry = self.catalog.refreshed().await?;
        let project = registry.project(&self.project)?;
        if let Some(number) = version.map(|v| versioned(&registry, names, v)).transpose()?.flatten() {
            let name = names.and_then(<[_]>::first).map_or("", String::as_str);
            project.view(name, &self.project)?;
            let view = project.version(name, number, &self.project)?;
            return refusal(view).map_or_else(|| self.take(vec![view.clone()]), Err);
        }
        let views = match names {
            None => project.views.values().filter(|v| refusal(v).is_none()).cloned().collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    let view = project.view(name, &self.project)?;
                    refusal(view).map_or_else(|| Ok(view.clone()), Err)
                })
                .collect::<Result<Vec<_>>>()?,
        };
        self.take(views)
    }

    fn take(&self, views: Vec<Arc<View>>) -> Result<Job> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let busy: Vec<_> = views.iter().map(|v| v.name.as_str()).filter(|n| running.contains(*n)).collect();
        if !busy.is_empty() {
            return Err(Error::new(
                Kind::Conflict,
                format!("feature views {busy:?} are already being materialized: wait for that to end, then ask again"),
            ));
        }
        running.extend(views.iter().map(|v| v.name.clone()));
        Ok(Job { views, running: self.running.clone() })
    }

    /// Materializes the reserved views in `[start, end)`, a few at once, and records the intervals in
    /// the registry.
    ///
    /// Errors: that of the first view that failed; those that run by then are finished, no others begin.
    pub async fn run(self: &Arc<Self>, job: Job, start: Start, end: Timestamp) -> Result<()> {
        let mut views = job.views.iter().cloned();
        let (mut running, mut failed) = (JoinSet::new(), None);
        loop {
            while failed.is_none() && running.len() < AT_ONCE {
                let Some(view) = views.next() else { break };
                let materializer = self.clone();
                running.spawn(async move { materializer.view(&view, start, end).await });
            }
            let stopped = |e| Error::internal("the materialization stopped unexpectedly", e);
            match running.join_next().await.map(|done| done.map_err(stopped).flatten()) {
                None => return failed.map_or(Ok(()), Err),
                Some(Err(error)) => failed = failed.or(Some(error)),
                Some(Ok(())) => {}
            }
        }
    }

    async fn view(&self, view: &Arc<View>, start: Start, end: Timestamp) -> Result<()> {
        let start = match start {
            Start::At(start) => start,
            Start::Incremental => self.incremental_start(view),
        };
        if start >= end {
            if matches!(last_end(view), Some(last) if last >= end) {
                return Ok(());
            }
            return Err(Error::invalid(format!("start_ts ({start}) must be before end_ts ({end})")));
        }
        let id = self.jobs.begin(&view.name, start, end, self.clock.now());
        let done = self.materialize(view, start, end, id).await;
        self.jobs.end(id, self.clock.now(), done.as_ref().err());
        done?;
        let registry = self.catalog.snapshot();
        let now = registry.projects.get(&self.project).and_then(|p| p.views.get(&view.name));
        // the intervals are those of the version that is the view now
        if now.is_some_and(|now| now.table == view.table) {
            self.catalog.materialized(&self.project, &view.name, start, end).await?;
        }
        Ok(())
    }

    fn incremental_start(&self, view: &View) -> Timestamp {
        last_end(view).unwrap_or_else(|| {
            let back = if view.ttl_us > 0 { view.ttl_us } else { YEAR_US };
            Timestamp(self.clock.now().micros() - back)
        })
    }

    /// A view that was deleted meanwhile gets no more rows.
    fn check_registered(&self, view: &View) -> Result<()> {
        let registry = self.catalog.snapshot();
        if gone::in_use(&registry, &view.table) {
            return Ok(());
        }
        Err(Error::feature_view_not_found(&view.name, &self.project))
    }

    async fn materialize(&self, view: &Arc<View>, start: Timestamp, end: Timestamp, id: jobs::Id) -> Result<()> {
        let began = self.clock.now();
        let (mut rows, mut applied, mut told) = (0, 0, began.micros());
        let mut batches = self.log.latest(view, start..end).await?;
        while let Some(batch) = batches.next().await? {
            let count = batch.len() as u64;
            let writes = batch.into_iter().map(|(key, row)| RowWrite { table: view.table.clone(), key, row }).collect();
            let _until_written = self.catalog.writing_rows().await;
            self.check_registered(view)?;
            let written = self.store.write(WriteBatch { rows: writes, ..WriteBatch::default() }).await?;
            (rows, applied) = self.jobs.add(id, count, written.applied as u64);
            let now = self.clock.now().micros();
            if now - told >= QUIET_US {
                told = now;
                tracing::info!(project = view.project, view = view.name, rows, applied, "materializing");
            }
        }
        let seconds = (self.clock.now().micros() - began.micros()) as f64 / 1e6;
        metrics::materialized(&view.project, &view.name, rows, applied, seconds);
        Ok(())
    }
}

/// The number of the one view's version that is asked for; `None` is the latest.
/// Source: `_validate_materialize_version` in `feast/feature_store.py`.
fn versioned(registry: &Registry, names: Option<&[String]>, version: &str) -> Result<Option<i32>> {
    if names.is_none_or(|names| names.len() != 1) {
        return Err(Error::invalid("--version requires --views with exactly one feature view."));
    }
    if !registry.online_versions {
        return Err(Error::invalid(
            "Version-aware materialization requires 'enable_online_feature_view_versioning: true' under 'registry' in \
             feature_store.yaml.",
        ));
    }
    versions::parse(version).ok_or_else(|| {
        Error::invalid(format!(
            "Invalid version string '{version}'. Expected 'latest', 'vN', or 'versionN' (e.g. 'v2', 'version3')."
        ))
    })
}

/// The end of the view's latest materialization.
fn last_end(view: &View) -> Option<Timestamp> {
    view.materialized.iter().map(|(_, end)| Timestamp(*end)).max()
}

/// Why a view cannot be materialized; `None` where it can.
fn refusal(view: &View) -> Option<Error> {
    let name = &view.name;
    if view.kind == ViewKind::Label {
        return Some(Error::invalid(format!(
            "LabelView {name} cannot be materialized via materialize(). Use FeatureStore.push() to write labels."
        )));
    }
    if view.kind == ViewKind::OnDemand {
        return Some(Error::invalid(format!("{name} has no batch source to materialize: it gets its data by push")));
    }
    if !view.online {
        return Some(Error::invalid(format!("FeatureView {name} is not configured to be served online.")));
    }
    if view.disabled {
        return Some(Error::invalid(format!("FeatureView {name} is disabled: enable it before materializing it")));
    }
    if view.is_windowed() {
        return Some(Error::new(
            Kind::Unsupported,
            format!("{name} is computed from its stream: it needs no materialization, and backfill is not built yet"),
        ));
    }
    if view.batch_source.is_none() {
        return Some(Error::invalid(format!("FeatureView {name} has no batch source")));
    }
    None
}
