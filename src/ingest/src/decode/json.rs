//! JSON messages: one object per message, of which only the members that somebody wants are kept. Knows no view and
//! no types.
//!
//! A member that is absent is null, members that the schema does not have are ignored, and of two
//! members with one name the last stands: as Spark's `from_json` reads them. Unlike there, a value
//! of a wrong type is an error and not a silent null.
//!
//! A column is a member by its name, or, where there is none, what stands at its dotted path: `card.id`,
//! `lines.0.price`.

use std::fmt;

use model::{Timestamp, Value};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::{Columns, Reason};
use crate::feed::Source;

/// The members that are kept: the columns by their names, and what stands at the heads of their paths.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Vec<String>);

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
        Self(names)
    }

    /// The place of a member among them. By the first letter first: most members are not wanted.
    fn place(&self, name: &str) -> Option<usize> {
        let first = name.as_bytes().first();
        self.0.iter().position(|wanted| wanted.as_bytes().first() == first && wanted == name)
    }
}

/// A parsed message.
pub struct Record<'a> {
    wanted: &'a Wanted,
    /// One for each wanted member; null where there is none.
    members: Vec<Json>,
}

impl<'a> Record<'a> {
    /// Parses a message's value.
    ///
    /// Errors: [`Reason::Undecodable`] for bytes that are no JSON object.
    pub fn parse(payload: &[u8], wanted: &'a Wanted) -> Result<Self, Reason> {
        let mut parser = serde_json::Deserializer::from_slice(payload);
        let read = Object(wanted).deserialize(&mut parser).and_then(|members| parser.end().map(|()| members));
        match read {
            Ok(members) => Ok(Self { wanted, members }),
            Err(error) => match serde_json::from_slice::<Json>(payload) {
                Ok(other) if !other.is_object() => {
                    Err(Reason::Undecodable(format!("the value is {}, not a JSON object", kind(&other))))
                }
                _ => Err(Reason::Undecodable(format!("the value is no JSON: {error}"))),
            },
        }
    }

    fn member(&self, path: &str) -> Option<&Json> {
        let named = |name: &str| self.members.get(self.wanted.place(name)?).filter(|json| !json.is_null());
        named(path).or_else(|| {
            let (first, rest) = path.split_once('.')?;
            below(named(first)?, rest)
        })
    }
}

impl Columns for Record<'_> {
    fn value(&self, column: &Source) -> Result<Value, Reason> {
        super::value(column, self.member(&column.name))
    }

    fn time(&self, column: &Source) -> Result<Option<Timestamp>, Reason> {
        super::time(column, self.member(&column.name))
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
        while let Some(at) = object.next_key_seed(Name(self.0))? {
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
struct Name<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
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
