//! `POST /push` and `POST /write-to-online-store`.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use service::push::Destination;

use super::Failure;
use super::body::Body;
use super::frame::Df;
use crate::Online;

fn yes() -> bool {
    true
}

fn online_only() -> String {
    "online".to_owned()
}

/// `PushFeaturesRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct Push {
    #[serde(rename = "push_source_name")]
    source: String,
    df: Df,
    #[serde(default = "yes")]
    allow_registry_cache: bool,
    #[serde(default = "online_only")]
    to: String,
}

/// `WriteToFeatureStoreRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct WriteToOnlineStore {
    feature_view_name: String,
    df: Df,
    #[serde(default = "yes")]
    allow_registry_cache: bool,
}

pub(super) async fn push(State(online): State<Online>, Body(request): Body<Push>) -> Result<StatusCode, Failure> {
    let to = Destination::parse(&request.to)?;
    online.pusher.push(&request.source, &request.df.0, to, request.allow_registry_cache).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn write_to_online_store(
    State(online): State<Online>,
    Body(request): Body<WriteToOnlineStore>,
) -> Result<axum::Json<()>, Failure> {
    let view = &request.feature_view_name;
    online.pusher.write_to_online_store(view, &request.df.0, request.allow_registry_cache).await?;
    Ok(axum::Json(()))
}
