//! JSON messages: one object per message. Knows no view and no types.
//!
//! A member that is absent is null, members that the schema does not have are ignored, and of two
//! members with one name the last stands: as Spark's `from_json` reads them. Unlike there, a value
//! of a wrong type is an error and not a silent null.
//!
//! A column is a member by its name, or, where there is none, what stands at its dotted path: `card.id`,
//! `lines.0.price`.

use model::{Timestamp, Value};
use serde_json::{Map, Value as Json};

use super::{Columns, Reason};
use crate::feed::Source;

/// A parsed message.
pub struct Record(Map<String, Json>);

impl Record {
    /// Parses a message's value.
    ///
    /// Errors: [`Reason::Undecodable`] for bytes that are no JSON object.
    pub fn parse(payload: &[u8]) -> Result<Self, Reason> {
        match serde_json::from_slice(payload) {
            Ok(Json::Object(members)) => Ok(Self(members)),
            Ok(other) => Err(Reason::Undecodable(format!("the value is {}, not a JSON object", kind(&other)))),
            Err(e) => Err(Reason::Undecodable(format!("the value is no JSON: {e}"))),
        }
    }
}

impl Columns for Record {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        super::value(column, member(&self.0, &column.name))
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        super::time(column, member(&self.0, &column.name))
    }
}

/// The member of that name, or at that path.
pub(super) fn member<'a>(members: &'a Map<String, Json>, path: &str) -> Option<&'a Json> {
    members.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        below(members.get(first)?, rest)
    })
}

fn below<'a>(json: &'a Json, path: &str) -> Option<&'a Json> {
    match json {
        Json::Object(members) => member(members, path),
        Json::Array(items) => {
            let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
            let item = items.get(first.parse::<usize>().ok()?)?;
            rest.map_or(Some(item), |rest| below(item, rest))
        }
        _ => None,
    }
}

pub(super) fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
