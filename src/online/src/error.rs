//! Why a store on disk does not open. Knows no port: what goes wrong later is a [`model::Error`].

use std::path::PathBuf;

use model::Kind;

/// Why a store did not open, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory open.
    #[error(
        "the online store in {} is in use by another process: stop that process, or give this one another directory",
        path.display()
    )]
    Locked {
        /// The store's directory.
        path: PathBuf,
    },

    /// The files are not what a store leaves behind.
    #[error(
        "the online store in {} is damaged ({detail}): restore the directory from a copy, or move it away and \
         materialize again",
        path.display()
    )]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// What was found.
        detail: String,
    },

    /// The files have another layout than this version of Larder reads.
    #[error(
        "the online store in {} has format {found}, and this version of Larder reads format {expected}: run the \
         version that wrote it, or move the directory away and materialize again",
        path.display()
    )]
    Format {
        /// The store's directory.
        path: PathBuf,
        /// What the store says it is.
        found: String,
        /// What we read.
        expected: u32,
    },

    /// The directory holds no store (only where one is not created).
    #[error("there is no online store in {}: check the path", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },

    /// The operating system refused.
    #[error("cannot use {} for the online store: check that it exists, its permissions and the free space", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What the caller should do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Locked { .. } => Kind::Conflict,
            Self::Damaged { .. } => Kind::Internal,
            Self::Format { .. } => Kind::Unsupported,
            Self::Missing { .. } => Kind::NotFound,
            Self::Io { .. } => Kind::Unavailable,
        }
    }
}

impl From<Error> for model::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error.to_string()).with_cause(error)
    }
}
