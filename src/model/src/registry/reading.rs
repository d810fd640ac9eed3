//! How a view's stream is read: whether it is, from where on, and, for windows, into which generation of their state.
//! It stands in the registry beside the view, so that whoever shares the registry goes over to another state at the
//! same commit. Knows no Kafka and no store.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::View;
use crate::error::{Error, Result};
use crate::ports::{Object, ObjectKind, Table};
use crate::time::Timestamp;

/// Where the consumer of a stream begins that has no stored position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum From {
    /// As the configuration says.
    Configured = 0,
    /// At the beginning of what the broker keeps.
    Earliest = 1,
    /// Behind what is there.
    Latest = 2,
    /// At the first message of a time or later.
    Time = 3,
    /// Where Kafka has the view's group.
    Committed = 4,
}

/// A beginning, and its time where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Where.
    pub from: From,
    /// For [`From::Time`].
    pub time: Timestamp,
}

impl Start {
    /// At the beginning of what the broker keeps.
    pub const EARLIEST: Self = Self { from: From::Earliest, time: Timestamp(0) };
}

impl FromStr for Start {
    type Err = Error;

    /// Reads `earliest`, `latest`, `committed`, or a time as [`Timestamp::parse`] does.
    fn from_str(text: &str) -> Result<Self> {
        let at = |from| Ok(Self { from, time: Timestamp(0) });
        match text {
            "earliest" => at(From::Earliest),
            "latest" => at(From::Latest),
            "committed" => at(From::Committed),
            _ => match Timestamp::parse(text) {
                Ok(time) => Ok(Self { from: From::Time, time }),
                Err(_) => Err(Error::invalid(format!(
                    "{text:?} is none of earliest, latest and committed, and no time such as 2026-01-31T12:00:00Z"
                ))),
            },
        }
    }
}

/// How a view's stream is read.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Reading {
    /// The view.
    #[prost(string, tag = "1")]
    pub view: String,
    /// Its project.
    #[prost(string, tag = "2")]
    pub project: String,
    /// The view's table that this is about: another version of the view is read from its beginning.
    #[prost(string, tag = "3")]
    pub table: String,
    /// Which state and positions, by the time at which they were asked for, µs; 0 is the first.
    #[prost(int64, tag = "4")]
    pub generation: i64,
    /// Where the consumer begins.
    #[prost(enumeration = "From", tag = "5")]
    pub from: i32,
    /// The time for [`From::Time`], µs.
    #[prost(int64, tag = "6")]
    pub from_us: i64,
    /// The state holds what was before this time already, µs: of the stream only events from it on are applied.
    #[prost(int64, optional, tag = "7")]
    pub cut_over_us: Option<i64>,
    /// The stream is not read.
    #[prost(bool, tag = "8")]
    pub paused: bool,
}

impl Reading {
    /// As it is where nothing is noted.
    pub fn first(view: &View) -> Self {
        Self {
            view: view.name.clone(),
            project: view.project.clone(),
            table: base(&view.table).to_owned(),
            ..Self::default()
        }
    }

    /// As an object of the registry.
    pub fn object(&self) -> Object {
        Object {
            kind: ObjectKind::StreamReading,
            project: self.project.clone(),
            name: self.view.clone(),
            bytes: Bytes::from(self.encode_to_vec()),
        }
    }

    /// From an object of the registry.
    ///
    /// Errors: `Internal` for one that is damaged.
    pub fn read(object: &Object) -> Result<Self> {
        Self::decode(object.bytes.clone()).map_err(|e| {
            let (name, project) = (&object.name, &object.project);
            Error::internal(format!("how the stream of view '{name}' of project '{project}' is read is damaged"), e)
        })
    }

    /// The events of the stream that the state holds already are those before this time.
    pub fn cut_over(&self) -> Option<Timestamp> {
        self.cut_over_us.map(Timestamp)
    }

    /// Over to a generation of the state that holds what was before a time, and takes the rest from the stream.
    #[must_use]
    pub fn cut_over_at(self, generation: i64, time: Timestamp) -> Self {
        let us = time.micros();
        Self { generation, from: From::Time as i32, from_us: us, cut_over_us: Some(us), ..self }
    }

    /// The name of the consumer group behind prefix and project.
    pub fn group(&self, table: &Table) -> String {
        named(base(table), self.generation)
    }
}

impl View {
    /// The view with its stream read in this way, where that is about this version of it.
    pub(super) fn read_as(mut self, reading: Reading) -> Self {
        if reading.table != self.table.view {
            // of another version of the view: whether it is read is said of all
            self.reading = Arc::new(Reading { paused: reading.paused, ..Reading::first(&self) });
            return self;
        }
        if self.is_windowed() {
            self.table = Arc::new(self.generation_table(reading.generation));
        }
        self.reading = Arc::new(reading);
        self
    }

    /// The windowed view as it will be when its stream is read in this way, of another generation.
    #[must_use]
    pub fn in_generation(&self, reading: Reading) -> Self {
        let table = Arc::new(self.generation_table(reading.generation));
        Self { table, reading: Arc::new(reading), ..self.clone() }
    }

    /// The table with a generation of a windowed view's state: `view@g` (no view is named so); the first has the plain
    /// name.
    pub fn generation_table(&self, generation: i64) -> Table {
        let features = self.features.iter().map(|f| f.name.as_str());
        Table::with_features(&self.project, named(base(&self.table), generation), features)
    }
}

/// A table's name without its generation.
fn base(table: &Table) -> &str {
    table.view.rsplit_once('@').map_or(&table.view, |(base, _)| base)
}

fn named(base: &str, generation: i64) -> String {
    if generation == 0 { base.to_owned() } else { format!("{base}@{generation}") }
}
