//! What a message says beside its value, as columns: `__key` (and `__key.name` for a member of a JSON key),
//! `__headers.name`, `__timestamp`, `__partition`, `__offset`. Knows no message.

use crate::registry::Field;
use crate::value::ValueType;

/// The key, as text.
pub const KEY: &str = "__key";
/// A header's name stands behind it.
pub const HEADERS: &str = "__headers.";
/// When it was produced or appended.
pub const TIMESTAMP: &str = "__timestamp";
/// The partition.
pub const PARTITION: &str = "__partition";
/// The place in the partition.
pub const OFFSET: &str = "__offset";

/// The type of a column of this kind, where its name is that of one.
pub fn type_of(name: &str) -> Option<ValueType> {
    let below_key = name.strip_prefix(KEY).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    Some(match name {
        TIMESTAMP => ValueType::UnixTimestamp,
        PARTITION => ValueType::Int32,
        OFFSET => ValueType::Int64,
        _ if below_key || name.starts_with(HEADERS) => ValueType::String,
        _ => return None,
    })
}

/// Those that every message has.
pub fn of_every_message() -> impl Iterator<Item = Field> {
    let column = |name: &str| Some(Field { name: name.to_owned(), value_type: type_of(name)? });
    [KEY, TIMESTAMP, PARTITION, OFFSET].into_iter().filter_map(column)
}
