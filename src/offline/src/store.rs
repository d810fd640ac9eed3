//! Object stores: S3 and what speaks like it, and Google Cloud Storage, bucket by bucket. Every failure
//! names the URL and what to do, and never a credential. Knows no source and no Parquet.

mod options;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use model::{Error, Kind, Result};
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig, UpdateVersion,
};

pub use options::ObjectStoreOptions;

/// How often a request is tried again that was not answered, or with a 5xx.
const RETRIES: usize = 5;
/// How long it is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// The stores that are in use: one client for each bucket and endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stores {
    options: Arc<ObjectStoreOptions>,
    open: Arc<Mutex<HashMap<(String, String), Bucket>>>,
}

/// One bucket, or a local directory in its place.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// `s3://bucket`, for messages.
    url: Arc<str>,
    options: Arc<ObjectStoreOptions>,
}

/// Whether a URL is one of an object store that is offered.
pub(crate) fn is_object_url(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| matches!(scheme, "s3" | "s3a" | "gs"))
}

impl Stores {
    /// With these options.
    ///
    /// Errors: one that no store has.
    pub(crate) fn new(options: ObjectStoreOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options: Arc::new(options), open: Arc::default() })
    }

    /// The bucket of a URL, and the key in it as it is written.
    ///
    /// Errors: a scheme that is not offered, no bucket, options that contradict each other.
    pub(crate) fn bucket<'a>(&self, url: &'a str, endpoint: &str) -> Result<(Bucket, &'a str)> {
        let bad = |what: &str| Error::invalid(format!("{url} {what}: write s3://BUCKET/KEY or gs://BUCKET/KEY"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("is no URL"))?;
        let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err(bad("names no bucket"));
        }
        let root = format!("{scheme}://{name}");
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.get(&(root.clone(), endpoint.to_owned())) {
            return Ok((found.clone(), key));
        }
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY_TIMEOUT,
            backoff: BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() },
        };
        let built: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
            "s3" | "s3a" => {
                let mut builder = AmazonS3Builder::new().with_bucket_name(name).with_retry(retry);
                for (key, value) in self.options.s3() {
                    builder = builder.with_config(key, value);
                }
                if endpoint.is_empty() {
                    // An endpoint that is configured as http:// is meant so.
                    builder = builder.with_allow_http(self.options.allows_http());
                } else {
                    let with_scheme =
                        if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
                    builder = builder.with_allow_http(with_scheme.starts_with("http://")).with_endpoint(with_scheme);
                }
                builder.build().map(|s| Arc::new(s) as _)
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(name).with_retry(retry);
                for (key, value) in self.options.gcs() {
                    builder = builder.with_config(key, value);
                }
                builder.build().map(|s| Arc::new(s) as _)
            }
            _ => return Err(bad("is of no store that Larder reads")),
        };
        let store = built.map_err(|e| {
            let text = self.options.scrub(&e.to_string());
            Error::invalid(format!("{root} cannot be opened: {text}: correct offline.object_store or the environment"))
        })?;
        let bucket = Bucket { store, url: root.clone().into(), options: self.options.clone() };
        open.insert((root, endpoint.to_owned()), bucket.clone());
        Ok((bucket, key))
    }

    /// A local directory read as a bucket, for formats with a log of their own.
    ///
    /// Errors: it is not there.
    pub(crate) fn local(&self, directory: &FilePath) -> Result<Bucket> {
        let store = LocalFileSystem::new_with_prefix(directory)
            .map_err(|_| Error::invalid(format!("there is no directory {}: correct the path", directory.display())))?;
        let url = format!("{}", directory.display());
        Ok(Bucket {
            store: Arc::new(store),
            url: url.trim_end_matches('/').to_owned().into(),
            options: self.options.clone(),
        })
    }
}

impl Bucket {
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        Self { store, url: "memory://bucket".into(), options: Arc::default() }
    }

    /// The URL of a key.
    pub(crate) fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }

    /// A key as a path.
    ///
    /// Errors: one with `//`, `.` or `..` in it, which no listing would give back as it is.
    pub(crate) fn path(&self, key: &str) -> Result<Path> {
        Path::parse(key.trim_end_matches('/'))
            .map_err(|e| Error::invalid(format!("{} is not a key that can be read: {e}", self.url(key))))
    }

    /// All objects below a prefix (of whole segments), by their keys.
    pub(crate) async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>> {
        let prefix = Some(prefix).filter(|p| !p.as_ref().is_empty());
        let listed = self.store.list(prefix).try_collect::<Vec<_>>().await;
        let at = prefix.map(AsRef::as_ref).unwrap_or_default();
        let mut found = listed.map_err(|e| self.error("listing", at, &e))?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// What is known of an object; `None` where there is none.
    pub(crate) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>> {
        match self.store.head(path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.error("looking up", path.as_ref(), &e)),
        }
    }

    /// A range of an object that is still the one that was listed.
    ///
    /// Errors: `Conflict` where it was replaced since, `NotFound` where it was removed.
    pub(crate) async fn read(&self, listed: &ObjectMeta, range: Option<Range<u64>>) -> Result<Bytes> {
        let options = GetOptions {
            range: range.map(Into::into),
            if_match: listed.e_tag.clone(),
            version: listed.version.clone(),
            ..GetOptions::default()
        };
        let fail = |e: object_store::Error| self.error("reading", listed.location.as_ref(), &e);
        let got = self.store.get_opts(&listed.location, options).await.map_err(fail)?;
        // Not every store heeds the condition.
        let other_tag = listed.e_tag.is_some() && got.meta.e_tag.is_some() && listed.e_tag != got.meta.e_tag;
        if got.meta.size != listed.size || other_tag {
            return Err(self.replaced(listed.location.as_ref()));
        }
        got.bytes().await.map_err(fail)
    }

    /// Puts a whole object where there is none (`old` is `None`) or in the place of the one that was
    /// listed. Gives whether it was put; it is not where another was faster.
    pub(crate) async fn put(&self, path: &Path, bytes: Bytes, old: Option<&ObjectMeta>) -> Result<bool> {
        let mode = match old {
            None => PutMode::Create,
            Some(o) => PutMode::Update(UpdateVersion { e_tag: o.e_tag.clone(), version: o.version.clone() }),
        };
        match self.store.put_opts(path, PutPayload::from_bytes(bytes), mode.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            // What was listed is gone.
            Err(object_store::Error::NotFound { .. }) if old.is_some() => Ok(false),
            Err(e) => Err(self.error("writing", path.as_ref(), &e)),
        }
    }

    /// Removes an object, if it is there.
    pub(crate) async fn delete(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error("removing", path.as_ref(), &e)),
        }
    }

    /// A writer of a new object, which is there as a whole when the writer is shut down.
    pub(crate) fn writer(&self, path: &Path) -> object_store::buffered::BufWriter {
        object_store::buffered::BufWriter::new(self.store.clone(), path.clone())
    }

    fn replaced(&self, key: &str) -> Error {
        Error::new(Kind::Conflict, format!("{} was replaced while it was read: ask again", self.url(key)))
    }

    /// What a failure means to the caller.
    pub(crate) fn error(&self, what: &str, key: &str, error: &object_store::Error) -> Error {
        use object_store::Error as E;
        let url = self.url(key);
        let text = self.options.scrub(&chain(error));
        match error {
            E::Precondition { .. } => self.replaced(key),
            E::NotFound { .. } if text.contains("NoSuchBucket") => {
                Error::invalid(format!("{what} {url} failed: there is no such bucket: correct the path"))
            }
            E::NotFound { .. } => Error::invalid(format!(
                "{what} {url} failed: the object is not there: it was removed, or the path is wrong"
            )),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Error::new(
                Kind::Unsupported,
                format!(
                    "{what} {url} failed: the store refused Larder's credentials: set those that may do it in the \
                     environment or as offline.object_store in larder.yaml"
                ),
            ),
            E::NotSupported { .. } | E::NotImplemented { .. } | E::InvalidPath { .. } => {
                Error::invalid(format!("{what} {url} failed: {}", first(&text)))
            }
            _ => Error::new(
                Kind::Unavailable,
                format!(
                    "{what} {url} failed: the store did not answer as it should ({}): try again, or correct the \
                     endpoint",
                    first(&text)
                ),
            ),
        }
    }
}

/// An error and its causes on one line.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

/// The start of a text that a store may have made long.
fn first(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests;
