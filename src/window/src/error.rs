//! What can go wrong with a definition, an event or stored state. Knows no status code.

use crate::scalar::ColumnType;

/// What the caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fix the view's aggregations: refuse to apply it.
    InvalidDefinition,
    /// The event does not fit the view: a dead letter, or a caller that built it wrongly.
    InvalidEvent,
    /// The state was written for another definition or by another version: rebuild it.
    DefinitionChanged,
    /// The stored bytes are damaged: rebuild the state and find out why.
    Corrupt,
}

/// Why a definition, an event or stored state was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The function is none of ours.
    #[error("unknown aggregation function `{function}`: use one of {supported}")]
    UnknownFunction {
        /// As the user wrote it.
        function: String,
        /// The names that work, separated by commas.
        supported: String,
    },
    /// The function is ours, its parameters are wrong.
    #[error("aggregation function `{function}`: {reason}")]
    FunctionParameters {
        /// As the user wrote it.
        function: String,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// The stream does not have the column.
    #[error("there is no column `{column}` in the stream: name one that its schema declares")]
    UnknownColumn {
        /// The column that the aggregation names.
        column: String,
    },
    /// The function needs a column and none was given.
    #[error("function `{function}` needs a column; only counts, sessions and seconds_since_… work without one")]
    MissingColumn {
        /// The function.
        function: String,
    },
    /// The function cannot take the column's type.
    #[error("function `{function}` cannot take column `{column}` of type {column_type}: it takes {accepted}")]
    ColumnType {
        /// The function.
        function: String,
        /// The column.
        column: String,
        /// The type that the column has.
        column_type: ColumnType,
        /// The types that would work.
        accepted: &'static str,
    },
    /// A window, slide or hop that cannot be.
    #[error("{what} of {value_us} us {problem}")]
    Duration {
        /// Which setting.
        what: &'static str,
        /// Its value in microseconds.
        value_us: i64,
        /// What is wrong, and what to set.
        problem: &'static str,
    },
    /// Two aggregations have the same feature name.
    #[error("the name is used by two aggregations: give one of them another `name`")]
    DuplicateFeature,
    /// One aggregation of the view is refused, with the reason.
    #[error("feature `{feature}` = `{function}` over column `{column}`: {reason}")]
    Aggregation {
        /// The feature it would make.
        feature: String,
        /// Its function, as the user wrote it.
        function: String,
        /// Its column; may be empty.
        column: String,
        /// What is wrong with it.
        #[source]
        reason: Box<Error>,
    },
    /// A view without aggregations has no windows.
    #[error("there are no aggregations: a windowed view needs at least one")]
    NoAggregations,
    /// The event does not have one value per column of the definition.
    #[error(
        "the event has {found} values, the definition has {expected} columns: pass one per name in `Spec::columns`"
    )]
    EventWidth {
        /// How many columns the definition has.
        expected: usize,
        /// How many values the event has.
        found: usize,
    },
    /// The event's value is of another type than its column.
    #[error("column `{column}` is of type {expected}, the event has {found}")]
    EventType {
        /// The column.
        column: String,
        /// The type that it has.
        expected: ColumnType,
        /// The type of the value.
        found: &'static str,
    },
    /// [`crate::sweep`] was given events out of order.
    #[error("event at {ts_us} us comes after one at {previous_us} us: sort the events by timestamp first")]
    Unsorted {
        /// The later timestamp, that came first.
        previous_us: i64,
        /// The earlier one, that came second.
        ts_us: i64,
    },
    /// The state belongs to another definition.
    #[error(
        "the state belongs to definition {found:016x}, the view is now {expected:016x}: rebuild it from the raw events"
    )]
    Fingerprint {
        /// Of the definition in use.
        expected: u64,
        /// Of the definition that the state was written for.
        found: u64,
    },
    /// The state was written in another format.
    #[error("the state has format version {found}, this build reads {expected}: rebuild it from the raw events")]
    Version {
        /// What this build reads.
        expected: u8,
        /// What the bytes say.
        found: u8,
    },
    /// The bytes are no state.
    #[error("the stored window state is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// Where decoding stopped.
        offset: usize,
        /// What was expected there.
        reason: &'static str,
    },
}

impl Error {
    /// What the caller should do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::UnknownFunction { .. }
            | Self::FunctionParameters { .. }
            | Self::UnknownColumn { .. }
            | Self::MissingColumn { .. }
            | Self::ColumnType { .. }
            | Self::Duration { .. }
            | Self::DuplicateFeature
            | Self::Aggregation { .. }
            | Self::NoAggregations => Kind::InvalidDefinition,
            Self::EventWidth { .. } | Self::EventType { .. } | Self::Unsorted { .. } => Kind::InvalidEvent,
            Self::Fingerprint { .. } | Self::Version { .. } => Kind::DefinitionChanged,
            Self::Corrupt { .. } => Kind::Corrupt,
        }
    }
}
