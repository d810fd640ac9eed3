//! From a message to an event of the view: key, time and values, or the reason why it is none.
//! Knows no Kafka client and no store; formats stand in modules of their own.

pub mod json;

use std::fmt;

use model::row::Version;
use model::value::{coerce, is_null};
use model::{EntityKey, Timestamp, Value};

use crate::feed::{Content, Feed};

/// An event of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub key: EntityKey,
    /// When it happened, and when it was recorded.
    pub version: Version,
    /// The features of a plain view in their registered types, or the columns that windows read.
    pub values: Vec<Value>,
}

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has no value (a tombstone): a deletion means nothing for features.
    Tombstone,
    /// Its value is not in the source's format.
    Undecodable(String),
    /// A join key is missing or null.
    MissingKey(String),
    /// The event time is missing or null.
    MissingTimestamp(String),
    /// A column has a value of another type than the schema or the view gives it.
    WrongType(String),
    /// Its time is later than the server's clock allows.
    Future(String),
}

impl Reason {
    /// The reason as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::Undecodable(_) => "undecodable",
            Self::MissingKey(_) => "missing_key",
            Self::MissingTimestamp(_) => "missing_timestamp",
            Self::WrongType(_) => "wrong_type",
            Self::Future(_) => "future",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = match self {
            Self::Tombstone => "the message has no value",
            Self::Undecodable(detail)
            | Self::MissingKey(detail)
            | Self::MissingTimestamp(detail)
            | Self::WrongType(detail)
            | Self::Future(detail) => detail,
        };
        write!(f, "{}: {detail}", self.label())
    }
}

/// Reads the view's event from a message's value. `skew_us` is how far after `now` it may lie.
pub fn event(feed: &Feed, payload: Option<&[u8]>, now: Timestamp, skew_us: i64) -> Result<Event, Reason> {
    let record = json::Record::parse(payload.ok_or(Reason::Tombstone)?)?;
    let mut parts = Vec::with_capacity(feed.keys.len());
    for key in &feed.keys {
        let Some(source) = &key.source else { continue };
        let value = record.value(source)?;
        if is_null(&value) {
            return Err(Reason::MissingKey(format!("the join key '{}' is missing or null", source.name)));
        }
        let value = coerce(value, key.value_type).map_err(|e| wrong(&source.name, &e))?;
        parts.push((key.name.as_str(), value));
    }
    let key = if parts.is_empty() {
        EntityKey::dummy()
    } else {
        let parts: Vec<_> = parts.iter().map(|(name, value)| (*name, value)).collect();
        EntityKey::encode(&parts).map_err(|e| Reason::WrongType(e.message().to_owned()))?
    };
    let event = record
        .time(&feed.time)?
        .ok_or_else(|| Reason::MissingTimestamp(format!("the event time '{}' is missing or null", feed.time.name)))?;
    if event.micros() > now.micros().saturating_add(skew_us) {
        return Err(Reason::Future(format!(
            "the event time {event} is more than {skew_us} us after the server's clock, {now}"
        )));
    }
    let created = match &feed.created {
        Some(source) => record.time(source)?.unwrap_or_default(),
        None => Timestamp::default(),
    };
    let values = match &feed.content {
        Content::Rows(features) => features
            .iter()
            .map(|f| coerce(record.value(&f.source)?, f.value_type).map_err(|e| wrong(&f.source.name, &e)))
            .collect::<Result<_, _>>()?,
        Content::Windows { columns, .. } => columns.iter().map(|c| record.value(c)).collect::<Result<_, _>>()?,
    };
    Ok(Event { key, version: Version { event, created }, values })
}

fn wrong(column: &str, error: &model::Error) -> Reason {
    Reason::WrongType(format!("column '{column}': {error}"))
}
