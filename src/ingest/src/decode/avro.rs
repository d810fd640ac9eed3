//! Avro messages: one record per message, plain or behind the id of its writer's schema; resolved to the schema that
//! the source has. Knows no view; the bytes are read by a library.
//!
//! What a schema promises is checked before a message is read: a record that holds itself could be nested as deep as
//! a message is long, and is refused.
//!
//! Decimals are resolved as the bytes that they are: the library refuses to resolve one whose bytes are fewer than its
//! precision may need, as every writer writes them. So their scales are compared here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::{Name, NamesRef, ResolvedSchema};
use apache_avro::types::Value as Avro;
use base64::Engine as _;
use model::{Timestamp, Value};
use serde_json::{Map, Value as Json};

use super::{Columns, Reason, frame, protobuf::number};
use crate::feed::{Feed, Format, Source};

/// The most that a length in a message may make the library allocate, bytes: more than a message can be.
const LARGEST: usize = 128 << 20;
const MICROS_A_DAY: i64 = 86_400_000_000;

/// A schema, and those that it refers to.
#[derive(Debug)]
pub struct Writer {
    schema: Schema,
    /// The same with bytes in place of decimals.
    bare: Schema,
    others: Vec<Schema>,
    /// The scales of the decimals, by where they stand.
    scales: BTreeMap<String, usize>,
}

/// The schemas of the writers, by their ids in the schema registry.
pub type Writers = BTreeMap<u32, Arc<Writer>>;

impl Writer {
    /// Parses a schema; `others` are the ones that it refers to.
    ///
    /// Errors: what is no Avro schema, or holds itself.
    pub fn parse(text: &str, others: &[String]) -> Result<Self, String> {
        apache_avro::util::max_allocation_bytes(LARGEST);
        let (schema, whole) = parse(text, others)?;
        let named: Named<'_> = whole.iter().filter_map(|s| Some((s.name()?, s))).collect();
        if holds_itself(&schema, &named, &mut Vec::new()) {
            return Err("a record of it holds itself: how deep a message may be is then unknown".to_owned());
        }
        let mut scales = BTreeMap::new();
        find_scales(&schema, &named, "", &mut scales);
        let bare_others = others.iter().map(|text| without_decimals(text)).collect::<Result<Vec<_>, _>>()?;
        let (bare, others) = parse(&without_decimals(text)?, &bare_others)?;
        Ok(Self { schema, bare, others, scales })
    }

    fn reader<'a>(&'a self, source: &'a Writer) -> Result<GenericDatumReader<'a>, String> {
        for (at, scale) in &source.scales {
            if let Some(other) = self.scales.get(at).filter(|other| *other != scale) {
                return Err(format!("its decimal {at} has the scale {other}, and the source's {scale}"));
            }
        }
        let all = self.others.iter().chain(std::iter::once(&self.bare)).collect();
        let built = GenericDatumReader::builder(&self.bare).writer_schemata(all).map_err(|e| e.to_string())?;
        built.reader_schema(&source.bare).build().map_err(|e| e.to_string())
    }
}

fn parse(text: &str, others: &[String]) -> Result<(Schema, Vec<Schema>), String> {
    if others.is_empty() {
        Schema::parse_str(text).map(|schema| (schema, Vec::new())).map_err(|e| e.to_string())
    } else {
        Schema::parse_str_with_list(text, others).map_err(|e| e.to_string())
    }
}

/// The schema with bytes in place of decimals.
fn without_decimals(text: &str) -> Result<String, String> {
    fn strip(json: &mut Json) {
        match json {
            Json::Object(members) => {
                if members.get("logicalType").and_then(Json::as_str) == Some("decimal") {
                    members.remove("logicalType");
                }
                members.values_mut().for_each(strip);
            }
            Json::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    strip(&mut json);
    Ok(json.to_string())
}

type Named<'a> = HashMap<&'a Name, &'a Schema>;

fn find_scales(schema: &Schema, named: &Named<'_>, at: &str, found: &mut BTreeMap<String, usize>) {
    match schema {
        Schema::Decimal(decimal) => drop(found.insert(at.to_owned(), decimal.scale)),
        Schema::Ref { name } => {
            if let Some(schema) = named.get(name) {
                find_scales(schema, named, at, found);
            }
        }
        Schema::Record(record) => {
            for field in &record.fields {
                find_scales(&field.schema, named, &format!("{at}.{}", field.name), found);
            }
        }
        Schema::Array(array) => find_scales(&array.items, named, &format!("{at}[]"), found),
        Schema::Map(map) => find_scales(&map.types, named, &format!("{at}{{}}"), found),
        Schema::Union(union) => union.variants().iter().for_each(|variant| find_scales(variant, named, at, found)),
        _ => {}
    }
}

/// Whether a type stands within itself.
fn holds_itself<'a>(schema: &'a Schema, named: &Named<'a>, around: &mut Vec<&'a Name>) -> bool {
    match schema {
        Schema::Ref { name } => {
            around.contains(&name) || named.get(name).is_some_and(|schema| holds_itself(schema, named, around))
        }
        Schema::Record(record) => {
            around.push(&record.name);
            let holds = record.fields.iter().any(|field| holds_itself(&field.schema, named, around));
            around.pop();
            holds
        }
        Schema::Array(array) => holds_itself(&array.items, named, around),
        Schema::Map(map) => holds_itself(&map.types, named, around),
        Schema::Union(union) => union.variants().iter().any(|variant| holds_itself(variant, named, around)),
        _ => false,
    }
}

/// The readers of a batch of messages: one for each writer's schema.
pub(super) struct Readers<'a>(Option<Inner<'a>>);

struct Inner<'a> {
    schema: &'a Schema,
    names: Result<ResolvedSchema<'a>, String>,
    /// By the schema's id; without one for plain messages.
    readers: BTreeMap<Option<u32>, Result<GenericDatumReader<'a>, String>>,
    framed: bool,
}

impl<'a> Readers<'a> {
    pub(super) fn new(feed: Option<&'a Feed>, writers: &'a Writers) -> Self {
        let Some(Format::Avro { schema: reader, framed }) = feed.map(|feed| &feed.format) else { return Self(None) };
        let mut readers: BTreeMap<_, _> =
            writers.iter().map(|(id, writer)| (Some(*id), writer.reader(reader))).collect();
        if !framed {
            let plain = GenericDatumReader::builder(&reader.schema).build().map_err(|e| e.to_string());
            readers.insert(None, plain);
        }
        let names = ResolvedSchema::try_from(&reader.schema).map_err(|e| e.to_string());
        Self(Some(Inner { schema: &reader.schema, names, readers, framed: *framed }))
    }

    /// Reads a message's value.
    ///
    /// Errors: [`Reason::Undecodable`] where bytes lack or are left, the writer's schema is not known, or its
    /// values cannot be had under the source's.
    pub(super) fn read(&self, payload: &[u8]) -> Result<Record<'_>, Reason> {
        let undecodable = |reason: String| Reason::Undecodable(reason);
        let Some(inner) = &self.0 else { return Err(undecodable("the view's messages are no Avro".to_owned())) };
        let (id, mut rest) = if inner.framed {
            let (id, rest) = frame::split(payload)?;
            (Some(id), rest)
        } else {
            (None, payload)
        };
        let reader = inner
            .readers
            .get(&id)
            .ok_or_else(|| undecodable(format!("the schema registry has no schema {}", id.unwrap_or_default())))?;
        let value = match reader {
            Ok(reader) => reader.read_value(&mut rest).map_err(|e| {
                undecodable(match id {
                    Some(id) => format!("the value is no record of schema {id} that the source's schema can take: {e}"),
                    None => format!("the value is no record of the source's Avro schema: {e}"),
                })
            })?,
            Err(reason) => {
                return Err(undecodable(format!("schema {} cannot be used: {reason}", id.unwrap_or_default())));
            }
        };
        if !rest.is_empty() {
            return Err(undecodable(format!("{} bytes are left behind the Avro record", rest.len())));
        }
        let names = inner.names.as_ref().map_err(|reason| undecodable(reason.clone()))?;
        Ok(Record { value, schema: inner.schema, names: names.get_names() })
    }
}

/// A message that was read.
pub(super) struct Record<'a> {
    value: Avro,
    schema: &'a Schema,
    names: &'a NamesRef<'a>,
}

impl Columns for Record<'_> {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        super::value(column, self.column(&column.name)?.as_ref())
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        super::time(column, self.column(&column.name)?.as_ref())
    }
}

impl Record<'_> {
    fn column(&self, path: &str) -> Result<Option<Json>, Reason> {
        self.at(&self.value, self.schema, path)
            .map_err(|reason| Reason::WrongType(format!("column '{path}': {reason}")))
    }

    fn at(&self, value: &Avro, schema: &Schema, path: &str) -> Result<Option<Json>, String> {
        let (value, schema) = self.below(value, schema);
        let (Avro::Record(fields), Schema::Record(record)) = (value, schema) else { return Ok(None) };
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let found = fields.iter().zip(&record.fields).find(|((name, _), _)| name == first);
        match (found, rest) {
            (None, _) => Ok(None),
            (Some(((_, value), field)), None) => self.json(value, &field.schema).map(Some),
            (Some(((_, value), field)), Some(rest)) => self.at(value, &field.schema, rest),
        }
    }

    /// The value and the schema behind names and unions.
    fn below<'v>(&'v self, value: &'v Avro, schema: &'v Schema) -> (&'v Avro, &'v Schema) {
        match (value, schema) {
            (_, Schema::Ref { name }) => {
                self.names.get(name).map_or((value, schema), |schema| self.below(value, schema))
            }
            (Avro::Union(at, value), Schema::Union(union)) => {
                union.variants().get(*at as usize).map_or((&**value, schema), |variant| self.below(value, variant))
            }
            _ => (value, schema),
        }
    }

    fn json(&self, value: &Avro, schema: &Schema) -> Result<Json, String> {
        let (value, schema) = self.below(value, schema);
        let scaled = |micros: Option<i64>| {
            micros.map(|micros| Timestamp(micros).to_rfc3339().into()).ok_or("a time beyond 64 bits of microseconds")
        };
        Ok(match (value, schema) {
            (Avro::Null, _) => Json::Null,
            (Avro::Boolean(v), _) => (*v).into(),
            (Avro::Int(v) | Avro::TimeMillis(v), _) => (*v).into(),
            (Avro::Long(v) | Avro::TimeMicros(v), _) => (*v).into(),
            (Avro::Float(v), _) => number(f64::from(*v)),
            (Avro::Double(v), _) => number(*v),
            (Avro::String(v) | Avro::Enum(_, v), _) => v.as_str().into(),
            (Avro::Uuid(v), _) => v.to_string().into(),
            (Avro::BigDecimal(v), _) => v.to_string().into(),
            (Avro::Bytes(v) | Avro::Fixed(_, v), Schema::Decimal(decimal)) => decimal_text(v, decimal.scale)?.into(),
            (Avro::Bytes(v) | Avro::Fixed(_, v), _) => base64::engine::general_purpose::STANDARD.encode(v).into(),
            (Avro::Decimal(v), Schema::Decimal(decimal)) => {
                let digits = Vec::<u8>::try_from(v).map_err(|e| e.to_string())?;
                decimal_text(&digits, decimal.scale)?.into()
            }
            (Avro::Date(days), _) => scaled(i64::from(*days).checked_mul(MICROS_A_DAY))?,
            (Avro::TimestampMillis(v) | Avro::LocalTimestampMillis(v), _) => scaled(v.checked_mul(1000))?,
            (Avro::TimestampMicros(v) | Avro::LocalTimestampMicros(v), _) => scaled(Some(*v))?,
            (Avro::TimestampNanos(v) | Avro::LocalTimestampNanos(v), _) => scaled(Some(v.div_euclid(1000)))?,
            (Avro::Array(items), Schema::Array(array)) => {
                items.iter().map(|item| self.json(item, &array.items)).collect::<Result<Vec<_>, _>>()?.into()
            }
            (Avro::Map(entries), Schema::Map(map)) => {
                let entries = entries.iter().map(|(key, value)| Ok((key.clone(), self.json(value, &map.types)?)));
                Json::Object(entries.collect::<Result<Map<_, _>, String>>()?)
            }
            (Avro::Record(fields), Schema::Record(record)) => {
                let fields = fields.iter().zip(&record.fields);
                let members = fields.map(|((name, value), f)| Ok((name.clone(), self.json(value, &f.schema)?)));
                Json::Object(members.collect::<Result<Map<_, _>, String>>()?)
            }
            (Avro::Duration(_), _) => return Err("an Avro duration has no Feast type".to_owned()),
            _ => return Err("its value is not of its schema".to_owned()),
        })
    }
}

/// The digits of a decimal: its unscaled value in big-endian two's complement.
fn decimal_text(bytes: &[u8], scale: usize) -> Result<String, String> {
    let zeros = bytes.len().saturating_sub(16);
    let sign = bytes.first().map_or(0, |first| if first & 0x80 == 0 { 0 } else { 0xff });
    let (above, below) = bytes.split_at(zeros);
    if above.iter().any(|byte| *byte != sign)
        || below.first().is_some_and(|first| zeros > 0 && (first ^ sign) & 0x80 != 0)
    {
        return Err("a decimal of more than 128 bits".to_owned());
    }
    let mut wide = [sign; 16];
    wide[16 - below.len()..].copy_from_slice(below);
    let unscaled = i128::from_be_bytes(wide);
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let minus = if unscaled < 0 { "-" } else { "" };
    Ok(if scale == 0 { format!("{minus}{whole}") } else { format!("{minus}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decimals_have_their_digits(unscaled in any::<i128>(), scale in 0_usize..40, pad in 0_usize..4) {
            let sign = if unscaled < 0 { 0xff } else { 0 };
            let bytes: Vec<u8> = std::iter::repeat_n(sign, pad).chain(unscaled.to_be_bytes()).collect();
            let text = decimal_text(&bytes, scale).expect("128 bits");
            let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
            prop_assert_eq!(fraction.len(), scale);
            let digits: i128 = format!("{whole}{fraction}").parse().expect("digits");
            prop_assert_eq!(digits, unscaled);
        }
    }

    #[test]
    fn wide_decimals_and_none_at_all() {
        assert_eq!(decimal_text(&[], 2).expect("nothing is zero"), "0.00");
        assert_eq!(decimal_text(&[0xff], 1).expect("short"), "-0.1");
        assert!(decimal_text(&[1; 17], 0).is_err());
        assert!(decimal_text(&[0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).is_err());
    }

    #[test]
    fn a_schema_that_holds_itself_is_refused() {
        let list = r#"{"type": "record", "name": "N", "fields": [{"name": "next", "type": ["null", "N"]}]}"#;
        assert!(Writer::parse(list, &[]).expect_err("refused").contains("itself"));
        let twice = r#"{"type": "record", "name": "A", "fields": [
            {"name": "x", "type": {"type": "enum", "name": "E", "symbols": ["a"]}}, {"name": "y", "type": "E"}]}"#;
        Writer::parse(twice, &[]).expect("a name used twice is none of that");
        let other = r#"{"type": "record", "name": "B", "fields": [{"name": "n", "type": "int"}]}"#.to_owned();
        let outer = r#"{"type": "record", "name": "C", "fields": [{"name": "b", "type": "B"}]}"#;
        Writer::parse(outer, &[other]).expect("a reference");
    }
}
