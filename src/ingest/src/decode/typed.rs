//! From JSON to values and times of a column's type, whatever the message's format was. Knows no format.
//!
//! Times are ISO 8601 text (naive means UTC), or numbers since the epoch whose unit shows in their
//! magnitude: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else
//! nanoseconds. (So seconds reach to the year 5138, and milliseconds start in 1973.) Seconds may
//! have a fraction.

use model::value::{self, ValueType, from_json, proto_value::Val};
use model::{Timestamp, Value};
use serde_json::{Number, Value as Json};

use super::{Reason, json::kind, wrong};
use crate::feed::Source;

/// A message that was read, to be asked for its columns.
pub trait Columns {
    /// A column's value in the schema's type; null where it is absent.
    ///
    /// Errors: [`Reason::WrongType`].
    fn value(&self, column: &Source) -> Result<Value, Reason>;

    /// A column as a point in time, µs; `None` where it is absent or null.
    ///
    /// Errors: [`Reason::WrongType`].
    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason>;

    /// What stands in a column of texts, where it is at hand; [`Columns::value`] has it in any case.
    fn text(&self, _column: &Source) -> Option<&str> {
        None
    }
}

/// What stands in a column as a value of its type; null where nothing does.
///
/// Errors: [`Reason::WrongType`].
pub fn value(column: &Source, json: Option<&Json>) -> Result<Value, Reason> {
    let Some(json) = json.filter(|json| !json.is_null()) else { return Ok(value::NULL) };
    typed(json, column.value_type).map_err(|e| wrong(&column.name, &e))
}

/// What stands in a column as a point in time, µs; `None` where nothing does.
///
/// Errors: [`Reason::WrongType`].
pub fn time(column: &Source, json: Option<&Json>) -> Result<Option<Timestamp>, Reason> {
    match json {
        None | Some(Json::Null) => Ok(None),
        Some(json) => instant(json).map(Some).map_err(|e| wrong(&column.name, &e)),
    }
}

fn typed(json: &Json, value_type: ValueType) -> model::Result<Value> {
    let seconds = |json: &Json| Ok(instant(json)?.micros().div_euclid(1_000_000));
    match (value_type, json) {
        (ValueType::UnixTimestamp, _) => seconds(json).map(|s| Value { val: Some(Val::UnixTimestampVal(s)) }),
        (ValueType::UnixTimestampList, Json::Array(items)) => {
            let items = items.iter().map(|j| Ok(Json::from(seconds(j)?))).collect::<model::Result<_>>()?;
            from_json(&Json::Array(items), value_type)
        }
        // a decimal's digits as they stand in the message, where a double would change them
        (ValueType::Decimal, Json::Number(n)) => Ok(Value { val: Some(Val::DecimalVal(n.to_string())) }),
        _ => from_json(json, value_type),
    }
}

fn instant(json: &Json) -> model::Result<Timestamp> {
    match json {
        Json::String(text) => Timestamp::parse(text),
        Json::Number(n) => of_number(n)
            .ok_or_else(|| model::Error::invalid(format!("{n} is not a time that 64 bits of microseconds can hold"))),
        other => Err(model::Error::invalid(format!(
            "{} is not a time: write ISO 8601 text or a number since the epoch",
            kind(other)
        ))),
    }
}

fn of_number(n: &Number) -> Option<Timestamp> {
    if let Some(i) = n.as_i64() {
        return Some(of_integer(i));
    }
    let f = n.as_f64()?;
    let micros = match f.abs() {
        a if a < 1e11 => f * 1e6,
        a if a < 1e14 => f * 1e3,
        a if a < 1e17 => f,
        _ => f / 1e3,
    };
    (micros.abs() < 9.2e18).then(|| Timestamp(micros.round() as i64))
}

pub(super) fn of_integer(i: i64) -> Timestamp {
    Timestamp(match i.unsigned_abs() {
        0..100_000_000_000 => i * 1_000_000,
        100_000_000_000..100_000_000_000_000 => i * 1_000,
        100_000_000_000_000..100_000_000_000_000_000 => i,
        _ => i.div_euclid(1_000),
    })
}
