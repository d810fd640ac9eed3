//! A Delta table's schema, which is JSON, as Arrow's. Every column may be null: files written before a
//! column was added do not have it.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Struct {
    fields: Vec<Column>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    r#type: Value,
}

/// Reads a `schemaString`. An error continues "the table has a schema that …".
pub(super) fn read(text: &str) -> Result<Schema, String> {
    let parsed: Struct = serde_json::from_str(text).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(Schema::new(fields(parsed)?))
}

fn fields(of: Struct) -> Result<Vec<Field>, String> {
    let field = |c: Column| {
        let data_type = data_type(&c.r#type).map_err(|e| format!("in column {} {e}", c.name))?;
        Ok(Field::new(c.name, data_type, true))
    };
    of.fields.into_iter().map(field).collect()
}

fn data_type(of: &Value) -> Result<DataType, String> {
    let unknown = || format!("has the type {of}, which Larder does not know");
    if let Some(name) = of.as_str() {
        return Ok(match name {
            "string" => DataType::Utf8,
            "long" => DataType::Int64,
            "integer" => DataType::Int32,
            "short" => DataType::Int16,
            "byte" => DataType::Int8,
            "float" => DataType::Float32,
            "double" => DataType::Float64,
            "boolean" => DataType::Boolean,
            "binary" => DataType::Binary,
            "date" => DataType::Date32,
            "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            "timestamp_ntz" => DataType::Timestamp(TimeUnit::Microsecond, None),
            decimal => {
                let inner = decimal.strip_prefix("decimal(").and_then(|d| d.strip_suffix(')')).ok_or_else(unknown)?;
                let (precision, scale) = inner.split_once(',').ok_or_else(unknown)?;
                let number = |t: &str| t.trim().parse::<u8>().map_err(|_| unknown());
                DataType::Decimal128(number(precision)?, number(scale)? as i8)
            }
        });
    }
    let inner = |name: &str| data_type(of.get(name).unwrap_or(&Value::Null));
    match of.get("type").and_then(Value::as_str) {
        Some("array") => Ok(DataType::List(Arc::new(Field::new("element", inner("elementType")?, true)))),
        Some("map") => {
            let key = Field::new("key", inner("keyType")?, false);
            let entries = DataType::Struct(vec![key, Field::new("value", inner("valueType")?, true)].into());
            Ok(DataType::Map(Arc::new(Field::new("key_value", entries, false)), false))
        }
        Some("struct") => {
            let parsed = Struct::deserialize(of).map_err(|e| e.to_string())?;
            Ok(DataType::Struct(fields(parsed)?.into()))
        }
        _ => Err(unknown()),
    }
}
