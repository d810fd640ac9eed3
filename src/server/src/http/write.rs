//! `POST /push` and `POST /write-to-online-store`.

use axum::http::StatusCode;
use serde::Deserialize;
use service::push::{Destination, How};

use super::Failure;
use super::body::Body;
use super::frame::{Df, Written};
use crate::projects::Face;

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
    #[serde(default = "yes")]
    transform_on_write: bool,
}

/// `WriteToFeatureStoreRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct WriteToOnlineStore {
    feature_view_name: String,
    df: Written,
    #[serde(default = "yes")]
    allow_registry_cache: bool,
    #[serde(default = "yes")]
    transform_on_write: bool,
}

pub(super) async fn push(Face(online): Face, Body(request): Body<Push>) -> Result<StatusCode, Failure> {
    let to = Destination::parse(&request.to)?;
    let Push { allow_registry_cache, transform_on_write, .. } = request;
    let how = How { allow_registry_cache, transform_on_write };
    online.pusher.push(&request.source, &request.df.0, to, how).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn write_to_online_store(
    Face(online): Face,
    Body(request): Body<WriteToOnlineStore>,
) -> Result<axum::Json<()>, Failure> {
    let WriteToOnlineStore { allow_registry_cache, transform_on_write, .. } = request;
    let how = How { allow_registry_cache, transform_on_write };
    online.pusher.write_to_online_store(&request.feature_view_name, &request.df.0, how).await?;
    Ok(axum::Json(()))
}
