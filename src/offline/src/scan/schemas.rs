//! One schema for files that were not all written with the same one: columns that some lack are null
//! there, types that one type can hold without loss become it, all else is refused. Knows no files.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use model::{Error, Result};

/// The union of the columns of some files, each given with its name.
///
/// Errors: a column whose types in two files have none in common.
pub(super) fn merge(files: &[(&str, &SchemaRef)]) -> Result<Schema> {
    let mut fields: Vec<(Field, &str, usize)> = Vec::new();
    for (name, schema) in files {
        for field in schema.fields() {
            let Some((known, first, seen)) = fields.iter_mut().find(|(f, ..)| f.name() == field.name()) else {
                fields.push((field.as_ref().clone(), name, 1));
                continue;
            };
            *seen += 1;
            let merged = common(known, field).ok_or_else(|| {
                Error::invalid(format!(
                    "column '{}' is of type {} in {first} and of type {} in {name}, which do not fit together: write \
                     the files with one type",
                    field.name(),
                    known.data_type(),
                    field.data_type()
                ))
            })?;
            if merged.data_type() != known.data_type() {
                *first = name;
            }
            *known = merged;
        }
    }
    let metadata = files.first().map(|(_, s)| s.metadata().clone()).unwrap_or_default();
    let merged = fields.into_iter().map(|(field, _, seen)| {
        let nullable = field.is_nullable() || seen < files.len();
        field.with_nullable(nullable)
    });
    Ok(Schema::new_with_metadata(merged.collect::<Vec<_>>(), metadata))
}

/// A field that can hold what two hold.
fn common(a: &Field, b: &Field) -> Option<Field> {
    let nullable = a.is_nullable() || b.is_nullable();
    if a.data_type() == b.data_type() {
        return Some(a.clone().with_nullable(nullable));
    }
    if let Some(data_type) = wider(a.data_type(), b.data_type()) {
        return Some(a.clone().with_data_type(data_type).with_nullable(nullable));
    }
    let mut merged = a.clone();
    merged.try_merge(b).ok()?;
    Some(merged)
}

/// The type of two different ones that holds all values of both.
fn wider(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType as T;
    let size = |t: &DataType| t.primitive_width().unwrap_or_default();
    Some(match (a, b) {
        (T::Null, other) | (other, T::Null) => other.clone(),
        (a, b) if a.is_signed_integer() && b.is_signed_integer() => (if size(a) > size(b) { a } else { b }).clone(),
        (a, b) if a.is_unsigned_integer() && b.is_unsigned_integer() => (if size(a) > size(b) { a } else { b }).clone(),
        (s, u) | (u, s) if s.is_signed_integer() && u.is_unsigned_integer() && size(s) > size(u) => s.clone(),
        (T::Float32, T::Float64) | (T::Float64, T::Float32) => T::Float64,
        (T::Float64, i) | (i, T::Float64) if i.is_integer() && size(i) <= 4 => T::Float64,
        (T::Utf8, T::LargeUtf8) | (T::LargeUtf8, T::Utf8) => T::LargeUtf8,
        (T::Binary, T::LargeBinary) | (T::LargeBinary, T::Binary) => T::LargeBinary,
        (T::Dictionary(_, values), other) | (other, T::Dictionary(_, values))
            if !matches!(other, T::Dictionary(..)) =>
        {
            if values.as_ref() == other {
                other.clone()
            } else {
                wider(values, other)?
            }
        }
        (T::Dictionary(_, a), T::Dictionary(_, b)) => {
            if a == b {
                a.as_ref().clone()
            } else {
                wider(a, b)?
            }
        }
        // A time without a zone is in UTC, as everywhere in Feast.
        (T::Timestamp(a, x), T::Timestamp(b, y)) => {
            let is_utc = |z: &Option<Arc<str>>| z.as_deref().is_none_or(|z| matches!(z, "UTC" | "+00:00" | "Z"));
            let zone = if x == y {
                x.clone()
            } else if is_utc(x) && is_utc(y) {
                Some("UTC".into())
            } else {
                return None;
            };
            T::Timestamp(finer(*a, *b), zone)
        }
        _ => return None,
    })
}

fn finer(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    let order = [TimeUnit::Nanosecond, TimeUnit::Microsecond, TimeUnit::Millisecond];
    order.into_iter().find(|u| *u == a || *u == b).unwrap_or(TimeUnit::Second)
}

/// The partition columns, a row for each file.
///
/// Errors: a value that is not of its column's type; the message has the file that `name` gives.
pub(super) fn partitions<'a>(
    fields: &[Arc<Field>],
    values: &[Vec<Option<String>>],
    name: impl Fn(usize) -> &'a String,
) -> Result<Vec<ArrayRef>> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let column = |(i, field): (usize, &Arc<Field>)| {
        let texts: StringArray = values.iter().map(|v| v.get(i).cloned().flatten()).collect();
        cast_with_options(&texts, field.data_type(), &strict).map_err(|_| {
            let lone = |file: &usize| cast_with_options(&slice(&texts, *file), field.data_type(), &strict).is_err();
            let file = (0..values.len()).find(lone).unwrap_or_default();
            let value = values.get(file).and_then(|v| v[i].as_deref()).unwrap_or_default();
            Error::invalid(format!(
                "the partition value {}={value} of {} is not of the type {}: rename the folder",
                field.name(),
                name(file),
                field.data_type()
            ))
        })
    };
    fields.iter().enumerate().map(column).collect()
}

fn slice(texts: &StringArray, at: usize) -> StringArray {
    texts.slice(at, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
        Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), false)).collect::<Vec<_>>()))
    }

    #[test]
    fn columns_are_the_union_and_types_the_wider() {
        use DataType as T;
        let utc = |unit| T::Timestamp(unit, Some("UTC".into()));
        let a = schema(&[
            ("i", T::Int32),
            ("f", T::Float32),
            ("t", T::Timestamp(TimeUnit::Millisecond, None)),
            ("a", T::Utf8),
        ]);
        let b = schema(&[("i", T::Int64), ("f", T::Int16), ("t", utc(TimeUnit::Nanosecond)), ("n", T::Null)]);
        assert!(merge(&[("x", &a), ("y", &b)]).expect_err("f").message().contains("'f' is of type Float32 in x"));
        let b = schema(&[("i", T::Int64), ("f", T::Float64), ("t", utc(TimeUnit::Nanosecond)), ("n", T::Null)]);
        let merged = merge(&[("x", &a), ("y", &b)]).expect("merged");
        let want =
            [("i", T::Int64), ("f", T::Float64), ("t", utc(TimeUnit::Nanosecond)), ("a", T::Utf8), ("n", T::Null)];
        for (field, (name, data_type)) in merged.fields().iter().zip(want) {
            let is_new = matches!(name, "a" | "n");
            assert_eq!((field.name().as_str(), field.data_type(), field.is_nullable()), (name, &data_type, is_new));
        }
    }

    #[test]
    fn types_that_would_lose_are_refused() {
        use DataType as T;
        for (a, b) in [(T::Int64, T::Float64), (T::Utf8, T::Int64), (T::UInt64, T::Int64), (T::Boolean, T::Int8)] {
            assert_eq!(wider(&a, &b), None, "{a} {b}");
            assert_eq!(wider(&b, &a), None, "{b} {a}");
        }
        for (a, b, want) in
            [(T::UInt32, T::Int64, T::Int64), (T::Float64, T::Int32, T::Float64), (T::Utf8, T::Null, T::Utf8)]
        {
            assert_eq!(wider(&a, &b), Some(want.clone()), "{a} {b}");
            assert_eq!(wider(&b, &a), Some(want), "{b} {a}");
        }
    }
}
