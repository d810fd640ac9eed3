//! JSON over HTTP, in the shapes of `feast/feature_server.py`.

mod body;
pub(crate) mod features;
mod frame;
pub mod json;
mod materialize;
mod parity;
mod request;
mod streams;
mod write;

use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Router, middleware};
use model::{Error, Kind};

use crate::projects::{self, Projects};

/// All HTTP routes of the online port: once for the server's own project, once for any.
pub(crate) fn router(projects: Projects) -> Router {
    Router::new()
        .nest("/projects/{project}", routes().layer(middleware::from_fn(projects::in_path)))
        .merge(routes())
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(projects)
}

fn routes() -> Router<Projects> {
    Router::new()
        .route(features::PATH, post(features::get_online_features))
        .route("/push", post(write::push))
        .route("/write-to-online-store", post(write::write_to_online_store))
        .route("/materialize", post(materialize::materialize))
        .route("/materialize-incremental", post(materialize::materialize_incremental))
        .route("/jobs", get(materialize::jobs))
        .route("/jobs/{id}", delete(materialize::cancel))
        .route("/streams", get(streams::list))
        .route("/streams/{view}/pause", post(streams::pause))
        .route("/streams/{view}/resume", post(streams::resume))
        .route("/streams/{view}/seek", post(streams::seek))
        .route("/parity/{view}", post(parity::check))
        .route("/search", post(search))
        .route("/retrieve-online-documents", post(search))
        .route("/health", get(|| async { StatusCode::OK }))
}

/// Reads a body as the handler of `path` would, and forgets it: what the fuzz targets call.
///
/// Errors: what is wrong with the body; there is no such path.
pub fn check_body(path: &str, body: &[u8]) -> model::Result<()> {
    const DEPTH: usize = 32;
    match path {
        "/get-online-features" => body::parse::<request::GetOnlineFeatures>(body, DEPTH).map(drop),
        "/push" => body::parse::<write::Push>(body, DEPTH).map(drop),
        "/write-to-online-store" => body::parse::<write::WriteToOnlineStore>(body, DEPTH).map(drop),
        _ => Err(Error::new(Kind::NotFound, format!("there is no {path} here"))),
    }
}

/// An error as Feast's HTTP client reads it.
pub(crate) struct Failure(pub(crate) Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, body) = rpc::status::to_http(&self.0);
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

async fn search() -> Failure {
    Failure(Error::new(Kind::Unsupported, "vector search is not offered by this server: see REFUSALS.md of Larder"))
}

/// What is neither a route nor a gRPC method: told in the protocol of the request.
async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        return tonic::Status::unimplemented(format!("there is no {} here", uri.path())).into_http();
    }
    Failure(Error::new(Kind::NotFound, format!("there is no {} here", uri.path()))).into_response()
}

/// Whether a request with these headers is gRPC's.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
}

async fn wrong_method(uri: Uri) -> (StatusCode, Failure) {
    let error = Error::invalid(format!("{} takes another method: the feature server's calls are POST", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, Failure(error))
}
