//! What every request leaves behind, on every port: a span in the caller's trace, a count, a latency.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Histogram, counter, histogram};
use opentelemetry::propagation::{Extractor, Injector};
use rpc::ending::Watched;
use rpc::outcome::Outcome;
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

/// What is known of one service's requests: its metrics' handles, made once for each endpoint and status.
pub(crate) struct Observer {
    service: &'static str,
    /// Spans are exported, so every request begins or joins a trace.
    exporting: bool,
    /// Its calls answer with streams, which may fail in the middle.
    streams: bool,
    endpoints: RwLock<HashMap<String, Arc<Endpoint>>>,
}

struct Endpoint {
    seconds: Histogram,
    outcomes: RwLock<Vec<Counts>>,
}

/// The counters of one outcome.
#[derive(Clone)]
struct Counts {
    outcome: Outcome,
    requests: Counter,
    errors: Option<Counter>,
}

impl Observer {
    /// `service` is the label of its metrics.
    pub(crate) fn new(service: &'static str, exporting: bool) -> Arc<Self> {
        Arc::new(Self { service, exporting, streams: service == "offline", endpoints: RwLock::default() })
    }

    fn known(&self, endpoint: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).get(endpoint).map(Arc::clone)
    }

    fn made(&self, endpoint: &str) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        let of = || Endpoint {
            seconds: histogram!("larder_request_seconds", "service" => self.service, "endpoint" => endpoint.to_owned()),
            outcomes: RwLock::default(),
        };
        Arc::clone(endpoints.entry(endpoint.to_owned()).or_insert_with(|| Arc::new(of())))
    }

    fn counts(&self, endpoint: &str, of: &Endpoint, outcome: Outcome) -> Counts {
        let found = |all: &[Counts]| all.iter().find(|counts| counts.outcome == outcome).cloned();
        if let Some(counts) = found(&of.outcomes.read().unwrap_or_else(PoisonError::into_inner)) {
            return counts;
        }
        let labels =
            [("service", self.service.into()), ("endpoint", endpoint.to_owned().into()), ("status", outcome.label())];
        let counts = Counts {
            outcome,
            requests: counter!("larder_requests_total", &labels),
            errors: outcome.is_error().then(|| counter!("larder_request_errors_total", &labels)),
        };
        of.outcomes.write().unwrap_or_else(PoisonError::into_inner).push(counts.clone());
        counts
    }

    /// Whether a request with these headers is in a trace.
    fn is_traced(&self, headers: &HeaderMap) -> bool {
        self.exporting || headers.contains_key("traceparent")
    }

    fn count(&self, named: &str, seconds: f64, outcome: Outcome) {
        let endpoint = self.known(named).unwrap_or_else(|| self.made(named));
        endpoint.seconds.record(seconds);
        let counts = self.counts(named, &endpoint, outcome);
        counts.requests.increment(1);
        if let Some(errors) = counts.errors {
            errors.increment(1);
            if outcome.is_our_fault() {
                let (service, status) = (self.service, &*outcome.label());
                tracing::error!(service, endpoint = named, status, seconds, "a request failed by our fault");
            }
        }
    }
}

impl server::past::Observer for Observer {
    fn is_unseen(&self, headers: &HeaderMap) -> bool {
        !self.is_traced(headers) && !tracing::enabled!(tracing::Level::DEBUG)
    }

    fn answered(&self, route: &'static str, began: Instant, response: &Response) {
        self.count(route, began.elapsed().as_secs_f64(), Outcome::of(response));
    }
}

/// Middleware for one service's router.
///
/// A request is in a trace where spans are exported or where its caller sends one. Without either, nobody
/// would see the span, and there is none below the log level `debug`.
pub(crate) async fn request(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let name = endpoint(&request);
    let traced = observer.is_traced(request.headers());
    let (service, named) = (observer.service, name.as_str());
    let span = if traced {
        let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Headers(request.headers())));
        let span = tracing::info_span!("request", service, endpoint = named, status = tracing::field::Empty);
        if let Err(error) = span.set_parent(parent) {
            tracing::debug!(%error, "the caller's trace could not be joined");
        }
        span
    } else {
        tracing::debug_span!("request", service, endpoint = named, status = tracing::field::Empty)
    };
    let mut response = next.run(request).instrument(span.clone()).await;
    let seconds = began.elapsed().as_secs_f64();
    rpc::status::blame_caller(response.headers_mut());
    let outcome = Outcome::of(&response);
    if traced {
        span.record("status", &*outcome.label());
        opentelemetry::global::get_text_map_propagator(|p| {
            p.inject_context(&span.context(), &mut HeadersMut(response.headers_mut()));
        });
    }
    // A stream's outcome is known at its end.
    if observer.streams && outcome.may_change() {
        let told = move |outcome| observer.count(&name, began.elapsed().as_secs_f64(), outcome);
        return response.map(|body| Body::new(Watched::new(body, told)));
    }
    // Unknown methods of a known service (UNIMPLEMENTED) must not become label values.
    let named = if outcome.is_unknown_method() { "unknown" } else { named };
    observer.count(named, seconds, outcome);
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
