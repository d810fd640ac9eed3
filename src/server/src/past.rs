//! The way of reads past the router, for requests of which nobody sees a span: a small read costs no more than
//! the router does. What is not in the usual form goes through the router, as it came. Knows no message.

mod replay;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{self, HeaderMap, Method, Version, header};
use axum::response::{IntoResponse as _, Response};
use futures::future::Either;
use hyper::body::Incoming;
use tower::ServiceExt as _;
use tower::util::Oneshot;

use crate::grpc::short;
use crate::http::{Failure, features};
use crate::limits::{Guard, HEAD_TOO_LARGE, refusal};
use crate::projects::Projects;
use replay::{Message, Replay};

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
        let route = route(&request).filter(|_| self.reads.1.is_unseen(request.headers()));
        let Some(route) = route else {
            return Either::Right(self.router.clone().oneshot(request.map(Body::new)));
        };
        let reads = Arc::clone(&self.reads);
        if route == features::PATH {
            return Either::Left(Box::pin(async move {
                let began = Instant::now();
                let response = reads.0.json(request).await;
                reads.1.answered(route, began, &response);
                Ok(response)
            }));
        }
        let router = self.router.clone();
        Either::Left(Box::pin(async move {
            let began = Instant::now();
            match reads.0.grpc(request).await {
                Ok(response) => {
                    reads.1.answered(route, began, &response);
                    Ok(response)
                }
                Err(request) => router.oneshot(request).await,
            }
        }))
    }
}

/// The read that a request is by its head.
fn route<B>(request: &http::Request<B>) -> Option<&'static str> {
    if request.method() != Method::POST {
        return None;
    }
    let path = request.uri().path();
    if path == features::PATH {
        return Some(features::PATH);
    }
    let route = short::PATHS.into_iter().find(|known| *known == path)?;
    let is = |name, wanted: &[&[u8]], missing| {
        request.headers().get(name).map_or(missing, |value| wanted.contains(&value.as_bytes()))
    };
    let plain = is(header::CONTENT_TYPE, &[b"application/grpc", b"application/grpc+proto"], false)
        && is(header::HeaderName::from_static("grpc-encoding"), &[b"identity"], true);
    (plain && request.version() == Version::HTTP_2).then_some(route)
}

impl Reads {
    async fn json(&self, request: http::Request<Incoming>) -> Response {
        if let Err(error) = self.guard.check_head(&request) {
            return refusal(request.headers(), error, Some(HEAD_TOO_LARGE));
        }
        // What is read of the body counts until there is an answer.
        let (head, body) = request.into_parts();
        let (body, held) = self.guard.hold(body);
        let answered = features::read(&self.projects, &head.headers, body).await;
        drop(held);
        answered.unwrap_or_else(Failure::into_response)
    }

    /// The answer; or the request again, where it must go through the router.
    async fn grpc(&self, request: http::Request<Incoming>) -> Result<Response, Request> {
        if let Err(error) = self.guard.check_head(&request) {
            return Ok(refusal(request.headers(), error, Some(HEAD_TOO_LARGE)));
        }
        let (head, body) = request.into_parts();
        let (mut body, held) = self.guard.hold(body);
        let message = Message::read(&mut body).await;
        if let Some(whole) = message.whole()
            && let Some(answer) = short::answer(&self.projects, &head.headers, whole).await
        {
            drop(held);
            return Ok(answer);
        }
        Err(Request::from_parts(head, Body::new(Replay::new(message, body.into_inner()))))
    }
}
