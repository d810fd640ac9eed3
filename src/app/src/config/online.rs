//! What `online_store` says, in `larder.yaml` and in `feature_store.yaml` alike. Knows no file.
//!
//! Sources: `RedisOnlineStoreConfig`, `SqliteOnlineStoreConfig` in `feast/infra/online_stores`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::OnlineStore;

/// What there is to choose from.
pub(super) const OFFERED: &str = "sled, memory, redis or sqlite";
/// Feast's default for `online_store.path` of type sqlite.
pub(super) const SQLITE_PATH: &str = "data/online.db";

/// Feast's `online_store`: a type's name, or a mapping with `type`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Entry {
    Name(String),
    Options(BTreeMap<String, Scalar>),
    Other(IgnoredAny),
}

/// A value in the mapping; what is no scalar concerns no type that is offered here.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Other(IgnoredAny),
}

impl Scalar {
    fn text(&self) -> Option<String> {
        match self {
            Self::Bool(v) => Some(v.to_string()),
            Self::Int(v) => Some(v.to_string()),
            Self::Float(v) => Some(v.to_string()),
            Self::Text(v) => Some(v.clone()),
            Self::Other(_) => None,
        }
    }
}

/// A store, and what the user should know of how its settings were read.
pub(super) type Chosen = (OnlineStore, Vec<String>);

/// Feast's entry as a store. Paths are relative to the repository.
///
/// Errors: what is wrong with it, beginning with the key.
pub(super) fn of_feast(entry: Option<&Entry>, dir: &Path) -> Result<Chosen, String> {
    let none = BTreeMap::new();
    let (kind, options) = match entry {
        // Feast's own default
        None => ("sqlite".to_owned(), &none),
        Some(Entry::Name(name)) => (name.clone(), &none),
        Some(Entry::Options(options)) => {
            (options.get("type").and_then(Scalar::text).unwrap_or_else(|| "sqlite".into()), options)
        }
        Some(Entry::Other(_)) => ("none".to_owned(), &none),
    };
    let text = |key: &str| options.get(key).and_then(Scalar::text);
    let is = |key: &str, wanted: &str| text(key).is_some_and(|v| v.eq_ignore_ascii_case(wanted));
    match short_name(&kind) {
        "memory" => Ok((OnlineStore::Memory, Vec::new())),
        "sled" => Ok((OnlineStore::default(), Vec::new())),
        "remote" => {
            let note = "online_store: 'remote' names a feature server; this is one, on the embedded store";
            Ok((OnlineStore::default(), vec![note.into()]))
        }
        "none" | "null" => {
            let note = "online_store: there is none in the file; this server keeps its rows in the embedded store";
            Ok((OnlineStore::default(), vec![note.into()]))
        }
        "sqlite" => {
            let path = dir.join(text("path").unwrap_or_else(|| SQLITE_PATH.into()));
            let mut notes = Vec::new();
            if is("vector_enabled", "true") {
                notes.push(
                    "online_store.vector_enabled: vectors are not written into vector_value here: only Feast's own \
                     writes can be searched"
                        .into(),
                );
            }
            Ok((OnlineStore::Sqlite { path }, notes))
        }
        "redis" => {
            let ttl = match text("key_ttl_seconds") {
                None => None,
                Some(ttl) => Some(ttl.parse().map_err(|_| {
                    format!("online_store.key_ttl_seconds: is '{ttl}', and must be a whole number of seconds")
                })?),
            };
            let (connection, kind) = (text("connection_string"), text("redis_type"));
            let (store, mut notes) = redis(connection.as_deref(), kind.as_deref(), ttl)?;
            if is("skip_dedup", "true") {
                notes.push("online_store.skip_dedup: is not needed here: a write is one round trip, and the last event time wins".into());
            }
            if is("full_scan_for_deletion", "false") {
                notes.push(
                    "online_store.full_scan_for_deletion: false is not offered: the rows of a deleted view are deleted"
                        .into(),
                );
            }
            Ok((store, notes))
        }
        other => Err(format!("online_store: type '{other}' is not offered: use {OFFERED}")),
    }
}

/// Feast also takes the name of a class.
fn short_name(kind: &str) -> &str {
    match kind {
        "feast.infra.online_stores.redis.RedisOnlineStore" => "redis",
        "feast.infra.online_stores.sqlite.SqliteOnlineStore" => "sqlite",
        other => other,
    }
}

/// A Redis, from Feast's settings.
///
/// Errors: what is wrong with them, beginning with the key and without the password.
pub(super) fn redis(
    connection_string: Option<&str>,
    redis_type: Option<&str>,
    key_ttl_seconds: Option<i64>,
) -> Result<Chosen, String> {
    let (mut settings, ignored) = match connection_string {
        None => (::online::redis::Settings::default(), Vec::new()),
        Some(text) => {
            ::online::redis::Settings::parse(text).map_err(|e| format!("online_store.connection_string: {e}"))?
        }
    };
    settings.cluster = match redis_type.unwrap_or("redis") {
        "redis" => false,
        "redis_cluster" => true,
        "redis_sentinel" => {
            return Err("online_store.redis_type: redis_sentinel is not offered: name the master itself with \
                        redis_type: redis, or use redis_cluster"
                .into());
        }
        other => return Err(format!("online_store.redis_type: '{other}' is not offered: use redis or redis_cluster")),
    };
    if settings.cluster && settings.db != 0 {
        return Err("online_store.connection_string: a cluster has no db but 0".into());
    }
    let mut notes = Vec::new();
    if !settings.cluster && settings.nodes.len() > 1 {
        settings.nodes.truncate(1);
        notes.push(format!(
            "online_store.connection_string: only the first node, {}, is used with redis_type: redis",
            settings.address()
        ));
    }
    settings.key_ttl = match key_ttl_seconds {
        // 0 is for ever in Feast
        None | Some(0) => None,
        Some(seconds) => {
            let seconds = u64::try_from(seconds);
            let wrong = |_| "online_store.key_ttl_seconds: must not be negative".to_owned();
            Some(Duration::from_secs(seconds.map_err(wrong)?))
        }
    };
    let note = |name: String| format!("online_store.connection_string: {name} has no meaning here and is left aside");
    notes.extend(ignored.into_iter().map(note));
    Ok((OnlineStore::Redis(Box::new(settings)), notes))
}
