//! Maps whose keys are no text (`feast.types.ScalarMap`), from Arrow's and to it. Knows no other type.

use arrow::array::{Array, ArrayRef, AsArray};
use model::value::proto_value::Val;
use model::value::{NULL, is_null};
use model::{Error, Result, Value};
use proto::feast::types::{MapKey, ScalarMap, ScalarMapEntry, map_key::Key};

use super::values::natural;

/// One map per row of a column of maps.
///
/// Errors: keys of a type that no `MapKey` has (a text is the key of a `Map`), or null.
pub(super) fn from_arrow(array: &ArrayRef) -> Result<Vec<Value>> {
    let map = array.as_map();
    (0..map.len())
        .map(|row| {
            if map.is_null(row) {
                return Ok(NULL);
            }
            let entries = map.value(row);
            let (keys, values) = (natural(entries.column(0))?, natural(entries.column(1))?);
            let entry = |(key, value): (Value, Value)| {
                let key = key_of(key).ok_or_else(|| {
                    let found = entries.column(0).data_type();
                    Error::invalid(format!("a key of type {found} is none of a SCALAR_MAP: register the type Map"))
                })?;
                Ok(ScalarMapEntry { key: Some(key), value: Some(value).filter(|v| !is_null(v)) })
            };
            let val = keys.into_iter().zip(values).map(entry).collect::<Result<_>>()?;
            Ok(Value { val: Some(Val::ScalarMapVal(ScalarMap { val })) })
        })
        .collect()
}

/// Keys and values.
pub(super) fn entries(map: &ScalarMap) -> impl Iterator<Item = (Value, Value)> {
    map.val.iter().map(|entry| {
        let key = entry.key.as_ref().and_then(|k| k.key.clone()).map(value_of);
        (Value { val: key }, entry.value.clone().unwrap_or(NULL))
    })
}

fn key_of(value: Value) -> Option<MapKey> {
    let key = match value.val? {
        Val::Int32Val(v) => Key::Int32Key(v),
        Val::Int64Val(v) => Key::Int64Key(v),
        Val::FloatVal(v) => Key::FloatKey(v),
        Val::DoubleVal(v) => Key::DoubleKey(v),
        Val::BoolVal(v) => Key::BoolKey(v),
        Val::UnixTimestampVal(v) => Key::UnixTimestampKey(v),
        Val::BytesVal(v) => Key::BytesKey(v),
        Val::DecimalVal(v) => Key::DecimalKey(v),
        _ => return None,
    };
    Some(MapKey { key: Some(key) })
}

fn value_of(key: Key) -> Val {
    match key {
        Key::Int32Key(v) => Val::Int32Val(v),
        Key::Int64Key(v) => Val::Int64Val(v),
        Key::FloatKey(v) => Val::FloatVal(v),
        Key::DoubleKey(v) => Val::DoubleVal(v),
        Key::BoolKey(v) => Val::BoolVal(v),
        Key::UnixTimestampKey(v) => Val::UnixTimestampVal(v),
        Key::BytesKey(v) => Val::BytesVal(v),
        Key::UuidKey(v) => Val::UuidVal(v),
        Key::TimeUuidKey(v) => Val::TimeUuidVal(v),
        Key::DecimalKey(v) => Val::DecimalVal(v),
    }
}
