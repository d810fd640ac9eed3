//! Delta tables, read through their log: the newest checkpoint, the commits after it, and what is left
//! of files and, by their deletion vectors, of rows. What a reader must know and this one does not (column
//! mapping, newer features) is refused by name. Knows no Parquet but the checkpoint's.
//!
//! Source: the Delta transaction log protocol (reader version 1, and 3 where its features are known).

mod actions;
mod checkpoint;
mod schema;
mod vectors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Schema;
use futures::future::try_join_all;
use model::{Error, Kind, Result};
use object_store::ObjectMeta;
use percent_encoding::percent_decode_str;

use self::actions::{Action, Add, MetaData, Protocol, Vector};
use super::listing::{At, Found, Listing};
use crate::store::Bucket;

/// Features of reader version 3 that are read, change nothing for this reader, or are refused where they are used.
const KNOWN: [&str; 4] = ["timestampNtz", "vacuumProtocolCheck", "deletionVectors", "columnMapping"];
/// How many commits are fetched at a time.
const FETCHES: usize = 16;

/// A table's state, as its actions leave it.
#[derive(Debug, Default)]
struct State {
    protocol: Option<Protocol>,
    metadata: Option<MetaData>,
    files: BTreeMap<(String, String), Add>,
}

impl State {
    fn apply(&mut self, action: Action) {
        if let Some(remove) = action.remove {
            self.files.remove(&(remove.path, remove.deletion_vector.map_or_else(String::new, |v| v.id())));
        }
        if let Some(add) = action.add {
            let vector = add.deletion_vector.as_ref().map_or_else(String::new, Vector::id);
            self.files.insert((add.path.clone(), vector), add);
        }
        self.metadata = action.meta_data.or(self.metadata.take());
        self.protocol = action.protocol.or(self.protocol.take());
    }
}

/// The table's files now, and its columns.
///
/// Errors: no Delta table there, a log with a hole in it, a feature that is not read.
pub(super) async fn list(bucket: &Bucket, key: &str, local: Option<&Path>) -> Result<Listing> {
    let root = bucket.path(key)?;
    let table = if key.is_empty() { bucket.to_string() } else { bucket.url(root.as_ref()) };
    let bad = |what: String| Error::invalid(format!("the Delta table {table} {what}"));
    let log = Log::of(bucket.list(&root.clone().join("_delta_log")).await?);
    if log.has_v2 {
        return Err(unsupported(&table, "v2 checkpoints", "write it without the feature v2Checkpoint"));
    }
    let (checkpoint, commits) = log.newest().map_err(bad)?;
    let mut state = State::default();
    for part in checkpoint {
        let name = bucket.url(part.location.as_ref());
        let bytes = bucket.read(&part, None).await?;
        let actions = crate::engine::blocking(move || checkpoint::actions(bytes, &name)).await?;
        for action in actions {
            state.apply(action);
        }
    }
    for some in commits.chunks(FETCHES) {
        let texts = try_join_all(some.iter().map(|commit| bucket.read(commit, None))).await?;
        for (commit, text) in some.iter().zip(texts) {
            let name = bucket.url(commit.location.as_ref());
            for line in text.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
                let action = serde_json::from_slice(line)
                    .map_err(|e| Error::invalid(format!("the Delta commit {name} cannot be read: {e}")))?;
                state.apply(action);
            }
        }
    }
    let (Some(metadata), Some(protocol)) = (state.metadata, state.protocol) else {
        return Err(bad("has no metadata or no protocol in its log: it is damaged".to_owned()));
    };
    check(&protocol, &metadata, &table)?;
    let whole = schema::read(&metadata.schema_string).map_err(|what| bad(format!("has a schema that {what}")))?;
    let find = |name: &String| {
        whole.fields().iter().find(|f| f.name() == name).cloned().ok_or_else(|| bad(format!("has no column {name}")))
    };
    let partitions = metadata.partition_columns.iter().map(find).collect::<Result<Vec<_>>>()?;
    let in_files = whole.fields().iter().filter(|f| !metadata.partition_columns.contains(f.name())).cloned();
    let schema = Arc::new(Schema::new(in_files.collect::<Vec<_>>()));
    let adds: Vec<Add> = state.files.into_values().collect();
    let mut deleted = vectors::read(&vectors::Table { bucket, root: &root, local, name: &table }, &adds).await?;
    let mut files = Vec::with_capacity(adds.len());
    for (i, add) in adds.into_iter().enumerate() {
        if add.path.contains("://") {
            return Err(unsupported(&table, "files outside of itself (a shallow clone)", "copy it"));
        }
        let path = percent_decode_str(&add.path).decode_utf8_lossy().into_owned();
        let at = if let Some(directory) = local {
            At::Local(directory.join(&path))
        } else {
            let below = if key.is_empty() { path.clone() } else { format!("{}/{path}", root.as_ref()) };
            let location = bucket.path(&below)?;
            let meta =
                ObjectMeta { location, last_modified: <_>::default(), size: add.size, e_tag: None, version: None };
            At::Object(bucket.clone(), Box::new(meta))
        };
        // The protocol has the empty text for null, too.
        let value = |name: &String| add.partition_values.get(name).cloned().flatten().filter(|v| !v.is_empty());
        let partition = metadata.partition_columns.iter().map(value).collect();
        files.push(Found { at, partition, deleted: deleted.remove(&i) });
    }
    Ok(Listing { files, partitions, schema: Some(schema) })
}

fn unsupported(table: &str, what: &str, instead: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the Delta table {table} has {what}, which Larder does not read: {instead}"))
}

fn check(protocol: &Protocol, metadata: &MetaData, table: &str) -> Result<()> {
    let mapping = metadata.configuration.get("delta.columnMapping.mode").map_or("none", String::as_str);
    if mapping != "none" {
        return Err(unsupported(table, &format!("column mapping by {mapping}"), "write it without"));
    }
    let features = protocol.reader_features.as_deref().unwrap_or_default();
    if let Some(other) = features.iter().find(|f| !KNOWN.contains(&f.as_str())) {
        return Err(unsupported(table, &format!("the reader feature {other}"), "write it without"));
    }
    if protocol.min_reader_version > 3 {
        let version = format!("the reader version {}", protocol.min_reader_version);
        return Err(unsupported(table, &version, "write it with version 3 at most"));
    }
    Ok(())
}

/// The files of a log by what they are.
#[derive(Debug, Default)]
struct Log {
    commits: BTreeMap<u64, ObjectMeta>,
    /// By version and number of parts: the parts.
    checkpoints: BTreeMap<(u64, u32), Vec<ObjectMeta>>,
    /// Whether there is a checkpoint of the second kind, whose name has a UUID in it.
    has_v2: bool,
    found: usize,
}

impl Log {
    fn of(files: Vec<ObjectMeta>) -> Self {
        let mut log = Self { found: files.len(), ..Self::default() };
        for meta in files {
            let name = meta.location.filename().unwrap_or_default().to_owned();
            let words: Vec<&str> = name.split('.').collect();
            let version = words.first().filter(|w| w.len() == 20).and_then(|w| w.parse().ok());
            match (version, words.as_slice()) {
                (Some(version), [_, "json"]) => {
                    log.commits.insert(version, meta);
                }
                (Some(version), [_, "checkpoint", "parquet"]) => {
                    log.checkpoints.entry((version, 1)).or_default().push(meta);
                }
                (Some(version), [_, "checkpoint", _, parts, "parquet"]) => {
                    if let Ok(parts) = parts.parse() {
                        log.checkpoints.entry((version, parts)).or_default().push(meta);
                    }
                }
                (Some(_), [_, "checkpoint", _, "parquet" | "json"]) => log.has_v2 = true,
                _ => {}
            }
        }
        log
    }

    /// The newest whole checkpoint, and all commits after it, in order.
    fn newest(mut self) -> Result<(Vec<ObjectMeta>, Vec<ObjectMeta>), String> {
        if self.found == 0 {
            return Err("has no _delta_log: correct the path, or write the table".to_owned());
        }
        let whole = self.checkpoints.into_iter().rev().find(|((_, parts), files)| files.len() == *parts as usize);
        let (first, checkpoint) = whole.map_or((0, Vec::new()), |((version, _), files)| (version + 1, files));
        let commits = self.commits.split_off(&first);
        if commits.is_empty() && checkpoint.is_empty() {
            return Err("has no commit and no whole checkpoint in its _delta_log: it is damaged".to_owned());
        }
        if let Some(hole) = (first..).zip(commits.keys()).find(|(want, have)| want != *have) {
            return Err(format!("has no commit {} in its _delta_log: it is damaged", hole.0));
        }
        Ok((checkpoint, commits.into_values().collect()))
    }
}

#[cfg(test)]
mod tests;
