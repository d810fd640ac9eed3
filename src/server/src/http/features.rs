//! `POST /get-online-features`.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use service::retrieve;

use super::request::{GetOnlineFeatures, usual};
use super::{Failure, body, json};
use crate::Online;
use crate::projects::{Face, Projects};

pub(crate) const PATH: &str = "/get-online-features";

pub(super) async fn get_online_features(Face(online): Face, request: Request) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let body = body::read(&head.headers, body, online.limits.max_body_bytes).await?;
    answer(&online, &body).await
}

/// Reads a body and answers it.
pub(crate) async fn read<B>(projects: &Projects, headers: &HeaderMap, body: B) -> Result<Response, Failure>
where
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Unpin,
{
    let body = body::read(headers, body, projects.limits().max_body_bytes).await?;
    answer(&*projects.of(headers)?, &body).await
}

async fn answer(online: &Online, body: &Bytes) -> Result<Response, Failure> {
    let answer = json::response(&retrieve(online, body).await?)?;
    let mut response = Response::new(Body::from(answer));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Answers a body. One whose features are spelled as they were before is not read as JSON again.
async fn retrieve(online: &Online, body: &[u8]) -> model::Result<model::answer::Answer> {
    let depth = online.limits.max_json_depth.get();
    let mut usual = if depth < usual::DEPTH { None } else { usual::read(body) };
    if let Some(usual) = &mut usual
        && let Some(known) = online.retriever.known(usual.features, usual.full_feature_names)
    {
        let entities = std::mem::take(&mut usual.entities);
        return online.retriever.get_known(&known, entities, usual.include_feature_view_version_metadata).await;
    }
    let request = retrieve::Request::from(body::parse::<GetOnlineFeatures>(body, depth)?);
    let spelled = usual.filter(|usual| usual::spells(usual.features, &request.features));
    let spelled = spelled.map(|usual| (usual.features, request.features.clone(), request.full_feature_names));
    let answer = online.retriever.get_online_features(request).await?;
    if let Some((spelling, features, full_feature_names)) = spelled {
        online.retriever.learn(spelling, features, full_feature_names)?;
    }
    Ok(answer)
}
