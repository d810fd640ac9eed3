//! Which columns Parquet can hold. Knows no files.

use arrow::datatypes::{DataType, IntervalUnit, Schema};
use model::{Error, Result};

/// Refuses columns that the Parquet writer does not know (of unions it panics).
///
/// Errors: such a column, by its name and type.
pub(crate) fn check(schema: &Schema) -> Result<()> {
    match schema.fields().iter().find(|field| !holds(field.data_type())) {
        None => Ok(()),
        Some(field) => Err(Error::invalid(format!(
            "column '{}' of type {} cannot be kept in a Parquet file: leave it out, or cast it",
            field.name(),
            field.data_type()
        ))),
    }
}

fn holds(data_type: &DataType) -> bool {
    match data_type {
        DataType::Union(..) | DataType::Interval(IntervalUnit::MonthDayNano) => false,
        DataType::Struct(fields) => !fields.is_empty() && fields.iter().all(|field| holds(field.data_type())),
        DataType::List(inner)
        | DataType::LargeList(inner)
        | DataType::ListView(inner)
        | DataType::LargeListView(inner)
        | DataType::FixedSizeList(inner, _)
        | DataType::Map(inner, _)
        | DataType::RunEndEncoded(_, inner) => holds(inner.data_type()),
        DataType::Dictionary(_, values) => holds(values),
        _ => true,
    }
}
