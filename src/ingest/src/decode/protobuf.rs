//! Protobuf messages of a type that the configuration's descriptors have. Knows no view; the bytes are read by a
//! library.
//!
//! A field of a message in a message is a column by its dotted path. A field that knows whether it is set is null
//! where it is not; a number, text or enum of proto3 is its default there. Enums are the names of their values.

use base64::Engine as _;
use model::registry::Field;
use model::schema::list_of;
use model::{Timestamp, Value, ValueType};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value as Proto,
};
use serde_json::{Map, Number, Value as Json};

use super::{Columns, Reason};
use crate::feed::Source;

/// Messages in messages deeper than this are given as STRUCT and not by their fields.
const DEEPEST: usize = 8;
const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// A message that was read.
pub struct Record(DynamicMessage);

impl Record {
    /// Reads a message's value.
    ///
    /// Errors: [`Reason::Undecodable`].
    pub fn read(message: &MessageDescriptor, payload: &[u8]) -> Result<Self, Reason> {
        DynamicMessage::decode(message.clone(), payload)
            .map(Self)
            .map_err(|e| Reason::Undecodable(format!("the value is no {}: {e}", message.full_name())))
    }
}

impl Columns for Record {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        super::value(column, self.column(&column.name)?.as_ref())
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        super::time(column, self.column(&column.name)?.as_ref())
    }
}

impl Record {
    fn column(&self, path: &str) -> Result<Option<Json>, Reason> {
        at(&self.0, path).map_err(|reason| Reason::WrongType(format!("column '{path}': {reason}")))
    }
}

fn at(message: &DynamicMessage, path: &str) -> Result<Option<Json>, String> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let Some(field) = message.descriptor().get_field_by_name(first) else { return Ok(None) };
    if field.supports_presence() && !message.has_field(&field) {
        return Ok(None);
    }
    match (&*message.get_field(&field), rest) {
        (value, None) => json(value, &field.kind()).map(Some),
        (Proto::Message(inner), Some(rest)) => at(inner, rest),
        _ => Ok(None),
    }
}

fn json(value: &Proto, kind: &Kind) -> Result<Json, String> {
    Ok(match value {
        Proto::Bool(v) => (*v).into(),
        Proto::I32(v) => (*v).into(),
        Proto::I64(v) => (*v).into(),
        Proto::U32(v) => (*v).into(),
        Proto::U64(v) => (*v).into(),
        Proto::F32(v) => number(f64::from(*v)),
        Proto::F64(v) => number(*v),
        Proto::String(v) => v.as_str().into(),
        Proto::Bytes(v) => base64::engine::general_purpose::STANDARD.encode(v).into(),
        Proto::EnumNumber(v) => match kind {
            Kind::Enum(names) => {
                names.get_value(*v).map_or_else(|| v.to_string(), |known| known.name().to_owned()).into()
            }
            _ => (*v).into(),
        },
        Proto::List(items) => items.iter().map(|item| json(item, kind)).collect::<Result<Vec<_>, _>>()?.into(),
        Proto::Map(entries) => {
            let of = match kind {
                Kind::Message(entry) => entry.map_entry_value_field().kind(),
                other => other.clone(),
            };
            let entries = entries.iter().map(|(key, value)| Ok((name(key), json(value, &of)?)));
            Json::Object(entries.collect::<Result<Map<_, _>, String>>()?)
        }
        Proto::Message(message) => of_message(message)?,
    })
}

/// A float as JSON has it: what is no number is text there.
pub(super) fn number(v: f64) -> Json {
    let odd = || {
        if v.is_nan() {
            "NaN"
        } else if v > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
    };
    Number::from_f64(v).map_or_else(|| odd().into(), Json::Number)
}

fn name(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

fn of_message(message: &DynamicMessage) -> Result<Json, String> {
    let descriptor = message.descriptor();
    if descriptor.full_name() == TIMESTAMP {
        let part = |name| message.get_field_by_name(name).map(|v| v.as_i64().or_else(|| v.as_i32().map(i64::from)));
        let (seconds, nanos) = (part("seconds").flatten().unwrap_or(0), part("nanos").flatten().unwrap_or(0));
        let micros = seconds.checked_mul(1_000_000).and_then(|s| s.checked_add(nanos.div_euclid(1000)));
        let micros = micros.ok_or_else(|| format!("{seconds} seconds are beyond 64 bits of microseconds"))?;
        return Ok(Timestamp(micros).to_rfc3339().into());
    }
    if let Some(field) = wrapped(&descriptor) {
        return json(&message.get_field(&field), &field.kind());
    }
    let set = descriptor.fields().filter(|field| !field.supports_presence() || message.has_field(field));
    let members = set.map(|field| Ok((field.name().to_owned(), json(&message.get_field(&field), &field.kind())?)));
    Ok(Json::Object(members.collect::<Result<Map<_, _>, String>>()?))
}

/// The field of `google.protobuf.Int64Value` and its like.
fn wrapped(message: &MessageDescriptor) -> Option<FieldDescriptor> {
    let name = message.full_name().strip_prefix("google.protobuf.")?;
    name.ends_with("Value").then(|| message.get_field_by_name("value")).flatten()
}

/// The columns of a message type, by their paths.
pub fn columns(message: &MessageDescriptor) -> Vec<Field> {
    let mut found = Vec::new();
    below(message, "", 0, &mut found);
    found
}

fn below(message: &MessageDescriptor, path: &str, depth: usize, found: &mut Vec<Field>) {
    for field in message.fields() {
        let name = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let one = type_of(&field.kind());
        let value_type = if field.is_map() {
            ValueType::Map
        } else if field.is_list() {
            list_of(one)
        } else {
            one
        };
        found.push(Field { name: name.clone(), value_type });
        if let (Kind::Message(inner), ValueType::Struct) = (field.kind(), value_type)
            && depth < DEEPEST
        {
            below(&inner, &name, depth + 1, found);
        }
    }
}

fn type_of(kind: &Kind) -> ValueType {
    use ValueType as T;
    match kind {
        Kind::Bool => T::Bool,
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => T::Int32,
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 => {
            T::Int64
        }
        Kind::Float => T::Float,
        Kind::Double => T::Double,
        Kind::String | Kind::Enum(_) => T::String,
        Kind::Bytes => T::Bytes,
        Kind::Message(message) if message.full_name() == TIMESTAMP => T::UnixTimestamp,
        Kind::Message(message) => wrapped(message).map_or(T::Struct, |field| type_of(&field.kind())),
    }
}
