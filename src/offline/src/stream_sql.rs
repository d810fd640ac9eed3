//! The SQL of stream views: one `SELECT` of filters, projections and functions of a row, compiled once. Messages go
//! through it batch by batch ([`RowQuery`]), history as part of a scan. Knows no stream and no file.

mod history;
mod plan;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field as ArrowField, Int64Type, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;
use model::ports::{Query, RowQuery, Selected, StreamSql};
use model::registry::Field;
use model::value::{NULL, proto_value::Val};
use model::{Error, Result, Value, ValueType};

use crate::convert::{arrow_type, from_values, in_column, micros, timestamps, to_values};
use crate::error::{arrow as arrow_error, engine, short};
pub(crate) use history::Through;
use plan::Plan;

/// Compiles and runs queries of rows.
#[derive(Default)]
pub struct Sql {
    context: SessionContext,
}

impl std::fmt::Debug for Sql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sql").finish_non_exhaustive()
    }
}

impl StreamSql for Sql {
    fn compile(&self, query: Query<'_>) -> Result<Arc<dyn RowQuery>> {
        let schema = schema_of(query.columns);
        let plan = Plan::new(&self.context, query.text, query.tables, &schema, query.needed)?;
        let reads = plan.reads(&schema);
        let input = Arc::new(schema.project(&reads).map_err(arrow_error)?);
        let known = DFSchema::try_from(input.as_ref().clone()).map_err(engine)?;
        let physical = |expr| self.context.create_physical_expr(expr, &known).map_err(engine);
        let columns = plan.columns.into_iter().map(|column| {
            let field = Field { name: column.name, value_type: value_type_of(&column.data_type) };
            Ok((field, physical(column.expr)?))
        });
        let columns: Vec<(Field, Arc<dyn PhysicalExpr>)> = columns.collect::<Result<_>>()?;
        let (gives, columns) = columns.into_iter().unzip();
        Ok(Arc::new(Compiled { filter: plan.filter.map(physical).transpose()?, reads, input, gives, columns }))
    }
}

/// Columns as Arrow has them.
pub(crate) fn schema_of(columns: &[Field]) -> SchemaRef {
    let field = |f: &Field| ArrowField::new(&f.name, arrow_type(f.value_type, None), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// A query that is ready.
#[derive(Debug)]
struct Compiled {
    reads: Vec<usize>,
    input: SchemaRef,
    gives: Vec<Field>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    columns: Vec<Arc<dyn PhysicalExpr>>,
}

impl RowQuery for Compiled {
    fn reads(&self) -> &[usize] {
        &self.reads
    }

    fn gives(&self) -> &[Field] {
        &self.gives
    }

    fn run(&self, columns: &[Vec<Value>], rows: usize) -> Result<Selected> {
        let arrays =
            self.input.fields().iter().zip(columns).map(|(field, values)| {
                array(values, field.data_type()).map_err(|error| in_column(field.name(), &error))
            });
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let arrays = arrays.collect::<Result<Vec<ArrayRef>>>()?;
        let batch = RecordBatch::try_new_with_options(self.input.clone(), arrays, &options).map_err(arrow_error)?;
        let (batch, kept) = match &self.filter {
            None => (batch, (0..rows).collect()),
            Some(filter) => {
                let mask = evaluated(filter, &batch)?;
                let mask = mask.as_boolean_opt().ok_or_else(|| Error::invalid("its WHERE is no condition"))?;
                // a condition that is null is not met
                let mask: BooleanArray = mask.iter().map(|met| Some(met.unwrap_or(false))).collect();
                let kept = mask.values().set_indices().collect();
                (filter_record_batch(&batch, &mask).map_err(arrow_error)?, kept)
            }
        };
        let columns = self.columns.iter().zip(&self.gives).map(|(expr, field)| {
            let array = evaluated(expr, &batch)?;
            values(&field.name, &array).map_err(|error| in_column(&field.name, &error))
        });
        Ok(Selected { columns: columns.collect::<Result<_>>()?, rows: kept })
    }
}

fn evaluated(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
    let value = expr.evaluate(batch).and_then(|value| value.into_array(batch.num_rows()));
    value.map_err(|error| Error::invalid(format!("its SQL failed: {}", short(&error.strip_backtrace()))))
}

/// Values as a column; points in time are µs.
fn array(values: &[Value], data_type: &DataType) -> Result<ArrayRef> {
    if !matches!(data_type, DataType::Timestamp(..)) {
        return from_values(values, data_type);
    }
    let micros = from_values(values, &DataType::Int64)?;
    Ok(timestamps(micros.as_primitive::<Int64Type>().clone(), data_type))
}

/// A column as values; points in time are µs.
fn values(name: &str, array: &ArrayRef) -> Result<Vec<Value>> {
    if value_type_of(array.data_type()) != ValueType::UnixTimestamp {
        return to_values(array, ValueType::Invalid);
    }
    let micros: Int64Array = micros(name, array)?;
    Ok(micros.iter().map(|v| v.map_or(NULL, |v| Value { val: Some(Val::Int64Val(v)) })).collect())
}

/// The type of the values of a column; `INVALID` where each value says it.
fn value_type_of(data_type: &DataType) -> ValueType {
    match data_type {
        DataType::Boolean => ValueType::Bool,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ValueType::Int32,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => ValueType::Int64,
        DataType::Float16 | DataType::Float32 => ValueType::Float,
        DataType::Float64 => ValueType::Double,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ValueType::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => ValueType::Bytes,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => ValueType::UnixTimestamp,
        _ => ValueType::Invalid,
    }
}

#[cfg(test)]
mod tests;
