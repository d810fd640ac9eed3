//! Plain JSON to values: of a registered type ([`from_json`]), or of the type that the JSON itself
//! suggests ([`guess_json`], as Feast does for entity columns of unknown type).

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use base64::Engine as _;
use prost::Message as _;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::{Value, ValueType, coerce, collect, element_type, proto_value::Val};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// How deep lists and objects may stand in one value. Protobuf readers stop at 100 messages in messages,
/// and a level here is up to three of them: what is deeper could be written and never read.
pub const DEEPEST: usize = 30;

/// A value of type `target` from JSON. JSON null is null; bytes are base64; timestamps are epoch
/// seconds or ISO 8601; `NaN`, `Infinity` and `-Infinity` are strings.
///
/// Errors: JSON of another shape, or deeper than [`DEEPEST`], or a lossy cast.
pub fn from_json(json: &Json, target: ValueType) -> Result<Value> {
    check_depth(json)?;
    typed(json, target)
}

fn typed(json: &Json, target: ValueType) -> Result<Value> {
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
                    check_depth(&value)?;
                    parsed = value;
                    &parsed
                }
                _ => return refuse(),
            },
            other => other,
        };
        let Json::Array(items) = json else { return refuse() };
        let items = items.iter().map(|j| typed(j, element)).collect::<Result<Vec<_>>>()?;
        return collect(target, distinct(target, items)).map_or_else(refuse, Ok);
    }
    match (target, json) {
        (ValueType::Map | ValueType::Struct, Json::String(text)) => match serde_json::from_str(text) {
            Ok(object @ Json::Object(_)) => from_json(&object, target),
            _ => refuse(),
        },
        (ValueType::Map | ValueType::Struct, Json::Object(fields)) => {
            let val = fields.iter().map(|(k, v)| Ok((k.clone(), guess(v)?))).collect::<Result<_>>()?;
            let map = proto::feast::types::Map { val };
            some(if target == ValueType::Map { Val::MapVal(map) } else { Val::StructVal(map) })
        }
        (ValueType::Json, Json::String(text)) => {
            super::coerce::json(text).map(|text| Value { val: Some(Val::JsonVal(text)) })
        }
        (ValueType::Json, other) => some(Val::JsonVal(other.to_string())),
        (ValueType::ValueList | ValueType::ValueSet, Json::Array(items)) => {
            let items = items.iter().map(guess).collect::<Result<Vec<_>>>()?;
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
        _ => coerce(guess(json)?, target),
    }
}

/// A value of the type that the JSON suggests: integers INT64, other numbers DOUBLE, text STRING,
/// arrays a list of their elements' common type, objects MAP.
///
/// Errors: an integer beyond 64 bits; JSON deeper than [`DEEPEST`].
pub fn guess_json(json: &Json) -> Result<Value> {
    check_depth(json)?;
    guess(json)
}

fn check_depth(json: &Json) -> Result<()> {
    fn fits(json: &Json, left: usize) -> bool {
        match json {
            Json::Array(items) => left > 0 && items.iter().all(|item| fits(item, left - 1)),
            Json::Object(fields) => left > 0 && fields.values().all(|item| fits(item, left - 1)),
            _ => true,
        }
    }
    if fits(json, DEEPEST) { Ok(()) } else { Err(Error::invalid(too_deep())) }
}

fn too_deep() -> String {
    format!("a value has more than {DEEPEST} lists and objects in one another: make it flatter")
}

fn too_wide(number: impl fmt::Display) -> String {
    format!("the integer {number} does not fit in 64 bits with a sign")
}

fn guess(json: &Json) -> Result<Value> {
    let val = match json {
        Json::Null => return Ok(super::NULL),
        Json::Bool(v) => Val::BoolVal(*v),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Val::Int64Val(i),
            (None, Some(f)) if !n.is_u64() => Val::DoubleVal(f),
            _ => return Err(Error::invalid(too_wide(n))),
        },
        Json::String(text) => Val::StringVal(text.clone()),
        Json::Array(items) => {
            let items = items.iter().map(guess).collect::<Result<Vec<_>>>()?;
            return Ok(list(items));
        }
        Json::Object(fields) => Val::MapVal(proto::feast::types::Map {
            val: fields.iter().map(|(k, v)| Ok((k.clone(), guess(v)?))).collect::<Result<_>>()?,
        }),
    };
    Ok(Value { val: Some(val) })
}

/// What [`guess_json`] gives, read from JSON text with no tree in between.
#[derive(Clone, Debug, PartialEq)]
pub struct Guessed(pub Value);

impl<'de> Deserialize<'de> for Guessed {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Guess { left: DEEPEST }.read(json).map(Self)
    }
}

/// Reads a value that may have `left` more lists and objects in one another.
#[derive(Clone, Copy)]
struct Guess {
    left: usize,
}

impl Guess {
    fn read<'de, D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        self.left.checked_sub(1).map(|left| Self { left }).ok_or_else(|| E::custom(too_deep()))
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Guess {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        self.read(json)
    }
}

impl<'de> Visitor<'de> for Guess {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(super::NULL)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value { val: Some(Val::BoolVal(v)) })
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value { val: Some(Val::Int64Val(v)) })
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        i64::try_from(v).map(|v| Value { val: Some(Val::Int64Val(v)) }).map_err(|_| E::custom(too_wide(v)))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value { val: Some(Val::DoubleVal(v)) })
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value { val: Some(Val::StringVal(v.to_owned())) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut json: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = json.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(list(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut json: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut val = BTreeMap::new();
        while let Some(key) = json.next_key::<String>()? {
            val.insert(key, json.next_value_seed(inner)?);
        }
        Ok(Value { val: Some(Val::MapVal(proto::feast::types::Map { val })) })
    }
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

/// The second since 1970 in which a time lies: Feast's timestamp values have no fraction, and it cuts one
/// off, as a materialization does here. Errors: no time.
fn whole_seconds(text: &str) -> Result<i64> {
    Ok(Timestamp::parse(text)?.micros().div_euclid(1_000_000))
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
    use proptest::prelude::*;
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
            (json!("1970-01-01T00:01:00.9Z"), ValueType::UnixTimestamp, Val::UnixTimestampVal(60)),
            (json!("1969-12-31T23:59:59.5Z"), ValueType::UnixTimestamp, Val::UnixTimestampVal(-1)),
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

    fn tree() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            (-9i8..9).prop_map(Json::from),
            any::<String>().prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn text_is_read_as_its_tree_is(tree in tree()) {
            let text = tree.to_string();
            let tree: Json = serde_json::from_str(&text).expect("JSON");
            let read = serde_json::from_str::<Guessed>(&text).map(|g| g.0).map_err(|e| e.to_string());
            match guess_json(&tree) {
                Ok(value) => prop_assert_eq!(read, Ok(value)),
                Err(error) => prop_assert!(read.expect_err("refused").contains(error.message())),
            }
        }
    }

    #[test]
    fn a_value_that_could_not_be_read_back_is_refused() {
        use prost::Message as _;
        for (open, close) in [("[", "]"), ("{\"k\":", "}")] {
            let nested = |depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let deepest: Json = serde_json::from_str(&nested(DEEPEST)).expect("JSON");
            let value = guess_json(&deepest).expect("deep");
            assert_eq!(serde_json::from_str::<Guessed>(&nested(DEEPEST)).expect("deep").0, value);
            let column = proto::feast::types::RepeatedValue { val: vec![value] };
            assert_eq!(proto::feast::types::RepeatedValue::decode(&column.encode_to_vec()[..]).expect("read"), column);

            let deeper: Json = serde_json::from_str(&nested(DEEPEST + 1)).expect("JSON");
            assert!(guess_json(&deeper).is_err() && from_json(&deeper, ValueType::ValueList).is_err());
            assert!(serde_json::from_str::<Guessed>(&nested(DEEPEST + 1)).is_err());
        }
    }
}
