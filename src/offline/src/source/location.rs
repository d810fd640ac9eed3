//! Where a source's rows are, and which files that is now: on this machine or in an object store; a
//! file, a directory, a pattern, or a Delta table. Knows no Parquet.
//!
//! Source: `feast/infra/offline_stores/file_source.py` (paths).

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};
use proto::feast::core::{DataSource, data_source::Options, file_format::Format};

use super::delta;
use super::glob::{SPECIAL, fixed, matches};
use super::listing::{At, Found, Listing};
use crate::engine::blocking;
use crate::error::io;
use crate::store::{Bucket, Stores, is_object_url};

/// Where a source's rows are.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// One Parquet file, which may not exist yet.
    File(PathBuf),
    /// All `.parquet` files below a directory.
    Directory(PathBuf),
    /// All files whose paths match a pattern with `*`, `**` and `?`.
    Glob(String),
    /// A key, a prefix or a pattern in an object store: which of them, the store knows.
    Object(Bucket, String),
    /// A Delta table: the directory of its log and files, and the key in it (for local ones, none).
    Delta(Bucket, String, Option<PathBuf>),
}

/// What a key in an object store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One object, there or not.
    File,
    /// All below it.
    Directory,
    /// All that match it.
    Glob,
}

impl Location {
    /// Resolves the path of a file source; a relative one starts at `repo`.
    ///
    /// Errors (`Unsupported`): a source that is no file source, or in a store that is not offered.
    pub(crate) fn of(source: &DataSource, repo: &Path, stores: &Stores) -> Result<Self> {
        let Some(Options::FileOptions(options)) = &source.options else {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "data source '{}' of type {} has no files: Larder reads Parquet files and Delta tables (FileSource)",
                    source.name,
                    source.r#type().as_str_name()
                ),
            ));
        };
        if options.uri.is_empty() {
            return Err(Error::invalid(format!("data source '{}' has no path", source.name)));
        }
        let named =
            |e: Error| Error::of_class(e.kind(), e.class(), format!("data source '{}': {}", source.name, e.message()));
        let location = Self::of_uri(&options.uri, &options.s3_endpoint_override, repo, stores).map_err(named)?;
        #[allow(deprecated, reason = "older SDKs say Delta so")]
        let is_delta =
            matches!(options.file_format.as_ref().and_then(|f| f.format.as_ref()), Some(Format::DeltaFormat(_)));
        if !is_delta {
            return Ok(location);
        }
        Ok(match location {
            Self::Object(bucket, key) => Self::Delta(bucket, key, None),
            local => {
                let path = local.path();
                Self::Delta(stores.local(&path).map_err(named)?, String::new(), Some(path))
            }
        })
    }

    /// Resolves a path or URI as it is written.
    ///
    /// Errors (`Unsupported`): a scheme that is not offered.
    pub(crate) fn of_uri(uri: &str, endpoint: &str, repo: &Path, stores: &Stores) -> Result<Self> {
        if is_object_url(uri) {
            let (bucket, key) = stores.bucket(uri, endpoint)?;
            return Ok(Self::Object(bucket, key.to_owned()));
        }
        if let Some((scheme, _)) = uri.split_once("://")
            && !scheme.eq_ignore_ascii_case("file")
        {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{uri} is in a store '{scheme}' that is not offered: use a local path, s3:// or gs://"),
            ));
        }
        Ok(Self::of_path(uri, repo))
    }

    /// Resolves a local path or `file://` URI as it is written.
    pub(crate) fn of_path(uri: &str, repo: &Path) -> Self {
        let (path, is_dir) = match uri.strip_prefix("file://") {
            Some(rest) => (rest.strip_prefix("localhost").unwrap_or(rest), rest.ends_with('/')),
            None => (uri, uri.ends_with('/')),
        };
        let path = repo.join(path);
        if path.to_string_lossy().contains(SPECIAL) && !path.exists() {
            return Self::Glob(path.to_string_lossy().into_owned());
        }
        // A path without an extension that does not exist yet is a directory to be, as in Feast.
        if path.is_dir() || is_dir || (!path.exists() && path.extension().is_none()) {
            Self::Directory(path)
        } else {
            Self::File(path)
        }
    }

    /// The path or URL to show, and to serialise writers by.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::File(path) | Self::Directory(path) | Self::Delta(_, _, Some(path)) => path.clone(),
            Self::Glob(pattern) => PathBuf::from(pattern),
            Self::Object(bucket, key) | Self::Delta(bucket, key, None) => PathBuf::from(bucket.url(key)),
        }
    }

    /// The files as they are now, in the order of their paths.
    ///
    /// Errors: a store that cannot be listed, files in partitions that do not fit together, a Delta log
    /// that cannot be read.
    pub(crate) async fn list(&self) -> Result<Listing> {
        match self {
            Self::Object(bucket, key) => {
                let (shape, files) = objects(bucket, key).await?;
                if shape == Shape::File {
                    let found = files.into_iter().map(|(at, _)| Found::whole(at, Vec::new()));
                    return Ok(Listing { files: found.collect(), ..Listing::default() });
                }
                Listing::hive(files)
            }
            Self::Delta(bucket, key, local) => delta::list(bucket, key, local.as_deref()).await,
            local => {
                let local = local.clone();
                blocking(move || {
                    let files = local.files()?;
                    match &local {
                        Self::Directory(path) => Listing::local(path, files),
                        Self::Glob(pattern) => Listing::local(Path::new(fixed(pattern)), files),
                        _ => Listing::local(local.path().parent().unwrap_or(Path::new("")), files),
                    }
                })
                .await
            }
        }
    }

    /// The local files as they are now, in the order of their paths; none elsewhere. Blocks.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        match self {
            Self::File(path) if path.is_file() => files.push(path.clone()),
            Self::Directory(path) => walk(path, &mut files, &|p| p.extension().is_some_and(|e| e == "parquet"))?,
            Self::Glob(pattern) => {
                let wanted = |p: &Path| matches(pattern.as_bytes(), p.to_string_lossy().as_bytes());
                let root = fixed(pattern);
                walk(Path::new(if root.is_empty() { "/" } else { root }), &mut files, &wanted)?;
            }
            _ => {}
        }
        files.sort();
        Ok(files)
    }
}

/// What a key is, and its objects with their keys below it.
pub(crate) async fn objects(bucket: &Bucket, key: &str) -> Result<(Shape, Vec<(At, String)>)> {
    let of = |meta: object_store::ObjectMeta, root: &str| {
        let below = meta.location.as_ref().strip_prefix(root).unwrap_or(meta.location.as_ref());
        let below = below.trim_start_matches('/').to_owned();
        (At::Object(bucket.clone(), Box::new(meta)), below)
    };
    if key.contains(SPECIAL) {
        let root = bucket.path(fixed(key))?;
        let listed = bucket.list(&root).await?;
        let wanted = listed.into_iter().filter(|m| {
            matches(key.as_bytes(), m.location.as_ref().as_bytes()) && !is_hidden(m.location.as_ref(), root.as_ref())
        });
        return Ok((Shape::Glob, wanted.map(|m| of(m, root.as_ref())).collect()));
    }
    let path = bucket.path(key)?;
    let is_dir = key.is_empty() || key.ends_with('/');
    if !is_dir && let Some(meta) = bucket.head(&path).await? {
        return Ok((Shape::File, vec![of(meta, path.as_ref())]));
    }
    if is_dir || path.extension().is_none() {
        let is_data = |m: &object_store::ObjectMeta| {
            m.location.extension() == Some("parquet") && !is_hidden(m.location.as_ref(), path.as_ref())
        };
        let files = bucket.list(&path).await?.into_iter().filter(is_data).map(|m| of(m, path.as_ref()));
        return Ok((Shape::Directory, files.collect()));
    }
    Ok((Shape::File, Vec::new()))
}

/// Whether a key has, below its root, a segment that is no data.
fn is_hidden(key: &str, root: &str) -> bool {
    let below = key.strip_prefix(root).unwrap_or(key);
    below.split('/').any(is_no_data)
}

/// `.` and `_` before a name say so, but for partitions: Feast's logs have `__log_date=…`.
fn is_no_data(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// Collects the files below a directory that the test wants; hidden ones (`.` and `_` before the
/// name) are no data, which is also how a file in the making is kept apart.
fn walk(dir: &Path, out: &mut Vec<PathBuf>, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("listing", dir, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| io("listing", dir, e))?.path();
        if path.file_name().is_some_and(|n| is_no_data(&n.to_string_lossy())) {
            continue;
        }
        if path.is_dir() {
            walk(&path, out, wanted)?;
        } else if wanted(&path) {
            out.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
