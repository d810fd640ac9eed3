//! Arrow arrays to Feast values and back, and which Arrow type a registered type has.
//!
//! Source of the mapping: `feast/type_map.py` (`feast_value_type_to_pa`, `pa_to_feast_value_type`) and
//! `feast/types.py`; timestamps carry the zone UTC as in the latter. Knows no files and no queries.

mod arrays;
mod scalar_maps;
mod values;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Field, Fields, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use model::{Error, Result, Timestamp, ValueType};

pub(crate) use arrays::{from_values, timestamps};
pub(crate) use values::to_values;

use crate::error::arrow as arrow_error;

/// The Arrow type of a registered type. Where the registered type leaves the inside open (maps,
/// structs, nested lists), a source column of that shape keeps its own type.
pub(crate) fn arrow_type(value_type: ValueType, source: Option<&DataType>) -> DataType {
    use ValueType as T;
    let list = |inner: DataType| DataType::List(Arc::new(Field::new("item", inner, true)));
    let kept =
        |shape: fn(&DataType) -> bool, default: DataType| source.filter(|s| shape(s)).cloned().unwrap_or(default);
    match value_type {
        T::Int32 => DataType::Int32,
        T::Int64 => DataType::Int64,
        T::Double => DataType::Float64,
        T::Float => DataType::Float32,
        T::Bool => DataType::Boolean,
        T::String | T::Uuid | T::TimeUuid | T::Decimal => DataType::Utf8,
        T::Bytes => DataType::Binary,
        T::Json => DataType::LargeUtf8,
        T::UnixTimestamp => utc_micros(),
        // The zone of the source's column, if it has one, is part of its values.
        T::ZonedTimestamp => match source {
            Some(DataType::Timestamp(_, Some(zone))) => DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone())),
            _ => utc_micros(),
        },
        T::Map => kept(|s| matches!(s, DataType::Map(..) | DataType::Struct(_)), map_of_text()),
        T::Struct => kept(
            |s| matches!(s, DataType::Map(..) | DataType::Struct(_)) || is_text(s),
            DataType::Struct(Fields::empty()),
        ),
        T::MapList => kept(is_list, list(map_of_text())),
        T::StructList => kept(is_list, list(DataType::Struct(Fields::empty()))),
        T::ValueList | T::ValueSet => kept(is_list, list(list(DataType::Utf8))),
        T::Null => DataType::Null,
        T::ScalarMap => kept(|s| matches!(s, DataType::Map(..)), map_of_text()),
        T::Invalid => source.cloned().unwrap_or(DataType::Null),
        _ => match model::value::element_type(value_type) {
            Some(element) => list(arrow_type(element, None)),
            None => source.cloned().unwrap_or(DataType::Utf8),
        },
    }
}

/// Microseconds with the zone UTC.
pub(crate) fn utc_micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn map_of_text() -> DataType {
    let entries =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

fn is_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
}

/// Text of any layout.
pub(crate) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A source column as the registered type, without loss: a cast where it can lose nothing, value by
/// value where it could. A NaN for an integer type is pandas' missing value: null.
///
/// Errors: a value that does not fit, named with the column.
pub(crate) fn to_registered(column: &str, array: &ArrayRef, value_type: ValueType) -> Result<ArrayRef> {
    let array = readable(array, value_type)?;
    let target = arrow_type(value_type, Some(array.data_type()));
    if array.data_type() == &target {
        return Ok(array);
    }
    if let (DataType::Timestamp(TimeUnit::Microsecond, Some(zone)), from) = (&target, array.data_type())
        && (matches!(from, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) || is_text(from))
    {
        let micros = micros(column, &array)?;
        return Ok(timestamps(micros, &DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone()))));
    }
    if is_lossless(array.data_type(), &target) {
        return strict_cast(&array, &target);
    }
    let values = to_values(&array, value_type).map_err(|e| in_column(column, &e))?;
    from_values(&values, &target).map_err(|e| in_column(column, &e))
}

/// A cast that fails rather than make a null of a value.
pub(crate) fn strict_cast(array: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, target, &options).map_err(arrow_error)
}

/// The array without dictionary encoding.
pub(crate) fn plain(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Dictionary(_, values) => strict_cast(array, values),
        _ => Ok(array.clone()),
    }
}

/// The array without dictionary encoding, and UUIDs that are 16 bytes (Arrow's `arrow.uuid`, which pandas' UUID objects
/// become) as text where UUIDs are registered, in lists, too.
fn readable(array: &ArrayRef, value_type: ValueType) -> Result<ArrayRef> {
    use ValueType as T;
    let array = plain(array)?;
    match array.data_type() {
        DataType::FixedSizeBinary(16) if matches!(value_type, T::Uuid | T::TimeUuid) => Ok(uuids(&array)),
        DataType::List(field) if *field.data_type() == DataType::FixedSizeBinary(16) => {
            let Some(T::Uuid | T::TimeUuid) = model::value::element_type(value_type) else { return Ok(array) };
            let list = array.as_list::<i32>();
            let field = Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8));
            let texts = uuids(list.values());
            let list = ListArray::try_new(field, list.offsets().clone(), texts, list.nulls().cloned());
            Ok(Arc::new(list.map_err(arrow_error)?))
        }
        _ => Ok(array),
    }
}

/// Columns of 16 bytes as the text of UUIDs.
pub(crate) fn uuids(array: &ArrayRef) -> ArrayRef {
    let text = |bytes: &[u8]| uuid::Uuid::from_slice(bytes).map(|u| u.to_string()).unwrap_or_default();
    Arc::new(array.as_fixed_size_binary().iter().map(|bytes| bytes.map(text)).collect::<StringArray>())
}

fn is_lossless(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    match (from, to) {
        (D::Null, _)
        | (D::Int8 | D::Int16 | D::UInt8 | D::UInt16, D::Int32 | D::Int64 | D::Float32 | D::Float64)
        | (D::Int32 | D::UInt32, D::Int64 | D::Float64)
        | (D::Float16 | D::Float32, D::Float32 | D::Float64)
        // Rounding to the registered width is what a float column means.
        | (D::Float64, D::Float32)
        | (D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_), D::Binary)
        | (D::Decimal32(..) | D::Decimal64(..) | D::Decimal128(..) | D::Decimal256(..), D::Utf8) => true,
        (from, D::Utf8 | D::LargeUtf8) => is_text(from),
        (D::List(a) | D::LargeList(a) | D::FixedSizeList(a, _), D::List(b)) => {
            a.data_type() == b.data_type() || is_lossless(a.data_type(), b.data_type())
        }
        _ => false,
    }
}

/// An error with the column's name before it.
pub(crate) fn in_column(column: &str, error: &Error) -> Error {
    Error::of_class(error.kind(), error.class(), format!("column '{column}': {}", error.message()))
}

/// Points in time of any unit, zone or writing, as µs since the epoch (finer than µs is cut).
///
/// Errors: a type that is no time; text that cannot be read; a time beyond 64 bits of µs.
pub(crate) fn micros(column: &str, array: &ArrayRef) -> Result<Int64Array> {
    let array = plain(array)?;
    let scaled = |values: &Int64Array, by: i64| -> Result<Int64Array> {
        values.try_unary(|v| v.checked_mul(by).ok_or(v)).map_err(|v: i64| {
            Error::invalid(format!("column '{column}': the time {v} is beyond what microseconds can say"))
        })
    };
    Ok(match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            scaled(&array.as_primitive::<TimestampSecondType>().reinterpret_cast(), 1_000_000)?
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            scaled(&array.as_primitive::<TimestampMillisecondType>().reinterpret_cast(), 1000)?
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().reinterpret_cast()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            array.as_primitive::<TimestampNanosecondType>().unary(|v| v.div_euclid(1000))
        }
        DataType::Date32 => array.as_primitive::<Date32Type>().unary(|v| i64::from(v) * 86_400_000_000),
        DataType::Date64 => scaled(&array.as_primitive::<Date64Type>().reinterpret_cast(), 1000)?,
        DataType::Null => Int64Array::new_null(array.len()),
        text if is_text(text) => {
            let text = strict_cast(&array, &DataType::LargeUtf8)?;
            let parsed: Result<Vec<Option<i64>>> = text
                .as_string::<i64>()
                .iter()
                .map(|t| t.map(|t| Timestamp::parse(t).map(Timestamp::micros)).transpose())
                .collect();
            Int64Array::from(parsed.map_err(|e| in_column(column, &e))?)
        }
        other => {
            return Err(Error::invalid(format!("column '{column}' of type {other} is no timestamp")));
        }
    })
}

#[cfg(test)]
#[path = "convert/tests.rs"]
mod tests;
