//! One listener: accept (with TLS where asked), speak HTTP/1.1 or HTTP/2, drain on shutdown; at most so
//! many connections, and none that is silent for ever. Knows no route.

mod patient;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower::util::Oneshot;

use crate::limits::{Full, Limits};
use patient::Patient;

/// How long requests in flight may take after shutdown.
const DRAIN: Duration = Duration::from_secs(20);
/// How many connections over the limit are told so at once; more are closed without a word.
const LOBBY: usize = 64;
/// How long a connection over the limit may stay.
const LOBBY_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before the next try when no connection could be accepted (no file descriptor is left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// hyper's own bound for the head of an HTTP/1 request; a greater limit needs a greater bound.
const HEAD_BUFFER: usize = 400 * 1024;

/// What a connection needs.
struct Listener<S> {
    service: S,
    tls: Option<TlsAcceptor>,
    limits: Limits,
}

/// What answers the requests of a connection.
pub trait Serve:
    Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Serve for S
where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
}

/// What takes axum's requests, as a connection needs it.
#[derive(Clone)]
pub struct Routed<S>(pub S);

impl<S> Service<http::Request<Incoming>> for Routed<S>
where
    S: tower::Service<Request, Response = Response, Error = Infallible> + Clone,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Oneshot<S, Request>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.0.clone().oneshot(request.map(axum::body::Body::new))
    }
}

/// Serves `service` on `listener` until `shutdown`, then lets requests in flight end.
pub async fn run(
    listener: TcpListener,
    service: impl Serve,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Listener { service, tls: tls.map(TlsAcceptor::from), limits });
    let graceful = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(limits.max_connections.get().min(Semaphore::MAX_PERMITS)));
    let lobby = Arc::new(Semaphore::new(LOBBY));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that left in between: neither may end the server.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_AGAIN) => continue,
                    () = shutdown.cancelled() => break,
                }
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        if let Ok(seat) = Arc::clone(&seats).try_acquire_owned() {
            tokio::spawn(connection(stream, Arc::clone(&shared), graceful.watcher(), seat));
        } else if let Ok(place) = Arc::clone(&lobby).try_acquire_owned() {
            tokio::spawn(turned_away(stream, Arc::clone(&shared), graceful.watcher(), place));
        } else {
            rpc::status::refused("max_connections");
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = DRAIN.as_secs(), "requests in flight were cut off at shutdown");
    }
}

async fn connection(
    stream: TcpStream,
    shared: Arc<Listener<impl Serve>>,
    watcher: Watcher,
    _seat: OwnedSemaphorePermit,
) {
    let service = shared.service.clone();
    open(stream, &shared, service, watcher).await;
}

/// A connection over the limit: each of its requests is told so, and it does not stay.
async fn turned_away(
    stream: TcpStream,
    shared: Arc<Listener<impl Serve>>,
    watcher: Watcher,
    _place: OwnedSemaphorePermit,
) {
    let full = Routed(Full { connections: shared.limits.max_connections });
    // Told or not: whoever sends nothing is closed at the end of this time.
    if tokio::time::timeout(LOBBY_PATIENCE, open(stream, &shared, full, watcher)).await.is_err() {
        tracing::debug!("a connection over the limit was closed");
    }
}

async fn open(stream: TcpStream, shared: &Listener<impl Serve>, service: impl Serve, watcher: Watcher) {
    let limits = &shared.limits;
    match &shared.tls {
        None => serve(stream, limits, service, watcher).await,
        Some(acceptor) => match tokio::time::timeout(limits.header_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve(stream, limits, service, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
            Err(_) => rpc::status::refused("header_timeout_seconds"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: &Limits,
    service: impl Serve,
    watcher: Watcher,
) {
    // Twice the limit: what is over it but not by much is told so by name.
    let head = limits.max_header_bytes.get().saturating_mul(2);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout.max(limits.header_timeout + Duration::from_secs(1)))
        .max_buf_size(HEAD_BUFFER.max(head as usize));
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_concurrent_streams(limits.max_concurrent_streams.get())
        .max_header_list_size(head.max(16 * 1024))
        .keep_alive_interval(Some(limits.ping_interval))
        .keep_alive_timeout(limits.ping_timeout);
    let stream = Patient::new(stream, limits.header_timeout, limits.write_timeout);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(served.into_owned()).await {
        if let Some(limit) = timed_out(error.as_ref()) {
            rpc::status::refused(limit);
        }
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The limit by which hyper has ended a connection of its own accord.
fn timed_out(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<hyper::Error>().filter(|error| error.is_timeout())?;
    let waited = error.to_string().starts_with("read header from client");
    Some(if waited { "idle_timeout_seconds" } else { "ping_timeout_seconds" })
}

/// Binds `host:port` (port 0: a free one).
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((host, port)).await
}
