//! From a message to an event of the view: key, time and values, or the reason why it is none.
//! Knows no Kafka client and no store; formats stand in modules of their own, and each gives a column as JSON,
//! which is typed here.

pub mod avro;
pub mod json;
pub mod protobuf;

mod frame;
mod metadata;
mod plain;
mod scalars;
pub(crate) mod sql;
mod typed;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use model::row::Version;
use model::value::{NULL, coerce, is_null};
use model::{EntityKey, Timestamp, Value, ValueType};
use service::windows;

use crate::feed::{Content, Feature, Feed, Format, Key, Source};
use crate::message::Message;
pub use frame::schema_id;
pub use scalars::Scalars;
pub use typed::{Columns, time, value};

/// An event of a view. What it has in common with those that other views make of the message is there once.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub key: EntityKey,
    /// When it happened, and when it was recorded.
    pub version: Version,
    /// The features of a plain view in their registered types, or, where they are logged, the columns that windows read.
    pub values: Arc<[Value]>,
    /// The values as windows take them; empty for a plain view.
    pub columns: Scalars,
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
    /// The view's SQL fails over it.
    Transformation(String),
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
            Self::Transformation(_) => "transformation",
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
            | Self::Future(detail)
            | Self::Transformation(detail) => detail,
        };
        write!(f, "{}: {detail}", self.label())
    }
}

/// The messages of feeds that share a topic and its format ([`Feed::share`]), each read once for all of them, with the
/// writers' schemas that are known.
pub struct Decoder<'a> {
    feeds: Vec<(&'a Feed, Takes)>,
    writers: &'a avro::Writers,
    avro: avro::Readers<'a>,
    /// The members of JSON messages that any of the feeds looks at.
    wanted: json::Wanted,
    keys: Vec<&'a [Key]>,
    times: Vec<&'a Source>,
    values: Vec<Taken<'a>>,
}

/// Where the parts of a feed's events stand among those of all feeds.
struct Takes {
    key: usize,
    time: usize,
    created: Option<usize>,
    values: usize,
}

/// The values that a feed takes.
#[derive(PartialEq)]
enum Taken<'a> {
    Features(&'a [Feature]),
    /// For windows, and whether for the log, too.
    Columns(&'a [Source], bool),
    /// For SQL: times are µs.
    Rows(&'a [Source]),
}

impl<'a> Decoder<'a> {
    /// A decoder. `writers` are the schemas behind the ids that [`Decoder::wanted`] named; of an id that is not
    /// there a message is a dead letter.
    pub fn new(feeds: &[&'a Feed], writers: &'a avro::Writers) -> Self {
        let (mut keys, mut times, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let of_feed = |feed: &&'a Feed| {
            if let Some(sql) = &feed.sql {
                // of the message it takes nothing else
                let values = place(&mut values, Taken::Rows(&sql.reads));
                return (*feed, Takes { key: 0, time: 0, created: None, values });
            }
            let content = Taken::by(feed);
            let takes = Takes {
                key: place(&mut keys, &feed.keys[..]),
                time: place(&mut times, &feed.time),
                created: feed.created.as_ref().map(|created| place(&mut times, created)),
                values: place(&mut values, content),
            };
            (*feed, takes)
        };
        let with_places = feeds.iter().map(of_feed).collect();
        Self {
            feeds: with_places,
            writers,
            avro: avro::Readers::new(feeds.first().copied(), writers),
            wanted: json::Wanted::new(feeds.iter().flat_map(|feed| feed.sources())),
            keys,
            times,
            values,
        }
    }

    /// Whether the feeds of these places make the same event of every message.
    pub(crate) fn is_same(&self, one: usize, other: usize) -> bool {
        self.is_alike(one, other) && self.feeds[one].1.values == self.feeds[other].1.values
    }

    /// Whether they make the same event but for its values.
    pub(crate) fn is_alike(&self, one: usize, other: usize) -> bool {
        let ((one, takes), (other, others)) = (&self.feeds[one], &self.feeds[other]);
        let parts = |takes: &Takes| (takes.key, takes.time, takes.created);
        one.sql.is_none() && other.sql.is_none() && parts(takes) == parts(others)
    }

    /// The ids of the writers' schemas that these messages need.
    pub fn wanted<'m>(feed: &Feed, messages: impl Iterator<Item = &'m Message>) -> BTreeSet<u32> {
        if !matches!(feed.format, Format::Avro { framed: true, .. }) {
            return BTreeSet::new();
        }
        messages.filter_map(|message| schema_id(message.payload()?)).collect()
    }

    /// Reads a message. `skew_us` is how far after `now` its event may lie.
    pub fn read<'d>(&'d self, message: &'d Message, now: Timestamp, skew_us: i64) -> Reading<'d> {
        Reading {
            decoder: self,
            message,
            record: self.record(message),
            keys: Made::of(self.keys.len(), self.feeds.len()),
            times: Made::of(self.times.len(), self.feeds.len()),
            values: Made::of(self.values.len(), self.feeds.len()),
            now,
            skew_us,
        }
    }

    fn record<'d>(&'d self, message: &'d Message) -> Result<Record<'d>, Reason> {
        let Some((payload, (feed, _))) = message.payload().zip(self.feeds.first()) else {
            return Ok(Record::Nothing);
        };
        Ok(match &feed.format {
            Format::Json => Record::Json(json::Record::parse(frame::behind_id(payload), &self.wanted)?),
            Format::Avro { .. } => Record::Other(Box::new(self.avro.read(payload)?)),
            Format::Protobuf { message, framed } => {
                let payload = if *framed { frame::behind_indexes(payload)? } else { payload };
                Record::Other(Box::new(protobuf::Record::read(message, payload)?))
            }
        })
    }
}

/// The place of an item in a list, at whose end it is put where it is not there.
fn place<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|known| *known == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

/// What is made once and taken by several: mostly there is one of a kind, which needs no memory of its own.
struct Made<T> {
    /// There is one feed: nothing is taken twice.
    alone: bool,
    first: Option<Result<T, Reason>>,
    others: Vec<Option<Result<T, Reason>>>,
}

impl<T: Clone> Made<T> {
    fn of(how_many: usize, feeds: usize) -> Self {
        let others = if how_many > 1 { vec![None; how_many - 1] } else { Vec::new() };
        Self { alone: feeds == 1, first: None, others }
    }

    fn get(&mut self, place: usize, make: impl FnOnce() -> Result<T, Reason>) -> Result<T, Reason> {
        if self.alone {
            return make();
        }
        let known = if place == 0 { &mut self.first } else { &mut self.others[place - 1] };
        known.get_or_insert_with(make).clone()
    }
}

/// A message's value, read as its format has it.
#[expect(
    clippy::large_enum_variant,
    reason = "most messages are JSON, and one is read at a time: a box would cost more"
)]
enum Record<'a> {
    /// There is none: every column is null.
    Nothing,
    Json(json::Record<'a>),
    Other(Box<dyn Columns + 'a>),
}

type Values = (Arc<[Value]>, Scalars);

/// A message that was read; what its feeds take of it is made when the first of them asks.
pub struct Reading<'a> {
    decoder: &'a Decoder<'a>,
    message: &'a Message,
    record: Result<Record<'a>, Reason>,
    keys: Made<EntityKey>,
    times: Made<Option<Timestamp>>,
    values: Made<Values>,
    now: Timestamp,
    skew_us: i64,
}

impl Reading<'_> {
    /// What the message is to the feed of that place in the decoder's list.
    pub fn event(&mut self, feed: usize) -> Result<Event, Reason> {
        let decoder = self.decoder;
        let (feed, takes) = &decoder.feeds[feed];
        if self.message.payload().is_none() && !metadata::suffices(feed) {
            return Err(Reason::Tombstone);
        }
        let (message, now, skew_us) = (self.message, self.now, self.skew_us);
        let record = match asked(&self.record, decoder, feed) {
            Ok(record) => record,
            Err(None) => return Decoder::new(&[*feed], decoder.writers).read(message, now, skew_us).event(0),
            Err(Some(reason)) => return Err(reason.clone()),
        };
        let value = |source: &Source| of_message(message, record, source);
        let time = |source: &Source| time_of_message(message, record, source);
        let text = |source: &Source| text_of_message(record, source);
        let key = self.keys.get(takes.key, || entity_key(decoder.keys[takes.key], value, text))?;
        let mut at = |place: usize| self.times.get(place, || time(decoder.times[place]));
        let event = at(takes.time)?.ok_or_else(|| {
            Reason::MissingTimestamp(format!("the event time '{}' is missing or null", feed.time.name))
        })?;
        not_after(event, now, skew_us)?;
        let created = takes.created.map(at).transpose()?.flatten().unwrap_or_default();
        let (values, columns) = self.values.get(takes.values, || decoder.values[takes.values].of(value, time))?;
        Ok(Event { key, version: Version { event, created }, values, columns })
    }

    /// What the SQL of the feed of that place reads of the message.
    pub(crate) fn row(&mut self, feed: usize) -> Result<Arc<[Value]>, Reason> {
        let decoder = self.decoder;
        let (feed, takes) = &decoder.feeds[feed];
        if self.message.payload().is_none() && !metadata::is_beside(feed.sources()) {
            return Err(Reason::Tombstone);
        }
        let (message, now, skew_us) = (self.message, self.now, self.skew_us);
        let record = match asked(&self.record, decoder, feed) {
            Ok(record) => record,
            Err(None) => return Decoder::new(&[*feed], decoder.writers).read(message, now, skew_us).row(0),
            Err(Some(reason)) => return Err(reason.clone()),
        };
        let value = |source: &Source| of_message(message, record, source);
        let time = |source: &Source| time_of_message(message, record, source);
        self.values.get(takes.values, || decoder.values[takes.values].of(value, time)).map(|(values, _)| values)
    }
}

/// What a feed asks for columns, or why it cannot; `None` where the fault may be in a member that only another feed wants.
fn asked<'r>(
    record: &'r Result<Record<'r>, Reason>,
    decoder: &Decoder<'_>,
    feed: &Feed,
) -> Result<&'r Record<'r>, Option<&'r Reason>> {
    match record {
        Ok(record) => Ok(record),
        Err(_) if decoder.feeds.len() > 1 && matches!(feed.format, Format::Json) => Err(None),
        Err(reason) => Err(Some(reason)),
    }
}

/// A column of a message, in its value or beside it.
fn of_message(message: &Message, record: &Record<'_>, source: &Source) -> Result<Value, Reason> {
    match metadata::column(source, message) {
        Some(found) => typed::value(source, found?.as_ref()),
        None => record.value(source),
    }
}

/// The same as a point in time.
fn time_of_message(message: &Message, record: &Record<'_>, source: &Source) -> Result<Option<Timestamp>, Reason> {
    match metadata::column(source, message) {
        Some(found) => typed::time(source, found?.as_ref()),
        None => record.time(source),
    }
}

/// The same as a text, where it is one of the value's and at hand.
fn text_of_message<'r>(record: &'r Record<'_>, source: &Source) -> Option<&'r str> {
    if metadata::is_beside(std::iter::once(source)) { None } else { record.text(source) }
}

fn not_after(event: Timestamp, now: Timestamp, skew_us: i64) -> Result<(), Reason> {
    if event.micros() > now.micros().saturating_add(skew_us) {
        return Err(Reason::Future(format!(
            "the event time {event} is more than {skew_us} us after the server's clock, {now}"
        )));
    }
    Ok(())
}

impl<'a> Taken<'a> {
    fn by(feed: &'a Feed) -> Self {
        match &feed.content {
            Content::Rows(features) => Self::Features(features),
            Content::Windows { columns, .. } => Self::Columns(columns, feed.is_logged),
        }
    }

    fn of(
        &self,
        value: impl Fn(&Source) -> Result<Value, Reason>,
        time: impl Fn(&Source) -> Result<Option<Timestamp>, Reason>,
    ) -> Result<Values, Reason> {
        match self {
            Self::Rows(sources) => {
                let column = |source: &Source| match source.value_type {
                    ValueType::UnixTimestamp => Ok(time(source)?.map_or(NULL, sql::micros)),
                    _ => value(source),
                };
                Ok((sources.iter().map(column).collect::<Result<_, _>>()?, Scalars::default()))
            }
            Self::Features(features) => {
                let feature =
                    |f: &Feature| coerce(value(&f.source)?, f.value_type).map_err(|e| wrong(&f.source.name, &e));
                Ok((features.iter().map(feature).collect::<Result<_, _>>()?, Scalars::default()))
            }
            // most often there is one, which needs no list on the way
            Self::Columns([column], false) => Ok((Arc::default(), windows::to_scalar(&value(column)?).into())),
            Self::Columns(columns, false) => {
                let scalar = |column| value(column).map(|value| windows::to_scalar(&value));
                Ok((Arc::default(), columns.iter().map(scalar).collect::<Result<_, _>>()?))
            }
            Self::Columns(columns, true) => {
                let values: Arc<[Value]> = columns.iter().map(value).collect::<Result<_, _>>()?;
                let scalars = values.iter().map(windows::to_scalar).collect();
                Ok((values, scalars))
            }
        }
    }
}

impl Columns for Record<'_> {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        match self {
            Self::Nothing => Ok(model::value::NULL),
            Self::Json(record) => record.value(column),
            Self::Other(record) => record.value(column),
        }
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        match self {
            Self::Nothing => Ok(None),
            Self::Json(record) => record.time(column),
            Self::Other(record) => record.time(column),
        }
    }

    fn text(&self, column: &Source) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Json(record) => record.text(column),
            Self::Other(record) => record.text(column),
        }
    }
}

fn entity_key<'r>(
    keys: &[Key],
    value: impl Fn(&Source) -> Result<Value, Reason>,
    text: impl Fn(&Source) -> Option<&'r str>,
) -> Result<EntityKey, Reason> {
    if let [Key { name, source: Some(source), value_type }] = keys {
        if let Some(text) = text(source).filter(|_| *value_type == ValueType::String) {
            return Ok(EntityKey::of_text(name, text));
        }
        let value = key_value(source, *value_type, value(source)?)?;
        return encoded(&[(name, &value)]);
    }
    let mut parts = Vec::with_capacity(keys.len());
    for key in keys {
        let Some(source) = &key.source else { continue };
        parts.push((key.name.as_str(), key_value(source, key.value_type, value(source)?)?));
    }
    if parts.is_empty() {
        return Ok(EntityKey::dummy());
    }
    let parts: Vec<_> = parts.iter().map(|(name, value)| (*name, value)).collect();
    encoded(&parts)
}

fn key_value(source: &Source, value_type: ValueType, value: Value) -> Result<Value, Reason> {
    if is_null(&value) {
        return Err(Reason::MissingKey(format!("the join key '{}' is missing or null", source.name)));
    }
    coerce(value, value_type).map_err(|e| wrong(&source.name, &e))
}

fn encoded(parts: &[(&str, &Value)]) -> Result<EntityKey, Reason> {
    EntityKey::encode(parts).map_err(|e| Reason::WrongType(e.message().to_owned()))
}

fn wrong(column: &str, error: &model::Error) -> Reason {
    Reason::WrongType(format!("column '{column}': {error}"))
}
