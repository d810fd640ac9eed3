//! What stops ingestion, told by what happens next. A message that cannot be used is no error: it
//! is a [`crate::decode::Reason`] and goes to the dead-letter topic.

use model::Kind;

/// Why ingestion as a whole cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot be.
    #[error("ingest setting {name}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is wrong with it, and what to set.
        reason: String,
    },
}

impl Error {
    /// What the caller should do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Setting { .. } => Kind::InvalidArgument,
        }
    }
}

/// Why the consumer of one view stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// Start it again from the stored positions, after a pause.
    #[error("{0}")]
    Restart(String),
    /// Do not go on until the view or the state is changed: to go on would give wrong answers.
    #[error("{0}")]
    Blocked(String),
}

impl Stop {
    pub(crate) fn kafka(what: &str, error: &rdkafka::error::KafkaError) -> Self {
        Self::Restart(format!("{what}: {error}"))
    }
}
