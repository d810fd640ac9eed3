//! How rows lie in Redis: Feast's layout, and what is ours beside it. Knows no connection.
//!
//! An entity is a hash; its key is the entity key's bytes and behind them the project's name. A
//! feature is the field `mmh3_x86_32("view:feature")` (4 bytes, little-endian), its value the
//! `feast.types.Value`; `_ts:view` is the row's event time as a `google.protobuf.Timestamp`. Source:
//! `feast/infra/online_stores/{redis,helpers}.py`.
//!
//! Feast has one time per view. Where there is more to say (a created time, or columns of different
//! times) it stands in the field `_larder:view`, which Feast ignores: `u8` 1, version of the row, then
//! for each column with another one its field and version. A version is two times, event and created;
//! a time is whole seconds (f64, little-endian: exact, and Lua's number) and microseconds (`u32`). It
//! counts only while its event time is the one in `_ts:view`: else Feast has written since.
//!
//! Window states are `larder:state:` and project, view (each behind its `u32` length) and entity key;
//! a consumer group's positions are fields of the hash `larder:positions:<group>`, and so are the claims of its
//! partitions: `\0claim\0`, and what a position's field is, with the number of the last claim in decimal digits.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use model::ports::{Before, Fence, Position, StateWrite, Table};
use model::row::{Column, Version};
use model::{EntityKey, Result, Row, Timestamp};
use prost::Message;

/// No topic has a zero in its name.
const CLAIM: &[u8] = b"\0claim\0";
const TIMES: u8 = 1;
const TIME: usize = 12;
const VERSION: usize = 2 * TIME;
const OWN_TIME: usize = 4 + VERSION;

/// A feature's field.
pub(crate) type Field = [u8; 4];

/// A table's fields, worked out once.
#[derive(Debug)]
pub(crate) struct Fields {
    /// The row's time, Feast's.
    pub(crate) ts: Vec<u8>,
    /// The times beyond it, ours.
    pub(crate) times: Vec<u8>,
    /// By column id, in the order of the ids.
    pub(crate) features: Vec<(u32, Field)>,
}

impl Fields {
    pub(crate) fn of(table: &Table) -> Self {
        let feature =
            |(id, name): &(u32, Arc<str>)| (*id, mmh3(format!("{}:{name}", table.view).as_bytes()).to_le_bytes());
        Self {
            ts: format!("_ts:{}", table.view).into_bytes(),
            times: format!("_larder:{}", table.view).into_bytes(),
            features: table.features().iter().map(feature).collect(),
        }
    }

    /// Those of a part of the table.
    pub(crate) fn part(&self, part: &Table) -> Self {
        let asked = |(id, _): &&(u32, Field)| part.feature(*id).is_ok();
        Self {
            ts: self.ts.clone(),
            times: self.times.clone(),
            features: self.features.iter().filter(asked).copied().collect(),
        }
    }

    /// How many fields a row is read from.
    pub(crate) fn len(&self) -> usize {
        2 + self.features.len()
    }

    /// All of them, in the order that [`Fields::row`] expects the values in.
    pub(crate) fn all(&self) -> impl Iterator<Item = &[u8]> {
        let features = self.features.iter().map(|(_, field)| field.as_slice());
        [self.ts.as_slice(), self.times.as_slice()].into_iter().chain(features)
    }

    /// The row, or the part of it, from its fields' values; `Err` where they are damaged.
    pub(crate) fn row(&self, mut values: Vec<Option<Bytes>>) -> Result<Option<Row>, Damaged> {
        let columns = values.split_off(2);
        let (times, ts) = (values.pop().flatten(), values.pop().flatten());
        let Some(ts) = ts else { return Ok(None) };
        let event = Timestamp::from_proto(&prost_types::Timestamp::decode(ts).map_err(|_| Damaged)?);
        let mut version = Version { event, created: Timestamp(0) };
        let mut own = BTreeMap::new();
        if let Some(times) = times.filter(|t| t.first() == Some(&TIMES)) {
            let (row, columns) = times[1..].split_at_checked(VERSION).ok_or(Damaged)?;
            let row = version_of(row).ok_or(Damaged)?;
            if row.event == event {
                version = row;
                for column in columns.chunks(OWN_TIME) {
                    let (field, at) = column.split_first_chunk::<4>().ok_or(Damaged)?;
                    own.insert(*field, version_of(at).ok_or(Damaged)?);
                }
            }
        }
        let column = |(value, (id, field)): (Option<Bytes>, &(u32, Field))| {
            Some(Column { id: *id, value: value?, version: own.get(field).copied().unwrap_or(version) })
        };
        Ok(Some(Row::pack_part(version, columns.into_iter().zip(&self.features).filter_map(column).collect())))
    }

    /// The operation that merges a row, for `write.lua`: 'R', the two fields of times, the distinct
    /// versions with Feast's form of their event time, the columns, and the view's other fields.
    ///
    /// Errors: a column that is none of the table's features.
    pub(crate) fn merge(&self, table: &Table, row: &Row) -> Result<Vec<u8>> {
        let columns = row.columns();
        let mut versions: Vec<Version> = columns.iter().map(|c| c.version).collect();
        versions.sort();
        versions.dedup();
        let mut out = vec![b'R'];
        put_short(&mut out, &self.ts);
        put_short(&mut out, &self.times);
        out.extend_from_slice(&(versions.len() as u16).to_le_bytes());
        for version in &versions {
            put_time(&mut out, version.event);
            put_time(&mut out, version.created);
            let proto = version.event.to_proto().encode_to_vec();
            out.push(proto.len() as u8);
            out.extend_from_slice(&proto);
        }
        out.extend_from_slice(&(columns.len() as u32).to_le_bytes());
        for column in &columns {
            table.feature(column.id)?;
            let at = self.features.binary_search_by_key(&column.id, |(id, _)| *id).unwrap_or_default();
            out.extend_from_slice(&self.features[at].1);
            let version = versions.binary_search(&column.version).unwrap_or_default() as u16;
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(&(column.value.len() as u32).to_le_bytes());
            out.extend_from_slice(&column.value);
        }
        let others: Vec<_> = self.features.iter().filter(|(id, _)| row.borrowed().position(*id).is_none()).collect();
        out.extend_from_slice(&(others.len() as u32).to_le_bytes());
        for (_, field) in others {
            out.extend_from_slice(field);
        }
        Ok(out)
    }
}

/// Values in a hash that neither Feast nor we write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

/// An entity's hash.
pub(crate) fn entity(project: &str, key: &EntityKey) -> Vec<u8> {
    [key.as_bytes(), project.as_bytes()].concat()
}

/// Whether a key is an entity's hash in this project: the entity key ends where the name begins.
pub(crate) fn is_of_project(key: &[u8], project: &str) -> bool {
    key.strip_suffix(project.as_bytes()).is_some_and(|entity| EntityKey::from_bytes(entity).decode().is_ok())
}

/// What `SCAN` finds a project's entities with, and some others'.
pub(crate) fn entity_pattern(project: &str) -> Vec<u8> {
    [b"*".to_vec(), literal(project.as_bytes())].concat()
}

/// An entity's window state.
pub(crate) fn state(table: &Table, key: &EntityKey) -> Vec<u8> {
    [state_prefix(table), key.as_bytes().to_vec()].concat()
}

/// What `SCAN` finds a table's window states with, and only those.
pub(crate) fn state_pattern(table: &Table) -> Vec<u8> {
    [literal(&state_prefix(table)), b"*".to_vec()].concat()
}

fn state_prefix(table: &Table) -> Vec<u8> {
    let mut out = b"larder:state:".to_vec();
    for name in [&table.project, &table.view] {
        out.extend_from_slice(&(name.len() as u32).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
    }
    out
}

/// The operation on a window state's key.
pub(crate) fn set_state(write: &StateWrite) -> Vec<u8> {
    match &write.state {
        Some(state) => [b"S", state.as_ref()].concat(),
        None => b"D".to_vec(),
    }
}

/// The hash of a consumer group's positions.
pub(crate) fn positions(group: &str) -> Vec<u8> {
    [b"larder:positions:", group.as_bytes()].concat()
}

/// The operation on the hash of a position's group.
pub(crate) fn set_position(position: &Position) -> Vec<u8> {
    let field = [position.topic.as_bytes(), &position.partition.to_le_bytes()].concat();
    let mut out = vec![b'P'];
    out.extend_from_slice(&(field.len() as u32).to_le_bytes());
    out.extend_from_slice(&field);
    out.extend_from_slice(&position.offset.to_le_bytes());
    out.extend_from_slice(&position.max_event.0.to_le_bytes());
    out
}

/// What a state is told by: the first 8 bytes of its SHA-1, which the script compares.
pub(crate) fn tag(state: &[u8]) -> u64 {
    let digest = sha1_smol::Sha1::from(state).digest().bytes();
    digest.iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte))
}

/// The operation that checks what a state's write replaces; `None` where it is whatever is there.
pub(crate) fn expect_state(before: Before) -> Option<Vec<u8>> {
    match before {
        Before::Any => None,
        Before::Absent => Some(b"Bnone".to_vec()),
        Before::Tagged(tag) => Some(format!("B{tag:016x}").into_bytes()),
    }
}

/// The field of a partition's claims in the hash of positions.
pub(crate) fn claim(topic: &str, partition: i32) -> Vec<u8> {
    [CLAIM, topic.as_bytes(), &partition.to_le_bytes()].concat()
}

/// Whether a field of that hash is a claim.
pub(crate) fn is_claim(field: &[u8]) -> bool {
    field.starts_with(CLAIM)
}

/// The operation that checks a claim.
pub(crate) fn expect_claim(fence: &Fence) -> Vec<u8> {
    let field = claim(&fence.topic, fence.partition);
    let mut out = vec![b'F'];
    out.extend_from_slice(&(field.len() as u32).to_le_bytes());
    out.extend_from_slice(&field);
    out.extend_from_slice(fence.epoch.to_string().as_bytes());
    out
}

/// A position from its group's hash; `None` where it is damaged.
pub(crate) fn position(group: &str, field: &[u8], value: &[u8]) -> Option<Position> {
    let (topic, partition) = field.split_last_chunk::<4>()?;
    let (offset, max_event) = value.split_first_chunk::<8>()?;
    Some(Position {
        group: group.to_owned(),
        topic: String::from_utf8(topic.to_vec()).ok()?,
        partition: i32::from_le_bytes(*partition),
        offset: i64::from_le_bytes(*offset),
        max_event: Timestamp(i64::from_le_bytes(max_event.try_into().ok()?)),
    })
}

/// A glob that matches these bytes alone.
fn literal(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|b| [b'\\', *b].into_iter().skip(usize::from(!b"*?[]^-\\".contains(b)))).collect()
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&(time.0.div_euclid(1_000_000) as f64).to_le_bytes());
    out.extend_from_slice(&(time.0.rem_euclid(1_000_000) as u32).to_le_bytes());
}

fn version_of(bytes: &[u8]) -> Option<Version> {
    let (event, created) = bytes.split_at_checked(TIME)?;
    Some(Version { event: time_of(event)?, created: time_of(created)? })
}

fn time_of(bytes: &[u8]) -> Option<Timestamp> {
    let (seconds, micros) = bytes.split_first_chunk::<8>()?;
    let micros = i64::from(u32::from_le_bytes(micros.try_into().ok()?));
    Some(Timestamp((f64::from_le_bytes(*seconds) as i64).saturating_mul(1_000_000).saturating_add(micros)))
}

/// `MurmurHash3_x86_32` with seed 0 (Austin Appleby's, public domain).
fn mmh3(bytes: &[u8]) -> u32 {
    let scramble = |k: u32| k.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, tail) = bytes.as_chunks::<4>();
    let mut hash = blocks.iter().fold(0u32, |hash, block| {
        (hash ^ scramble(u32::from_le_bytes(*block))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
    });
    hash ^= scramble(tail.iter().rev().fold(0, |k, b| k << 8 | u32::from(*b)));
    hash ^= bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Python's `mmh3.hash(key, signed=False)`.
    #[test]
    fn fields_hash_as_in_feast() {
        let known = [
            ("", 0x0),
            ("a", 0x3c25_69b2),
            ("ab", 0x9bbf_d75f),
            ("abc", 0xb3dd_93fa),
            ("abcd", 0x43ed_676a),
            ("driver_hourly_stats:conv_rate", 0xdae3_6061),
            ("driver_hourly_stats_v2:avg_daily_trips", 0xc98e_6e9a),
            ("vië:größe", 0x95fc_af52),
        ];
        for (key, hash) in known {
            assert_eq!(mmh3(key.as_bytes()), hash, "{key}");
        }
    }
}
