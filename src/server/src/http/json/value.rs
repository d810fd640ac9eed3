//! The bytes of one `feast.types.Value` as plain JSON (`_value_to_native` in
//! `feast/feature_server_utils.py`). Knows no column and no row.

use model::Value;
use prost::Message as _;

use super::text;
use super::wire::{self, DELIMITED, FIXED32, FIXED64, Unusual, VARINT};
use super::{whole, zone};

/// The bytes are no `feast.types.Value`.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are no feast.types.Value: {0}")]
pub struct Damaged(String);

impl From<Unusual> for Damaged {
    fn from(_: Unusual) -> Self {
        Self("they stop before their end".to_owned())
    }
}

/// How deep values may stand in values where they are read directly. prost reads 100 messages deep, and
/// a level of a map is three of them.
const DEPTH: u32 = 32;

/// Appends a value as JSON; no bytes are null.
///
/// What stands in another form than the usual one (several variants, unpacked numbers, fields that are
/// not known) is decoded and encoded anew first: the meaning is always prost's.
///
/// Errors: the bytes are no `Value`; nothing is appended.
pub fn value(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Damaged> {
    let start = out.len();
    if put(out, bytes, DEPTH).is_ok() {
        return Ok(());
    }
    out.truncate(start);
    let usual = Value::decode(bytes).map_err(|e| Damaged(e.to_string()))?.encode_to_vec();
    put(out, &usual, u32::MAX).map_err(|Unusual| {
        out.truncate(start);
        Damaged("it cannot be read back".to_owned())
    })
}

fn put(out: &mut Vec<u8>, mut bytes: &[u8], depth: u32) -> Result<(), Unusual> {
    if bytes.is_empty() {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    let key = wire::varint(&mut bytes)?;
    let rest = &mut bytes;
    match (key >> 3, key & 7) {
        (19, VARINT) => {
            wire::varint(rest)?;
            out.extend_from_slice(b"null");
        }
        (1, DELIMITED) => text::base64(out, wire::delimited(rest)?),
        (2 | 32 | 36 | 37 | 44, DELIMITED) => text::string(out, wire::utf8(wire::delimited(rest)?)?),
        (3, VARINT) => int32(out, rest)?,
        (4 | 8, VARINT) => int64(out, rest)?,
        (5, FIXED64) => double(out, rest)?,
        (6, FIXED32) => float(out, rest)?,
        (7, VARINT) => boolean(out, rest)?,
        (11 | 22, DELIMITED) => each(out, wire::delimited(rest)?, |out, item| {
            text::base64(out, item);
            Ok(())
        })?,
        (12 | 23 | 33 | 38..=41 | 45 | 46, DELIMITED) => each(out, wire::delimited(rest)?, |out, item| {
            text::string(out, wire::utf8(item)?);
            Ok(())
        })?,
        (13 | 24, DELIMITED) => packed(out, wire::delimited(rest)?, int32)?,
        (14 | 18 | 25 | 29, DELIMITED) => packed(out, wire::delimited(rest)?, int64)?,
        (15 | 26, DELIMITED) => packed(out, wire::delimited(rest)?, double)?,
        (16 | 27, DELIMITED) => packed(out, wire::delimited(rest)?, float)?,
        (17 | 28, DELIMITED) => packed(out, wire::delimited(rest)?, boolean)?,
        (20 | 34, DELIMITED) => map(out, wire::delimited(rest)?, depth)?,
        (21 | 35, DELIMITED) => {
            let inner = deeper(depth)?;
            each(out, wire::delimited(rest)?, |out, item| map(out, item, inner))?;
        }
        (42 | 43, DELIMITED) => {
            let inner = deeper(depth)?;
            each(out, wire::delimited(rest)?, |out, item| put(out, item, inner))?;
        }
        // Feast has no JSON for keys that are no texts: it writes null.
        (47, DELIMITED) => {
            proto::feast::types::ScalarMap::decode(wire::delimited(rest)?).map_err(|_| Unusual)?;
            out.extend_from_slice(b"null");
        }
        (48, DELIMITED) => zoned(out, wire::delimited(rest)?)?,
        _ => return Err(Unusual),
    }
    if bytes.is_empty() { Ok(()) } else { Err(Unusual) }
}

fn deeper(depth: u32) -> Result<u32, Unusual> {
    depth.checked_sub(1).ok_or(Unusual)
}

fn int32(out: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Unusual> {
    whole::integer(out, i64::from(wire::varint(bytes)? as i32));
    Ok(())
}

fn int64(out: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Unusual> {
    whole::integer(out, wire::varint(bytes)? as i64);
    Ok(())
}

fn double(out: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Unusual> {
    text::double(out, f64::from_le_bytes(wire::fixed(bytes)?));
    Ok(())
}

fn float(out: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Unusual> {
    text::double(out, f64::from(f32::from_le_bytes(wire::fixed(bytes)?)));
    Ok(())
}

fn boolean(out: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Unusual> {
    out.extend_from_slice(if wire::varint(bytes)? == 0 { b"false" } else { b"true" });
    Ok(())
}

/// A list message whose numbers are packed into one field.
fn packed(
    out: &mut Vec<u8>,
    list: &[u8],
    item: impl Fn(&mut Vec<u8>, &mut &[u8]) -> Result<(), Unusual>,
) -> Result<(), Unusual> {
    let mut numbers = wire::only(list, 1)?.unwrap_or_default();
    array(out, |out| {
        let more = !numbers.is_empty();
        if more {
            item(out, &mut numbers)?;
        }
        Ok(more)
    })
}

/// A list message with a field for every item.
fn each(
    out: &mut Vec<u8>,
    mut list: &[u8],
    item: impl Fn(&mut Vec<u8>, &[u8]) -> Result<(), Unusual>,
) -> Result<(), Unusual> {
    array(out, |out| match wire::next(&mut list, 1)? {
        Some(bytes) => item(out, bytes).map(|()| true),
        None => Ok(false),
    })
}

/// `[…]` of what `next` appends until it says that there was nothing more.
fn array(out: &mut Vec<u8>, mut next: impl FnMut(&mut Vec<u8>) -> Result<bool, Unusual>) -> Result<(), Unusual> {
    out.push(b'[');
    let first = out.len();
    while next(out)? {
        out.push(b',');
    }
    if out.len() > first {
        out.pop();
    }
    out.push(b']');
    Ok(())
}

/// A map, by key: the last of equal keys stays, as protobuf says.
fn map(out: &mut Vec<u8>, mut fields: &[u8], depth: u32) -> Result<(), Unusual> {
    let inner = deeper(depth)?;
    let mut entries: Vec<(&str, &[u8])> = Vec::new();
    let mut sorted = true;
    while let Some(mut entry) = wire::next(&mut fields, 1)? {
        // An empty key or value may be left out.
        let key = if entry.first() == Some(&0x0A) { wire::next(&mut entry, 1)? } else { None };
        let value = wire::only(entry, 2)?.unwrap_or_default();
        let key = wire::utf8(key.unwrap_or_default())?;
        sorted &= entries.last().is_none_or(|(last, _)| *last < key);
        entries.push((key, value));
    }
    if !sorted {
        entries.reverse();
        entries.sort_by_key(|(key, _)| *key);
        entries.dedup_by_key(|(key, _)| *key);
    }
    out.push(b'{');
    for (at, (key, value)) in entries.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        text::string(out, key);
        out.push(b':');
        put(out, value, inner)?;
    }
    out.push(b'}');
    Ok(())
}

fn zoned(out: &mut Vec<u8>, mut fields: &[u8]) -> Result<(), Unusual> {
    let seconds = match fields {
        [0x08, rest @ ..] => {
            fields = rest;
            wire::varint(&mut fields)? as i64
        }
        _ => 0,
    };
    let zone = wire::utf8(wire::only(fields, 2)?.unwrap_or_default())?;
    match zone::iso_8601(seconds, zone) {
        Some(time) => text::string(out, &time),
        None => out.extend_from_slice(b"null"),
    }
    Ok(())
}
