//! What a stream's messages hold: a Kafka source's settings, and its schema as names and types. Knows no
//! Kafka client and no message: `ingest` decodes by what stands here.
//!
//! A JSON schema is what Feast hands to Spark's `from_json` (`feast/infra/contrib/spark_kafka_processor.py`):
//! DDL (`carrier string, dep_delay double, ts timestamp`), or the JSON of a Spark `StructType`.

pub mod avro;
pub mod beside;

use proto::feast::core::{DataSource, data_source::Options, stream_format};
use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::registry::Field;
use crate::time::duration_us;
use crate::value::ValueType;

/// More nested types than this in one schema are a mistake, or an attempt on the stack.
const MAX_NESTED: usize = 100;

/// How the messages of a topic are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON objects, with the schema as the user wrote it.
    Json(String),
    /// Avro records, with the schema as the user wrote it.
    Avro(String),
    /// Protobuf messages of a type, by the `class_path` that the user wrote.
    Protobuf(String),
    /// None is registered.
    Missing,
}

/// A registered `KafkaSource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// The topic.
    pub topic: String,
    /// How the messages are written.
    pub format: Format,
    /// How long after the latest event an earlier one is in time, µs.
    pub watermark_delay_us: i64,
}

/// The Kafka settings of a data source; `None` where it is of another kind.
pub fn kafka(source: &DataSource) -> Option<Kafka> {
    let Some(Options::KafkaOptions(options)) = &source.options else { return None };
    let format = match options.message_format.as_ref().and_then(|f| f.format.as_ref()) {
        Some(stream_format::Format::JsonFormat(json)) => Format::Json(json.schema_json.clone()),
        Some(stream_format::Format::AvroFormat(avro)) => Format::Avro(avro.schema_json.clone()),
        Some(stream_format::Format::ProtoFormat(message)) => Format::Protobuf(message.class_path.clone()),
        None => Format::Missing,
    };
    Some(Kafka {
        bootstrap_servers: options.kafka_bootstrap_servers.clone(),
        topic: options.topic.clone(),
        format,
        watermark_delay_us: duration_us(options.watermark_delay_threshold.as_ref()),
    })
}

/// The columns of a stream, by the names that features and aggregations use (the source's
/// `field_mapping` applied); `None` where the registered source does not say them: it is no Kafka source, or its
/// messages are Protobuf, whose types stand in the server's configuration.
///
/// Errors: those of [`parse`] and [`avro::columns`], with the source's name before them.
pub fn stream_columns(source: &DataSource) -> Result<Option<Vec<Field>>> {
    let fields = match kafka(source).map(|kafka| kafka.format) {
        Some(Format::Json(text)) => parse(&text),
        Some(Format::Avro(text)) => avro::columns(&text),
        Some(Format::Protobuf(_) | Format::Missing) | None => return Ok(None),
    };
    let mut fields = fields.map_err(|e| Error::invalid(format!("data source '{}': {e}", source.name)))?;
    for field in &mut fields {
        if let Some(name) = source.field_mapping.get(&field.name) {
            field.name.clone_from(name);
        }
    }
    Ok(Some(fields))
}

/// Reads a schema: columns in order, with the Feast type that holds what Spark's type holds.
///
/// Errors: an empty schema, a column without a type, a type that has no Feast type, two columns of
/// one name; each names the column and what stands there.
pub fn parse(text: &str) -> Result<Vec<Field>> {
    let text = text.trim();
    let fields = if text.starts_with('{') { of_json(text)? } else { of_ddl(text)? };
    if fields.is_empty() {
        return Err(Error::invalid(
            "the JSON schema is empty: write it as \"name type, …\", for example \"user string, ts timestamp\"",
        ));
    }
    for (i, field) in fields.iter().enumerate() {
        if fields[..i].iter().any(|f| f.name == field.name) {
            return Err(Error::invalid(format!("the JSON schema has two columns named '{}'", field.name)));
        }
    }
    Ok(fields)
}

fn of_ddl(text: &str) -> Result<Vec<Field>> {
    if text.matches('<').count() > MAX_NESTED {
        return Err(Error::invalid(format!("the JSON schema nests more than {MAX_NESTED} types")));
    }
    let inner = strip_call(text, "struct", '<', '>').unwrap_or(text);
    split(inner)
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (name, rest) = name_of(part)?;
            Ok(Field { value_type: type_of(&name, rest)?, name })
        })
        .collect()
}

/// Splits at commas outside of brackets and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut quote, mut start) = (Vec::new(), 0i32, None, 0);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if q == c => quote = None,
            (None, '`' | '\'' | '"') => quote = Some(c),
            (None, '(' | '<') => depth += 1,
            (None, ')' | '>') => depth -= 1,
            (None, ',') if depth <= 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The column's name and the text behind it (and behind a colon, if one stands there).
fn name_of(part: &str) -> Result<(String, &str)> {
    let part = part.trim();
    let (name, rest) = if let Some(quoted) = part.strip_prefix('`') {
        quoted
            .split_once('`')
            .ok_or_else(|| Error::invalid(format!("the JSON schema has a name without a closing backtick: {part:?}")))?
    } else {
        let end = part.find(|c: char| c.is_whitespace() || c == ':').unwrap_or(part.len());
        part.split_at(end)
    };
    let rest = rest.trim_start();
    Ok((name.to_owned(), rest.strip_prefix(':').unwrap_or(rest).trim()))
}

/// The type that stands after a column's name, with `NOT NULL` and `COMMENT '…'` behind it.
fn type_of(column: &str, text: &str) -> Result<ValueType> {
    if text.is_empty() {
        return Err(Error::invalid(format!(
            "column '{column}' of the JSON schema has no type: write \"{column} string\" or another Spark type"
        )));
    }
    let end = type_end(text);
    let (name, modifiers) = text.split_at(end);
    let words = modifiers.trim().to_ascii_lowercase();
    let words = words.strip_prefix("not null").unwrap_or(&words).trim_start();
    if !words.is_empty() && !words.starts_with("comment") {
        return Err(Error::invalid(format!(
            "column '{column}' of the JSON schema: {modifiers:?} is not understood after type {name:?}; is a comma missing?"
        )));
    }
    spark_type(name).ok_or_else(|| unknown(column, name))
}

/// Where the type ends: at the first space outside of brackets.
fn type_end(text: &str) -> usize {
    let mut depth = 0i32;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '<' => depth += 1,
            ')' | '>' => depth -= 1,
            _ if depth <= 0 && c.is_whitespace() => {
                let opens = text[at..].trim_start().starts_with(['(', '<']);
                if !opens {
                    return at;
                }
            }
            _ => {}
        }
    }
    text.len()
}

fn unknown(column: &str, name: &str) -> Error {
    Error::invalid(format!(
        "column '{column}' of the JSON schema has the type {name:?}, which has no Feast type: use string, boolean, \
         int, bigint, float, double, decimal(p,s), binary, date, timestamp, array<…>, map<…> or struct<…>"
    ))
}

/// A Spark SQL type by its DDL name.
fn spark_type(text: &str) -> Option<ValueType> {
    use ValueType as T;
    let text = text.trim().to_ascii_lowercase();
    if let Some(element) = strip_call(&text, "array", '<', '>') {
        return spark_type(element).map(list_of);
    }
    if let Some(parts) = strip_call(&text, "map", '<', '>') {
        let parts = split(parts);
        let known = parts.len() == 2 && parts.iter().all(|p| spark_type(p).is_some());
        return known.then_some(T::Map);
    }
    if let Some(parts) = strip_call(&text, "struct", '<', '>') {
        return of_ddl(parts).ok().map(|_| T::Struct);
    }
    let base = text.split('(').next().unwrap_or_default().trim();
    if base.len() < text.len()
        && !(text.ends_with(')') && matches!(base, "decimal" | "dec" | "numeric" | "varchar" | "char"))
    {
        return None;
    }
    Some(match base {
        "string" | "varchar" | "char" => T::String,
        "boolean" => T::Bool,
        "byte" | "tinyint" | "short" | "smallint" | "int" | "integer" => T::Int32,
        "long" | "bigint" => T::Int64,
        "float" | "real" => T::Float,
        "double" => T::Double,
        "decimal" | "dec" | "numeric" => T::Decimal,
        "binary" => T::Bytes,
        "date" | "timestamp" | "timestamp_ntz" | "timestamp_ltz" => T::UnixTimestamp,
        _ => return None,
    })
}

/// The type of lists of a type.
pub fn list_of(element: ValueType) -> ValueType {
    use ValueType as T;
    match element {
        T::String => T::StringList,
        T::Bool => T::BoolList,
        T::Int32 => T::Int32List,
        T::Int64 => T::Int64List,
        T::Float => T::FloatList,
        T::Double => T::DoubleList,
        T::Decimal => T::DecimalList,
        T::Bytes => T::BytesList,
        T::UnixTimestamp => T::UnixTimestampList,
        T::Map => T::MapList,
        T::Struct => T::StructList,
        _ => T::ValueList,
    }
}

/// What stands between the brackets of `name<…>`.
fn strip_call<'a>(text: &'a str, name: &str, open: char, close: char) -> Option<&'a str> {
    let head = text.get(..name.len())?;
    if !head.eq_ignore_ascii_case(name) {
        return None;
    }
    text[name.len()..].trim_start().strip_prefix(open)?.trim_end().strip_suffix(close)
}

/// The JSON of a Spark `StructType`: `{"type": "struct", "fields": [{"name": …, "type": …}]}`.
fn of_json(text: &str) -> Result<Vec<Field>> {
    let json: Json = serde_json::from_str(text)
        .map_err(|e| Error::invalid(format!("the JSON schema starts as JSON and is none: {e}")))?;
    let Some(fields) = json.get("fields").and_then(Json::as_array) else {
        return Err(Error::invalid("the JSON schema has no \"fields\": write a Spark StructType or \"name type, …\""));
    };
    fields
        .iter()
        .map(|field| {
            let name = field.get("name").and_then(Json::as_str).unwrap_or_default().to_owned();
            let value_type = field.get("type").and_then(json_type);
            let shown = field.get("type").map_or_else(|| "none".to_owned(), Json::to_string);
            value_type.ok_or_else(|| unknown(&name, &shown)).map(|value_type| Field { name, value_type })
        })
        .collect()
}

fn json_type(json: &Json) -> Option<ValueType> {
    match json {
        Json::String(name) => spark_type(name),
        Json::Object(object) => match object.get("type").and_then(Json::as_str)? {
            "array" => json_type(object.get("elementType")?).map(list_of),
            "map" => Some(ValueType::Map),
            "struct" => Some(ValueType::Struct),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn types(text: &str) -> Vec<(String, ValueType)> {
        parse(text).expect(text).into_iter().map(|f| (f.name, f.value_type)).collect()
    }

    #[test]
    fn reads_ddl_as_feast_users_write_it() {
        use ValueType as T;
        let text = "carrier string, dep_delay DOUBLE , ts timestamp,n bigint, flag boolean, d date, `a b` int NOT NULL \
                    COMMENT 'x, y', price decimal(10, 2), tags array<string>, m: map<string,int>, s struct<a:int,b:string>,\
                    xs array < array<int> >, name varchar(20), small tinyint, raw binary, real float";
        let want = [
            ("carrier", T::String),
            ("dep_delay", T::Double),
            ("ts", T::UnixTimestamp),
            ("n", T::Int64),
            ("flag", T::Bool),
            ("d", T::UnixTimestamp),
            ("a b", T::Int32),
            ("price", T::Decimal),
            ("tags", T::StringList),
            ("m", T::Map),
            ("s", T::Struct),
            ("xs", T::ValueList),
            ("name", T::String),
            ("small", T::Int32),
            ("raw", T::Bytes),
            ("real", T::Float),
        ];
        assert_eq!(types(text), want.map(|(n, t)| (n.to_owned(), t)));
        assert_eq!(types("struct<a:int,b:string>"), types("a int, b string"));
    }

    #[test]
    fn reads_a_struct_type_in_json() {
        let text = r#"{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,"metadata":{}},
            {"name":"b","type":{"type":"array","elementType":"double","containsNull":true}}]}"#;
        let want = [("a".to_owned(), ValueType::Int64), ("b".to_owned(), ValueType::DoubleList)];
        assert_eq!(types(text), want);
    }

    #[test]
    fn says_which_column_and_type_is_wrong() {
        for (text, names) in [
            ("", "empty"),
            ("a", "'a'"),
            ("a colour", "\"colour\""),
            ("a int b string", "comma"),
            ("a int, a string", "two columns named 'a'"),
            ("a int(3)", "int(3)"),
            ("a array<foo>", "array<foo>"),
            ("`a int", "backtick"),
            ("{\"a\": 1}", "fields"),
            ("{", "JSON"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.message().contains(names), "{text:?}: {error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("a {}int{}", "array<".repeat(50_000), ">".repeat(50_000));
        assert!(parse(&text).expect_err("too deep").message().contains("nests"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[a-z`'<>(),: {}\\[\\]\"é]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn columns_keep_their_names_and_order(names in proptest::collection::hash_set("[a-zA-Z_][a-zA-Z0-9_]{0,8}", 1..8)) {
            let names: Vec<String> = names.into_iter().map(|n| format!("c_{n}")).collect();
            let text = names.iter().map(|n| format!("{n} array<double>")).collect::<Vec<_>>().join(", ");
            let read: Vec<String> = parse(&text).expect("valid").into_iter().map(|f| f.name).collect();
            prop_assert_eq!(read, names);
        }
    }
}
