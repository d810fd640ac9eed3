//! `POST /get-online-features`: as a route, and past the router for requests of which nobody sees a span.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{self, HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse as _, Response};
use futures::future::Either;
use hyper::body::Incoming;
use service::retrieve;
use tower::ServiceExt as _;
use tower::util::Oneshot;

use super::request::{GetOnlineFeatures, usual};
use super::{Failure, body, json};
use crate::Online;
use crate::limits::{Guard, HEAD_TOO_LARGE, refusal};
use crate::projects::{Face, Projects};

pub(super) const PATH: &str = "/get-online-features";

pub(super) async fn get_online_features(Face(online): Face, request: Request) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let body = body::read(&head.headers, body, online.limits.max_body_bytes).await?;
    answer(&online, &body).await
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

/// Who is told of requests that go past the router.
pub trait Observer: Send + Sync + 'static {
    /// Whether nobody would see a span of a request with these headers.
    fn is_unseen(&self, headers: &HeaderMap) -> bool;
    /// A request to a route was answered.
    fn answered(&self, route: &'static str, began: Instant, response: &Response);
}

/// The way of reads past the router, within the same limits.
#[derive(Clone)]
pub struct Reads {
    pub(crate) projects: Projects,
    pub(crate) guard: Guard,
}

impl Reads {
    /// A service that answers reads itself, where `observer` needs no span of them, and leaves the rest to `router`.
    pub fn past(self, router: Router, observer: Arc<dyn Observer>) -> Past {
        Past { reads: Arc::new((self, observer)), router }
    }
}

/// See [`Reads::past`].
#[derive(Clone)]
pub struct Past {
    reads: Arc<(Reads, Arc<dyn Observer>)>,
    router: Router,
}

type Read = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl hyper::service::Service<http::Request<Incoming>> for Past {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Read, Oneshot<Router, Request>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let is_read = request.method() == Method::POST && request.uri().path() == PATH;
        if !is_read || !self.reads.1.is_unseen(request.headers()) {
            return Either::Right(self.router.clone().oneshot(request.map(Body::new)));
        }
        let reads = Arc::clone(&self.reads);
        Either::Left(Box::pin(async move {
            let began = Instant::now();
            let response = reads.0.read(request).await;
            reads.1.answered(PATH, began, &response);
            Ok(response)
        }))
    }
}

impl Reads {
    async fn read(&self, request: http::Request<Incoming>) -> Response {
        if let Err(error) = self.guard.check_head(&request) {
            return refusal(request.headers(), error, Some(HEAD_TOO_LARGE));
        }
        // What is read of the body counts until there is an answer.
        let (head, body) = request.into_parts();
        let (body, held) = self.guard.hold(body);
        let answered = match body::read(&head.headers, body, self.projects.limits().max_body_bytes).await {
            Ok(body) => self.answer(&head.headers, &body).await,
            Err(error) => Err(Failure(error)),
        };
        drop(held);
        answered.unwrap_or_else(Failure::into_response)
    }
    async fn answer(&self, headers: &HeaderMap, body: &Bytes) -> Result<Response, Failure> {
        answer(&*self.projects.of(headers)?, body).await
    }
}
