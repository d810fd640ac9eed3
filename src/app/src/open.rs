//! Opens what the configuration names: the registry, the stores, the offline side and what runs functions. Knows no port and
//! no request.

use std::sync::Arc;
use std::time::Duration;

use model::ports::{Clock, JobStore, OnlineStore, RegistryStore};
use service::catalog::{Catalog, CatalogSettings};

#[cfg(feature = "offline")]
use crate::cli::Service;
use crate::config::{self, Config};
use crate::run::Error;

/// What runs the SQL of stream views, where it is built in.
#[allow(clippy::unnecessary_wraps)] // without the offline side there is none
pub(crate) fn stream_sql() -> Option<Arc<dyn model::ports::StreamSql>> {
    #[cfg(feature = "offline")]
    return Some(Arc::new(offline::stream_sql::Sql::default()));
    #[cfg(not(feature = "offline"))]
    None
}

pub(crate) async fn open_catalog(config: &Config, clock: Arc<dyn Clock>) -> Result<Catalog, Error> {
    let (store, cache_ttl): (Arc<dyn RegistryStore>, _) = match &config.registry {
        config::Registry::Embedded => {
            (Arc::new(online::registry::sled::Store::open(&config.data.join("registry"))?), Duration::ZERO)
        }
        config::Registry::File { path, cache_ttl_seconds } => {
            (Arc::new(online::registry::file::Store::new(path.clone())), Duration::from_secs(*cache_ttl_seconds))
        }
    };
    let settings = CatalogSettings {
        cache_ttl,
        online_versions: config.online_versions,
        clear_online_rows: true,
        stream_sql: stream_sql(),
    };
    Ok(Catalog::open(store, clock, settings).await?)
}

/// Where jobs outlive the server; `None`, where another process on the same directory has that already.
pub(crate) fn open_jobs(config: &Config) -> Result<Option<Arc<dyn JobStore>>, Error> {
    let path = config.data.join("jobs");
    let jobs = online::jobs::Directory::open(&path)?;
    if jobs.is_none() {
        tracing::warn!(path = %path.display(), "another process keeps its jobs there: those of this one end with it");
    }
    Ok(jobs.map(|jobs| Arc::new(jobs) as Arc<dyn JobStore>))
}

pub(crate) async fn open_store(config: &Config) -> Result<Arc<dyn OnlineStore>, Error> {
    Ok(match &config.online {
        config::OnlineStore::Memory => Arc::new(online::memory::Store::new()),
        config::OnlineStore::Redis(settings) => Arc::new(online::redis::Store::open(settings).await?),
        config::OnlineStore::Sqlite { path } => {
            Arc::new(online::sqlite::Store::open(online::sqlite::Settings::new(path))?)
        }
        config::OnlineStore::Sled { cache_bytes, tier_bytes, log_bytes, durability } => {
            let mut settings = online::sled::Settings::new(config.data.join("online"));
            settings.cache_bytes = *cache_bytes;
            settings.tier_bytes = *tier_bytes;
            settings.log_bytes = *log_bytes;
            settings.durability = match durability {
                config::Durability::Memory => online::sled::Durability::Memory,
                config::Durability::Flush => online::sled::Durability::Flush,
                config::Durability::Fsync => online::sled::Durability::Fsync,
            };
            Arc::new(online::sled::Store::open(settings)?)
        }
    })
}

/// What object stores are told.
#[cfg(feature = "offline")]
pub(crate) fn object_store(config: &Config) -> offline::ObjectStoreOptions {
    offline::ObjectStoreOptions::new(&config.object_store.0, std::env::vars())
}

#[cfg(feature = "offline")]
pub(crate) fn open_transformer(config: &Config) -> Result<Arc<offline::transform::Transformers>, Error> {
    Ok(Arc::new(offline::transform::Transformers::start(transformations(config))?))
}

/// The same, started by the first function that is to be run.
#[cfg(feature = "offline")]
pub(crate) fn transformer_when_needed(config: &Config) -> Arc<offline::transform::Transformers> {
    Arc::new(offline::transform::Transformers::when_needed(transformations(config)))
}

#[cfg(feature = "offline")]
pub(crate) fn open_offline(
    config: &Config,
    catalog: &Arc<Catalog>,
    clock: Arc<dyn Clock>,
) -> Result<offline::Offline, Error> {
    let settings = offline::Settings {
        repo_dir: config.dir.clone(),
        spill_dir: config.data.join("offline-spill"),
        upload_dir: config.data.join("flight-uploads"),
        memory_limit_bytes: usize::try_from(config.offline_memory_bytes).unwrap_or(usize::MAX),
        default_project: Some(config.project.clone()),
        object_store: object_store(config),
        event_log: config.event_log.clone(),
        ..offline::Settings::default()
    };
    let catalog = catalog.clone();
    let registry: offline::RegistrySource = Arc::new(move || catalog.snapshot());
    Ok(offline::Offline::new(settings, registry, clock)?)
}

#[cfg(feature = "offline")]
fn transformations(config: &Config) -> Option<offline::transform::Settings> {
    let wanted = [Service::Online, Service::Offline].iter().any(|s| config.services.contains(s));
    let found = config.transformations.as_ref().filter(|_| wanted)?;
    Some(offline::transform::Settings {
        python: match &found.python {
            config::Python::Workers { interpreter, workers, memory_mb } => offline::transform::Python::Workers {
                interpreter: interpreter.clone(),
                workers: *workers,
                memory_bytes: memory_mb.saturating_mul(1 << 20),
            },
            config::Python::Address(address) => offline::transform::Python::Address(address.clone()),
        },
        deadline: Duration::from_millis(found.deadline_ms),
        queue: found.queue,
    })
}
