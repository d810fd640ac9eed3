//! Messages on their way through a view's SQL: their columns are gathered, the query runs over all of them at once, and
//! what it leaves are events. Knows no engine: it is handed a query.

use std::sync::Arc;

use model::ports::Selected;
use model::row::Version;
use model::value::{ValueType, proto_value::Val};
use model::{Timestamp, Value};
use serde_json::Value as Json;

use super::{Columns, Event, Reason, Taken, entity_key, not_after, typed};
use crate::feed::{Feed, Source, Sql};

/// A point in time as queries take it.
pub(super) fn micros(time: Timestamp) -> Value {
    Value { val: Some(Val::Int64Val(time.micros())) }
}

/// The columns of a message that a query reads.
type Read = Result<Arc<[Value]>, Reason>;

/// What became of a message.
pub(crate) type Outcome = Result<Option<Event>, Reason>;

/// The messages of a batch that one feed takes.
pub(crate) struct Selecting<'a> {
    feed: &'a Feed,
    sql: &'a Sql,
    /// Which message each is, and the columns that the query reads.
    taken: Vec<(usize, Read)>,
}

impl<'a> Selecting<'a> {
    /// For a feed; `None` where it has no SQL.
    pub(crate) fn new(feed: &'a Feed) -> Option<Self> {
        Some(Self { feed, sql: feed.sql.as_ref()?, taken: Vec::new() })
    }

    /// Takes a message, by its place in the batch.
    pub(crate) fn take(&mut self, message: usize, row: Read) {
        self.taken.push((message, row));
    }

    /// What became of each message: an event, nothing, or a dead letter.
    pub(crate) fn run(self, now: Timestamp, skew_us: i64) -> Vec<(usize, Outcome)> {
        let good: Vec<&[Value]> = self.taken.iter().filter_map(|(_, row)| row.as_deref().ok()).collect();
        let mut outcomes = match self.selected(&good) {
            Ok(selected) => self.events(good.len(), &selected, now, skew_us),
            // one of them fails, or several: each by itself
            Err(_) => good
                .iter()
                .flat_map(|row| match self.selected(&[row]) {
                    Ok(selected) => self.events(1, &selected, now, skew_us),
                    Err(error) => vec![Err(Reason::Transformation(error.message().to_owned()))],
                })
                .collect(),
        }
        .into_iter();
        let outcome = |row: Read| match row {
            Ok(_) => outcomes.next().unwrap_or(Ok(None)),
            Err(reason) => Err(reason),
        };
        let mut outcome = outcome;
        self.taken.iter().map(|(message, row)| (*message, outcome(row.clone()))).collect()
    }

    fn selected(&self, rows: &[&[Value]]) -> model::Result<Selected> {
        let columns = (0..self.sql.reads.len()).map(|at| rows.iter().map(|row| row[at].clone()).collect());
        self.sql.query.run(&columns.collect::<Vec<_>>(), rows.len())
    }

    fn events(&self, rows: usize, selected: &Selected, now: Timestamp, skew_us: i64) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = (0..rows).map(|_| Ok(None)).collect();
        for (at, &row) in selected.rows.iter().enumerate() {
            outcomes[row] = event(self.feed, &Row { sql: self.sql, selected, at }, now, skew_us).map(Some);
        }
        outcomes
    }
}

/// A row of a query's result.
struct Row<'a> {
    sql: &'a Sql,
    selected: &'a Selected,
    at: usize,
}

impl Row<'_> {
    fn cell(&self, column: &Source) -> Value {
        let place = self.sql.query.gives().iter().position(|field| field.name == column.name);
        place.and_then(|place| self.selected.columns[place].get(self.at)).cloned().unwrap_or_default()
    }
}

impl Columns for Row<'_> {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        let value = self.cell(column);
        Ok(match (column.value_type, &value.val) {
            (ValueType::UnixTimestamp, Some(Val::Int64Val(micros))) => {
                Value { val: Some(Val::UnixTimestampVal(micros.div_euclid(1_000_000))) }
            }
            _ => value,
        })
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        let json = match (self.cell(column).val, column.value_type) {
            (None | Some(Val::NullVal(_)), _) => return Ok(None),
            (Some(Val::Int64Val(micros)), ValueType::UnixTimestamp) => return Ok(Some(Timestamp(micros))),
            (Some(Val::Int64Val(number)), _) => Json::from(number),
            (Some(Val::Int32Val(number)), _) => Json::from(number),
            (Some(Val::DoubleVal(number)), _) => Json::from(number),
            (Some(Val::StringVal(text)), _) => Json::from(text),
            (Some(_), other) => {
                let name = &column.name;
                return Err(Reason::WrongType(format!("column '{name}': {} is no time", other.as_str_name())));
            }
        };
        typed::time(column, Some(&json))
    }
}

fn event(feed: &Feed, row: &dyn Columns, now: Timestamp, skew_us: i64) -> Result<Event, Reason> {
    let value = |source: &Source| row.value(source);
    let time = |source: &Source| row.time(source);
    let key = entity_key(&feed.keys, value, |source| row.text(source))?;
    let event = time(&feed.time)?.ok_or_else(|| {
        Reason::MissingTimestamp(format!("the event time '{}' that the view's SQL gives is null", feed.time.name))
    })?;
    not_after(event, now, skew_us)?;
    let created = feed.created.as_ref().map(time).transpose()?.flatten().unwrap_or_default();
    let (values, columns) = Taken::by(feed).of(value, time)?;
    Ok(Event { key, version: Version { event, created }, values, columns })
}
