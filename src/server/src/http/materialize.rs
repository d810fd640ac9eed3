//! `POST /materialize` and `POST /materialize-incremental`, at once or in the background
//! (`?async=true`: 202; 409 while one of the views is being materialized); `GET /jobs` says how far they are, and
//! `DELETE /jobs/{id}` ends one.

use std::sync::Arc;

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::{Error, Kind, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use service::materialize::{Materializer, Phase, Progress, Start, State};

use super::Failure;
use super::body::Body;
use crate::Online;
use crate::projects::Face;

/// `MaterializeRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct Materialize {
    start_ts: Option<String>,
    end_ts: Option<String>,
    feature_views: Option<Vec<String>>,
    #[serde(default)]
    disable_event_timestamp: bool,
    version: Option<String>,
}

/// `MaterializeIncrementalRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct MaterializeIncremental {
    end_ts: String,
    feature_views: Option<Vec<String>>,
    version: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Mode {
    #[serde(default, rename = "async")]
    background: bool,
    /// Feast's way out of a view stuck in MATERIALIZING: here a job that died goes on by itself, so
    /// there is nothing to force, and a running one is still waited for.
    #[serde(default, rename = "force")]
    _force: bool,
}

pub(super) async fn materialize(
    Face(online): Face,
    Query(mode): Query<Mode>,
    Body(request): Body<Materialize>,
) -> Result<Response, Failure> {
    let materializer = materializer(&online)?;
    let (start, end) = if request.disable_event_timestamp {
        (Timestamp(0), materializer.now())
    } else {
        let (Some(start), Some(end)) = (&request.start_ts, &request.end_ts) else {
            return Err(Error::invalid("start_ts and end_ts are required when disable_event_timestamp is False").into());
        };
        (Timestamp::parse(start)?, Timestamp::parse(end)?)
    };
    if start >= end {
        return Err(Error::invalid(format!("start_ts ({start}) must be before end_ts ({end})")).into());
    }
    run(materializer, mode, request.feature_views, request.version, Start::At(start), end).await
}

pub(super) async fn materialize_incremental(
    Face(online): Face,
    Query(mode): Query<Mode>,
    Body(request): Body<MaterializeIncremental>,
) -> Result<Response, Failure> {
    let materializer = materializer(&online)?;
    let end = Timestamp::parse(&request.end_ts)?;
    run(materializer, mode, request.feature_views, request.version, Start::Incremental, end).await
}

/// How far the materializations of the project are, the newest first; also those of before a restart.
pub(super) async fn jobs(Face(online): Face) -> Result<Response, Failure> {
    let jobs = materializer(&online)?.progress();
    Ok(axum::Json(json!({ "jobs": jobs.iter().map(told).collect::<Vec<_>>() })).into_response())
}

/// The job of a path.
#[derive(Deserialize)]
pub(super) struct Id {
    id: String,
}

/// Ends a materialization or a dataset job before its time.
pub(super) async fn cancel(Face(online): Face, Path(Id { id }): Path<Id>) -> Result<Response, Failure> {
    if let Some(datasets) = &online.datasets
        && datasets.job(&id).is_ok_and(|job| job.project == online.retriever.project())
    {
        let job = datasets.cancel(&id).await?;
        let told =
            json!({ "id": job.id, "verb": "dataset", "dataset": job.dataset(), "status": job.status().as_str() });
        return Ok(axum::Json(json!({ "jobs": [told] })).into_response());
    }
    let jobs = materializer(&online)?.cancel(&id).await?;
    Ok(axum::Json(json!({ "jobs": jobs.iter().map(told).collect::<Vec<_>>() })).into_response())
}

/// One view of a job.
fn told(job: &Progress) -> Value {
    let status = match job.state {
        State::Waiting => "waiting",
        State::Running => "running",
        State::Done => "done",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    };
    let phase = match job.phase {
        _ if job.state != State::Running => None,
        Phase::Reading => Some("reading"),
        Phase::CatchingUp => Some("catching_up"),
    };
    json!({
        "id": job.job,
        "verb": "materialize",
        "feature_view": job.view,
        "start_ts": job.start.to_string(),
        "end_ts": job.end.to_string(),
        "status": status,
        "phase": phase,
        "lag": job.lag,
        "waits": job.waits,
        "rows": job.rows,
        "applied": job.applied,
        "skipped": job.skipped,
        "began": job.began.map(|t| t.to_string()),
        "ended": job.ended.map(|t| t.to_string()),
        "error": job.error,
    })
}

fn materializer(online: &Online) -> Result<Arc<Materializer>, Failure> {
    online.materializer.clone().ok_or_else(|| {
        Failure(Error::new(
            Kind::Unsupported,
            "this server has no offline side to materialize from: start it with the service 'offline'",
        ))
    })
}

async fn run(
    materializer: Arc<Materializer>,
    mode: Mode,
    views: Option<Vec<String>>,
    version: Option<String>,
    start: Start,
    end: Timestamp,
) -> Result<Response, Failure> {
    let job = match materializer.submit(views.as_deref(), version.as_deref(), start, end).await {
        Ok(job) => job,
        // The SDK reads `error` from this body.
        Err(e) if e.kind() == Kind::Conflict => {
            let body = json!({ "error": e.message(), "feature_views": views });
            return Ok((StatusCode::CONFLICT, axum::Json(body)).into_response());
        }
        Err(e) => return Err(e.into()),
    };
    if mode.background {
        let body = json!({ "status": "accepted", "feature_views": job.views, "id": job.id });
        return Ok((StatusCode::ACCEPTED, axum::Json(body)).into_response());
    }
    job.done().await?;
    Ok(axum::Json(json!(null)).into_response())
}
