//! Feast values and their types: what a value is, and how it is coerced to a registered type
//! without loss. Knows no Arrow and no JSON dialect but plain JSON.
//!
//! Source of the mapping: `feast/type_map.py`.

mod coerce;
mod json;

pub use coerce::{coerce, parse_text};
pub use json::{DEEPEST, Guessed, from_json, guess_json};
pub use proto::feast::types::Value;
/// The generated parts of a [`Value`].
pub use proto::feast::types::value as proto_value;
pub use proto::feast::types::value_type::Enum as ValueType;

use proto_value::Val;

/// The null value: a `Value` with nothing set.
pub const NULL: Value = Value { val: None };

/// Whether nothing is set, or Feast's explicit null.
pub fn is_null(value: &Value) -> bool {
    matches!(value.val, None | Some(Val::NullVal(_)))
}

/// The type of what is set in a value; `Invalid` where nothing is.
pub fn type_of(value: &Value) -> ValueType {
    use ValueType as T;
    match &value.val {
        None => T::Invalid,
        Some(val) => match val {
            Val::BytesVal(_) => T::Bytes,
            Val::StringVal(_) => T::String,
            Val::Int32Val(_) => T::Int32,
            Val::Int64Val(_) => T::Int64,
            Val::DoubleVal(_) => T::Double,
            Val::FloatVal(_) => T::Float,
            Val::BoolVal(_) => T::Bool,
            Val::UnixTimestampVal(_) => T::UnixTimestamp,
            Val::BytesListVal(_) => T::BytesList,
            Val::StringListVal(_) => T::StringList,
            Val::Int32ListVal(_) => T::Int32List,
            Val::Int64ListVal(_) => T::Int64List,
            Val::DoubleListVal(_) => T::DoubleList,
            Val::FloatListVal(_) => T::FloatList,
            Val::BoolListVal(_) => T::BoolList,
            Val::UnixTimestampListVal(_) => T::UnixTimestampList,
            Val::NullVal(_) => T::Null,
            Val::MapVal(_) => T::Map,
            Val::MapListVal(_) => T::MapList,
            Val::BytesSetVal(_) => T::BytesSet,
            Val::StringSetVal(_) => T::StringSet,
            Val::Int32SetVal(_) => T::Int32Set,
            Val::Int64SetVal(_) => T::Int64Set,
            Val::DoubleSetVal(_) => T::DoubleSet,
            Val::FloatSetVal(_) => T::FloatSet,
            Val::BoolSetVal(_) => T::BoolSet,
            Val::UnixTimestampSetVal(_) => T::UnixTimestampSet,
            Val::JsonVal(_) => T::Json,
            Val::JsonListVal(_) => T::JsonList,
            Val::StructVal(_) => T::Struct,
            Val::StructListVal(_) => T::StructList,
            Val::UuidVal(_) => T::Uuid,
            Val::TimeUuidVal(_) => T::TimeUuid,
            Val::UuidListVal(_) => T::UuidList,
            Val::TimeUuidListVal(_) => T::TimeUuidList,
            Val::UuidSetVal(_) => T::UuidSet,
            Val::TimeUuidSetVal(_) => T::TimeUuidSet,
            Val::ListVal(_) => T::ValueList,
            Val::SetVal(_) => T::ValueSet,
            Val::DecimalVal(_) => T::Decimal,
            Val::DecimalListVal(_) => T::DecimalList,
            Val::DecimalSetVal(_) => T::DecimalSet,
            Val::ScalarMapVal(_) => T::ScalarMap,
            Val::ZonedTimestampVal(_) => T::ZonedTimestamp,
        },
    }
}

/// What a list or set type holds; `None` for every other type.
pub fn element_type(value_type: ValueType) -> Option<ValueType> {
    use ValueType as T;
    Some(match value_type {
        T::BytesList | T::BytesSet => T::Bytes,
        T::StringList | T::StringSet => T::String,
        T::Int32List | T::Int32Set => T::Int32,
        T::Int64List | T::Int64Set => T::Int64,
        T::DoubleList | T::DoubleSet => T::Double,
        T::FloatList | T::FloatSet => T::Float,
        T::BoolList | T::BoolSet => T::Bool,
        T::UnixTimestampList | T::UnixTimestampSet => T::UnixTimestamp,
        T::JsonList => T::Json,
        T::UuidList | T::UuidSet => T::Uuid,
        T::TimeUuidList | T::TimeUuidSet => T::TimeUuid,
        T::DecimalList | T::DecimalSet => T::Decimal,
        T::MapList => T::Map,
        T::StructList => T::Struct,
        _ => return None,
    })
}

/// A list or set value of `value_type` from its elements, each already of [`element_type`].
///
/// Gives `None` where an element is null or of another type, or the type is no list: Feast's typed
/// lists hold no nulls.
pub fn collect(value_type: ValueType, elements: Vec<Value>) -> Option<Value> {
    use ValueType as T;
    use proto::feast::types as t;
    /// Unwraps every element's variant into the list message, or gives up.
    macro_rules! list {
        ($variant:ident, $list:ident, $message:ident) => {{
            let val = elements
                .into_iter()
                .map(|e| match e.val {
                    Some(Val::$variant(v)) => Some(v),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()?;
            Val::$list(t::$message { val })
        }};
    }
    let val = match value_type {
        T::BytesList => list!(BytesVal, BytesListVal, BytesList),
        T::BytesSet => list!(BytesVal, BytesSetVal, BytesSet),
        T::StringList => list!(StringVal, StringListVal, StringList),
        T::StringSet => list!(StringVal, StringSetVal, StringSet),
        T::Int32List => list!(Int32Val, Int32ListVal, Int32List),
        T::Int32Set => list!(Int32Val, Int32SetVal, Int32Set),
        T::Int64List => list!(Int64Val, Int64ListVal, Int64List),
        T::Int64Set => list!(Int64Val, Int64SetVal, Int64Set),
        T::DoubleList => list!(DoubleVal, DoubleListVal, DoubleList),
        T::DoubleSet => list!(DoubleVal, DoubleSetVal, DoubleSet),
        T::FloatList => list!(FloatVal, FloatListVal, FloatList),
        T::FloatSet => list!(FloatVal, FloatSetVal, FloatSet),
        T::BoolList => list!(BoolVal, BoolListVal, BoolList),
        T::BoolSet => list!(BoolVal, BoolSetVal, BoolSet),
        T::UnixTimestampList => list!(UnixTimestampVal, UnixTimestampListVal, Int64List),
        T::UnixTimestampSet => list!(UnixTimestampVal, UnixTimestampSetVal, Int64Set),
        T::JsonList => list!(JsonVal, JsonListVal, StringList),
        T::UuidList => list!(UuidVal, UuidListVal, StringList),
        T::UuidSet => list!(UuidVal, UuidSetVal, StringSet),
        T::TimeUuidList => list!(TimeUuidVal, TimeUuidListVal, StringList),
        T::TimeUuidSet => list!(TimeUuidVal, TimeUuidSetVal, StringSet),
        T::DecimalList => list!(DecimalVal, DecimalListVal, StringList),
        T::DecimalSet => list!(DecimalVal, DecimalSetVal, StringSet),
        T::MapList => list!(MapVal, MapListVal, MapList),
        T::StructList => list!(StructVal, StructListVal, MapList),
        T::ValueList => Val::ListVal(t::RepeatedValue { val: elements }),
        T::ValueSet => Val::SetVal(t::RepeatedValue { val: elements }),
        _ => return None,
    };
    Some(Value { val: Some(val) })
}

/// The elements of a list or set value; `None` for every other value.
pub fn elements(value: &Value) -> Option<Vec<Value>> {
    /// Wraps every element of the list message into its own value.
    macro_rules! each {
        ($list:expr, $variant:ident) => {
            $list.val.iter().cloned().map(|v| Value { val: Some(Val::$variant(v)) }).collect()
        };
    }
    Some(match value.val.as_ref()? {
        Val::BytesListVal(l) => each!(l, BytesVal),
        Val::BytesSetVal(l) => each!(l, BytesVal),
        Val::StringListVal(l) => each!(l, StringVal),
        Val::StringSetVal(l) => each!(l, StringVal),
        Val::Int32ListVal(l) => each!(l, Int32Val),
        Val::Int32SetVal(l) => each!(l, Int32Val),
        Val::Int64ListVal(l) => each!(l, Int64Val),
        Val::Int64SetVal(l) => each!(l, Int64Val),
        Val::DoubleListVal(l) => each!(l, DoubleVal),
        Val::DoubleSetVal(l) => each!(l, DoubleVal),
        Val::FloatListVal(l) => each!(l, FloatVal),
        Val::FloatSetVal(l) => each!(l, FloatVal),
        Val::BoolListVal(l) => each!(l, BoolVal),
        Val::BoolSetVal(l) => each!(l, BoolVal),
        Val::UnixTimestampListVal(l) => each!(l, UnixTimestampVal),
        Val::UnixTimestampSetVal(l) => each!(l, UnixTimestampVal),
        Val::JsonListVal(l) => each!(l, JsonVal),
        Val::UuidListVal(l) => each!(l, UuidVal),
        Val::UuidSetVal(l) => each!(l, UuidVal),
        Val::TimeUuidListVal(l) => each!(l, TimeUuidVal),
        Val::TimeUuidSetVal(l) => each!(l, TimeUuidVal),
        Val::DecimalListVal(l) => each!(l, DecimalVal),
        Val::DecimalSetVal(l) => each!(l, DecimalVal),
        Val::MapListVal(l) => each!(l, MapVal),
        Val::StructListVal(l) => each!(l, StructVal),
        Val::ListVal(l) | Val::SetVal(l) => l.val.clone(),
        _ => return None,
    })
}
