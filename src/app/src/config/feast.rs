//! A Feast `feature_store.yaml` as it is: keys that do not concern a server are left alone.
//! Source: `feast/repo_config.py`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::{Config, Error, Registry, Yaml, online};

/// Feast's default for `registry.cache_ttl_seconds`.
pub(super) const CACHE_TTL_SECONDS: u64 = 600;

#[derive(Deserialize)]
struct File {
    project: Spanned<String>,
    registry: Option<Spanned<RegistryEntry>>,
    online_store: Option<Spanned<online::Entry>>,
    offline_store: Option<Spanned<TypedEntry>>,
    entity_key_serialization_version: Option<Spanned<u32>>,
}

/// A path, or a mapping.
#[derive(Deserialize)]
#[serde(untagged)]
enum RegistryEntry {
    Path(String),
    Options {
        registry_type: Option<String>,
        path: Option<String>,
        cache_ttl_seconds: Option<u64>,
        #[serde(default)]
        enable_online_feature_view_versioning: bool,
    },
}

/// A type's name, or a mapping with `type`.
#[derive(Deserialize)]
#[serde(untagged)]
enum TypedEntry {
    Name(String),
    Options { r#type: Option<String> },
    Other(IgnoredAny),
}

impl TypedEntry {
    fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Options { r#type } => r#type.as_deref().unwrap_or_default(),
            Self::Other(_) => "",
        }
    }
}

/// Reads `feature_store.yaml`.
pub(super) fn read(dir: &Path, path: &Path) -> Result<Config, Error> {
    let yaml = Yaml::open(path)?;
    let file: File = yaml.parse()?;
    if file.project.value.trim().is_empty() {
        return Err(yaml.bad(&file.project, "project: is empty".into()));
    }
    let mut config = Config::new(file.project.value.clone(), dir);
    if let Some(version) = &file.entity_key_serialization_version
        && version.value != 3
    {
        let message = format!("entity_key_serialization_version: {} is not served, only version 3 is", version.value);
        return Err(yaml.bad(version, message));
    }
    if let Some(registry) = &file.registry {
        config.online_versions =
            matches!(registry.value, RegistryEntry::Options { enable_online_feature_view_versioning: true, .. });
        config.registry = match read_registry(&registry.value, dir) {
            Ok((registry, note)) => {
                config.notes.extend(note);
                registry
            }
            Err(message) => return Err(yaml.bad(registry, message)),
        };
    }
    let store = file.online_store.as_ref();
    let chosen = online::of_feast(store.map(|s| &s.value), dir);
    let (chosen, notes) = chosen.map_err(|message| match store {
        Some(store) => yaml.bad(store, message),
        None => yaml.bad(&file.project, message),
    })?;
    config.online = chosen;
    config.notes.extend(notes);
    if let Some(store) = &file.offline_store
        && !matches!(store.value.name(), "" | "file" | "dask" | "duckdb" | "remote")
    {
        let message = format!("offline_store: type '{}' is not offered: use file, dask or duckdb", store.value.name());
        return Err(yaml.bad(store, message));
    }
    Ok(config)
}

fn read_registry(entry: &RegistryEntry, dir: &Path) -> Result<(Registry, Option<String>), String> {
    let (kind, path, ttl) = match entry {
        RegistryEntry::Path(path) => ("file", Some(path), None),
        RegistryEntry::Options { registry_type, path, cache_ttl_seconds, .. } => {
            (registry_type.as_deref().unwrap_or("file"), path.as_ref(), *cache_ttl_seconds)
        }
    };
    match (kind, path) {
        ("file", Some(path)) if path.contains("://") => {
            Err(format!("registry: '{path}' is not a local file: use a local path, or registry_type: sled"))
        }
        ("file", Some(path)) => {
            let path: PathBuf = dir.join(path);
            Ok((Registry::File { path, cache_ttl_seconds: ttl.unwrap_or(CACHE_TTL_SECONDS) }, None))
        }
        ("file", None) => Err("registry: path is missing".into()),
        ("sled", _) => Ok((Registry::Embedded, None)),
        ("remote", _) => Ok((
            Registry::Embedded,
            Some("registry: 'remote' names a registry server; this is one, on the embedded store".into()),
        )),
        (other, _) => Err(format!("registry: registry_type '{other}' is not offered: use file or sled")),
    }
}
