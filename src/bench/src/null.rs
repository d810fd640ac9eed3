//! The null server: what the stack itself costs. The same tonic, axum and hyper behind the same listener, the
//! same decoding of a request, and an answer that was made before.
//!
//! Knows neither registry nor store. Which answer it gives depends on how many features and entities are asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use proto::feast::serving::get_online_features_request::Kind;
use proto::feast::serving::{GetFeastServingInfoRequest, GetFeastServingInfoResponse, GetOnlineFeaturesRequest};
use rpc::answer::OnlineFeatures;
use rpc::stubs::feast::serving::serving_service_server::{ServingService, ServingServiceServer};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::error::{Result, tried};
use crate::workload::{SHAPES, Shape};

/// The answers by shape, for each protocol.
#[derive(Default)]
struct Answers {
    grpc: HashMap<(usize, usize), Bytes>,
    http: HashMap<(usize, usize), Bytes>,
}

/// The file of a prebuilt answer.
pub(crate) fn file(dir: &Path, protocol: &str, shape: Shape) -> std::path::PathBuf {
    dir.join(format!("{protocol}-{shape}.bin"))
}

/// Serves the answers in `dir` on a loopback port until it is killed.
pub(crate) async fn run(dir: &Path, port: u16) -> Result<()> {
    let mut answers = Answers::default();
    for shape in SHAPES {
        let key = (shape.entities, shape.features);
        if let Ok(bytes) = std::fs::read(file(dir, "grpc", shape)) {
            answers.grpc.insert(key, bytes.into());
        }
        if let Ok(bytes) = std::fs::read(file(dir, "http", shape)) {
            answers.http.insert(key, bytes.into());
        }
    }
    let answers = Arc::new(answers);
    let http = axum::Router::new()
        .route("/get-online-features", post(answer))
        .route("/health", get(|| async { StatusCode::OK }))
        .with_state(answers.clone());
    let grpc = tonic::service::Routes::new(ServingServiceServer::new(Serving(answers)));
    let router = grpc.into_axum_router().reset_fallback().merge(http);
    let listener = server::listen::bind("127.0.0.1", port).await.map_err(tried(format!("port {port}")))?;
    let router = server::listen::Routed(router);
    server::listen::run(listener, router, None, server::limits::Limits::default(), CancellationToken::new()).await;
    Ok(())
}

struct Serving(Arc<Answers>);

#[tonic::async_trait]
impl ServingService for Serving {
    async fn get_feast_serving_info(
        &self,
        _: Request<GetFeastServingInfoRequest>,
    ) -> std::result::Result<Response<GetFeastServingInfoResponse>, Status> {
        Ok(Response::new(GetFeastServingInfoResponse::default()))
    }

    async fn get_online_features(
        &self,
        request: Request<GetOnlineFeaturesRequest>,
    ) -> std::result::Result<Response<OnlineFeatures>, Status> {
        let request = request.into_inner();
        let features = match &request.kind {
            Some(Kind::Features(list)) => list.val.len(),
            _ => 0,
        };
        let entities = request.entities.values().next().map_or(0, |column| column.val.len());
        let answer = self.0.grpc.get(&(entities, features)).ok_or_else(|| Status::not_found("no such shape"))?;
        Ok(Response::new(OnlineFeatures::Bytes(answer.clone())))
    }
}

/// What Larder's HTTP face reads of a request.
#[derive(Deserialize)]
struct Asked {
    entities: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    features: Vec<String>,
}

async fn answer(State(answers): State<Arc<Answers>>, body: Bytes) -> HttpResponse {
    let Ok(asked) = serde_json::from_slice::<Asked>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let entities = asked.entities.values().next().and_then(|column| column.as_array()).map_or(0, Vec::len);
    match answers.http.get(&(entities, asked.features.len())) {
        Some(answer) => ([(header::CONTENT_TYPE, "application/json")], answer.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
