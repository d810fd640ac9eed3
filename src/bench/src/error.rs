//! Why a measurement could not be made. Knows no measurement.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, said so that the line of a table can hold it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// A process that was started ended, or was not ready in time.
    #[error("{name}: {what} (its log: {log})")]
    Process { name: String, what: String, log: PathBuf },
    /// A server answered something else than what was asked.
    #[error("{0}")]
    Answer(String),
    /// A tool or a package that is not there.
    #[error("{0}")]
    Missing(String),
    /// The store or the registry, in process.
    #[error(transparent)]
    Model(#[from] model::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was tried when an [`io::Error`] came.
pub(crate) fn tried(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A path that holds wherever a child runs.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(tried(path.display().to_string()))
}
