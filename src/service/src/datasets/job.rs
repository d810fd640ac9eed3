//! A dataset job as it is kept in the registry. Knows no retrieval.

use bytes::Bytes;
use model::ports::{Object, ObjectKind};
use model::registry::Registry;
use model::{Error, Result, Timestamp};
use prost::Message;
use proto::registry::CreateDatasetFromRetrievalRequest;

/// Where a job stands (`JobStatus` in `feast/dataset_job_manager.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// It waits for its turn.
    Pending = 0,
    /// It is being retrieved.
    Running = 1,
    /// The dataset is registered.
    Completed = 2,
    /// It ended with an error.
    Failed = 3,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Running, Self::Completed, Self::Failed];

    /// Feast's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// By Feast's word.
    ///
    /// Errors: another word.
    pub fn parse(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid(format!("'{word}' is no status of a dataset job: choose one of {known}"))
        })
    }

    /// Whether nothing more happens.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// A dataset job. Field 1 and 2 are where [`ObjectKind::layout`] looks for name and project.
#[derive(Clone, PartialEq, Message)]
pub struct Job {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The project of the dataset.
    #[prost(string, tag = "2")]
    pub project: String,
    /// What was asked for.
    #[prost(message, required, tag = "3")]
    pub request: CreateDatasetFromRetrievalRequest,
    /// Where it stands.
    #[prost(enumeration = "State", tag = "4")]
    state: i32,
    /// When it was submitted, µs.
    #[prost(int64, tag = "5")]
    created_us: i64,
    /// When it ended, µs.
    #[prost(int64, optional, tag = "6")]
    ended_us: Option<i64>,
    /// Why it failed.
    #[prost(string, tag = "7")]
    pub error: String,
}

impl Job {
    /// A new job.
    pub(super) fn new(request: CreateDatasetFromRetrievalRequest, now: Timestamp) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            project: request.project.clone(),
            request,
            state: State::Pending.into(),
            created_us: now.micros(),
            ended_us: None,
            error: String::new(),
        }
    }

    /// The dataset's name.
    pub fn dataset(&self) -> &str {
        &self.request.name
    }

    /// Where it stands.
    pub fn status(&self) -> State {
        self.state()
    }

    /// When it was submitted.
    pub fn created(&self) -> Timestamp {
        Timestamp(self.created_us)
    }

    /// When it ended.
    pub fn ended(&self) -> Option<Timestamp> {
        self.ended_us.map(Timestamp)
    }

    /// The job before its end.
    #[must_use]
    pub(super) fn in_state(self, state: State) -> Self {
        Self { state: state.into(), ..self }
    }

    /// The job at its end.
    #[must_use]
    pub(super) fn finished(self, now: Timestamp, error: Option<String>) -> Self {
        let state = if error.is_some() { State::Failed } else { State::Completed };
        Self { ended_us: Some(now.micros()), error: error.unwrap_or_default(), ..self.in_state(state) }
    }

    /// As it is kept.
    pub(super) fn object(&self) -> Object {
        Object {
            kind: ObjectKind::DatasetJob,
            project: self.project.clone(),
            name: self.id.clone(),
            bytes: Bytes::from(self.encode_to_vec()),
        }
    }

    /// From what is kept.
    pub(super) fn read(object: &Object) -> Result<Self> {
        Self::decode(object.bytes.clone())
            .map_err(|e| Error::internal(format!("the stored dataset job '{}' is damaged", object.name), e))
    }
}

/// The jobs of a project, or of all, the latest first.
pub(super) fn all(registry: &Registry, project: Option<&str>) -> Result<Vec<Job>> {
    let projects = registry.projects.iter().filter(|(name, _)| project.is_none_or(|p| p == name.as_str()));
    let objects = projects.flat_map(|(_, p)| &p.objects).filter(|((kind, _), _)| *kind == ObjectKind::DatasetJob);
    let mut jobs = objects.map(|(_, object)| Job::read(object)).collect::<Result<Vec<_>>>()?;
    jobs.sort_by(|a, b| (b.created_us, &b.id).cmp(&(a.created_us, &a.id)));
    Ok(jobs)
}

/// A job by its id, of whatever project.
///
/// Errors: `FeastObjectNotFoundException`.
pub(super) fn find(registry: &Registry, id: &str) -> Result<Job> {
    let key = (ObjectKind::DatasetJob, id.to_owned());
    let found = registry.projects.values().find_map(|p| p.objects.get(&key));
    Job::read(found.ok_or_else(|| ObjectKind::DatasetJob.not_found(id, ""))?)
}
