//! `POST /get-online-features`.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use model::registry::FeatureRequest;
use serde::Deserialize;
use service::retrieve;

use super::body::Body;
use super::{Failure, json};
use crate::Online;

/// `GetOnlineFeaturesRequest` of `feast/feature_server.py`.
#[derive(Deserialize)]
pub(super) struct GetOnlineFeatures {
    entities: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    feature_service: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default)]
    full_feature_names: bool,
    #[serde(default)]
    include_feature_view_version_metadata: bool,
}

pub(super) async fn get_online_features(
    State(online): State<Online>,
    Body(request): Body<GetOnlineFeatures>,
) -> Result<impl IntoResponse, Failure> {
    let mut entities = Vec::with_capacity(request.entities.len());
    for (name, values) in request.entities {
        let serde_json::Value::Array(values) = values else {
            return Err(model::Error::invalid(format!("entities: '{name}' is not a list of values")).into());
        };
        let values = values
            .iter()
            .map(model::value::guess_json)
            .collect::<model::Result<Vec<_>>>()
            .map_err(|e| model::Error::invalid(format!("entities: '{name}': {}", e.message())))?;
        entities.push((name, values));
    }
    let features = match request.feature_service {
        Some(name) if !name.is_empty() => FeatureRequest::Service(name),
        _ => FeatureRequest::Refs(request.features),
    };
    let answer = online
        .retriever
        .get_online_features(retrieve::Request {
            features,
            entities,
            full_feature_names: request.full_feature_names,
            include_feature_view_version_metadata: request.include_feature_view_version_metadata,
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json::response(&answer.to_message()?).to_string()))
}
