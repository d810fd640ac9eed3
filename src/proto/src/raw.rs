//! A protobuf message that is kept as its bytes, so that nothing in it can be lost.
//!
//! Knows the wire format's framing and nothing of any message's meaning.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost::{DecodeError, Message};

/// Any message, as the fields it came with, in the order they came: unknown fields included.
///
/// It encodes to exactly the fields it decoded (keys and lengths in their shortest form).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// The bytes of `message`.
    pub fn of(message: &impl Message) -> Self {
        Self(message.encode_to_vec())
    }

    /// Reads the bytes as an `M`. Errors where they are no valid `M`.
    pub fn typed<M: Message + Default>(&self) -> Result<M, DecodeError> {
        M::decode(self.0.as_slice())
    }
}

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        encode_key(tag, wire_type, &mut self.0);
        match wire_type {
            WireType::Varint => encode_varint(prost::encoding::decode_varint(buf)?, &mut self.0),
            WireType::ThirtyTwoBit => copy(buf, &mut self.0, 4)?,
            WireType::SixtyFourBit => copy(buf, &mut self.0, 8)?,
            WireType::LengthDelimited => {
                let len = prost::encoding::decode_varint(buf)?;
                encode_varint(len, &mut self.0);
                copy(buf, &mut self.0, usize::try_from(len).unwrap_or(usize::MAX))?;
            }
            // Groups do not occur in proto3; to skip one refuses what is malformed.
            WireType::StartGroup | WireType::EndGroup => {
                prost::encoding::skip_field(wire_type, tag, buf, ctx)?;
                let key = key_len(tag);
                self.0.truncate(self.0.len() - key);
            }
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Moves `len` bytes from `buf` to the end of `out`; an error where there are fewer.
fn copy(buf: &mut impl Buf, out: &mut Vec<u8>, len: usize) -> Result<(), DecodeError> {
    if buf.remaining() < len {
        // prost gives no way to make its own error, so let it fail on the same shortage.
        return prost::encoding::skip_field(WireType::SixtyFourBit, 1, &mut &b""[..], DecodeContext::default());
    }
    out.put(buf.take(len));
    Ok(())
}

/// One field of a message: its number and the bytes of key and value together.
struct Field<'a> {
    number: u32,
    whole: &'a [u8],
    payload: &'a [u8],
}

fn fields(mut bytes: &[u8]) -> Result<Vec<Field<'_>>, DecodeError> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let start = bytes;
        let (number, wire_type) = prost::encoding::decode_key(&mut bytes)?;
        let payload = match wire_type {
            WireType::LengthDelimited => {
                let mut rest = bytes;
                let len = prost::encoding::decode_varint(&mut rest)? as usize;
                rest.get(..len).unwrap_or_default()
            }
            _ => &[],
        };
        prost::encoding::skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
        out.push(Field { number, whole: &start[..start.len() - bytes.len()], payload });
    }
    Ok(out)
}

/// The payload of each length-delimited field `number` of a message's bytes, in order.
pub fn get(bytes: &[u8], number: u32) -> Result<Vec<&[u8]>, DecodeError> {
    Ok(fields(bytes)?.into_iter().filter(|f| f.number == number).map(|f| f.payload).collect())
}

/// A message's bytes with the length-delimited field `number` set to `payload` (or removed where
/// `None`); every other field is left as it stands.
pub fn set(bytes: &[u8], number: u32, payload: Option<&[u8]>) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(bytes.len() + payload.map_or(0, <[u8]>::len) + 12);
    for field in fields(bytes)? {
        if field.number != number {
            out.extend_from_slice(field.whole);
        }
    }
    if let Some(payload) = payload {
        push(&mut out, number, payload);
    }
    Ok(out)
}

/// Appends the length-delimited field `number` to a message's bytes.
pub fn push(out: &mut Vec<u8>, number: u32, payload: &[u8]) {
    out.reserve(payload.len() + key_len(number) + encoded_len_varint(payload.len() as u64));
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(payload.len() as u64, out);
    out.extend_from_slice(payload);
}

// `feast.registry` is generated against this module in the place of `feast.core`.
macro_rules! raw_messages {
    ($($name:ident),*) => { $(
        #[doc = concat!("`feast.core.", stringify!($name), "`, as its bytes.")]
        pub type $name = Raw;
    )* };
}
raw_messages!(
    DataSource,
    Entity,
    FeatureService,
    FeatureView,
    Infra,
    LabelView,
    OnDemandFeatureView,
    Permission,
    Project,
    ProjectMetadata,
    Registry,
    SavedDataset,
    StreamFeatureView,
    ValidationReference
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feast::core::{Entity, EntitySpecV2};

    #[test]
    fn unknown_fields_survive_decode_edit_and_encode() {
        let mut bytes = Entity { spec: Some(EntitySpecV2 { name: "driver".into(), ..Default::default() }), meta: None }
            .encode_to_vec();
        push(&mut bytes, 4711, b"from the future");
        encode_key(4712, WireType::Varint, &mut bytes);
        encode_varint(300, &mut bytes);

        let raw = Raw::decode(bytes.as_slice()).expect("valid");
        assert_eq!(raw.0, bytes);
        let edited = set(&raw.0, 2, Some(b"")).expect("valid");
        assert_eq!(get(&edited, 4711).expect("valid"), [b"from the future"]);
        assert_eq!(set(&edited, 2, None).expect("valid"), bytes);
        assert_eq!(raw.typed::<Entity>().expect("an entity").spec.expect("spec").name, "driver");
    }

    #[test]
    fn truncated_bytes_are_an_error() {
        let mut bytes = Vec::new();
        push(&mut bytes, 3, b"abcdef");
        for cut in 1..bytes.len() {
            assert!(Raw::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            assert!(set(&bytes[..cut], 1, None).is_err(), "cut at {cut}");
        }
    }
}
