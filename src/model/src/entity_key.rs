//! Entity keys in Feast's serialization version 3: the bytes under which an entity's row is stored.
//! Source: `feast/infra/key_encoding_utils.py`. Knows no store.

use std::cell::Cell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::value::{Value, ValueType, proto_value::Val, type_of};

/// The join key of a view without entities, and its one value.
pub const DUMMY_ENTITY_ID: &str = "__dummy_id";
/// The name of the entity of a view without entities.
pub const DUMMY_ENTITY_NAME: &str = "__dummy";

/// An entity key's bytes (serialization version 3, little-endian).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityKey(Arc<[u8]>);

impl EntityKey {
    /// Encodes join keys with their values; the keys are sorted by name here.
    ///
    /// Errors: a value that is null, or of a type that cannot be part of a key.
    pub fn encode(parts: &[(&str, &Value)]) -> Result<Self> {
        let put = |out: &mut Vec<u8>, parts: &[(&str, &Value)]| {
            put_names(out, parts.iter().map(|(name, _)| *name));
            parts.iter().try_for_each(|(name, value)| put_value(out, name, value))
        };
        Self::made(|out| {
            if parts.is_sorted_by_key(|(name, _)| *name) {
                return put(out, parts);
            }
            let mut sorted = parts.to_vec();
            sorted.sort_by_key(|(name, _)| *name);
            put(out, &sorted)
        })
    }

    /// The same of one join key with a text, which is not copied before.
    pub fn of_text(name: &str, text: &str) -> Self {
        let Ok(key) = Self::made(|out| {
            put_names(out, std::iter::once(name));
            put_u32(out, ValueType::String as usize);
            put_bytes(out, text.as_bytes());
            Ok::<_, Infallible>(())
        });
        key
    }

    /// Written into memory that is there for the next one, too.
    fn made<E>(put: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        /// Of longer keys it is let go of.
        const KEPT: usize = 4096;
        thread_local! {
            static OUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut out = OUT.take();
        out.clear();
        let key = put(&mut out).map(|()| Self(out.as_slice().into()));
        if out.capacity() <= KEPT {
            OUT.set(out);
        }
        key
    }

    /// The key of the one row of a view without entities.
    pub fn dummy() -> Self {
        let mut out = Vec::new();
        put_u32(&mut out, 1);
        put_u32(&mut out, ValueType::String as usize);
        put_bytes(&mut out, DUMMY_ENTITY_ID.as_bytes());
        put_u32(&mut out, ValueType::String as usize);
        put_bytes(&mut out, DUMMY_ENTITY_NAME.as_bytes());
        Self(out.into())
    }

    /// A key that was encoded before (as a store returns it).
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The join keys and values, in the order of the bytes. Errors where the bytes are no key.
    pub fn decode(&self) -> Result<Vec<(String, Value)>> {
        let broken = || Error::invalid("the bytes are not an entity key of serialization version 3");
        let mut rest: &[u8] = &self.0;
        let count = take_u32(&mut rest).ok_or_else(broken)?;
        let mut names = Vec::new();
        for _ in 0..count {
            take_u32(&mut rest).filter(|t| *t == ValueType::String as u32).ok_or_else(broken)?;
            let name = take_bytes(&mut rest).ok_or_else(broken)?;
            names.push(String::from_utf8(name.to_vec()).map_err(|_| broken())?);
        }
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            let value_type = take_u32(&mut rest).and_then(|t| ValueType::try_from(t as i32).ok()).ok_or_else(broken)?;
            let bytes = take_bytes(&mut rest).ok_or_else(broken)?;
            let val = match value_type {
                ValueType::String => Val::StringVal(String::from_utf8(bytes.to_vec()).map_err(|_| broken())?),
                ValueType::Bytes => Val::BytesVal(bytes.to_vec()),
                ValueType::Int32 => Val::Int32Val(i32::from_le_bytes(bytes.try_into().map_err(|_| broken())?)),
                ValueType::Int64 => Val::Int64Val(i64::from_le_bytes(bytes.try_into().map_err(|_| broken())?)),
                ValueType::UnixTimestamp => {
                    Val::UnixTimestampVal(i64::from_le_bytes(bytes.try_into().map_err(|_| broken())?))
                }
                _ => return Err(broken()),
            };
            out.push((name, Value { val: Some(val) }));
        }
        if rest.is_empty() { Ok(out) } else { Err(broken()) }
    }
}

/// The keys of a request's entity rows, in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// How many bytes all keys have in common at least: the join keys' names.
    head: usize,
}

impl EntityKeys {
    /// Encodes the keys of `rows` rows: join keys with a column of values each.
    ///
    /// Errors, with the row: a value that is null, or of a type that cannot be part of a key.
    pub fn encode(parts: &[(&str, &[Value])], rows: usize) -> Result<Self> {
        let mut sorted: Vec<_> = parts.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        let mut head = Vec::with_capacity(32 * parts.len() + 4);
        put_names(&mut head, sorted.iter().map(|(name, _)| *name));
        let mut bytes = Vec::with_capacity(rows * (head.len() + 16 * parts.len()));
        let mut ends = Vec::with_capacity(rows);
        for row in 0..rows {
            bytes.extend_from_slice(&head);
            for (name, values) in &sorted {
                put_value(&mut bytes, name, &values[row])
                    .map_err(|e| Error::invalid(format!("entity row {row}: {}", e.message())))?;
            }
            ends.push(bytes.len());
        }
        Ok(Self { bytes, ends, head: head.len() })
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The keys' bytes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        let start = |index: usize| if index == 0 { 0 } else { self.ends[index - 1] };
        (0..self.len()).map(move |index| &self.bytes[start(index)..self.ends[index]])
    }

    /// For each key the position where it stands first; `None` where no key repeats.
    pub fn repeats(&self) -> Option<Vec<usize>> {
        let mut seen = HashMap::with_capacity_and_hasher(self.len(), foldhash::fast::RandomState::default());
        let own = self.iter().map(|key| &key[self.head..]);
        let first: Vec<usize> = own.enumerate().map(|(at, key)| *seen.entry(key).or_insert(at)).collect();
        (seen.len() < first.len()).then_some(first)
    }

    /// The keys that stand at their own place in `first` ([`EntityKeys::repeats`]): each once.
    #[must_use]
    pub fn firsts(&self, first: &[usize]) -> Self {
        let (bytes, ends) = (Vec::with_capacity(self.bytes.len()), Vec::with_capacity(first.len()));
        let mut out = Self { bytes, ends, head: self.head };
        for (at, key) in self.iter().enumerate() {
            if first[at] == at {
                out.bytes.extend_from_slice(key);
                out.ends.push(out.bytes.len());
            }
        }
        out
    }

    /// Each key once, in order of appearance; and for each key its position among those.
    pub fn distinct(&self) -> (Vec<EntityKey>, Vec<usize>) {
        let mut seen = HashMap::with_capacity(self.len());
        let mut distinct = Vec::new();
        let positions = self.iter().map(|key| {
            *seen.entry(key).or_insert_with(|| {
                distinct.push(EntityKey::from_bytes(key));
                distinct.len() - 1
            })
        });
        let positions = positions.collect();
        (distinct, positions)
    }
}

impl From<EntityKey> for EntityKeys {
    fn from(key: EntityKey) -> Self {
        Self { bytes: key.as_bytes().to_vec(), ends: vec![key.as_bytes().len()], head: 0 }
    }
}

fn put_names<'a>(out: &mut Vec<u8>, names: impl ExactSizeIterator<Item = &'a str>) {
    put_u32(out, names.len());
    for name in names {
        put_u32(out, ValueType::String as usize);
        put_bytes(out, name.as_bytes());
    }
}

fn put_value(out: &mut Vec<u8>, name: &str, value: &Value) -> Result<()> {
    let mut put = |value_type: ValueType, bytes: &[u8]| {
        put_u32(out, value_type as usize);
        put_bytes(out, bytes);
    };
    match &value.val {
        Some(Val::StringVal(v)) => put(ValueType::String, v.as_bytes()),
        Some(Val::BytesVal(v)) => put(ValueType::Bytes, v),
        Some(Val::Int32Val(v)) => put(ValueType::Int32, &v.to_le_bytes()),
        Some(Val::Int64Val(v)) => put(ValueType::Int64, &v.to_le_bytes()),
        Some(Val::UnixTimestampVal(v)) => put(ValueType::UnixTimestamp, &v.to_le_bytes()),
        None | Some(Val::NullVal(_)) => {
            return Err(Error::invalid(format!(
                "the join key '{name}' is null: every entity row needs a value for it"
            )));
        }
        Some(_) => {
            return Err(Error::invalid(format!(
                "the join key '{name}' has a value of type {}, which cannot be part of an entity key: use STRING, \
                 BYTES, INT32, INT64 or UNIX_TIMESTAMP",
                type_of(value).as_str_name()
            )));
        }
    }
    Ok(())
}

fn put_u32(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&(n as u32).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_u32(rest)? as usize;
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}
