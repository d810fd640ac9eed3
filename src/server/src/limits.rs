//! What a client may ask of the server at most, and the layer that holds it over every request of a port:
//! sizes of heads, patience with bodies, and bytes of bodies in memory. Knows no route.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::future::{Either, Map};
use futures::{FutureExt as _, future};
use http_body::{Frame, SizeHint};
use model::{Error, Kind};
use tokio::time::Sleep;
use tower::{Layer, Service};

use crate::http::Failure;

/// The limits of one port, with defaults that fit a server of its own. Each is `limits.<name>` in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The greatest request body, and the greatest gRPC message, bytes.
    pub max_body_bytes: NonZeroUsize,
    /// The most bytes of bodies of all requests together that are kept in memory.
    pub max_buffered_bytes: NonZeroUsize,
    /// How deep lists and objects may stand in one another in a JSON body.
    pub max_json_depth: NonZeroUsize,
    /// The greatest head of a request: its path and its headers, bytes.
    pub max_header_bytes: NonZeroU32,
    /// The most open connections; a few more are told so.
    pub max_connections: NonZeroUsize,
    /// The most requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: NonZeroU32,
    /// How long a new connection may take for the TLS handshake, and for the head of its first request.
    pub header_timeout: Duration,
    /// The longest silence within a request's body.
    pub body_timeout: Duration,
    /// How long an HTTP/1 connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long a client may take no byte of its answer.
    pub write_timeout: Duration,
    /// How often an HTTP/2 connection is asked whether it is alive.
    pub ping_interval: Duration,
    /// How long it has for its answer.
    pub ping_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let size = |size| NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        Self {
            max_body_bytes: size(64 << 20),
            max_buffered_bytes: size(1 << 30),
            max_json_depth: size(32),
            max_header_bytes: count(32 << 10),
            max_connections: size(10_000),
            max_concurrent_streams: count(200),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_mins(1),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// Holds the limits over all requests of one port.
#[derive(Clone)]
pub(crate) struct Guard {
    limits: Limits,
    buffered: Arc<AtomicUsize>,
}

impl Guard {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, buffered: Arc::default() }
    }

    pub(crate) fn check_head<B>(&self, request: &axum::http::Request<B>) -> Result<(), Error> {
        let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        let size = |total, (name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
            total + name.as_str().len() + value.len() + 4
        };
        let (size, limit) = (request.headers().iter().fold(path, size), self.limits.max_header_bytes);
        if size <= limit.get() as usize {
            return Ok(());
        }
        let message = format!("the request's path and headers have {size} bytes, the limit is {limit}");
        Err(Error::over_limit(Kind::TooLarge, "max_header_bytes", message, "send fewer"))
    }

    /// The body as it may be read. What is read of it counts as kept in memory until both are gone.
    pub(crate) fn hold<B>(&self, inner: B) -> (Patient<B>, Arc<Taken>) {
        let taken = Arc::new(Taken { bytes: AtomicUsize::new(0), of: Arc::clone(&self.buffered) });
        (Patient { inner, limits: self.limits, taken: Arc::clone(&taken), silence: None }, taken)
    }
}

/// The status of a head that is too large.
pub(crate) const HEAD_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a [`Guard`].
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    guard: Guard,
}

type Answered<F> = Map<F, Box<dyn FnOnce(Result<Response, Infallible>) -> Result<Response, Infallible> + Send>>;

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Guarded<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Answered<S::Future>, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if let Err(error) = self.guard.check_head(&request) {
            return Either::Right(ready(Ok(refusal(request.headers(), error, Some(HEAD_TOO_LARGE)))));
        }
        let (head, body) = request.into_parts();
        let (body, held) = self.guard.hold(body);
        let request = Request::from_parts(head, Body::new(body));
        // What is read of the body stays in memory until there is an answer.
        let release: Box<dyn FnOnce(_) -> _ + Send> = Box::new(move |answer| {
            drop(held);
            answer
        });
        Either::Left(self.inner.call(request).map(release))
    }
}

/// A refusal in the protocol of the request.
pub(crate) fn refusal(headers: &HeaderMap, error: Error, status: Option<StatusCode>) -> Response {
    if crate::http::is_grpc(headers) {
        return rpc::status::to_grpc(&error).into_http();
    }
    let mut response = Failure(error).into_response();
    if let Some(status) = status {
        *response.status_mut() = status;
    }
    response
}

/// The bytes that one request has in memory.
pub(crate) struct Taken {
    bytes: AtomicUsize,
    of: Arc<AtomicUsize>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// A body that is read with patience, but not without end.
pub(crate) struct Patient<B> {
    inner: B,
    limits: Limits,
    taken: Arc<Taken>,
    /// Runs while the client is silent.
    silence: Option<Pin<Box<Sleep>>>,
}

/// Why a body was not read to its end. gRPC reads it as the status that is its source.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Interrupted {
    pub(crate) error: Error,
    source: tonic::Status,
}

impl Interrupted {
    fn body_error(error: &Error) -> axum::Error {
        let source = rpc::status::to_grpc(error);
        // It is counted; whoever tells it to the caller must not count it again.
        axum::Error::new(Self { error: Error::new(error.kind(), error.message()), source })
    }
}

impl<B> Patient<B> {
    /// The body as it was.
    pub(crate) fn into_inner(self) -> B {
        self.inner
    }

    fn take(&self, bytes: usize) -> Result<(), axum::Error> {
        self.taken.bytes.fetch_add(bytes, Ordering::Relaxed);
        let total = self.taken.of.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let limit = self.limits.max_buffered_bytes;
        if total <= limit.get() {
            return Ok(());
        }
        let message = format!("all requests together have more than {limit} bytes in memory");
        Err(Interrupted::body_error(&Error::over_limit(
            Kind::TooMany,
            "max_buffered_bytes",
            message,
            "try again in a moment",
        )))
    }
}

impl<B: http_body::Body<Data = Bytes, Error: Into<axum::BoxError>> + Unpin> http_body::Body for Patient<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.silence = None;
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                    && let Err(error) = self.take(data.len())
                {
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)))
            }
            Poll::Pending => {
                let patience = self.limits.body_timeout;
                let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                if silence.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let what = format!("no byte of the request's body came for {} s", patience.as_secs());
                let error = Error::over_limit(Kind::TooSlow, "body_timeout_seconds", what, "send it faster");
                Poll::Ready(Some(Err(Interrupted::body_error(&error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Refuses every request of a connection that is one too many.
#[derive(Clone)]
pub(crate) struct Full {
    pub(crate) connections: NonZeroUsize,
}

impl Service<Request> for Full {
    type Response = Response;
    type Error = Infallible;
    type Future = future::Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let what = format!("{} connections are open, which is the limit", self.connections);
        let error = Error::over_limit(Kind::TooMany, "max_connections", what, "try again in a moment");
        let mut response = refusal(request.headers(), error, None);
        let headers = response.headers_mut();
        headers.insert(axum::http::header::RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
        if request.version() < axum::http::Version::HTTP_2 {
            headers.insert(axum::http::header::CONNECTION, axum::http::HeaderValue::from_static("close"));
        }
        future::ready(Ok(response))
    }
}
