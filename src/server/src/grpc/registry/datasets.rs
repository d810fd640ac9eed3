//! The calls of the registry about dataset jobs and the rows of saved datasets. Knows no rule of them.
//!
//! Source: `feast/registry_server.py`. Values are JSON texts, as its `json.dumps` writes them where they
//! are JSON at all: a NaN is null, bytes are base64, lists are lists.

use model::{Error, Timestamp};
use prost::Message as _;
use proto::registry as pb;
use rpc::status::to_grpc;
use service::datasets::{Job, State};
use tonic::{Response, Status};

use super::{Answer, Service};
use crate::http::json;

impl Service {
    pub(super) async fn dataset_submitted(
        &self,
        request: pb::CreateDatasetFromRetrievalRequest,
    ) -> Answer<pb::CreateDatasetFromRetrievalResponse> {
        let job = self.datasets.submit(request).await.map_err(|e| to_grpc(&e))?;
        let status = job.status().as_str().to_owned();
        Ok(Response::new(pb::CreateDatasetFromRetrievalResponse { job_id: job.id, status }))
    }

    pub(super) async fn dataset_rows(&self, r: pb::GetDatasetDataRequest) -> Answer<pb::GetDatasetDataResponse> {
        let limit = usize::try_from(r.limit).unwrap_or(0);
        let found = self.datasets.preview(&r.project, &r.name, limit).await.map_err(|e| to_grpc(&e))?;
        let count = found.columns.first().map_or(0, |c| c.values.len());
        if count == 0 {
            return Ok(Response::new(pb::GetDatasetDataResponse::default()));
        }
        let mut rows = vec![pb::TabularRow::default(); count];
        for column in &found.columns {
            for (row, value) in rows.iter_mut().zip(&column.values) {
                row.values.push(text(&value.encode_to_vec())?);
            }
        }
        let number = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
        Ok(Response::new(pb::GetDatasetDataResponse {
            columns: found.columns.into_iter().map(|c| c.name).collect(),
            rows,
            total_rows: number(found.total),
            sample_size: number(count as u64),
        }))
    }

    pub(super) fn dataset_job(&self, id: &str) -> Answer<pb::GetDatasetJobStatusResponse> {
        let job = self.datasets.job(id).map_err(|e| to_grpc(&e))?;
        Ok(Response::new(told(job)))
    }

    pub(super) fn dataset_jobs(&self, r: &pb::ListDatasetJobsRequest) -> Answer<pb::ListDatasetJobsResponse> {
        let asked = |text: &str| if text.is_empty() { Ok(None) } else { State::parse(text).map(Some) };
        let project = Some(r.project.as_str()).filter(|p| !p.is_empty());
        let jobs = asked(&r.status_filter).and_then(|state| self.datasets.jobs(project, state));
        let jobs = jobs.map_err(|e| to_grpc(&e))?;
        Ok(Response::new(pb::ListDatasetJobsResponse { jobs: jobs.into_iter().map(told).collect() }))
    }
}

fn text(value: &[u8]) -> Result<String, Status> {
    let mut out = Vec::new();
    let written = json::value(&mut out, value).map_err(|e| Error::internal("a value of a dataset is damaged", e));
    let text = written.and_then(|()| String::from_utf8(out).map_err(|e| Error::internal("JSON is no UTF-8", e)));
    text.map_err(|e| to_grpc(&e))
}

/// Times as `datetime.isoformat` writes them.
fn iso(time: Timestamp) -> String {
    time.to_rfc3339().replace('Z', "+00:00")
}

fn told(job: Job) -> pb::GetDatasetJobStatusResponse {
    pb::GetDatasetJobStatusResponse {
        dataset_name: job.dataset().to_owned(),
        status: job.status().as_str().to_owned(),
        created_at: iso(job.created()),
        completed_at: job.ended().map(iso).unwrap_or_default(),
        job_id: job.id,
        project: job.project,
        error: job.error,
    }
}
