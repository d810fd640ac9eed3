//! Where the registry is kept: a sled database of our own ([`sled`]) or a Feast registry file
//! ([`file`]). Knows no registry semantics: objects go in and come out.

pub mod file;
pub mod sled;

#[cfg(test)]
mod contract;

use model::{Error, Kind, Result};

/// Runs what blocks on the disk away from the async workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("the registry's disk work was cut off", e))?
}

/// What failed on the disk, and where; the caller may try again.
fn unavailable(what: &str, path: &std::path::Path, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Unavailable, format!("cannot {what} the registry {}: {cause}", path.display())).with_cause(cause)
}
