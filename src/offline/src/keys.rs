//! Join keys of both sides in one comparable form: integers of any width as 64 bits, text and bytes
//! of any layout, instants in µs. Knows no files and no plan.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int8Array, Int64Array, new_null_array};
use arrow::datatypes::{DataType, Float64Type, TimeUnit, UInt64Type};
use arrow::row::{RowConverter, Rows, SortField};
use model::{Error, Result, ValueType};

use crate::convert::{is_text, micros, plain, strict_cast, uuids};
use crate::error::arrow as arrow_error;

/// The form in which a join key is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyType {
    Int,
    Float,
    Bool,
    Text,
    Bytes,
    Instant,
}

impl KeyType {
    /// From the registered type; where nothing is registered, from the source's column.
    pub(crate) fn of(name: &str, registered: ValueType, column: &DataType) -> Result<Self> {
        use ValueType as T;
        Ok(match (registered, column) {
            (T::UnixTimestamp, c) if is_int(c) => Self::Int,
            (T::Int32 | T::Int64, _) => Self::Int,
            (T::Float | T::Double, _) => Self::Float,
            (T::Bool, _) => Self::Bool,
            (T::String | T::Uuid | T::TimeUuid | T::Decimal, _) => Self::Text,
            (T::Bytes, _) => Self::Bytes,
            (T::UnixTimestamp, _) => Self::Instant,
            (_, DataType::Dictionary(_, values)) => Self::of(name, registered, values)?,
            (T::Invalid, c) if is_int(c) => Self::Int,
            (T::Invalid, c) if c.is_floating() => Self::Float,
            (T::Invalid, DataType::Boolean) => Self::Bool,
            (T::Invalid, c) if is_text(c) => Self::Text,
            (T::Invalid, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => Self::Bytes,
            (T::Invalid, DataType::Timestamp(..)) => Self::Instant,
            (t, c) => {
                return Err(Error::invalid(format!(
                    "the join key '{name}' of type {} in a column of type {c} cannot be compared",
                    t.as_str_name()
                )));
            }
        })
    }

    /// The Arrow type of the comparable form.
    pub(crate) fn arrow(self) -> DataType {
        match self {
            Self::Int | Self::Instant => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Text => DataType::Utf8,
            Self::Bytes => DataType::Binary,
        }
    }

    /// What the source's column is cast to before it is sorted, so that the order is that of the
    /// comparable form.
    pub(crate) fn sort_type(self, column: &DataType) -> DataType {
        match (self, column) {
            // Bytes sort as the text of UUIDs does.
            (Self::Text, DataType::FixedSizeBinary(16)) => column.clone(),
            (Self::Instant, DataType::Timestamp(_, zone)) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            _ => self.arrow(),
        }
    }

    /// The entity frame's column in the comparable form.
    ///
    /// Errors: text for a number, a number for text, and the like; the caller must cast it.
    pub(crate) fn of_frame(self, name: &str, array: &ArrayRef) -> Result<ArrayRef> {
        let array = plain(array)?;
        let refuse = || {
            Error::invalid(format!(
                "the join key '{name}' is of type {} in the entity dataframe, but {} is registered: cast the column",
                array.data_type(),
                match self {
                    Self::Int => "an integer",
                    Self::Float => "a floating number",
                    Self::Bool => "a boolean",
                    Self::Text => "a string",
                    Self::Bytes => "bytes",
                    Self::Instant => "a timestamp",
                }
            ))
        };
        let from = array.data_type();
        if *from == DataType::Null {
            return Ok(new_null_array(&self.arrow(), array.len()));
        }
        match self {
            Self::Int if *from == DataType::UInt64 => {
                // Beyond 63 bits there is no such key: it matches nothing.
                let values = array.as_primitive::<UInt64Type>();
                Ok(Arc::new(values.unary_opt::<_, arrow::datatypes::Int64Type>(|v| i64::try_from(v).ok())))
            }
            Self::Int if is_int(from) => strict_cast(&array, &DataType::Int64),
            Self::Int if from.is_floating() => whole(name, &array),
            Self::Float if from.is_floating() || is_int(from) => strict_cast(&array, &DataType::Float64),
            Self::Bool if *from == DataType::Boolean => Ok(array),
            Self::Text if is_text(from) => strict_cast(&array, &DataType::Utf8),
            Self::Text if *from == DataType::FixedSizeBinary(16) => Ok(uuids(&array)),
            Self::Bytes
                if matches!(
                    from,
                    DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
                ) =>
            {
                strict_cast(&array, &DataType::Binary)
            }
            Self::Instant if from.is_temporal() => Ok(Arc::new(micros(name, &array)?)),
            _ => Err(refuse()),
        }
    }

    /// A sorted column of the source ([`Self::sort_type`]) in the comparable form.
    pub(crate) fn of_source(self, name: &str, array: &ArrayRef) -> Result<ArrayRef> {
        match self {
            Self::Instant => Ok(Arc::new(micros(name, array)?)),
            Self::Text if *array.data_type() == DataType::FixedSizeBinary(16) => Ok(uuids(array)),
            _ => Ok(array.clone()),
        }
    }
}

fn is_int(data_type: &DataType) -> bool {
    data_type.is_integer()
}

/// Whole numbers in a floating column (pandas makes one of integers with a missing value, NaN).
fn whole(name: &str, array: &ArrayRef) -> Result<ArrayRef> {
    let floats = strict_cast(array, &DataType::Float64)?;
    let ints: Result<Vec<Option<i64>>> = floats
        .as_primitive::<Float64Type>()
        .iter()
        .map(|v| match v {
            None => Ok(None),
            Some(v) if v.is_nan() => Ok(None),
            Some(v) if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 => Ok(Some(v as i64)),
            Some(v) => Err(Error::invalid(format!(
                "the join key '{name}' has the value {v} in the entity dataframe, but an integer is registered"
            ))),
        })
        .collect();
    Ok(Arc::new(Int64Array::from(ints?)))
}

/// Turns key columns into rows that compare as bytes. Both sides of a join need the same one.
pub(crate) struct KeyRows {
    converter: RowConverter,
    entityless: bool,
}

impl KeyRows {
    /// For these key parts; none is a view without entities, whose one key all rows share.
    pub(crate) fn new(types: &[KeyType]) -> Result<Self> {
        let mut fields: Vec<SortField> = types.iter().map(|t| SortField::new(t.arrow())).collect();
        if types.is_empty() {
            fields.push(SortField::new(DataType::Int8));
        }
        let converter = RowConverter::new(fields).map_err(arrow_error)?;
        Ok(Self { converter, entityless: types.is_empty() })
    }

    /// The rows of columns in the comparable form, each `rows` long.
    pub(crate) fn rows(&self, columns: &[ArrayRef], rows: usize) -> Result<Rows> {
        if self.entityless {
            let one: ArrayRef = Arc::new(Int8Array::from(vec![0; rows]));
            return self.converter.convert_columns(&[one]).map_err(arrow_error);
        }
        self.converter.convert_columns(columns).map_err(arrow_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int32Array, StringArray, UInt64Array};

    #[test]
    fn integers_of_any_width_compare_and_text_does_not() {
        let key = KeyType::of("id", ValueType::Int32, &DataType::Int32).expect("type");
        let of = |array: ArrayRef| {
            key.of_frame("id", &array).map(|a| a.as_primitive::<arrow::datatypes::Int64Type>().clone())
        };
        let want = Int64Array::from(vec![Some(7), None]);
        assert_eq!(of(Arc::new(Int32Array::from(vec![Some(7), None]))).expect("i32"), want);
        assert_eq!(of(Arc::new(Float64Array::from(vec![7.0, f64::NAN]))).expect("pandas"), want);
        assert_eq!(of(Arc::new(UInt64Array::from(vec![7, u64::MAX]))).expect("u64"), want);
        let error = of(Arc::new(StringArray::from(vec!["7", "8"]))).expect_err("text");
        assert!(error.message().contains("'id'") && error.message().contains("Utf8"), "{}", error.message());
        let error = of(Arc::new(Float64Array::from(vec![7.5]))).expect_err("half");
        assert!(error.message().contains("7.5"), "{}", error.message());
    }
}
