//! `larder.yaml`: our own configuration. Every key is optional but `project`; an unknown key is an
//! error, so that a misspelt one is found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Config, Durability, Error, Ingest, Limits, OnlineStore, Registry, Start, Yaml};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    project: Spanned<String>,
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
    limits: Option<LimitsFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "lowercase")]
enum RegistryFile {
    Sled {},
    File { path: PathBuf, cache_ttl_seconds: Option<u64> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "lowercase")]
enum Store {
    Memory {},
    Sled { cache_bytes: Option<u64>, tier_bytes: Option<u64>, durability: Option<Durability> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offline {
    memory_limit_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngestFile {
    group_prefix: Option<String>,
    auto_offset_reset: Option<Start>,
    batch_messages: Option<usize>,
    linger_ms: Option<u64>,
    max_future_ms: Option<u64>,
    #[serde(default)]
    kafka: BTreeMap<String, String>,
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
struct LimitsFile {
    max_body_bytes: Option<usize>,
    max_entities: Option<usize>,
}

/// Reads `larder.yaml`.
pub(super) fn read(dir: &Path, path: &Path) -> Result<Config, Error> {
    let yaml = Yaml::open(path)?;
    let file: File = yaml.parse()?;
    if file.project.value.trim().is_empty() {
        return Err(yaml.bad(&file.project, "project: is empty".into()));
    }
    let mut config = Config::new(file.project.value, dir);
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
    if let Some(RegistryFile::File { path, cache_ttl_seconds }) = file.registry {
        let cache_ttl_seconds = cache_ttl_seconds.unwrap_or(super::feast::CACHE_TTL_SECONDS);
        config.registry = Registry::File { path: dir.join(path), cache_ttl_seconds };
    }
    config.online = match file.online_store {
        None => config.online,
        Some(Store::Memory {}) => OnlineStore::Memory,
        Some(Store::Sled { cache_bytes, tier_bytes, durability }) => match OnlineStore::default() {
            OnlineStore::Sled { cache_bytes: cache, tier_bytes: tier, durability: safe } => OnlineStore::Sled {
                cache_bytes: cache_bytes.unwrap_or(cache),
                tier_bytes: tier_bytes.unwrap_or(tier),
                durability: durability.unwrap_or(safe),
            },
            OnlineStore::Memory => OnlineStore::Memory,
        },
    };
    if let Some(bytes) = file.offline.and_then(|o| o.memory_limit_bytes) {
        config.offline_memory_bytes = bytes;
    }
    if let Some(ingest) = file.ingest {
        config.ingest = read_ingest(ingest);
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
    if let Some(limits) = file.limits {
        let default = Limits::default();
        config.limits = Limits {
            max_body_bytes: limits.max_body_bytes.unwrap_or(default.max_body_bytes),
            max_entities: limits.max_entities.unwrap_or(default.max_entities),
        };
    }
    Ok(config)
}

fn read_ingest(file: IngestFile) -> Ingest {
    let default = Ingest::default();
    Ingest {
        group_prefix: file.group_prefix.unwrap_or(default.group_prefix),
        start: file.auto_offset_reset.unwrap_or(default.start),
        batch_messages: file.batch_messages.unwrap_or(default.batch_messages).max(1),
        linger_ms: file.linger_ms.unwrap_or(default.linger_ms),
        max_future_ms: file.max_future_ms.unwrap_or(default.max_future_ms),
        kafka: file.kafka,
    }
}
