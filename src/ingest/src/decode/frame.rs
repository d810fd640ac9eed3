//! Confluent's wire format: a zero, the schema's id (`u32`, big-endian), and for Protobuf the path to the message's
//! type in its file. Knows no schema.

use super::Reason;

const MAGIC: u8 = 0;
const HEAD: usize = 5;
/// More steps than this to a type are no path.
const DEEPEST: i64 = 64;

/// The id of the schema with which a message was written, where it says one.
pub fn schema_id(payload: &[u8]) -> Option<u32> {
    match payload {
        [MAGIC, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// What stands behind the head, if there is one. (JSON never starts with a zero.)
pub(super) fn behind_id(payload: &[u8]) -> &[u8] {
    if schema_id(payload).is_some() { &payload[HEAD..] } else { payload }
}

/// The id, and what stands behind the head.
pub(super) fn split(payload: &[u8]) -> Result<(u32, &[u8]), Reason> {
    let id = schema_id(payload).ok_or_else(|| {
        Reason::Undecodable(
            "it does not start with a zero and a schema's id, as messages do that were written with a schema registry; \
             for plain messages tag the source with larder.wire_format=plain"
                .to_owned(),
        )
    })?;
    Ok((id, &payload[HEAD..]))
}

/// What stands behind the head and the path to the message's type: the count and the steps as zigzag varints, or one
/// zero for the first type of the file.
pub(super) fn behind_indexes(payload: &[u8]) -> Result<&[u8], Reason> {
    let (_, mut rest) = split(payload)?;
    let broken =
        || Reason::Undecodable("the path to the Protobuf message's type behind the schema's id is broken".into());
    let count = zigzag(&mut rest).filter(|count| (0..=DEEPEST).contains(count)).ok_or_else(broken)?;
    for _ in 0..count {
        zigzag(&mut rest).ok_or_else(broken)?;
    }
    Ok(rest)
}

fn zigzag(bytes: &mut &[u8]) -> Option<i64> {
    let number = prost::encoding::decode_varint(bytes).ok()?;
    Some((number >> 1) as i64 ^ -((number & 1) as i64))
}
