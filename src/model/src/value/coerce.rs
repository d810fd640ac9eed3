//! Coercion of a value to a registered type, without loss: `1` may become `1.0`, `1.5` never `1`.

use super::{Value, ValueType, collect, element_type, elements, is_null, proto_value::Val, type_of};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// Greatest integer up to which every integer is a double (2^53) or a float (2^24).
const EXACT_DOUBLE: i64 = 1 << 53;
const EXACT_FLOAT: i64 = 1 << 24;

/// Coerces `value` to `target`. Null stays null; a value of that type passes as it is.
///
/// Errors: a cast that would lose something, or that has no meaning. The message says the value
/// and both types; the caller adds the column's name.
pub fn coerce(value: Value, target: ValueType) -> Result<Value> {
    if is_null(&value) {
        return Ok(super::NULL);
    }
    let source = type_of(&value);
    if source == target || matches!(target, ValueType::Invalid | ValueType::Null) {
        return Ok(value);
    }
    let refuse = |why: &str| {
        Err(Error::invalid(format!(
            "{} of type {} cannot become {} without loss{why}",
            show(&value),
            source.as_str_name(),
            target.as_str_name()
        )))
    };
    if let Some(items) = elements(&value) {
        let Some(element) = element_type(target) else {
            return match target {
                ValueType::ValueList | ValueType::ValueSet => collect(target, items).map_or_else(|| refuse(""), Ok),
                _ => refuse(": it is a list"),
            };
        };
        let items = items.into_iter().map(|v| coerce(v, element)).collect::<Result<Vec<_>>>()?;
        return match collect(target, items) {
            Some(v) => Ok(v),
            None => refuse(": a list of this type holds no nulls"),
        };
    }
    match scalar(&value, target) {
        Some(val) => Ok(Value { val: Some(val) }),
        None => refuse(""),
    }
}

fn scalar(value: &Value, target: ValueType) -> Option<Val> {
    use ValueType as T;
    let val = value.val.as_ref()?;
    match target {
        T::Int32 => i32::try_from(integer(val)?).ok().map(Val::Int32Val),
        T::Int64 => integer(val).map(Val::Int64Val),
        T::UnixTimestamp => match val {
            // the type is of whole seconds, and a fraction is cut off, as everywhere
            Val::StringVal(text) => {
                Some(Val::UnixTimestampVal(Timestamp::parse(text).ok()?.micros().div_euclid(1_000_000)))
            }
            Val::ZonedTimestampVal(z) => Some(Val::UnixTimestampVal(z.unix_timestamp)),
            Val::BoolVal(_) => None,
            _ => integer(val).map(Val::UnixTimestampVal),
        },
        T::Double => match val {
            Val::DoubleVal(v) => Some(*v),
            Val::FloatVal(v) => Some(f64::from(*v)),
            Val::BoolVal(_) => None,
            Val::StringVal(text) => text.trim().parse().ok(),
            _ => integer(val).filter(|i| i.abs() <= EXACT_DOUBLE).map(|i| i as f64),
        }
        .map(Val::DoubleVal),
        T::Float => match val {
            // Rounding to the registered width is what a float column means; overflow is a loss.
            Val::DoubleVal(v) => Some(*v as f32).filter(|f| f.is_finite() || !v.is_finite()),
            Val::BoolVal(_) => None,
            Val::StringVal(text) => text.trim().parse().ok(),
            _ => integer(val).filter(|i| i.abs() <= EXACT_FLOAT).map(|i| i as f32),
        }
        .map(Val::FloatVal),
        T::Bool => match val {
            Val::Int32Val(0) | Val::Int64Val(0) => Some(Val::BoolVal(false)),
            Val::Int32Val(1) | Val::Int64Val(1) => Some(Val::BoolVal(true)),
            Val::StringVal(text) => text.trim().to_ascii_lowercase().parse().ok().map(Val::BoolVal),
            _ => None,
        },
        T::String => match val {
            Val::UuidVal(v) | Val::TimeUuidVal(v) | Val::DecimalVal(v) | Val::JsonVal(v) => {
                Some(Val::StringVal(v.clone()))
            }
            // Feast's clients send 1001 for the STRING key "1001".
            Val::Int32Val(v) => Some(Val::StringVal(v.to_string())),
            Val::Int64Val(v) => Some(Val::StringVal(v.to_string())),
            _ => None,
        },
        T::Bytes => match val {
            Val::StringVal(v) => Some(Val::BytesVal(v.as_bytes().to_vec())),
            _ => None,
        },
        T::Json => text(val).and_then(|text| json(&text).ok()).map(Val::JsonVal),
        T::Uuid => text(val).map(Val::UuidVal),
        T::TimeUuid => text(val).map(Val::TimeUuidVal),
        T::Decimal => match val {
            Val::StringVal(v) => is_decimal(v).then(|| Val::DecimalVal(v.clone())),
            Val::Int32Val(v) => Some(Val::DecimalVal(v.to_string())),
            Val::Int64Val(v) => Some(Val::DecimalVal(v.to_string())),
            _ => None,
        },
        T::Map => match val {
            Val::StructVal(m) => Some(Val::MapVal(m.clone())),
            _ => None,
        },
        T::Struct => match val {
            Val::MapVal(m) => Some(Val::StructVal(m.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// An integer, from any value that is exactly one.
fn integer(val: &Val) -> Option<i64> {
    let whole = |v: f64| (v.fract() == 0.0 && v.abs() <= EXACT_DOUBLE as f64).then_some(v as i64);
    match val {
        Val::Int32Val(v) => Some(i64::from(*v)),
        Val::Int64Val(v) | Val::UnixTimestampVal(v) => Some(*v),
        Val::DoubleVal(v) => whole(*v),
        Val::FloatVal(v) => whole(f64::from(*v)),
        Val::BoolVal(v) => Some(i64::from(*v)),
        Val::StringVal(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn text(val: &Val) -> Option<String> {
    match val {
        Val::StringVal(v) | Val::JsonVal(v) | Val::UuidVal(v) | Val::TimeUuidVal(v) => Some(v.clone()),
        _ => None,
    }
}

/// Text that is JSON, as it stands. Errors: where it stops being JSON.
pub(super) fn json(text: &str) -> Result<String> {
    serde_json::from_str::<serde_json::Value>(text)
        .map(|_| text.to_owned())
        .map_err(|e| Error::invalid(format!("a JSON value must be JSON: {e}")))
}

fn is_decimal(text: &str) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.parse::<f64>().is_ok() && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
}

/// Reads a value from its text (gRPC `Push.features` carries strings).
pub fn parse_text(text: &str, target: ValueType) -> Result<Value> {
    if target == ValueType::Bytes {
        return Ok(Value { val: Some(Val::BytesVal(text.as_bytes().to_vec())) });
    }
    if element_type(target).is_some() || matches!(target, ValueType::Map | ValueType::Struct) {
        let json = serde_json::from_str(text).map_err(|e| {
            Error::invalid(format!("{text:?} is not JSON, which a {} is written in: {e}", target.as_str_name()))
        })?;
        return super::from_json(&json, target);
    }
    coerce(Value { val: Some(Val::StringVal(text.to_owned())) }, target)
}

/// The value for an error message, shortened.
fn show(value: &Value) -> String {
    let text = match &value.val {
        Some(Val::StringVal(v)) => format!("{v:?}"),
        Some(Val::Int32Val(v)) => v.to_string(),
        Some(Val::Int64Val(v) | Val::UnixTimestampVal(v)) => v.to_string(),
        Some(Val::DoubleVal(v)) => v.to_string(),
        Some(Val::FloatVal(v)) => v.to_string(),
        Some(Val::BoolVal(v)) => v.to_string(),
        _ => "a value".to_owned(),
    };
    if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::NULL;

    fn of(val: Val) -> Value {
        Value { val: Some(val) }
    }

    #[test]
    fn what_loses_nothing_is_cast() {
        for (from, to, want) in [
            (Val::Int64Val(7), ValueType::Int32, Val::Int32Val(7)),
            (Val::Int64Val(7), ValueType::Double, Val::DoubleVal(7.0)),
            (Val::DoubleVal(7.0), ValueType::Int64, Val::Int64Val(7)),
            (Val::StringVal("1001".into()), ValueType::Int64, Val::Int64Val(1001)),
            (Val::Int64Val(1), ValueType::Bool, Val::BoolVal(true)),
            (Val::Int64Val(1001), ValueType::String, Val::StringVal("1001".into())),
            (Val::StringVal("1970-01-01T00:01:00.9Z".into()), ValueType::UnixTimestamp, Val::UnixTimestampVal(60)),
        ] {
            assert_eq!(coerce(of(from.clone()), to).expect("lossless"), of(want), "{from:?}");
        }
        assert_eq!(coerce(NULL, ValueType::Int32).expect("null"), NULL);
    }

    #[test]
    fn what_would_lose_something_is_refused_by_name() {
        for (from, to) in [
            (Val::DoubleVal(1.5), ValueType::Int64),
            (Val::Int64Val(i64::from(i32::MAX) + 1), ValueType::Int32),
            (Val::Int64Val(EXACT_DOUBLE + 1), ValueType::Double),
            (Val::StringVal("abc".into()), ValueType::Int64),
            (Val::DoubleVal(f64::NAN), ValueType::Int64),
            (Val::DoubleVal(1e300), ValueType::Float),
            (Val::DoubleVal(7.0), ValueType::String),
        ] {
            let error = coerce(of(from.clone()), to).expect_err("lossy");
            assert!(error.message().contains(to.as_str_name()), "{}", error.message());
        }
    }
}
