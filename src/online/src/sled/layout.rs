//! How a store lies in the tree: keys that cannot run into one another, values with a checksum of our
//! own. Knows no tree and no thread.
//!
//! Keys: `0 "format"` · `0 "runs"` · `0 "trimmed"` · `1 table entity-key` (row) · `2 table entity-key` (window state; both
//! stand in runs, and in the tree only of an older store) · `3 group topic i32` (position); a table is `project view`, and every name stands behind its length
//! (`u32`), so that the keys of one table, or of one group, share a prefix with no other's. Numbers in
//! keys are big-endian. Values: `u32` CRC-32 of key and payload, then the payload, little-endian.
//! With the key in the checksum, a value that turns up under another key is found damaged too.

use bytes::Bytes;
use model::ports::{Position, Table};
use model::{Row, Timestamp};

/// The layout described above.
pub(crate) const FORMAT: u32 = 4;
/// The layouts before, which are brought up to date: 1 without a write-ahead log beside the tree, 2 with rows and window
/// states in the tree, 3 with rows in the tree.
pub(crate) const OLDER_FORMATS: std::ops::Range<u32> = 1..FORMAT;
/// Where the layout's number stands.
pub(crate) const FORMAT_KEY: &[u8] = b"\0format";
/// Where the list of runs stands.
pub(crate) const RUNS_KEY: &[u8] = b"\0runs";
/// Where the number of the last segment of the write-ahead log stands that the tree has all of.
pub(crate) const TRIMMED_KEY: &[u8] = b"\0trimmed";

const POSITION: u8 = 3;
const CHECKSUM: usize = 4;

/// What stands under an entity's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Row = 1,
    State = 2,
}

/// A decoded value of an entity, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Absent,
    Row(Row),
    State(Bytes),
}

impl Entry {
    /// The payload to store; `None` where there is nothing to store.
    pub(crate) fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Absent => None,
            Self::Row(row) => Some(row.as_bytes()),
            Self::State(state) => Some(state),
        }
    }
}

/// Whether a key is that of a row or of a window state; `None` of others.
pub(crate) fn kind(key: &[u8]) -> Option<Kind> {
    match key.first()? {
        1 => Some(Kind::Row),
        2 => Some(Kind::State),
        _ => None,
    }
}

/// What every key of a table begins with; an entity's key is this and its bytes.
pub(crate) fn table_prefix(kind: Kind, table: &Table) -> Vec<u8> {
    let mut key = Vec::with_capacity(table.project.len() + table.view.len() + 48);
    key.push(kind as u8);
    put_name(&mut key, &table.project);
    put_name(&mut key, &table.view);
    key
}

/// An entity's key in two: its table's prefix, and the entity's own. What is none of ours has no prefix.
pub(crate) fn split(key: &[u8]) -> (&[u8], &[u8]) {
    let name = |rest: &[u8]| rest.first_chunk::<4>().map_or(usize::MAX, |len| u32::from_be_bytes(*len) as usize);
    let project = 5usize.saturating_add(name(key.get(1..).unwrap_or_default()));
    let view = project.saturating_add(4).saturating_add(name(key.get(project..).unwrap_or_default()));
    key.split_at_checked(view).unwrap_or((&[], key))
}

/// What every key of a consumer group's positions begins with.
pub(crate) fn group_prefix(group: &str) -> Vec<u8> {
    let mut key = vec![POSITION];
    put_name(&mut key, group);
    key
}

/// A position's key.
pub(crate) fn position_key(position: &Position) -> Vec<u8> {
    let mut key = group_prefix(&position.group);
    put_name(&mut key, &position.topic);
    key.extend_from_slice(&position.partition.to_be_bytes());
    key
}

/// A position's payload.
pub(crate) fn position_payload(position: &Position) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&position.offset.to_le_bytes());
    payload[8..].copy_from_slice(&position.max_event.0.to_le_bytes());
    payload
}

/// The value to store: the payload behind its checksum.
pub(crate) fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(CHECKSUM + payload.len());
    seal_into(&mut value, key, payload);
    value
}

/// The value to store, in place of what is in `value`.
pub(crate) fn seal_into(value: &mut Vec<u8>, key: &[u8], payload: &[u8]) {
    value.clear();
    value.extend_from_slice(&checksum(key, payload).to_le_bytes());
    value.extend_from_slice(payload);
}

/// The payload of a stored value; `None` where the checksum does not match.
pub(crate) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (head, payload) = value.split_first_chunk::<CHECKSUM>()?;
    (u32::from_le_bytes(*head) == checksum(key, payload)).then_some(payload)
}

/// Decodes a row or a state; `None` where it is damaged.
pub(crate) fn open_entry(kind: Kind, key: &[u8], value: &[u8]) -> Option<Entry> {
    entry_of(kind, Bytes::copy_from_slice(unseal(key, value)?))
}

/// An entry from its payload; `None` where it is none.
pub(crate) fn entry_of(kind: Kind, payload: Bytes) -> Option<Entry> {
    match kind {
        Kind::Row => Row::open(payload).map(Entry::Row),
        Kind::State => Some(Entry::State(payload)),
    }
}

/// Decodes a position; `None` where it is damaged.
pub(crate) fn open_position(key: &[u8], value: &[u8]) -> Option<Position> {
    position_of(key, unseal(key, value)?)
}

/// A position from its key and its payload; `None` where they are none.
pub(crate) fn position_of(key: &[u8], payload: &[u8]) -> Option<Position> {
    let (offset, max_event) = payload.split_first_chunk::<8>()?;
    let Some(Address::Position { group, topic, partition }) = address(key) else {
        return None;
    };
    Some(Position {
        group,
        topic,
        partition,
        offset: i64::from_le_bytes(*offset),
        max_event: Timestamp(i64::from_le_bytes(max_event.try_into().ok()?)),
    })
}

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Format,
    Runs,
    Trimmed,
    Entity { kind: Kind, table: Table },
    Position { group: String, topic: String, partition: i32 },
}

/// Reads a key back; `None` where it is none of ours.
pub(crate) fn address(key: &[u8]) -> Option<Address> {
    if key == FORMAT_KEY {
        return Some(Address::Format);
    }
    if key == RUNS_KEY {
        return Some(Address::Runs);
    }
    if key == TRIMMED_KEY {
        return Some(Address::Trimmed);
    }
    let (first, mut rest) = key.split_first()?;
    if *first == POSITION {
        let (group, topic) = (take_name(&mut rest)?, take_name(&mut rest)?);
        return Some(Address::Position { group, topic, partition: i32::from_be_bytes(rest.try_into().ok()?) });
    }
    let kind = kind(key)?;
    let (project, view) = (take_name(&mut rest)?, take_name(&mut rest)?);
    Some(Address::Entity { kind, table: Table::new(project, view) })
}

/// A key's value in words, for errors: whose it is and what may be done about it.
pub(crate) fn describe(key: &[u8]) -> String {
    match address(key) {
        Some(Address::Entity { kind, table }) => {
            let what = if kind == Kind::Row { "row" } else { "window state" };
            format!("a {what} of view '{}' in project '{}'", table.view, table.project)
        }
        Some(Address::Position { group, topic, partition }) => {
            format!("the position of consumer group '{group}' in partition {partition} of topic '{topic}'")
        }
        Some(Address::Format) => "the format number".into(),
        Some(Address::Runs) => "the list of runs".into(),
        Some(Address::Trimmed) => "the number of the write-ahead log's last trimmed segment".into(),
        None => format!("the value of unknown key {:?}", Bytes::copy_from_slice(key)),
    }
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

fn put_name(key: &mut Vec<u8>, name: &str) {
    key.extend_from_slice(&(name.len() as u32).to_be_bytes());
    key.extend_from_slice(name.as_bytes());
}

fn take_name(rest: &mut &[u8]) -> Option<String> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    let (name, tail) = tail.split_at_checked(u32::from_be_bytes(*head) as usize)?;
    *rest = tail;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> impl Strategy<Value = Table> {
        ("[ab\0]{0,3}", "[ab\0]{0,3}").prop_map(|(project, view)| Table::new(project, view))
    }

    proptest! {
        /// No entity key makes a key of one table begin with the prefix of another.
        #[test]
        fn tables_share_no_prefix(a in table(), b in table(), entity in proptest::collection::vec(any::<u8>(), 0..12)) {
            for kind in [Kind::Row, Kind::State] {
                let mut key = table_prefix(kind, &a);
                key.extend_from_slice(&entity);
                prop_assert_eq!(key.starts_with(&table_prefix(kind, &b)), a == b);
                prop_assert_eq!(address(&key), Some(Address::Entity { kind, table: a.clone() }));
                let prefix = table_prefix(kind, &a);
                prop_assert_eq!(split(&key), (prefix.as_slice(), entity.as_slice()));
            }
            prop_assert!(!table_prefix(Kind::Row, &a).starts_with(&table_prefix(Kind::State, &a)));
        }

        #[test]
        fn any_change_of_key_or_value_is_found(
            key in proptest::collection::vec(any::<u8>(), 1..20),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
            at in any::<proptest::sample::Index>(),
            bit in 0u32..8,
        ) {
            let sealed = seal(&key, &payload);
            prop_assert_eq!(unseal(&key, &sealed), Some(payload.as_slice()));
            let mut broken = sealed.clone();
            broken[at.index(sealed.len())] ^= 1 << bit;
            prop_assert_eq!(unseal(&key, &broken), None);
            let mut other = key.clone();
            other[at.index(key.len())] ^= 1 << bit;
            prop_assert_eq!(unseal(&other, &sealed), None);
        }

        #[test]
        fn positions_come_back(group in "[ab]{0,3}", topic in "[ab]{0,3}", partition: i32, offset: i64, event: i64) {
            let position = Position { group, topic, partition, offset, max_event: Timestamp(event) };
            let key = position_key(&position);
            let value = seal(&key, &position_payload(&position));
            prop_assert_eq!(open_position(&key, &value), Some(position));
        }
    }
}
