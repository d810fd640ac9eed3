//! Wiring: opens the stores, makes the verbs, binds the listeners, runs until told to stop, and then
//! stops in order: accept no more, drain, checkpoint, close.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Router, middleware};
use model::ports::{Clock, DatasetStore, OfflineLog, OnlineStore, Transformer};
use server::listen::Routed;
use service::catalog::Catalog;
use service::datasets::Datasets;
use service::materialize::{self, Materializer};
use service::parity::Parity;
use service::push::Pusher;
use service::retrieve::Retriever;
use service::streams::Streams;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::cli::Service;
use crate::clock::SystemClock;
use crate::config::{self, Config};
use crate::{observe, open, telemetry};

/// Why the server could not start or stop cleanly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    #[error("the data directory {path} cannot be made: {source}")]
    Data { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] online::Error),
    #[error("{0}")]
    Model(#[from] model::Error),
    #[error("cannot listen on {host}:{port} for the {service} service: {source}")]
    Bind { service: &'static str, host: String, port: u16, source: io::Error },
    #[error("TLS: {path}: {message}")]
    Tls { path: PathBuf, message: String },
    #[error("gRPC reflection: {0}")]
    Reflection(String),
    #[error("signals cannot be waited for: {0}")]
    Signal(io::Error),
    #[cfg(feature = "kafka")]
    #[error(transparent)]
    Ingest(#[from] ingest::Error),
}

/// What all services share.
struct Shared {
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    log: Option<Arc<dyn OfflineLog>>,
    transformer: Option<Arc<dyn Transformer>>,
    datasets: Arc<Datasets>,
    materializer: Option<Arc<Materializer>>,
    runner: Option<materialize::Runner>,
    live: Arc<service::windows::live::Live>,
    board: Arc<service::streams::Board>,
    #[cfg(feature = "kafka")]
    ingest: ingest::Deps,
    #[cfg(feature = "offline")]
    offline: Option<offline::Offline>,
}

impl Shared {
    /// The threads for work that requests must not wait for.
    fn threads(&self) -> Handle {
        #[cfg(feature = "offline")]
        if let Some(offline) = &self.offline {
            return offline.threads().clone();
        }
        Handle::current()
    }
}

/// Runs the server until SIGTERM or SIGINT.
pub(crate) async fn serve(config: Config) -> Result<(), Error> {
    // before anything listens: who sees the server ready may stop it at once
    let mut signals = Signals::install().map_err(Error::Signal)?;
    let telemetry = telemetry::init(&config.telemetry)?;
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    #[cfg(feature = "kafka")]
    ingest_settings(&config).check()?;
    let shutdown = CancellationToken::new();
    let mut shared = shared(&config, &shutdown).await?;
    let mut tasks = JoinSet::new();
    listen(&config, &shared, telemetry.router(), &shutdown, &mut tasks).await?;
    tasks.spawn(telemetry.upkeep(shutdown.clone()));
    let streams = streams(&config, &shared, &shutdown, &mut tasks);
    tasks.spawn(service::clear::run(shared.catalog.clone(), shared.store.clone(), streams, shutdown.clone()));
    let threads = shared.threads();
    if let Some(runner) = shared.runner.take() {
        tasks.spawn_on(runner.run(shutdown.clone()), &threads);
    }
    if config.services.contains(&Service::Registry) {
        tasks.spawn_on(shared.datasets.clone().run(shutdown.clone()), &threads);
    }
    tracing::info!(project = config.project, version = env!("LARDER_VERSION"), "ready");

    let signal = signals.wait().await;
    tracing::info!(signal, "stopping: draining requests and consumers");
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
    shared.store.close().await?;
    tracing::info!("stopped");
    telemetry.close();
    Ok(())
}

/// Starts the consumers, and gives what removes what they leave when their views are deleted.
#[cfg(feature = "kafka")]
#[allow(clippy::unnecessary_wraps)] // without Kafka there are none
fn streams(
    config: &Config,
    shared: &Shared,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Option<Arc<dyn service::clear::Streams>> {
    let gate = shared.ingest.gate.clone();
    if config.services.contains(&Service::Ingest) {
        let (deps, shutdown) = (shared.ingest.clone(), shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = ingest::run(deps, shutdown).await {
                tracing::error!(%error, "ingestion stopped");
            }
        });
    }
    let group_prefix = config.ingest.group_prefix.clone();
    Some(Arc::new(ingest::gate::Leftovers { gate, store: shared.store.clone(), group_prefix }))
}

#[cfg(not(feature = "kafka"))]
fn streams(
    _: &Config,
    _: &Shared,
    _: &CancellationToken,
    _: &mut JoinSet<()>,
) -> Option<Arc<dyn service::clear::Streams>> {
    None
}

async fn shared(config: &Config, shutdown: &CancellationToken) -> Result<Shared, Error> {
    std::fs::create_dir_all(&config.data).map_err(|source| Error::Data { path: config.data.clone(), source })?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let catalog = Arc::new(open::open_catalog(config, clock.clone()).await?);
    let store = open::open_store(config).await?;
    #[cfg(feature = "offline")]
    let transformer: Arc<dyn Transformer> = open::open_transformer(config)?;
    #[cfg(feature = "offline")]
    let offline = if config.services.contains(&Service::Offline) {
        Some(open::open_offline(config, &catalog, clock.clone())?.with_transformer(transformer.clone()))
    } else {
        None
    };
    #[cfg(feature = "offline")]
    let kept = offline.clone().map(|offline| Arc::new(offline) as Arc<dyn DatasetStore>);
    #[cfg(not(feature = "offline"))]
    let kept: Option<Arc<dyn DatasetStore>> = None;
    #[cfg(feature = "offline")]
    let log = offline.clone().map(|o| Arc::new(o) as Arc<dyn OfflineLog>);
    #[cfg(not(feature = "offline"))]
    let log: Option<Arc<dyn OfflineLog>> = None;
    let (live, board): (Arc<service::windows::live::Live>, Arc<service::streams::Board>) = Default::default();
    #[cfg(feature = "kafka")]
    let ingest = ingest::Deps {
        registry: catalog.subscribe(),
        store: store.clone(),
        clock: clock.clone(),
        settings: ingest_settings(config),
        gate: ingest::gate::Gate::default(),
        live: live.clone(),
        board: board.clone(),
        #[cfg(feature = "offline")]
        event_log: offline.as_ref().and_then(offline::Offline::event_log),
        #[cfg(not(feature = "offline"))]
        event_log: None,
        stream_sql: open::stream_sql(),
    };
    let streams: Option<Arc<dyn materialize::Streams>> = None;
    #[cfg(not(feature = "kafka"))]
    let _ = shutdown;
    #[cfg(feature = "kafka")]
    let streams = if config.services.contains(&Service::Ingest) {
        Some(Arc::new(ingest::shadow::Shadows::new(&ingest, shutdown.clone())?) as Arc<dyn materialize::Streams>)
    } else {
        streams
    };
    let materializes = log.clone().filter(|_| config.services.contains(&Service::Online));
    let (materializer, runner) = match materializes {
        Some(log) => {
            let jobs = open::open_jobs(config)?;
            let ports = materialize::Ports {
                catalog: catalog.clone(),
                store: store.clone(),
                log,
                streams,
                jobs,
                clock: clock.clone(),
            };
            let (materializer, runner) = Materializer::open(ports, config.project.clone()).await?;
            (Some(Arc::new(materializer)), Some(runner))
        }
        None => (None, None),
    };
    Ok(Shared {
        datasets: Arc::new(Datasets::new(catalog.clone(), kept, clock.clone(), config.project.clone())),
        materializer,
        runner,
        live,
        board,
        #[cfg(feature = "kafka")]
        ingest,
        catalog,
        store,
        clock,
        #[cfg(feature = "offline")]
        transformer: Some(transformer),
        #[cfg(not(feature = "offline"))]
        transformer: None,
        log,
        #[cfg(feature = "offline")]
        offline,
    })
}

/// Binds every listener and serves it. Nothing serves before all could be bound.
async fn listen(
    config: &Config,
    shared: &Shared,
    metrics: Router,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    let tls = config.tls.as_ref().map(|(cert, key)| tls(cert, key)).transpose()?;
    let mut listeners: Vec<(&'static str, TcpListener, Router, bool)> = Vec::new();
    let mut reads = None;
    if config.services.contains(&Service::Online) {
        let (router, past) = server::online_router(online_face(config, shared), config.projects.clone())
            .await
            .map_err(|e| Error::Reflection(e.to_string()))?;
        reads = Some(past);
        listeners.push(("online", bind(&config.host, "online", config.ports.online).await?, router, true));
    }
    if config.services.contains(&Service::Registry) {
        let (catalog, datasets) = (shared.catalog.clone(), shared.datasets.clone());
        let router = server::registry_router(catalog, datasets, config.limits.of_port())
            .await
            .map_err(|e| Error::Reflection(e.to_string()))?;
        listeners.push(("registry", bind(&config.host, "registry", config.ports.registry).await?, router, true));
    }
    #[cfg(feature = "offline")]
    if let Some(offline) = &shared.offline {
        let flight = offline::flight::service(offline.clone());
        let router = tonic::service::Routes::new(flight).into_axum_router();
        // its connections are served by the threads that it is bound on
        let (threads, host, port) = (offline.threads(), config.host.clone(), config.ports.offline);
        let bound = threads.spawn(async move { bind(&host, "offline", port).await });
        let listener = bound.await.map_err(|e| model::Error::internal("binding the offline port was cut off", e))??;
        listeners.push(("offline", listener, router, true));
    }
    listeners.push(("metrics", bind(&config.host, "metrics", config.ports.metrics).await?, metrics, false));

    for (service, listener, router, secured) in listeners {
        let address = listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
        let tls = tls.clone().filter(|_| secured);
        tracing::info!(service, address, tls = tls.is_some(), "listening");
        let observer = observe::Observer::new(service, config.telemetry.otlp_endpoint.is_some());
        let router = router.layer(middleware::from_fn_with_state(observer.clone(), observe::request));
        let (limits, shutdown) = (config.limits.of_port(), shutdown.clone());
        let threads = if service == "offline" { shared.threads() } else { Handle::current() };
        match reads.take() {
            // They are the first listener's.
            Some(reads) => {
                let reads = reads.past(router, observer);
                tasks.spawn_on(server::listen::run(listener, reads, tls, limits, shutdown), &threads)
            }
            None => tasks.spawn_on(server::listen::run(listener, Routed(router), tls, limits, shutdown), &threads),
        };
    }
    Ok(())
}

fn online_face(config: &Config, shared: &Shared) -> server::Online {
    let project = || config.project.clone();
    let (catalog, store) = (|| shared.catalog.clone(), || shared.store.clone());
    let retriever = Arc::new(
        Retriever::new(catalog(), store(), shared.clock.clone(), project(), config.limits.of_reads())
            .with_transformer(shared.transformer.clone())
            .with_live(shared.live.clone()),
    );
    let compared = |log| Parity { catalog: catalog(), retriever: retriever.clone(), log, clock: shared.clock.clone() };
    server::Online {
        parity: shared.log.clone().map(compared),
        retriever: retriever.clone(),
        pusher: Arc::new(
            Pusher::new(catalog(), store(), shared.log.clone(), shared.clock.clone(), project())
                .with_transformer(shared.transformer.clone())
                .with_max_value_bytes(config.limits.max_value_bytes.get()),
        ),
        materializer: shared.materializer.clone(),
        datasets: shared.log.as_ref().map(|_| shared.datasets.clone()),
        streams: cfg!(feature = "kafka").then(|| Streams {
            catalog: catalog(),
            store: store(),
            board: shared.board.clone(),
            group_prefix: config.ingest.group_prefix.clone(),
            project: project(),
        }),
        limits: config.limits.of_port(),
    }
}

async fn bind(host: &str, service: &'static str, port: u16) -> Result<TcpListener, Error> {
    let bound = server::listen::bind(host, port).await;
    bound.map_err(|source| Error::Bind { service, host: host.to_owned(), port, source })
}

fn tls(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let bad = |path: &Path, message: String| Error::Tls { path: path.to_owned(), message };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad(cert, e.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(cert, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|e| bad(cert, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// This process among the workers of a consumer group. With a store of its own it is the only one; of a shared store there
/// may be others, on other hosts or in other data directories.
#[cfg(feature = "kafka")]
fn instance(config: &Config) -> String {
    if !matches!(config.online, config::OnlineStore::Redis(_)) {
        return "larder".to_owned();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
    format!("larder-{}-{:08x}", host.trim(), model::row::column_id(&data.to_string_lossy()))
}

#[cfg(feature = "kafka")]
fn ingest_settings(config: &Config) -> ingest::Settings {
    let projects = config.projects.clone();
    let group_instance_id = Some(config.ingest.group_instance_id.clone().unwrap_or_else(|| instance(config)));
    let config = &config.ingest;
    ingest::Settings {
        projects,
        group_prefix: config.group_prefix.clone(),
        group_instance_id,
        start: config.start,
        batch_size: config.batch_messages,
        linger: Duration::from_millis(config.linger_ms),
        future_skew: Duration::from_millis(config.max_future_ms),
        checkpoints: ingest::writer::Checkpoints {
            interval: Duration::from_millis(config.checkpoint_interval_ms),
            memory: config.state_memory_bytes,
            ..ingest::Settings::default().checkpoints
        },
        properties: config.kafka.clone(),
        descriptor_sets: config.descriptor_sets.clone(),
        schema_registry: config.schema_registry.as_ref().map(|registry| ingest::schema_registry::Settings {
            url: registry.url.clone(),
            user: registry.user.clone(),
            timeout: Duration::from_millis(registry.timeout_ms),
        }),
        ..ingest::Settings::default()
    }
}

/// What asks the process to stop.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
