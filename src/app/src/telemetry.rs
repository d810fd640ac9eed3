//! Logs, traces and metrics: one subscriber, one recorder, an OTLP exporter where an endpoint is
//! configured, and the metrics' page.

use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::Telemetry;

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("telemetry.log: '{filter}' is not a filter: {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("telemetry.otlp_endpoint: '{endpoint}' cannot be exported to: {source}")]
    Otlp { endpoint: String, source: opentelemetry_otlp::ExporterBuildError },
    #[error("the log is already set up: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    #[error("the metrics are already set up: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// What must outlive the server.
pub(crate) struct Guard {
    provider: Option<SdkTracerProvider>,
    metrics: PrometheusHandle,
}

/// Latency buckets in seconds: 100 µs to 30 s.
const SECONDS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0,
];

/// How long what a histogram is told waits for its bucket: at 10,000 requests a second some 160 kB.
const UPKEEP: Duration = Duration::from_secs(1);

/// Sets everything up. Logs go to standard error.
pub(crate) fn init(settings: &Telemetry) -> Result<Guard, Error> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| settings.log.clone());
    let filter =
        EnvFilter::try_new(&directives).map_err(|source| Error::Filter { filter: directives.clone(), source })?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = settings.otlp_endpoint.as_deref().map(exporter).transpose()?;
    // A provider without an exporter still gives spans their ids, so that contexts are passed on.
    let local = SdkTracerProvider::builder().build();
    let tracer = provider.as_ref().unwrap_or(&local).tracer("larder");
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = if settings.json { lines.json().boxed() } else { lines.with_ansi(false).boxed() };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_filter(tracing_subscriber::filter::LevelFilter::INFO),
        )
        .try_init()?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    Ok(Guard { provider, metrics })
}

fn exporter(endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| Error::Otlp { endpoint: endpoint.to_owned(), source })?;
    let resource = Resource::builder().with_service_name("larder").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Guard {
    /// `GET /metrics` in the Prometheus text format.
    pub(crate) fn router(&self) -> Router {
        let handle = self.metrics.clone();
        Router::new().route(
            "/metrics",
            get(move || {
                let handle = handle.clone();
                async move {
                    handle.run_upkeep();
                    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render())
                }
            }),
        )
    }

    /// Sorts what the histograms were told into their buckets, again and again until `shutdown`: it waits in
    /// memory until somebody does, and a page that is asked for seldom would find much of it.
    pub(crate) fn upkeep(&self, shutdown: CancellationToken) -> impl Future<Output = ()> + use<> {
        let handle = self.metrics.clone();
        async move {
            let mut rounds = tokio::time::interval(UPKEEP);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(rounds.tick()).await.is_some() {
                handle.run_upkeep();
            }
        }
    }

    /// Exports what is left.
    pub(crate) fn close(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}
