//! The verb "dataset jobs": retrieves what a request asks for, keeps the result, and registers it as a
//! saved dataset; in the background, a few at a time. Knows no file format and no protocol.
//!
//! Jobs stand in the registry, so that they outlive the server: who waits goes on to wait. What a stop
//! interrupts waits again, since nothing of it was written; what a crash interrupts has failed, for it
//! may be the cause. One server runs the jobs of a registry.
//!
//! Source: `feast/dataset_job_manager.py`, `feast/registry_server.py` (`CreateDatasetFromRetrieval`).

mod entities;
mod job;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::ports::{
    Change, Clock, DatasetPreview, DatasetRetrieval, DatasetRows, DatasetStore, KeptDataset, Object, ObjectKind,
};
use model::registry::{FeatureRequest, Registry};
use model::{Error, Kind, Result, Timestamp};
use prost::Message;
use proto::feast::core;
use proto::registry::CreateDatasetFromRetrievalRequest as Request;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use job::{Job, State};

use crate::catalog::Catalog;
use crate::metrics;

/// So many run at once, as in Feast.
const AT_ONCE: usize = 2;
/// So many may wait in a project.
const WAITING: usize = 100;
/// So many that have ended are kept in a project, the latest.
const KEPT: usize = 200;
/// A preview's rows, where none are named, and at most.
const PREVIEW: usize = 10;
const PREVIEW_MOST: usize = 10_000;
/// The event time of a saved dataset (`retrieve_saved_dataset` in `feast/infra/passthrough_provider.py`)
/// is kept to the second at least.
const SECOND: i64 = 1_000_000;
/// Why a job failed that somebody ended.
const CANCELLED: &str = "The job was cancelled.";
/// Between two attempts where the registry cannot be written.
const PAUSE: Duration = Duration::from_secs(1);

/// Dataset jobs, and the rows of saved datasets.
pub struct Datasets {
    catalog: Arc<Catalog>,
    store: Option<Arc<dyn DatasetStore>>,
    clock: Arc<dyn Clock>,
    project: String,
}

impl Datasets {
    /// Retrieves through `store`; where there is none, every call that needs it is refused. `project` is
    /// that of datasets that are asked for without one.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Option<Arc<dyn DatasetStore>>,
        clock: Arc<dyn Clock>,
        project: String,
    ) -> Self {
        Self { catalog, store, clock, project }
    }

    /// Submits a job. What can only be told from the sources is told by the job.
    ///
    /// Errors: `InvalidArgument` for what is missing; no such project; `TooMany` that wait; `Unsupported`
    /// for a place that is no file, or without an offline side.
    pub async fn submit(&self, mut request: Request) -> Result<Job> {
        self.offline()?;
        request.name = request.name.trim().to_owned();
        request.project = request.project.trim().to_owned();
        request.storage_path = request.storage_path.trim().to_owned();
        check(&request)?;
        let job = Job::new(request, self.clock.now());
        let submitted = job.clone();
        self.catalog
            .change(move |registry, _| {
                registry.project(&job.project)?;
                let jobs = job::all(registry, Some(&job.project))?;
                if jobs.iter().filter(|j| !j.status().has_ended()).count() >= WAITING {
                    return Err(Error::new(
                        Kind::TooMany,
                        format!(
                            "{WAITING} dataset jobs wait in project {}: come back when some have ended",
                            job.project
                        ),
                    ));
                }
                let ended = jobs.into_iter().filter(|j| j.status().has_ended()).skip(KEPT - 1);
                let forgotten =
                    ended.map(|j| Change::Delete { kind: ObjectKind::DatasetJob, project: j.project, name: j.id });
                Ok(forgotten.chain([Change::Put(job.object())]).collect())
            })
            .await?;
        metrics::dataset_job(&submitted.project, submitted.dataset(), State::Pending.as_str(), "");
        Ok(submitted)
    }

    /// A job by its id.
    ///
    /// Errors: `FeastObjectNotFoundException`.
    pub fn job(&self, id: &str) -> Result<Job> {
        job::find(&self.catalog.snapshot(), id)
    }

    /// The jobs of a project (of all where `None`), the latest first.
    pub fn jobs(&self, project: Option<&str>, state: Option<State>) -> Result<Vec<Job>> {
        let mut jobs = job::all(&self.catalog.snapshot(), project)?;
        jobs.retain(|job| state.is_none_or(|state| job.status() == state));
        Ok(jobs)
    }

    /// Ends a job before its time: as Feast knows no word for that, it has failed. Nothing of it is kept.
    ///
    /// Errors: `FeastObjectNotFoundException`; `Conflict` where it has ended.
    pub async fn cancel(&self, id: &str) -> Result<Job> {
        let wanted = id.to_owned();
        self.catalog
            .change(move |registry, now| {
                let job = job::find(registry, &wanted)?;
                if job.status().has_ended() {
                    return Err(Error::new(Kind::Conflict, format!("the dataset job {wanted} has ended already")));
                }
                let job = job.finished(now, Some(CANCELLED.to_owned()));
                metrics::dataset_job(&job.project, job.dataset(), State::Failed.as_str(), CANCELLED);
                Ok(vec![Change::Put(job.object())])
            })
            .await?;
        self.job(id)
    }

    /// The first rows of a saved dataset; `limit` of zero is ten.
    ///
    /// Errors: `SavedDatasetNotFound`; a dataset whose rows cannot be read.
    pub async fn preview(&self, project: &str, name: &str, limit: usize) -> Result<DatasetRows> {
        let store = self.offline()?;
        if limit > PREVIEW_MOST {
            return Err(Error::invalid(format!(
                "a preview has at most {PREVIEW_MOST} rows, not {limit}: read the dataset where it is stored"
            )));
        }
        let project = if project.is_empty() { &self.project } else { project };
        let registry = self.catalog.refreshed().await?;
        let object = registry.object(ObjectKind::SavedDataset, project, name)?;
        let unable = |e: Error| {
            Error::of_class(
                e.kind(),
                e.class(),
                format!("Unable to load preview for dataset '{name}': {}", e.message()),
            )
        };
        let limit = if limit == 0 { PREVIEW } else { limit };
        let wanted = wanted(object, limit).map_err(unable)?;
        store.preview(wanted).await.map_err(unable)
    }

    /// Runs the jobs until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(store) = self.store.clone() else { return };
        self.persist("the dataset jobs of before", &shutdown, || self.recover(&*store)).await;
        let mut changes = self.catalog.subscribe();
        let mut running = JoinSet::new();
        loop {
            let registry = changes.borrow_and_update().clone();
            let mut again = false;
            let mut pending = match job::all(&registry, None) {
                Ok(jobs) => jobs,
                Err(error) => {
                    tracing::error!(%error, "dataset jobs cannot be read");
                    Vec::new()
                }
            };
            pending.retain(|job| job.status() == State::Pending);
            // the oldest first
            while running.len() < AT_ONCE
                && let Some(job) = pending.pop()
            {
                match self.begin(job).await {
                    Ok(Some(job)) => {
                        let (this, store, shutdown) = (self.clone(), store.clone(), shutdown.clone());
                        running.spawn(async move { this.work(&*store, job, &shutdown).await });
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "a dataset job could not be started");
                        again = true;
                        break;
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
                Some(_) = running.join_next() => {}
                () = tokio::time::sleep(PAUSE), if again => {}
            }
        }
        while running.join_next().await.is_some() {}
    }

    fn offline(&self) -> Result<&Arc<dyn DatasetStore>> {
        self.store.as_ref().ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                "FeatureStore is not available for dataset operations: start Larder with its offline service",
            )
        })
    }

    /// What ran when the server died has failed, and nothing of it stays.
    async fn recover(&self, store: &dyn DatasetStore) -> Result<()> {
        let registry = self.catalog.refreshed().await?;
        for job in job::all(&registry, None)?.iter().filter(|job| job.status() == State::Running) {
            // what cannot be removed goes with the next write into its folder
            if let Err(error) = store.clear(&job.request.storage_path).await {
                tracing::warn!(%error, job = job.id, "what a dataset job left could not be removed");
            }
        }
        self.catalog
            .change(|registry, now| {
                let mut jobs = job::all(registry, None)?;
                jobs.retain(|job| job.status() == State::Running);
                let failed = jobs.into_iter().map(|job| {
                    let why = "The server went down while the job ran: submit it again.";
                    metrics::dataset_job(&job.project, job.dataset(), State::Failed.as_str(), why);
                    Change::Put(job.finished(now, Some(why.to_owned())).object())
                });
                Ok(failed.collect())
            })
            .await
    }

    /// Takes a job that waits; `None` where it is gone meanwhile.
    async fn begin(&self, job: Job) -> Result<Option<Job>> {
        self.moved(job.clone(), State::Pending, |job, _| Ok((job.in_state(State::Running), Vec::new()))).await?;
        let job = self.job(&job.id).ok().filter(|job| job.status() == State::Running);
        Ok(job)
    }

    /// Changes a job that is still there and still `from`.
    async fn moved<F>(&self, job: Job, from: State, to: F) -> Result<()>
    where
        F: FnOnce(Job, &Registry) -> Result<(Job, Vec<Change>)> + Send + 'static,
    {
        self.catalog
            .change(move |registry, _| {
                let Ok(found) = job::find(registry, &job.id) else { return Ok(Vec::new()) };
                if found.status() != from {
                    return Ok(Vec::new());
                }
                let (job, mut changes) = to(found, registry)?;
                changes.push(Change::Put(job.object()));
                Ok(changes)
            })
            .await
    }

    /// One job, from its retrieval to its end.
    async fn work(&self, store: &dyn DatasetStore, job: Job, shutdown: &CancellationToken) {
        let mut changes = self.catalog.subscribe();
        let ended = |registry: &Arc<Registry>| job::find(registry, &job.id).is_ok_and(|job| job.status().has_ended());
        let kept = tokio::select! {
            kept = self.keep(store, &job.request) => Some(kept),
            Ok(_) = changes.wait_for(ended) => return,
            () = shutdown.cancelled() => None,
        };
        let name = format!("the end of dataset job {}", job.id);
        let done = kept.as_ref().map(|kept| kept.as_ref().map_err(|e| e.message().to_owned()).cloned());
        self.persist(&name, shutdown, || self.end(job.clone(), done.clone())).await;
    }

    async fn keep(&self, store: &dyn DatasetStore, request: &Request) -> Result<KeptDataset> {
        // a definition that was applied before the job is submitted counts, whoever wrote it
        self.catalog.refreshed().await?;
        let features = if request.feature_service_name.is_empty() {
            FeatureRequest::Refs(request.features.clone())
        } else {
            FeatureRequest::Service(request.feature_service_name.clone())
        };
        let retrieval = DatasetRetrieval {
            project: request.project.clone(),
            features,
            entities: entities::rows(request, self.clock.now())?,
            constants: entities::constants(request),
            path: request.storage_path.clone(),
            overwrite: request.allow_overwrite,
        };
        store.keep(retrieval).await
    }

    /// Says how a job ended; `None` is not at all.
    async fn end(&self, job: Job, done: Option<std::result::Result<KeptDataset, String>>) -> Result<()> {
        let now = self.clock.now();
        self.moved(job, State::Running, move |job, registry| {
            let Some(done) = done else { return Ok((job.in_state(State::Pending), Vec::new())) };
            let registered = done
                .and_then(|kept| registered(registry, &job.request, &kept, now).map_err(|e| e.message().to_owned()));
            let (error, changes) = match registered {
                Ok(changes) => (None, changes),
                Err(error) => (Some(error), Vec::new()),
            };
            let job = job.finished(now, error);
            metrics::dataset_job(&job.project, job.dataset(), job.status().as_str(), &job.error);
            Ok((job, changes))
        })
        .await
    }

    /// Tries until it is written, or until there is no time left.
    async fn persist<F, T>(&self, what: &str, shutdown: &CancellationToken, attempt: F)
    where
        F: Fn() -> T,
        T: Future<Output = Result<()>>,
    {
        while let Err(error) = attempt().await {
            tracing::error!(%error, "{what} could not be written");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// What is missing in a request.
fn check(request: &Request) -> Result<()> {
    let missing = |what: &str| Err(Error::invalid(what));
    if request.name.is_empty() {
        return missing("Dataset name is required.");
    }
    if request.project.is_empty() {
        return missing("Project is required.");
    }
    if request.storage_path.is_empty() {
        return missing("Storage path (output destination) is required.");
    }
    if request.feature_service_name.is_empty() && request.features.is_empty() {
        return missing("Either feature_service_name or features list is required.");
    }
    if !matches!(request.storage_type.as_str(), "" | "file") {
        return Err(Error::new(
            Kind::Unsupported,
            format!("storage_type '{}' is not built: Larder keeps datasets as files, say 'file'", request.storage_type),
        ));
    }
    entities::check(request)
}

/// The changes that register a dataset that was kept.
fn registered(registry: &Registry, request: &Request, kept: &KeptDataset, now: Timestamp) -> Result<Vec<Change>> {
    use core::saved_dataset_storage::Kind as Storage;
    let format = core::file_format::Format::ParquetFormat(core::file_format::ParquetFormat::default());
    let file = core::data_source::FileOptions {
        uri: request.storage_path.clone(),
        file_format: Some(core::FileFormat { format: Some(format) }),
        ..Default::default()
    };
    let spec = core::SavedDatasetSpec {
        name: request.name.clone(),
        project: request.project.clone(),
        features: kept.refs.clone(),
        join_keys: kept.join_keys.clone(),
        storage: Some(core::SavedDatasetStorage { kind: Some(Storage::FileStorage(file)) }),
        feature_service_name: request.feature_service_name.clone(),
        tags: request.tags.clone(),
        ..Default::default()
    };
    let meta = core::SavedDatasetMeta {
        min_event_timestamp: Some(kept.span.start().to_proto()),
        max_event_timestamp: Some(kept.span.end().to_proto()),
        ..Default::default()
    };
    let dataset = core::SavedDataset { spec: Some(spec), meta: Some(meta) };
    let bytes = Bytes::from(dataset.encode_to_vec());
    crate::catalog::applied(registry, ObjectKind::SavedDataset, &request.project, bytes, now)
}

/// Which rows of a saved dataset are its own (`retrieve_saved_dataset`).
fn wanted(object: &Object, limit: usize) -> Result<DatasetPreview> {
    use core::saved_dataset_storage::Kind as Storage;
    let dataset = core::SavedDataset::decode(object.bytes.clone())
        .map_err(|e| Error::internal(format!("the saved dataset '{}' is damaged", object.name), e))?;
    let (spec, meta) = (dataset.spec.unwrap_or_default(), dataset.meta.unwrap_or_default());
    let Some(Storage::FileStorage(file)) = spec.storage.and_then(|s| s.kind) else {
        return Err(Error::new(Kind::Unsupported, "it is not stored in a file"));
    };
    let column = |text: &String| {
        let feature = model::feature_ref::FeatureRef::parse(text)?;
        Ok(if spec.full_feature_names { format!("{}__{}", feature.view, feature.feature) } else { feature.feature })
    };
    let time = |at: Option<prost_types::Timestamp>| at.as_ref().map(Timestamp::from_proto);
    Ok(DatasetPreview {
        path: file.uri,
        features: spec.features.iter().map(column).collect::<Result<_>>()?,
        join_keys: spec.join_keys,
        from: time(meta.min_event_timestamp),
        to: time(meta.max_event_timestamp).map(|at| Timestamp(at.micros().saturating_add(SECOND))),
        limit,
    })
}

#[cfg(test)]
mod tests;
