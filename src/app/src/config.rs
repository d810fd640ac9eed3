//! The configuration: `larder.yaml`, or a Feast `feature_store.yaml` as it is, under the flags.
//!
//! Every error names the key, the file and the line, and nothing is started on a doubtful one.

mod feast;
mod larder;
mod limits;
mod online;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use model::registry::Start;
use serde::de::DeserializeOwned;

use crate::cli::{self, Service};
pub(crate) use limits::Limits;

/// What the server runs with: all defaults filled in, all paths absolute or relative to the
/// working directory.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) project: String,
    /// All projects that are served, `project` among them; `None` is every one of the registry.
    pub(crate) projects: Option<BTreeSet<String>>,
    /// The repository: relative paths of file sources start here.
    pub(crate) dir: PathBuf,
    /// Where the embedded stores are.
    pub(crate) data: PathBuf,
    pub(crate) services: Vec<Service>,
    pub(crate) host: String,
    pub(crate) ports: Ports,
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) registry: Registry,
    /// Feast's `enable_online_feature_view_versioning`.
    pub(crate) online_versions: bool,
    pub(crate) online: OnlineStore,
    #[cfg_attr(not(feature = "offline"), allow(dead_code))]
    pub(crate) offline_memory_bytes: u64,
    /// How object stores are reached, besides what the environment says.
    #[cfg_attr(not(feature = "offline"), allow(dead_code))]
    pub(crate) object_store: Hidden,
    /// Where the events of streams are kept; `None` keeps none.
    #[cfg_attr(not(feature = "offline"), allow(dead_code))]
    pub(crate) event_log: Option<PathBuf>,
    pub(crate) ingest: Ingest,
    pub(crate) telemetry: Telemetry,
    pub(crate) limits: Limits,
    /// Where Python functions of on-demand feature views run; `None` runs none.
    #[cfg_attr(not(feature = "offline"), allow(dead_code))]
    pub(crate) transformations: Option<Transformations>,
    /// What the user should know of how the file was read; logged at the start.
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) online: u16,
    pub(crate) registry: u16,
    pub(crate) offline: u16,
    pub(crate) metrics: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { online: 6566, registry: 6570, offline: 8815, metrics: 8000 }
    }
}

/// Where the registry's truth is.
#[derive(Clone, Debug)]
pub(crate) enum Registry {
    Embedded,
    File { path: PathBuf, cache_ttl_seconds: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum OnlineStore {
    Memory,
    Redis(Box<::online::redis::Settings>),
    Sqlite { path: PathBuf },
    Sled { cache_bytes: u64, tier_bytes: u64, log_bytes: u64, durability: Durability },
}

/// How safe a write is before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    Memory,
    Flush,
    #[default]
    Fsync,
}

impl Default for OnlineStore {
    fn default() -> Self {
        Self::Sled {
            cache_bytes: 64 << 20,
            tier_bytes: 512 << 20,
            log_bytes: 64 << 20,
            durability: Durability::default(),
        }
    }
}

#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) struct Ingest {
    pub(crate) group_prefix: String,
    /// This process among the members of its groups; `None` is a name of its own for each host and data directory.
    pub(crate) group_instance_id: Option<String>,
    /// Where a view starts to read its topic that has no position yet.
    pub(crate) start: Start,
    pub(crate) batch_messages: usize,
    pub(crate) linger_ms: u64,
    pub(crate) max_future_ms: u64,
    pub(crate) checkpoint_interval_ms: u64,
    pub(crate) state_memory_bytes: usize,
    /// librdkafka properties, passed on as they are.
    pub(crate) kafka: BTreeMap<String, String>,
    /// Descriptor sets with the types of Protobuf messages, by their files.
    pub(crate) descriptor_sets: BTreeMap<String, Vec<u8>>,
    pub(crate) schema_registry: Option<SchemaRegistry>,
}

/// Where the schemas of Avro's writers are.
#[derive(Clone)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) struct SchemaRegistry {
    pub(crate) url: String,
    pub(crate) user: Option<(String, String)>,
    pub(crate) timeout_ms: u64,
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaRegistry").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            group_prefix: "larder".into(),
            group_instance_id: None,
            start: Start::EARLIEST,
            batch_messages: 1000,
            linger_ms: 5,
            max_future_ms: 5000,
            checkpoint_interval_ms: 1000,
            state_memory_bytes: 512 << 20,
            kafka: BTreeMap::new(),
            descriptor_sets: BTreeMap::new(),
            schema_registry: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    pub(crate) log: String,
    pub(crate) json: bool,
    pub(crate) otlp_endpoint: Option<String>,
}

/// How Python functions of on-demand feature views are run.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "offline"), allow(dead_code))]
pub(crate) struct Transformations {
    pub(crate) python: Python,
    pub(crate) deadline_ms: u64,
    pub(crate) queue: usize,
}

/// Where Python functions run.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "offline"), allow(dead_code))]
pub(crate) enum Python {
    Workers { interpreter: PathBuf, workers: usize, memory_mb: u64 },
    Address(String),
}

/// Settings whose values are not for the log.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Hidden(pub(crate) BTreeMap<String, String>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{0} has neither larder.yaml nor feature_store.yaml: name the directory of a feature repository with -c DIR"
    )]
    NoFile(PathBuf),
    #[error("{path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{place}: {message}")]
    Bad { place: Place, message: String },
}

/// A line of a file.
#[derive(Debug)]
pub(crate) struct Place {
    file: PathBuf,
    line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Reads the directory's configuration.
pub(crate) fn read(dir: &Path) -> Result<Config, Error> {
    let (larder_yaml, feast_yaml) = (dir.join("larder.yaml"), dir.join("feature_store.yaml"));
    if larder_yaml.is_file() {
        larder::read(dir, &larder_yaml)
    } else if feast_yaml.is_file() {
        feast::read(dir, &feast_yaml)
    } else {
        Err(Error::NoFile(dir.to_owned()))
    }
}

/// Reads the configuration and lays the flags over it.
pub(crate) fn load(options: &cli::Serve) -> Result<Config, Error> {
    let mut config = read(&options.dir)?;
    if let Some(services) = &options.services {
        config.services.clone_from(services);
    }
    if let Some(host) = &options.host {
        config.host.clone_from(host);
    }
    let ports = &mut config.ports;
    for (port, flag) in [
        (&mut ports.online, options.online_port),
        (&mut ports.registry, options.registry_port),
        (&mut ports.offline, options.offline_port),
        (&mut ports.metrics, options.metrics_port),
    ] {
        *port = flag.unwrap_or(*port);
    }
    if let (Some(cert), Some(key)) = (&options.tls_cert, &options.tls_key) {
        config.tls = Some((cert.clone(), key.clone()));
    }
    Ok(config)
}

impl Config {
    /// All defaults, for a project in a directory.
    fn new(project: String, dir: &Path) -> Self {
        Self {
            project,
            projects: None,
            dir: dir.to_owned(),
            data: dir.join("data"),
            services: vec![Service::Online, Service::Registry, Service::Offline, Service::Ingest],
            host: "127.0.0.1".into(),
            ports: Ports::default(),
            tls: None,
            registry: Registry::Embedded,
            online_versions: false,
            online: OnlineStore::default(),
            offline_memory_bytes: 1 << 30,
            object_store: Hidden::default(),
            event_log: None,
            ingest: Ingest::default(),
            telemetry: Telemetry {
                log: "info".into(),
                json: false,
                otlp_endpoint: std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|v| !v.is_empty()),
            },
            limits: Limits::default(),
            transformations: None,
            notes: Vec::new(),
        }
    }
}

/// A YAML file with the environment's variables (`$NAME`, `${NAME}`) put in, as Feast does it.
struct Yaml {
    path: PathBuf,
    text: String,
}

impl Yaml {
    fn open(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), text: expand(&text, |name| std::env::var(name).ok()) })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let mut at = String::new();
        let parsed = serde_saphyr::with_deserializer_from_str(&self.text, |de| {
            serde_path_to_error::deserialize(de).map_err(|error| {
                at = error.path().to_string();
                error.into_inner()
            })
        });
        parsed.map_err(|error: serde_saphyr::Error| {
            let line = error.location().map_or(1, |l| l.line());
            let message = error.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default().to_owned();
            let message = if at.is_empty() || at == "." { message } else { format!("{at}: {message}") };
            Error::Bad { place: Place { file: self.path.clone(), line }, message }
        })
    }

    /// An error at the line of a value.
    fn bad<T>(&self, at: &serde_saphyr::Spanned<T>, message: String) -> Error {
        Error::Bad { place: Place { file: self.path.clone(), line: at.defined.line() }, message }
    }
}

/// `os.path.expandvars`: a variable that is not set stays as it is written.
fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, whole) = if let Some(braced) = after.strip_prefix('{') {
            braced.find('}').map_or(("", 1), |end| (&braced[..end], end + 3))
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            (&after[..end], end + 1)
        };
        match Some(name).filter(|n| !n.is_empty()).and_then(&variable) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..at + whole]),
        }
        rest = &rest[at + whole..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
