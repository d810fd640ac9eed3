//! Plain JSON to values: of a registered type ([`from_json`]), or of the type that the JSON itself
//! suggests ([`guess_json`], as Feast does for entity columns of unknown type).

use std::collections::HashSet;

use base64::Engine as _;
use prost::Message as _;
use serde_json::Value as Json;

use super::{Value, ValueType, coerce, collect, element_type, proto_value::Val};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// A value of type `target` from JSON. JSON null is null; bytes are base64; timestamps are epoch
/// seconds or ISO 8601; `NaN`, `Infinity` and `-Infinity` are strings.
///
/// Errors: JSON of another shape, or a lossy cast.
pub fn from_json(json: &Json, target: ValueType) -> Result<Value> {
    let refuse = || {
        let text = json.to_string();
        let text = text.chars().take(60).collect::<String>();
        Err(Error::invalid(format!("{text} is not a value of type {}", target.as_str_name())))
    };
    let some = |val| Ok(Value { val: Some(val) });
    if json.is_null() {
        return Ok(super::NULL);
    }
    if let Some(element) = element_type(target) {
        // A client may send a list column as JSON text (it does so for maps).
        let parsed;
        let json = match json {
            Json::String(text) => match serde_json::from_str(text) {
                Ok(value @ Json::Array(_)) => {
                    parsed = value;
                    &parsed
                }
                _ => return refuse(),
            },
            other => other,
        };
        let Json::Array(items) = json else { return refuse() };
        let items = items.iter().map(|j| from_json(j, element)).collect::<Result<Vec<_>>>()?;
        return collect(target, distinct(target, items)).map_or_else(refuse, Ok);
    }
    match (target, json) {
        (ValueType::Map | ValueType::Struct, Json::String(text)) => match serde_json::from_str(text) {
            Ok(object @ Json::Object(_)) => from_json(&object, target),
            _ => refuse(),
        },
        (ValueType::Map | ValueType::Struct, Json::Object(fields)) => {
            let val = fields.iter().map(|(k, v)| Ok((k.clone(), guess_json(v)?))).collect::<Result<_>>()?;
            let map = proto::feast::types::Map { val };
            some(if target == ValueType::Map { Val::MapVal(map) } else { Val::StructVal(map) })
        }
        (ValueType::Json, Json::String(text)) => {
            super::coerce::json(text).map(|text| Value { val: Some(Val::JsonVal(text)) })
        }
        (ValueType::Json, other) => some(Val::JsonVal(other.to_string())),
        (ValueType::ValueList | ValueType::ValueSet, Json::Array(items)) => {
            let items = items.iter().map(guess_json).collect::<Result<Vec<_>>>()?;
            collect(target, distinct(target, items)).map_or_else(refuse, Ok)
        }
        (ValueType::Bytes, Json::String(text)) => {
            match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
                Ok(bytes) => some(Val::BytesVal(bytes)),
                Err(_) => Err(Error::invalid("a BYTES value in JSON is written in base64; this text is not")),
            }
        }
        (ValueType::String, Json::String(text)) => some(Val::StringVal(text.clone())),
        (ValueType::UnixTimestamp, Json::String(text)) => some(Val::UnixTimestampVal(whole_seconds(text)?)),
        (ValueType::ZonedTimestamp, Json::String(text)) => zoned(text),
        (ValueType::Int32 | ValueType::Int64, Json::String(text)) if text.trim().is_empty() => refuse(),
        (_, Json::Array(_) | Json::Object(_)) => refuse(),
        _ => coerce(guess_json(json)?, target),
    }
}

/// A value of the type that the JSON suggests: integers INT64, other numbers DOUBLE, text STRING,
/// arrays a list of their elements' common type, objects MAP.
///
/// Errors: an integer beyond 64 bits.
pub fn guess_json(json: &Json) -> Result<Value> {
    let val = match json {
        Json::Null => return Ok(super::NULL),
        Json::Bool(v) => Val::BoolVal(*v),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Val::Int64Val(i),
            (None, Some(f)) if !n.is_u64() => Val::DoubleVal(f),
            _ => return Err(Error::invalid(format!("the integer {n} does not fit in 64 bits with a sign"))),
        },
        Json::String(text) => Val::StringVal(text.clone()),
        Json::Array(items) => {
            let items = items.iter().map(guess_json).collect::<Result<Vec<_>>>()?;
            return Ok(list(items));
        }
        Json::Object(fields) => Val::MapVal(proto::feast::types::Map {
            val: fields.iter().map(|(k, v)| Ok((k.clone(), guess_json(v)?))).collect::<Result<_>>()?,
        }),
    };
    Ok(Value { val: Some(val) })
}

fn list(items: Vec<Value>) -> Value {
    use ValueType as T;
    let types: std::collections::BTreeSet<_> = items.iter().map(|v| super::type_of(v) as i32).collect();
    let is = |wanted: &[T]| !types.is_empty() && types.iter().all(|t| wanted.iter().any(|w| *w as i32 == *t));
    let target = if is(&[T::Int64]) {
        T::Int64List
    } else if is(&[T::Int64, T::Double]) {
        T::DoubleList
    } else if is(&[T::String]) {
        T::StringList
    } else if is(&[T::Bool]) {
        T::BoolList
    } else if is(&[T::Map]) {
        T::MapList
    } else {
        T::ValueList
    };
    let fallback = Value { val: Some(Val::ListVal(proto::feast::types::RepeatedValue { val: items.clone() })) };
    let Some(element) = element_type(target) else { return fallback };
    items
        .into_iter()
        .map(|v| coerce(v, element).ok())
        .collect::<Option<Vec<_>>>()
        .and_then(|items| collect(target, items))
        .unwrap_or(fallback)
}

/// Seconds since 1970. Errors: no time, or one with a fraction, which the types of seconds cannot hold.
fn whole_seconds(text: &str) -> Result<i64> {
    let micros = Timestamp::parse(text)?.micros();
    if micros % 1_000_000 != 0 {
        let message = format!("{text:?} has a fraction of a second, which a timestamp feature cannot hold: round it");
        return Err(Error::invalid(message));
    }
    Ok(micros / 1_000_000)
}

/// Each element once, where it came first, if the type is a set.
fn distinct(target: ValueType, mut items: Vec<Value>) -> Vec<Value> {
    if target.as_str_name().ends_with("_SET") {
        let mut seen = HashSet::new();
        items.retain(|item| seen.insert(item.encode_to_vec()));
    }
    items
}

fn zoned(text: &str) -> Result<Value> {
    let seconds = whole_seconds(text)?;
    let zone = chrono::DateTime::parse_from_rfc3339(text.trim())
        .ok()
        .filter(|t| t.offset().local_minus_utc() != 0)
        .map_or_else(|| "UTC".to_owned(), |t| t.offset().to_string());
    let val = Val::ZonedTimestampVal(proto::feast::types::ZonedTimestamp { unix_timestamp: seconds, zone });
    Ok(Value { val: Some(val) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn typed_json_keeps_its_registered_type() {
        let text = |v: &str| Val::StringVal(v.into());
        for (from, to, want) in [
            (json!(5), ValueType::Int32, Val::Int32Val(5)),
            (json!(5), ValueType::Double, Val::DoubleVal(5.0)),
            (json!("aGk="), ValueType::Bytes, Val::BytesVal(b"hi".to_vec())),
            (json!("x"), ValueType::String, text("x")),
            (
                json!([1, 2, 1]),
                ValueType::Int64Set,
                Val::Int64SetVal(proto::feast::types::Int64Set { val: vec![1, 2] }),
            ),
            (json!({"a": 1}), ValueType::Json, Val::JsonVal("{\"a\":1}".into())),
            (
                json!([1, 2]),
                ValueType::FloatList,
                Val::FloatListVal(proto::feast::types::FloatList { val: vec![1.0, 2.0] }),
            ),
        ] {
            assert_eq!(from_json(&from, to).expect("valid").val, Some(want), "{from}");
        }
        for (from, to) in [
            (json!(5.5), ValueType::Int64),
            (json!([1]), ValueType::Int64),
            (json!("x"), ValueType::Int64List),
            (json!([1, null]), ValueType::Int64List),
            (json!({}), ValueType::String),
            (json!("!"), ValueType::Bytes),
            (json!("{nope"), ValueType::Json),
            (json!(["{}", "{nope"]), ValueType::JsonList),
            (json!("2026-01-02T12:00:00.5Z"), ValueType::UnixTimestamp),
            (json!("2026-01-02T12:00:00.5Z"), ValueType::ZonedTimestamp),
        ] {
            assert!(from_json(&from, to).is_err(), "{from} as {to:?}");
        }
    }

    #[test]
    fn a_mixed_list_of_numbers_is_a_list_of_doubles() {
        let want = Val::DoubleListVal(proto::feast::types::DoubleList { val: vec![1.0, 2.5] });
        assert_eq!(guess_json(&json!([1, 2.5])).expect("valid").val, Some(want));
        assert!(guess_json(&json!(u64::MAX)).is_err());
    }
}
