//! Feast values to Arrow arrays.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, LargeStringArray,
    ListArray, MapArray, StringArray, StructArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use model::value::{NULL, elements, is_null, proto_value::Val, type_of};
use model::{Error, Result, Timestamp, Value};

use super::strict_cast;
use crate::error::arrow as arrow_error;

/// An array of the given type from values that are of the registered type already.
///
/// Errors: a value of another shape than the type's, or a type that no Feast value takes.
pub(crate) fn from_values(values: &[Value], target: &DataType) -> Result<ArrayRef> {
    /// Every value through one closure into an array of optional elements.
    macro_rules! each {
        ($array:ty, $($pattern:pat => $out:expr),+) => {{
            let items = values.iter().map(|v| match &v.val {
                None | Some(Val::NullVal(_)) => Ok(None),
                $($pattern => Ok(Some($out)),)+
                _ => Err(misfit(v, target)),
            });
            Arc::new(items.collect::<Result<Vec<_>>>()?.into_iter().collect::<$array>()) as ArrayRef
        }};
    }
    Ok(match target {
        DataType::Null => new_null_array(&DataType::Null, values.len()),
        DataType::Boolean => each!(BooleanArray, Some(Val::BoolVal(v)) => *v),
        DataType::Int32 => each!(Int32Array, Some(Val::Int32Val(v)) => *v),
        DataType::Int64 => each!(Int64Array,
            Some(Val::Int64Val(v) | Val::UnixTimestampVal(v)) => *v,
            Some(Val::Int32Val(v)) => i64::from(*v)),
        DataType::Float32 => each!(Float32Array, Some(Val::FloatVal(v)) => *v),
        DataType::Float64 => each!(Float64Array,
            Some(Val::DoubleVal(v)) => *v,
            Some(Val::FloatVal(v)) => f64::from(*v)),
        DataType::Utf8 => StringArray::from_iter(text(values, target)?).into_ref(),
        DataType::LargeUtf8 => LargeStringArray::from_iter(text(values, target)?).into_ref(),
        DataType::Binary => each!(BinaryArray, Some(Val::BytesVal(v)) => v.as_slice()),
        DataType::Timestamp(..) => {
            let micros = each!(Int64Array,
                Some(Val::UnixTimestampVal(v)) => v.saturating_mul(1_000_000),
                Some(Val::ZonedTimestampVal(z)) => z.unix_timestamp.saturating_mul(1_000_000));
            timestamps(arrow::array::AsArray::as_primitive(&micros).clone(), target)
        }
        DataType::List(field) => list(values, field, target)?,
        DataType::Map(entries, _) => map(values, entries, target)?,
        DataType::Struct(fields) if !fields.is_empty() => {
            let mut columns = Vec::with_capacity(fields.len());
            for field in fields {
                let inner: Vec<Value> = values
                    .iter()
                    .map(|v| match &v.val {
                        Some(Val::StructVal(m) | Val::MapVal(m)) => m.val.get(field.name()).cloned().unwrap_or(NULL),
                        _ => NULL,
                    })
                    .collect();
                columns.push(any_layout(&inner, field.data_type())?);
            }
            StructArray::try_new(fields.clone(), columns, Some(validity(values))).map_err(arrow_error)?.into_ref()
        }
        DataType::Struct(_) => StructArray::new_empty_fields(values.len(), Some(validity(values))).into_ref(),
        other => any_layout(values, other)?,
    })
}

/// Through the nearest layout that values have, cast to the one asked for.
fn any_layout(values: &[Value], target: &DataType) -> Result<ArrayRef> {
    let sample = values.iter().find(|v| !is_null(v));
    let Some(sample) = sample else { return Ok(new_null_array(target, values.len())) };
    let nearest = super::arrow_type(type_of(sample), None);
    if matches!(target, DataType::Timestamp(..)) || &nearest == target {
        return from_values(values, target);
    }
    if nearest.is_nested() && !matches!(target, DataType::LargeList(_) | DataType::FixedSizeList(..)) {
        return if matches!(target, DataType::List(_) | DataType::Map(..) | DataType::Struct(_)) {
            from_values(values, target)
        } else {
            Err(misfit(sample, target))
        };
    }
    strict_cast(&from_values(values, &nearest)?, target)
}

/// µs as a timestamp column of any unit and zone.
pub(crate) fn timestamps(micros: Int64Array, target: &DataType) -> ArrayRef {
    let DataType::Timestamp(unit, zone) = target else { return Arc::new(micros) };
    let zone = zone.clone();
    match unit {
        TimeUnit::Second => {
            let seconds: Int64Array = micros.unary(|v| v.div_euclid(1_000_000));
            let array: TimestampSecondArray = seconds.reinterpret_cast();
            Arc::new(array.with_timezone_opt(zone)) as ArrayRef
        }
        TimeUnit::Millisecond => {
            let millis: Int64Array = micros.unary(|v| v.div_euclid(1000));
            let array: TimestampMillisecondArray = millis.reinterpret_cast();
            Arc::new(array.with_timezone_opt(zone))
        }
        TimeUnit::Microsecond => {
            let array: TimestampMicrosecondArray = micros.reinterpret_cast();
            Arc::new(array.with_timezone_opt(zone))
        }
        TimeUnit::Nanosecond => {
            let nanos: Int64Array = micros.unary(|v| v.saturating_mul(1000));
            let array: TimestampNanosecondArray = nanos.reinterpret_cast();
            Arc::new(array.with_timezone_opt(zone))
        }
    }
}

fn list(values: &[Value], field: &FieldRef, target: &DataType) -> Result<ArrayRef> {
    let mut items = Vec::new();
    let mut lengths = Vec::with_capacity(values.len());
    for value in values {
        let before = items.len();
        if !is_null(value) {
            items.extend(elements(value).ok_or_else(|| misfit(value, target))?);
        }
        lengths.push(items.len() - before);
    }
    let items = any_layout(&items, field.data_type())?;
    let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
    Ok(ListArray::try_new(field.clone(), offsets, items, Some(validity(values))).map_err(arrow_error)?.into_ref())
}

fn map(values: &[Value], entries: &FieldRef, target: &DataType) -> Result<ArrayRef> {
    let DataType::Struct(fields) = entries.data_type() else { return Err(misfit(&NULL, target)) };
    let [key, item] = fields.as_ref() else { return Err(misfit(&NULL, target)) };
    let (mut keys, mut items, mut lengths) = (Vec::new(), Vec::new(), Vec::with_capacity(values.len()));
    for value in values {
        let before = keys.len();
        match &value.val {
            None | Some(Val::NullVal(_)) => {}
            Some(Val::MapVal(m) | Val::StructVal(m)) => {
                for (k, v) in &m.val {
                    keys.push(Value { val: Some(Val::StringVal(k.clone())) });
                    items.push(v.clone());
                }
            }
            Some(Val::ScalarMapVal(m)) => {
                for (k, v) in super::scalar_maps::entries(m) {
                    keys.push(k);
                    items.push(v);
                }
            }
            _ => return Err(misfit(value, target)),
        }
        lengths.push(keys.len() - before);
    }
    let as_text = super::is_text(item.data_type());
    let items: Vec<Value> = if as_text { items.iter().map(written).collect() } else { items };
    let columns = vec![any_layout(&keys, key.data_type())?, any_layout(&items, item.data_type())?];
    let rows = StructArray::try_new(fields.clone(), columns, None).map_err(arrow_error)?;
    let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
    let map = MapArray::try_new(entries.clone(), offsets, rows, Some(validity(values)), false).map_err(arrow_error)?;
    Ok(map.into_ref())
}

fn validity(values: &[Value]) -> NullBuffer {
    values.iter().map(|v| !is_null(v)).collect::<Vec<bool>>().into()
}

fn text<'a>(values: &'a [Value], target: &DataType) -> Result<Vec<Option<&'a str>>> {
    values
        .iter()
        .map(|v| match &v.val {
            None | Some(Val::NullVal(_)) => Ok(None),
            Some(Val::StringVal(s) | Val::UuidVal(s) | Val::TimeUuidVal(s) | Val::DecimalVal(s) | Val::JsonVal(s)) => {
                Ok(Some(s.as_str()))
            }
            _ => Err(misfit(v, target)),
        })
        .collect()
}

/// A scalar inside a map of text, written out.
fn written(value: &Value) -> Value {
    let text = match &value.val {
        None | Some(Val::NullVal(_)) => return NULL,
        Some(Val::StringVal(s) | Val::UuidVal(s) | Val::TimeUuidVal(s) | Val::DecimalVal(s) | Val::JsonVal(s)) => {
            s.clone()
        }
        Some(Val::Int32Val(v)) => v.to_string(),
        Some(Val::Int64Val(v)) => v.to_string(),
        Some(Val::DoubleVal(v)) => v.to_string(),
        Some(Val::FloatVal(v)) => v.to_string(),
        Some(Val::BoolVal(v)) => v.to_string(),
        Some(Val::UnixTimestampVal(v)) => Timestamp::from_seconds(*v).to_rfc3339(),
        Some(_) => return value.clone(),
    };
    Value { val: Some(Val::StringVal(text)) }
}

fn misfit(value: &Value, target: &DataType) -> Error {
    Error::invalid(format!(
        "a value of type {} cannot stand in an Arrow column of type {target}",
        type_of(value).as_str_name()
    ))
}

/// Arrays as trait objects, written behind the expression.
trait IntoRef: Array + Sized + 'static {
    fn into_ref(self) -> ArrayRef {
        Arc::new(self)
    }
}
impl<A: Array + 'static> IntoRef for A {}
