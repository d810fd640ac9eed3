//! `larder.yaml`: our own configuration. Every key is optional but `project`; an unknown key is an
//! error, so that a misspelt one is found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use model::registry::Start;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    Config, Durability, Error, Hidden, Ingest, Limits, OnlineStore, Python, Registry, SchemaRegistry, Transformations,
    Yaml, online,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    project: Spanned<String>,
    projects: Option<BTreeSet<String>>,
    data: Option<PathBuf>,
    host: Option<String>,
    online_port: Option<u16>,
    registry_port: Option<u16>,
    offline_port: Option<u16>,
    metrics_port: Option<u16>,
    tls: Option<Tls>,
    registry: Option<RegistryFile>,
    online_store: Option<Store>,
    offline: Option<Offline>,
    ingest: Option<IngestFile>,
    telemetry: Option<TelemetryFile>,
    limits: Option<Limits>,
    transformations: Option<Spanned<TransformationsFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
}

// `type` is read by hand: serde loses the lines of what is in a tagged enum.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryFile {
    r#type: Spanned<String>,
    path: Option<PathBuf>,
    cache_ttl_seconds: Option<u64>,
    #[serde(default)]
    enable_online_feature_view_versioning: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Store {
    r#type: Spanned<String>,
    cache_bytes: Option<u64>,
    tier_bytes: Option<u64>,
    log_bytes: Option<u64>,
    durability: Option<Durability>,
    path: Option<PathBuf>,
    connection_string: Option<String>,
    redis_type: Option<String>,
    key_ttl_seconds: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offline {
    memory_limit_bytes: Option<u64>,
    event_log: Option<PathBuf>,
    #[serde(default)]
    object_store: Hidden,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Begin(Start);

impl TryFrom<String> for Begin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|e: model::Error| e.message().to_owned())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngestFile {
    group_prefix: Option<String>,
    group_instance_id: Option<String>,
    auto_offset_reset: Option<Begin>,
    batch_messages: Option<usize>,
    linger_ms: Option<u64>,
    max_future_ms: Option<u64>,
    checkpoint_interval_ms: Option<u64>,
    state_memory_bytes: Option<usize>,
    #[serde(default)]
    kafka: BTreeMap<String, String>,
    #[serde(default)]
    protobuf_descriptor_sets: Vec<PathBuf>,
    schema_registry: Option<SchemaRegistryFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaRegistryFile {
    url: Spanned<String>,
    username: Option<String>,
    password: Option<String>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TelemetryFile {
    log: Option<String>,
    log_format: Option<Spanned<String>>,
    otlp_endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransformationsFile {
    python: Option<PathBuf>,
    workers: Option<usize>,
    memory_mb: Option<u64>,
    address: Option<String>,
    deadline_ms: Option<u64>,
    queue: Option<usize>,
}

/// Reads `larder.yaml`.
pub(super) fn read(dir: &Path, path: &Path) -> Result<Config, Error> {
    let yaml = Yaml::open(path)?;
    let file: File = yaml.parse()?;
    if file.project.value.trim().is_empty() {
        return Err(yaml.bad(&file.project, "project: is empty".into()));
    }
    let mut config = Config::new(file.project.value, dir);
    if let Some(mut projects) = file.projects {
        projects.insert(config.project.clone());
        config.projects = Some(projects);
    }
    if let Some(data) = file.data {
        config.data = dir.join(data);
    }
    config.host = file.host.unwrap_or(config.host);
    let ports = &mut config.ports;
    ports.online = file.online_port.unwrap_or(ports.online);
    ports.registry = file.registry_port.unwrap_or(ports.registry);
    ports.offline = file.offline_port.unwrap_or(ports.offline);
    ports.metrics = file.metrics_port.unwrap_or(ports.metrics);
    config.tls = file.tls.map(|tls| (dir.join(tls.cert), dir.join(tls.key)));
    if let Some(registry) = file.registry {
        config.online_versions = registry.enable_online_feature_view_versioning;
        config.registry = read_registry(&yaml, dir, registry)?;
    }
    if let Some(store) = file.online_store {
        let (chosen, notes) = read_store(&yaml, dir, &store)?;
        config.online = chosen;
        config.notes.extend(notes);
    }
    if let Some(offline) = file.offline {
        config.offline_memory_bytes = offline.memory_limit_bytes.unwrap_or(config.offline_memory_bytes);
        config.object_store = offline.object_store;
        config.event_log = offline.event_log.map(|path| dir.join(path));
    }
    if let Some(ingest) = file.ingest {
        config.ingest = read_ingest(&yaml, dir, ingest)?;
    }
    if let Some(telemetry) = file.telemetry {
        config.telemetry.log = telemetry.log.unwrap_or(config.telemetry.log);
        config.telemetry.json = match telemetry.log_format {
            None => false,
            Some(format) => match format.value.as_str() {
                "text" => false,
                "json" => true,
                other => {
                    let message = format!("telemetry.log_format: '{other}' is neither text nor json");
                    return Err(yaml.bad(&format, message));
                }
            },
        };
        config.telemetry.otlp_endpoint = telemetry.otlp_endpoint.or(config.telemetry.otlp_endpoint);
    }
    config.limits = file.limits.unwrap_or_default();
    config.transformations = file.transformations.as_ref().map(|t| read_transformations(&yaml, dir, t)).transpose()?;
    Ok(config)
}

fn read_transformations(
    yaml: &Yaml,
    dir: &Path,
    file: &Spanned<TransformationsFile>,
) -> Result<Transformations, Error> {
    let bad = |message: &str| Err(yaml.bad(file, format!("transformations: {message}")));
    let of = &file.value;
    if of.workers == Some(0) || of.deadline_ms == Some(0) || of.queue == Some(0) || of.memory_mb == Some(0) {
        return bad("workers, deadline_ms, queue and memory_mb are at least 1");
    }
    let python = match (&of.python, &of.address) {
        (Some(path), None) => {
            // a bare name is looked up in PATH; a path is relative to this file
            let interpreter = if path.components().count() > 1 { dir.join(path) } else { path.clone() };
            if interpreter.is_absolute() && !interpreter.is_file() {
                return bad(&format!("python: there is no interpreter {}", interpreter.display()));
            }
            let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
            Python::Workers {
                interpreter,
                workers: of.workers.unwrap_or(cores),
                memory_mb: of.memory_mb.unwrap_or(2048),
            }
        }
        (None, Some(address)) if of.workers.is_none() && of.memory_mb.is_none() => Python::Address(address.clone()),
        (None, Some(_)) => {
            return bad("workers and memory_mb are settings of python, a server at an address has its own");
        }
        (Some(_), Some(_)) => return bad("name python or address, not both"),
        (None, None) => return bad("name python (an interpreter with feast[grpcio]) or address (host:port)"),
    };
    Ok(Transformations { python, deadline_ms: of.deadline_ms.unwrap_or(5000), queue: of.queue.unwrap_or(256) })
}

fn read_registry(yaml: &Yaml, dir: &Path, file: RegistryFile) -> Result<Registry, Error> {
    match (file.r#type.value.as_str(), file.path) {
        ("file", Some(path)) => {
            let cache_ttl_seconds = file.cache_ttl_seconds.unwrap_or(super::feast::CACHE_TTL_SECONDS);
            Ok(Registry::File { path: dir.join(path), cache_ttl_seconds })
        }
        ("file", None) => Err(yaml.bad(&file.r#type, "registry.path: is missing: name the registry file".into())),
        ("sled", None) if file.cache_ttl_seconds.is_none() => Ok(Registry::Embedded),
        ("sled", _) => {
            let message = "registry.type: sled has no path and no cache_ttl_seconds: those are settings of type file";
            Err(yaml.bad(&file.r#type, message.into()))
        }
        (other, _) => {
            let message = format!("registry.type: '{other}' is not offered: use sled or file");
            Err(yaml.bad(&file.r#type, message))
        }
    }
}

fn read_store(yaml: &Yaml, dir: &Path, file: &Store) -> Result<online::Chosen, Error> {
    let bad = |message: String| yaml.bad(&file.r#type, message);
    let kind = file.r#type.value.as_str();
    let owners = [
        ("cache_bytes", "sled", file.cache_bytes.is_some()),
        ("tier_bytes", "sled", file.tier_bytes.is_some()),
        ("log_bytes", "sled", file.log_bytes.is_some()),
        ("durability", "sled", file.durability.is_some()),
        ("path", "sqlite", file.path.is_some()),
        ("connection_string", "redis", file.connection_string.is_some()),
        ("redis_type", "redis", file.redis_type.is_some()),
        ("key_ttl_seconds", "redis", file.key_ttl_seconds.is_some()),
    ];
    let mut notes = Vec::new();
    let store = match (kind, OnlineStore::default()) {
        ("sled", OnlineStore::Sled { cache_bytes, tier_bytes, log_bytes, durability }) => OnlineStore::Sled {
            cache_bytes: file.cache_bytes.unwrap_or(cache_bytes),
            tier_bytes: file.tier_bytes.unwrap_or(tier_bytes),
            log_bytes: file.log_bytes.unwrap_or(log_bytes),
            durability: file.durability.unwrap_or(durability),
        },
        ("memory", _) => OnlineStore::Memory,
        ("sqlite", _) => {
            let path = file.path.as_deref().unwrap_or(Path::new(online::SQLITE_PATH));
            OnlineStore::Sqlite { path: dir.join(path) }
        }
        ("redis", _) => {
            let (connection, kind) = (file.connection_string.as_deref(), file.redis_type.as_deref());
            let chosen = online::redis(connection, kind, file.key_ttl_seconds);
            let (store, said) = chosen.map_err(bad)?;
            notes = said;
            store
        }
        (other, _) => {
            return Err(bad(format!("online_store.type: '{other}' is not offered: use {}", online::OFFERED)));
        }
    };
    match owners.into_iter().find(|(_, owner, set)| *set && *owner != kind) {
        None => Ok((store, notes)),
        Some((key, owner, _)) => {
            Err(bad(format!("online_store.type: {kind} has no {key}: that is a setting of type {owner}")))
        }
    }
}

fn read_ingest(yaml: &Yaml, dir: &Path, file: IngestFile) -> Result<Ingest, Error> {
    let default = Ingest::default();
    let mut descriptor_sets = BTreeMap::new();
    for path in file.protobuf_descriptor_sets {
        let path = dir.join(path);
        match std::fs::read(&path) {
            Ok(bytes) => drop(descriptor_sets.insert(path.display().to_string(), bytes)),
            Err(source) => return Err(Error::Unreadable { path, source }),
        }
    }
    let schema_registry = file.schema_registry.map(|registry| read_schema_registry(yaml, registry)).transpose()?;
    Ok(Ingest {
        group_prefix: file.group_prefix.unwrap_or(default.group_prefix),
        group_instance_id: file.group_instance_id,
        start: file.auto_offset_reset.map_or(default.start, |Begin(start)| start),
        batch_messages: file.batch_messages.unwrap_or(default.batch_messages).max(1),
        linger_ms: file.linger_ms.unwrap_or(default.linger_ms),
        max_future_ms: file.max_future_ms.unwrap_or(default.max_future_ms),
        checkpoint_interval_ms: file.checkpoint_interval_ms.unwrap_or(default.checkpoint_interval_ms),
        state_memory_bytes: file.state_memory_bytes.unwrap_or(default.state_memory_bytes),
        kafka: file.kafka,
        descriptor_sets,
        schema_registry,
    })
}

fn read_schema_registry(yaml: &Yaml, file: SchemaRegistryFile) -> Result<SchemaRegistry, Error> {
    if file.password.is_some() && file.username.is_none() {
        return Err(yaml.bad(&file.url, "ingest.schema_registry has a password and no username".to_owned()));
    }
    let user = file.username.map(|name| (name, file.password.unwrap_or_default()));
    Ok(SchemaRegistry { url: file.url.value, user, timeout_ms: file.timeout_ms.unwrap_or(10_000) })
}
