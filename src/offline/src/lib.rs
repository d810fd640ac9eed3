//! History: Parquet sources, the point-in-time join, windows over history, and Arrow Flight. The only
//! crate that knows Arrow and DataFusion.
//!
//! [`Offline`] answers the verbs; [`flight`] puts them on the wire; it also is the [`OfflineLog`]
//! port, for materialization, backfills and pushes, and the [`DatasetStore`] port, for dataset jobs.
//! Knows no online store and no Kafka.
//!
//! [`OfflineLog`]: model::ports::OfflineLog
//! [`DatasetStore`]: model::ports::DatasetStore

mod append;
mod asof;
mod background;
mod computed;
mod convert;
mod datasets;
mod engine;
mod error;
mod event_log;
pub mod export;
pub mod flight;
mod frame;
mod history;
mod key_filter;
mod keys;
mod known;
mod latest;
mod log;
mod metrics;
mod parity;
mod plan;
mod pull;
mod request;
mod scan;
mod scratch;
mod source;
mod span;
mod store;
pub mod stream_sql;
pub mod transform;
mod verbs;
mod window_fold;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::ports::{Clock, EventLog, Transformer};
use model::registry::Registry;
use model::{Error, Result};
use serde::{Deserialize, Serialize};

pub use store::ObjectStoreOptions;

/// How the offline side is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Where relative paths of file sources start: the feature repo.
    pub repo_dir: PathBuf,
    /// Where sorts spill to, each process in a directory of its own below it.
    pub spill_dir: PathBuf,
    /// Where tables uploaded by `do_put` wait for their `do_get`.
    pub upload_dir: PathBuf,
    /// The memory of all running queries together, bytes.
    pub memory_limit_bytes: usize,
    /// Rows per batch, inside and on the wire.
    pub batch_rows: usize,
    /// The greatest Flight message that is taken, bytes (pyarrow sends a whole data frame as one).
    pub max_message_bytes: usize,
    /// How long an upload waits.
    pub upload_ttl: Duration,
    /// The project of requests that name none (writes and pulls of the SDK do not); where it is unset,
    /// the only project that has the object.
    pub default_project: Option<String>,
    /// Where the events of streams are kept, by project, view and topic; `None` keeps none.
    pub event_log: Option<PathBuf>,
    /// How object stores are reached.
    #[serde(skip)]
    pub object_store: ObjectStoreOptions,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repo_dir: PathBuf::from("."),
            spill_dir: PathBuf::from("data/offline-spill"),
            upload_dir: PathBuf::from("data/flight-uploads"),
            memory_limit_bytes: 2 << 30,
            batch_rows: 8192,
            max_message_bytes: (2 << 30) - 1,
            upload_ttl: Duration::from_hours(1),
            default_project: None,
            event_log: None,
            object_store: ObjectStoreOptions::default(),
        }
    }
}

/// Gives the registry as it is now.
pub type RegistrySource = Arc<dyn Fn() -> Arc<Registry> + Send + Sync>;

/// The offline side.
#[derive(Clone)]
pub struct Offline {
    engine: Arc<engine::Engine>,
    settings: Arc<Settings>,
    registry: RegistrySource,
    clock: Arc<dyn Clock>,
    locks: append::Locks,
    background: Arc<background::Background>,
    transformer: Option<Arc<dyn Transformer>>,
}

impl Offline {
    /// Sets it up; makes the spill and upload directories.
    ///
    /// Errors: a directory that cannot be made, an option that no object store has.
    pub fn new(settings: Settings, registry: RegistrySource, clock: Arc<dyn Clock>) -> Result<Self> {
        let engine = Arc::new(engine::Engine::new(&settings)?);
        std::fs::create_dir_all(&settings.upload_dir).map_err(|e| error::io("creating", &settings.upload_dir, e))?;
        let background =
            background::Background::new().map_err(|e| Error::internal("starting background threads", e))?;
        let (locks, background) = (append::Locks::default(), Arc::new(background));
        Ok(Self { engine, settings: Arc::new(settings), registry, clock, locks, background, transformer: None })
    }

    /// With what runs the functions of on-demand feature views.
    #[must_use]
    pub fn with_transformer(mut self, transformer: Arc<dyn Transformer>) -> Self {
        self.transformer = Some(transformer);
        self
    }

    /// Memory that running queries and uploaded frames hold now, bytes.
    pub fn reserved_bytes(&self) -> usize {
        self.engine.reserved()
    }

    /// Where the events of streams are kept, if they are.
    pub fn event_log(&self) -> Option<Arc<dyn EventLog>> {
        self.engine.log().map(|log| Arc::new(log.clone()) as _)
    }

    /// The threads that long work belongs on, apart from those that answer online requests.
    pub fn threads(&self) -> &tokio::runtime::Handle {
        self.background.handle()
    }

    pub(crate) fn writer(&self) -> append::Writer {
        append::Writer {
            repo: self.engine.repo().to_path_buf(),
            stores: self.engine.stores().clone(),
            locks: self.locks.clone(),
        }
    }
}

impl fmt::Debug for Offline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offline").field("settings", &self.settings).finish_non_exhaustive()
    }
}
