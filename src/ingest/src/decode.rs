//! From a message to an event of the view: key, time and values, or the reason why it is none.
//! Knows no Kafka client and no store; formats stand in modules of their own, and each gives a column as JSON,
//! which is typed here.

pub mod avro;
pub mod json;
pub mod protobuf;

mod frame;
mod metadata;
mod typed;

use std::collections::BTreeSet;
use std::fmt;

use model::row::Version;
use model::value::{coerce, is_null};
use model::{EntityKey, Timestamp, Value};

use crate::feed::{Content, Feed, Format, Source};
use crate::pipeline::Message;
pub use frame::schema_id;
pub(crate) use metadata::type_of as metadata_type;
pub use typed::{Columns, time, value};

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
    /// It has no value (a tombstone), and the view's key or time stands in the value.
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
            Self::Tombstone => "the message has no value, where the view's key and time stand",
            Self::Undecodable(detail)
            | Self::MissingKey(detail)
            | Self::MissingTimestamp(detail)
            | Self::WrongType(detail)
            | Self::Future(detail) => detail,
        };
        write!(f, "{}: {detail}", self.label())
    }
}

/// The messages of one feed, read with the writers' schemas that are known.
pub struct Decoder<'a> {
    feed: &'a Feed,
    avro: avro::Readers<'a>,
}

impl<'a> Decoder<'a> {
    /// A decoder. `writers` are the schemas behind the ids that [`Decoder::wanted`] named; of an id that is not
    /// there a message is a dead letter.
    pub fn new(feed: &'a Feed, writers: &'a avro::Writers) -> Self {
        Self { feed, avro: avro::Readers::new(feed, writers) }
    }

    /// The ids of the writers' schemas that these messages need.
    pub fn wanted<'m>(feed: &Feed, messages: impl Iterator<Item = &'m Message>) -> BTreeSet<u32> {
        if !matches!(feed.format, Format::Avro { framed: true, .. }) {
            return BTreeSet::new();
        }
        messages.filter_map(|message| schema_id(message.payload.as_deref()?)).collect()
    }

    /// Reads the view's event from a message. `skew_us` is how far after `now` it may lie.
    pub fn event(&self, message: &Message, now: Timestamp, skew_us: i64) -> Result<Event, Reason> {
        let record = self.record(message)?;
        let value = |source: &Source| match metadata::column(source, message) {
            Some(found) => typed::value(source, found?.as_ref()),
            None => record.value(source),
        };
        let time = |source: &Source| match metadata::column(source, message) {
            Some(found) => typed::time(source, found?.as_ref()),
            None => record.time(source),
        };
        event(self.feed, value, time, now, skew_us)
    }

    fn record(&self, message: &Message) -> Result<Box<dyn Columns + '_>, Reason> {
        let Some(payload) = message.payload.as_deref() else {
            return if metadata::suffices(self.feed) { Ok(Box::new(Nothing)) } else { Err(Reason::Tombstone) };
        };
        Ok(match &self.feed.format {
            Format::Json => Box::new(json::Record::parse(frame::behind_id(payload), &self.feed.wanted)?),
            Format::Avro { .. } => Box::new(self.avro.read(payload)?),
            Format::Protobuf { message, framed } => {
                let payload = if *framed { frame::behind_indexes(payload)? } else { payload };
                Box::new(protobuf::Record::read(message, payload)?)
            }
        })
    }
}

/// The record of a message without a value: every column is null.
struct Nothing;

impl Columns for Nothing {
    fn value(&self, _: &Source) -> Result<Value, Reason> {
        Ok(model::value::NULL)
    }

    fn time(&self, _: &Source) -> Result<Option<Timestamp>, Reason> {
        Ok(None)
    }
}

fn event(
    feed: &Feed,
    value: impl Fn(&Source) -> Result<Value, Reason>,
    time: impl Fn(&Source) -> Result<Option<Timestamp>, Reason>,
    now: Timestamp,
    skew_us: i64,
) -> Result<Event, Reason> {
    let mut parts = Vec::with_capacity(feed.keys.len());
    for key in &feed.keys {
        let Some(source) = &key.source else { continue };
        let value = value(source)?;
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
    let event = time(&feed.time)?
        .ok_or_else(|| Reason::MissingTimestamp(format!("the event time '{}' is missing or null", feed.time.name)))?;
    if event.micros() > now.micros().saturating_add(skew_us) {
        return Err(Reason::Future(format!(
            "the event time {event} is more than {skew_us} us after the server's clock, {now}"
        )));
    }
    let created = match &feed.created {
        Some(source) => time(source)?.unwrap_or_default(),
        None => Timestamp::default(),
    };
    let values = match &feed.content {
        Content::Rows(features) => features
            .iter()
            .map(|f| coerce(value(&f.source)?, f.value_type).map_err(|e| wrong(&f.source.name, &e)))
            .collect::<Result<_, _>>()?,
        Content::Windows { columns, .. } => columns.iter().map(value).collect::<Result<_, _>>()?,
    };
    Ok(Event { key, version: Version { event, created }, values })
}

fn wrong(column: &str, error: &model::Error) -> Reason {
    Reason::WrongType(format!("column '{column}': {error}"))
}
