//! Arrow arrays to Feast values.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type, UInt64Type};
use model::value::{NULL, coerce, collect, from_json, parse_text};
use model::value::{element_type, proto_value::Val};
use model::{Error, Result, Value, ValueType};
use proto::feast::types as t;

use super::{is_text, micros, plain, readable, scalar_maps, strict_cast};

/// One value per row, of the registered type (`Invalid`: of the type that the column suggests).
///
/// Errors: a value that does not fit the type without loss.
pub(crate) fn to_values(array: &ArrayRef, target: ValueType) -> Result<Vec<Value>> {
    let array = readable(array, target)?;
    let integer = matches!(target, ValueType::Int32 | ValueType::Int64 | ValueType::UnixTimestamp);
    let from_text = is_text(array.data_type())
        && (element_type(target).is_some() || matches!(target, ValueType::Map | ValueType::Struct));
    let zone = match array.data_type() {
        DataType::Timestamp(_, Some(zone)) => zone.to_string(),
        _ => "UTC".to_owned(),
    };
    let values = match array.data_type() {
        DataType::Map(..) if target == ValueType::ScalarMap => scalar_maps::from_arrow(&array)?,
        _ => natural(&array)?,
    };
    values
        .into_iter()
        .map(|value| match &value.val {
            Some(Val::UnixTimestampVal(seconds)) if target == ValueType::ZonedTimestamp => {
                let zoned = t::ZonedTimestamp { unix_timestamp: *seconds, zone: zone.clone() };
                Ok(Value { val: Some(Val::ZonedTimestampVal(zoned)) })
            }
            Some(Val::StringVal(text)) if target == ValueType::ZonedTimestamp => {
                from_json(&serde_json::Value::String(text.clone()), target)
            }
            Some(Val::DoubleVal(v)) if integer && v.is_nan() => Ok(NULL),
            Some(Val::FloatVal(v)) if integer && v.is_nan() => Ok(NULL),
            Some(Val::StringVal(text)) if from_text => match target {
                ValueType::Map | ValueType::Struct => {
                    let json =
                        serde_json::from_str(text).map_err(|e| Error::invalid(format!("{text:?} is not JSON: {e}")))?;
                    from_json(&json, target)
                }
                _ => parse_text(text, target),
            },
            _ => coerce(value, target),
        })
        .collect()
}

/// The values as the Arrow type suggests.
pub(super) fn natural(array: &ArrayRef) -> Result<Vec<Value>> {
    /// Casts to one layout, then wraps every valid element.
    macro_rules! each {
        ($to:expr, $as:ident :: <$ty:ty>, $wrap:expr) => {{
            let cast = strict_cast(array, &$to)?;
            let values = cast.$as::<$ty>().iter();
            values.map(|v| v.map_or(NULL, |v| Value { val: Some($wrap(v)) })).collect()
        }};
    }
    Ok(match array.data_type() {
        DataType::Null => vec![NULL; array.len()],
        DataType::Boolean => array.as_boolean().iter().map(|v| Value { val: v.map(Val::BoolVal) }).collect(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            each!(DataType::Int32, as_primitive::<Int32Type>, Val::Int32Val)
        }
        DataType::Int64 | DataType::UInt32 => each!(DataType::Int64, as_primitive::<Int64Type>, Val::Int64Val),
        DataType::UInt64 => array
            .as_primitive::<UInt64Type>()
            .iter()
            .map(|v| match v.map(i64::try_from) {
                None => Ok(NULL),
                Some(Ok(v)) => Ok(Value { val: Some(Val::Int64Val(v)) }),
                Some(Err(_)) => Err(Error::invalid(format!("{} is beyond 64 bits with a sign", v.unwrap_or(0)))),
            })
            .collect::<Result<_>>()?,
        DataType::Float16 | DataType::Float32 => {
            each!(DataType::Float32, as_primitive::<Float32Type>, Val::FloatVal)
        }
        DataType::Float64 => each!(DataType::Float64, as_primitive::<Float64Type>, Val::DoubleVal),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            each!(DataType::LargeUtf8, as_string::<i64>, |v: &str| Val::StringVal(v.to_owned()))
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            each!(DataType::LargeBinary, as_binary::<i64>, |v: &[u8]| Val::BytesVal(v.to_vec()))
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => micros("", array)?
            .iter()
            .map(|v| Value { val: v.map(|v| Val::UnixTimestampVal(v.div_euclid(1_000_000))) })
            .collect(),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            each!(DataType::LargeUtf8, as_string::<i64>, |v: &str| Val::DecimalVal(v.to_owned()))
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => lists(array)?,
        DataType::Map(..) => maps(array)?,
        DataType::Struct(_) => structs(array)?,
        DataType::Dictionary(..) => natural(&plain(array)?)?,
        other => {
            return Err(Error::invalid(format!(
                "an Arrow column of type {other} has no Feast type: cast it in the source"
            )));
        }
    })
}

fn lists(array: &ArrayRef) -> Result<Vec<Value>> {
    let inner = match array.data_type() {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => f.clone(),
        _ => return Ok(Vec::new()),
    };
    let cast = strict_cast(array, &DataType::LargeList(inner.clone()))?;
    let list = cast.as_list::<i64>();
    let list_type = list_type_of(inner.data_type());
    (0..list.len())
        .map(|row| {
            if list.is_null(row) {
                return Ok(NULL);
            }
            let items = natural(&list.value(row))?;
            collect(list_type, items).ok_or_else(|| {
                Error::invalid(format!("a {} holds no nulls, but a list here has one", list_type.as_str_name()))
            })
        })
        .collect()
}

/// The list type for elements of an Arrow type.
fn list_type_of(element: &DataType) -> ValueType {
    use ValueType as T;
    match element {
        DataType::Boolean => T::BoolList,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => T::Int32List,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => T::Int64List,
        DataType::Float16 | DataType::Float32 => T::FloatList,
        DataType::Float64 => T::DoubleList,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => T::BytesList,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => T::UnixTimestampList,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            T::DecimalList
        }
        DataType::Map(..) => T::MapList,
        DataType::Struct(_) => T::StructList,
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Null => T::ValueList,
        DataType::Dictionary(_, values) => list_type_of(values),
        _ => T::StringList,
    }
}

fn maps(array: &ArrayRef) -> Result<Vec<Value>> {
    let map = array.as_map();
    (0..map.len())
        .map(|row| {
            if map.is_null(row) {
                return Ok(NULL);
            }
            let entries = map.value(row);
            let keys = strict_cast(entries.column(0), &DataType::LargeUtf8)?;
            let values = natural(entries.column(1))?;
            let names = keys.as_string::<i64>().iter().map(|k| k.unwrap_or_default().to_owned());
            let val = names.zip(values).collect();
            Ok(Value { val: Some(Val::MapVal(t::Map { val })) })
        })
        .collect()
}

fn structs(array: &ArrayRef) -> Result<Vec<Value>> {
    let rows = array.as_struct();
    let mut out: Vec<t::Map> = vec![t::Map::default(); rows.len()];
    for (field, column) in rows.fields().iter().zip(rows.columns()) {
        for (map, value) in out.iter_mut().zip(natural(column)?) {
            map.val.insert(field.name().clone(), value);
        }
    }
    let wrap = |(row, map)| if rows.is_null(row) { NULL } else { Value { val: Some(Val::StructVal(map)) } };
    Ok(out.into_iter().enumerate().map(wrap).collect())
}
