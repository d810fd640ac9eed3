//! The columns of an Avro schema, by their paths. Knows no message: bytes are read by a library, in `ingest`.
//!
//! A field of a record in a record is a column too, by its dotted path (`card.id`), and so is the record itself
//! (a STRUCT). A union with null is the type beside the null; of another union nothing is a column.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use super::list_of;
use crate::error::{Error, Result};
use crate::registry::Field;
use crate::value::ValueType;

/// Records in records deeper than this are given as STRUCT and not by their fields.
const DEEPEST: usize = 16;

/// The columns of a schema in the order of its fields.
///
/// Errors: text that is no JSON, or whose type is no record with fields.
pub fn columns(text: &str) -> Result<Vec<Field>> {
    if text.trim().is_empty() {
        return Err(Error::invalid(
            "the Avro schema is empty: give AvroFormat the record's schema, with a schema registry too; messages written \
             under other versions are resolved to it",
        ));
    }
    let json: Json =
        serde_json::from_str(text).map_err(|e| Error::invalid(format!("the Avro schema is no JSON: {e}")))?;
    let mut reader = Reader { named: HashMap::new(), found: Vec::new() };
    match reader.read(&json, "", "", 0) {
        Some(ValueType::Struct) if !reader.found.is_empty() => Ok(reader.found),
        _ => Err(Error::invalid("the Avro schema is no record with fields: a message must be one record")),
    }
}

struct Reader {
    /// The types that have names, by their full names; records are looked up for their type only.
    named: HashMap<String, ValueType>,
    found: Vec<Field>,
}

impl Reader {
    /// The type of a schema. The columns of a record are put to those that were found, under `path`.
    fn read(&mut self, schema: &Json, path: &str, namespace: &str, depth: usize) -> Option<ValueType> {
        use ValueType as T;
        match schema {
            Json::String(name) => primitive(name).or_else(|| {
                let full = full_name(name, namespace);
                self.named.get(&full).or_else(|| self.named.get(name)).copied()
            }),
            Json::Array(variants) => {
                let mut types = variants.iter().filter(|v| v.as_str() != Some("null"));
                match (types.next(), types.next()) {
                    (Some(only), None) => self.read(only, path, namespace, depth),
                    _ => None,
                }
            }
            Json::Object(schema) => {
                let kind = schema.get("type")?;
                let Some(name) = kind.as_str() else { return self.read(kind, path, namespace, depth) };
                match name {
                    "record" | "error" => {
                        let namespace = self.name(schema, namespace, T::Struct);
                        if depth < DEEPEST {
                            self.fields(schema, path, &namespace, depth);
                        }
                        Some(T::Struct)
                    }
                    "enum" => {
                        self.name(schema, namespace, T::String);
                        Some(T::String)
                    }
                    "fixed" => {
                        let value_type = logical(schema).unwrap_or(T::Bytes);
                        self.name(schema, namespace, value_type);
                        Some(value_type)
                    }
                    // what stands in a list or a map has no path
                    "array" => self.apart(schema.get("items")?, namespace, depth).map(list_of),
                    "map" => self.apart(schema.get("values")?, namespace, depth).map(|_| T::Map),
                    _ => logical(schema).or_else(|| self.read(kind, path, namespace, depth)),
                }
            }
            _ => None,
        }
    }

    /// The type of a schema whose records are no columns.
    fn apart(&mut self, schema: &Json, namespace: &str, depth: usize) -> Option<ValueType> {
        let before = self.found.len();
        let value_type = self.read(schema, "", namespace, depth + 1);
        self.found.truncate(before);
        value_type
    }

    fn fields(&mut self, record: &Map<String, Json>, path: &str, namespace: &str, depth: usize) {
        for field in record.get("fields").and_then(Json::as_array).into_iter().flatten() {
            let Some(name) = field.get("name").and_then(Json::as_str) else { continue };
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let at = self.found.len();
            let value_type = field.get("type").and_then(|schema| self.read(schema, &path, namespace, depth + 1));
            if let Some(value_type) = value_type {
                self.found.insert(at, Field { name: path, value_type });
            }
        }
    }

    /// Notes a named type; gives the namespace of what stands in it.
    fn name(&mut self, schema: &Map<String, Json>, enclosing: &str, value_type: ValueType) -> String {
        let text = |key| schema.get(key).and_then(Json::as_str);
        let full = full_name(text("name").unwrap_or_default(), text("namespace").unwrap_or(enclosing));
        let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        self.named.insert(full, value_type);
        namespace
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn primitive(name: &str) -> Option<ValueType> {
    use ValueType as T;
    Some(match name {
        "boolean" => T::Bool,
        "int" => T::Int32,
        "long" => T::Int64,
        "float" => T::Float,
        "double" => T::Double,
        "bytes" => T::Bytes,
        "string" => T::String,
        _ => return None,
    })
}

/// The type that a logical type gives what is below it, where it changes anything.
fn logical(schema: &Map<String, Json>) -> Option<ValueType> {
    let logical = schema.get("logicalType").and_then(Json::as_str)?;
    Some(match logical {
        "decimal" | "big-decimal" => ValueType::Decimal,
        "uuid" => ValueType::String,
        "date"
        | "timestamp-millis"
        | "timestamp-micros"
        | "timestamp-nanos"
        | "local-timestamp-millis"
        | "local-timestamp-micros"
        | "local-timestamp-nanos" => ValueType::UnixTimestamp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_record() {
        use ValueType as T;
        let text = r#"{"type": "record", "name": "Tx", "namespace": "shop", "fields": [
            {"name": "card", "type": {"type": "record", "name": "Card", "fields": [
                {"name": "id", "type": "string"}, {"name": "limit", "type": ["null", "long"], "default": null}]}},
            {"name": "other", "type": ["null", "Card"]},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
            {"name": "again", "type": "shop.Kind"},
            {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}},
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
                {"name": "price", "type": "double"}]}}},
            {"name": "rates", "type": {"type": "map", "values": "float"}},
            {"name": "odd", "type": ["int", "string"]},
            {"name": "n", "type": {"type": "int"}}]}"#;
        let want = [
            ("card", T::Struct),
            ("card.id", T::String),
            ("card.limit", T::Int64),
            ("other", T::Struct),
            ("kind", T::String),
            ("again", T::String),
            ("amount", T::Decimal),
            ("ts", T::UnixTimestamp),
            ("id", T::String),
            ("tags", T::StringList),
            ("lines", T::StructList),
            ("rates", T::Map),
            ("n", T::Int32),
        ];
        let found: Vec<_> = columns(text).expect("a record").into_iter().map(|f| (f.name, f.value_type)).collect();
        assert_eq!(found, want.map(|(name, t)| (name.to_owned(), t)));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for (text, says) in [
            ("", "empty"),
            ("{", "no JSON"),
            ("\"string\"", "no record"),
            (r#"{"type": "record", "name": "R", "fields": []}"#, "no record with fields"),
        ] {
            let error = columns(text).expect_err(text);
            assert!(error.message().contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_record_may_hold_itself() {
        let text = r#"{"type": "record", "name": "Node", "fields": [
            {"name": "v", "type": "int"}, {"name": "next", "type": ["null", "Node"]}]}"#;
        let names: Vec<_> = columns(text).expect("a record").into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["v", "next"]);
    }
}
