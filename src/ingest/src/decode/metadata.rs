//! What stands in the columns of a message that are beside its value ([`model::schema::beside`]). Knows no format.

use base64::Engine as _;
use model::schema::beside::{HEADERS, KEY, OFFSET, PARTITION, TIMESTAMP, type_of};
use model::{Timestamp, ValueType};
use serde_json::Value as Json;

use super::{Reason, json};
use crate::feed::{Feed, Source};
use crate::message::Message;

/// Whether the view's key and time stand beside the value: then a message without a value is an event whose other
/// columns are null.
pub(super) fn suffices(feed: &Feed) -> bool {
    is_beside(feed.keys.iter().filter_map(|key| key.source.as_ref()).chain([&feed.time]))
}

/// Whether all columns stand beside the value.
pub(super) fn is_beside<'a>(mut sources: impl Iterator<Item = &'a Source>) -> bool {
    sources.all(|source| type_of(&source.name).is_some())
}

/// What stands in a column of this kind; `None` where the column is not of this kind.
pub(super) fn column(column: &Source, message: &Message) -> Option<Result<Option<Json>, Reason>> {
    let name = column.name.as_str();
    if !name.starts_with("__") {
        return None;
    }
    type_of(name)?;
    Some(match name {
        TIMESTAMP => Ok(message.timestamp_ms.map(|ms| Timestamp(ms.saturating_mul(1000)).to_rfc3339().into())),
        PARTITION => Ok(Some(message.partition.into())),
        OFFSET => Ok(Some(message.offset.into())),
        KEY => text(column, message.key()),
        _ => match name.strip_prefix(HEADERS) {
            // of two headers with one name the last stands
            Some(header) => {
                let found = message.headers.iter().rev().find(|(name, _)| name == header);
                text(column, found.and_then(|(_, value)| value.as_deref()))
            }
            None => of_json_key(&name[KEY.len() + 1..], message.key()),
        },
    })
}

fn text(column: &Source, bytes: Option<&[u8]>) -> Result<Option<Json>, Reason> {
    let Some(bytes) = bytes else { return Ok(None) };
    if column.value_type == ValueType::Bytes {
        return Ok(Some(base64::engine::general_purpose::STANDARD.encode(bytes).into()));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Some(text.into())),
        Err(_) => Err(Reason::WrongType(format!("column '{}': its bytes are no UTF-8 text", column.name))),
    }
}

fn of_json_key(path: &str, key: Option<&[u8]>) -> Result<Option<Json>, Reason> {
    let Some(key) = key else { return Ok(None) };
    match serde_json::from_slice(super::frame::behind_id(key)) {
        Ok(Json::Object(members)) => Ok(json::member(&members, path).cloned()),
        Ok(_) | Err(_) => {
            Err(Reason::Undecodable(format!("the message's key, of which '{path}' is asked, is no JSON object")))
        }
    }
}
