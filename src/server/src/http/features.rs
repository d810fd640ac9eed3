//! `POST /get-online-features`.

use axum::http::header;
use axum::response::IntoResponse;
use service::retrieve::Request;

use super::body::Body;
use super::request::GetOnlineFeatures;
use super::{Failure, json};
use crate::projects::Face;

pub(super) async fn get_online_features(
    Face(online): Face,
    Body(request): Body<GetOnlineFeatures>,
) -> Result<impl IntoResponse, Failure> {
    let answer = online.retriever.get_online_features(Request::from(request)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json::response(&answer)?))
}
