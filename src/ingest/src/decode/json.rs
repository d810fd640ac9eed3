//! JSON messages: one object per message, of which only the members that somebody wants are kept. Knows no view and
//! no types.
//!
//! A member that is absent is null, members that the schema does not have are ignored, and of two
//! members with one name the last stands: as Spark's `from_json` reads them. Unlike there, a value
//! of a wrong type is an error and not a silent null.
//!
//! A column is a member by its name, or, where there is none, what stands at its dotted path: `card.id`,
//! `lines.0.price`.

use std::borrow::Cow;
use std::fmt;

use model::value::{ValueType, proto_value::Val};
use model::{Timestamp, Value};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::{Columns, Reason};
use crate::feed::Source;

/// The members that are kept: the columns by their names, and what stands at the heads of their paths.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Vec<Name>);

/// A member's name, with its first bytes as a word: those of most names are all of it.
#[derive(Clone, Debug)]
struct Name {
    head: u64,
    text: String,
}

/// So many bytes are a word.
const WORD: usize = 8;

/// The first bytes of a name, zeros behind them.
pub(super) fn head(name: &[u8]) -> u64 {
    let word = |word, (at, byte): (usize, &u8)| word | u64::from(*byte) << (8 * at);
    let first = name.first_chunk::<WORD>().map(|first| u64::from_le_bytes(*first));
    first.unwrap_or_else(|| name.iter().enumerate().fold(0, word))
}

impl Wanted {
    /// The members behind these columns.
    pub fn new<'a>(columns: impl Iterator<Item = &'a Source>) -> Self {
        let mut names = Vec::new();
        for column in columns {
            names.push(column.name.clone());
            names.extend(column.name.split_once('.').map(|(head, _)| head.to_owned()));
        }
        names.sort_unstable();
        names.dedup();
        Self(names.into_iter().map(|text| Name { head: head(text.as_bytes()), text }).collect())
    }

    /// The place of a member among them.
    fn place(&self, name: &str) -> Option<usize> {
        self.place_by(head(name.as_bytes()), name.as_bytes())
    }

    /// The same, where the name's first bytes are at hand.
    pub(super) fn place_by(&self, head: u64, name: &[u8]) -> Option<usize> {
        let is = |wanted: &Name| {
            let text = wanted.text.as_bytes();
            wanted.head == head && text.len() == name.len() && (name.len() <= WORD || text[WORD..] == name[WORD..])
        };
        self.0.iter().position(is)
    }
}

/// So many members need no memory of their own.
const FEW: usize = 8;

/// A parsed message.
pub struct Record<'a> {
    wanted: &'a Wanted,
    members: Members<'a>,
}

/// One for each wanted member; null where there is none.
pub(super) struct Members<'a> {
    few: [Member<'a>; FEW],
    more: Vec<Member<'a>>,
    others: Vec<Json>,
}

/// What stands in a member.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Member<'a> {
    #[default]
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(&'a str),
    /// The place of anything else, among those of all members.
    Other(usize),
}

impl<'a> Members<'a> {
    pub(super) fn of(wanted: &Wanted) -> Self {
        let more = wanted.0.len().saturating_sub(FEW);
        Self { few: Default::default(), more: vec![Member::Null; more], others: Vec::new() }
    }

    fn get(&self, place: usize) -> Option<Member<'a>> {
        if place < FEW { Some(self.few[place]) } else { self.more.get(place - FEW).copied() }
    }

    #[inline]
    pub(super) fn set(&mut self, place: usize, member: Member<'a>) {
        let known = if place < FEW { Some(&mut self.few[place]) } else { self.more.get_mut(place - FEW) };
        if let Some(known) = known {
            *known = member;
        }
    }

    fn set_any(&mut self, place: usize, json: Json) {
        if json.is_null() {
            return self.set(place, Member::Null);
        }
        self.set(place, Member::Other(self.others.len()));
        self.others.push(json);
    }

    fn json(&self, member: Member<'a>) -> Cow<'_, Json> {
        Cow::Owned(match member {
            Member::Null => Json::Null,
            Member::Bool(value) => Json::from(value),
            Member::Integer(value) => Json::from(value),
            Member::Float(value) => Json::from(value),
            Member::Text(value) => Json::from(value),
            Member::Other(place) => return self.others.get(place).map_or(Cow::Owned(Json::Null), Cow::Borrowed),
        })
    }
}

impl<'a> Record<'a> {
    /// Parses a message's value.
    ///
    /// Errors: [`Reason::Undecodable`] for bytes that are no JSON object.
    pub fn parse(payload: &'a [u8], wanted: &'a Wanted) -> Result<Self, Reason> {
        match super::plain::object(payload, wanted) {
            Some(members) => Ok(Self::of(members, wanted)),
            None => Self::parse_any(payload, wanted),
        }
    }

    pub(super) fn of(members: Members<'a>, wanted: &'a Wanted) -> Self {
        Self { wanted, members }
    }

    /// The same for what is not of the simple form that most messages have.
    pub(super) fn parse_any(payload: &[u8], wanted: &'a Wanted) -> Result<Self, Reason> {
        let mut parser = serde_json::Deserializer::from_slice(payload);
        let read = Object(wanted).deserialize(&mut parser).and_then(|members| parser.end().map(|()| members));
        match read {
            Ok(read) => {
                let mut members = Members::of(wanted);
                for (place, json) in read.into_iter().enumerate() {
                    members.set_any(place, json);
                }
                Ok(Self { wanted, members })
            }
            Err(error) => match serde_json::from_slice::<Json>(payload) {
                Ok(other) if !other.is_object() => {
                    Err(Reason::Undecodable(format!("the value is {}, not a JSON object", kind(&other))))
                }
                _ => Err(Reason::Undecodable(format!("the value is no JSON: {error}"))),
            },
        }
    }

    fn named(&self, name: &str) -> Option<Member<'a>> {
        self.members.get(self.wanted.place(name)?).filter(|member| !matches!(member, Member::Null))
    }

    /// What stands at a path that is not the name of a member.
    fn below(&self, path: &str) -> Option<&Json> {
        let (first, rest) = path.split_once('.')?;
        if let Member::Other(place) = self.named(first)? { below(self.members.others.get(place)?, rest) } else { None }
    }
}

impl Columns for Record<'_> {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        /// Integers up to here are doubles.
        const EXACT: u64 = 1 << 53;
        let Some(member) = self.named(&column.name) else { return super::value(column, self.below(&column.name)) };
        let val = match (column.value_type, member) {
            (ValueType::String, Member::Text(text)) => Val::StringVal(text.to_owned()),
            (ValueType::Double, Member::Float(number)) => Val::DoubleVal(number),
            (ValueType::Double, Member::Integer(number)) if number.unsigned_abs() <= EXACT => {
                Val::DoubleVal(number as f64)
            }
            (ValueType::Int64, Member::Integer(number)) => Val::Int64Val(number),
            (ValueType::Bool, Member::Bool(value)) => Val::BoolVal(value),
            (_, other) => return super::value(column, Some(&self.members.json(other))),
        };
        Ok(Value { val: Some(val) })
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        match self.named(&column.name) {
            None => super::time(column, self.below(&column.name)),
            Some(Member::Integer(number)) => Ok(Some(super::typed::of_integer(number))),
            Some(other) => super::time(column, Some(&self.members.json(other))),
        }
    }

    fn text(&self, column: &Source) -> Option<&str> {
        match (column.value_type, self.named(&column.name)?) {
            (ValueType::String, Member::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Reads an object's wanted members.
struct Object<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Vec<Json>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<Json>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Vec<Json>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Vec<Json>, A::Error> {
        let mut members = vec![Json::Null; self.0.0.len()];
        while let Some(at) = object.next_key_seed(Place(self.0))? {
            let place = at.and_then(|at| members.get_mut(at));
            if let Some(place) = place {
                *place = object.next_value()?;
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(members)
    }
}

/// Reads a member's name: its place among those that are wanted.
struct Place<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.place(name))
    }
}

/// The member of that name, or at that path.
pub(super) fn member<'a>(members: &'a Map<String, Json>, path: &str) -> Option<&'a Json> {
    members.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        below(members.get(first)?, rest)
    })
}

fn below<'a>(json: &'a Json, path: &str) -> Option<&'a Json> {
    match json {
        Json::Object(members) => member(members, path),
        Json::Array(items) => {
            let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
            let item = items.get(first.parse::<usize>().ok()?)?;
            rest.map_or(Some(item), |rest| below(item, rest))
        }
        _ => None,
    }
}

pub(super) fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
