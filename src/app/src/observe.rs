//! What every request leaves behind, on every port: a span in the caller's trace, a count, a latency.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, histogram};
use opentelemetry::propagation::{Extractor, Injector};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The W3C headers of a request or response.
struct Headers<'a>(&'a HeaderMap);
struct HeadersMut<'a>(&'a mut HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (key.parse::<axum::http::HeaderName>(), value.parse()) {
            self.0.insert(name, value);
        }
    }
}

/// Middleware for one service's router: `service` is the label of its metrics.
pub(crate) async fn request(State(service): State<&'static str>, request: Request, next: Next) -> Response {
    let endpoint = endpoint(&request);
    let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Headers(request.headers())));
    let span = tracing::info_span!("request", service, endpoint, status = tracing::field::Empty);
    if let Err(error) = span.set_parent(parent) {
        tracing::debug!(%error, "the caller's trace could not be joined");
    }
    let began = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let seconds = began.elapsed().as_secs_f64();
    rpc::status::blame_caller(response.headers_mut());
    let status = status(&response);
    span.record("status", status.as_str());
    opentelemetry::global::get_text_map_propagator(|p| {
        p.inject_context(&span.context(), &mut HeadersMut(response.headers_mut()));
    });
    // Unknown methods of a known service (UNIMPLEMENTED) must not become label values.
    let endpoint = if status == "12" { "unknown".to_owned() } else { endpoint };
    histogram!("larder_request_seconds", "service" => service, "endpoint" => endpoint.clone()).record(seconds);
    let failed = status != "0" && !status.starts_with('2');
    let labels = [("service", service.to_owned()), ("endpoint", endpoint), ("status", status)];
    if failed {
        counter!("larder_request_errors_total", &labels).increment(1);
    }
    counter!("larder_requests_total", &labels).increment(1);
    response
}

/// The route, never the raw path: a client cannot make new label values.
fn endpoint(request: &Request) -> String {
    let path = request.uri().path();
    match request.extensions().get::<MatchedPath>() {
        // tonic mounts a service as `/package.Service/{*rest}`: its methods are few and known.
        Some(route) if route.as_str().contains("{*") => {
            let known = path.rsplit('/').next().is_some_and(|m| m.chars().all(|c| c.is_ascii_alphanumeric()));
            if known && path.len() < 100 { path.to_owned() } else { "unknown".into() }
        }
        Some(route) => route.as_str().to_owned(),
        None => "unknown".into(),
    }
}

/// gRPC's status number where the answer carries one in its head, else HTTP's.
fn status(response: &Response) -> String {
    let grpc = response.headers().get("grpc-status").and_then(|v| v.to_str().ok());
    grpc.map_or_else(|| response.status().as_u16().to_string(), str::to_owned)
}
