//! A message as it came, in few pieces of memory. Knows no format and no Kafka client.

use bytes::{Bytes, BytesMut};

/// A message as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The partition.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// Key and value.
    pub body: Body,
    /// When it was produced or appended, ms since the epoch, if it says so.
    pub timestamp_ms: Option<i64>,
    /// The headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.body.key.map(|length| &self.body.bytes[..length])
    }

    /// The value.
    pub fn payload(&self) -> Option<&[u8]> {
        self.body.has_payload.then(|| &self.body.bytes[self.body.key.unwrap_or(0)..])
    }
}

/// A message's key and value, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    bytes: Bytes,
    /// How long the key is, where there is one.
    key: Option<usize>,
    has_payload: bool,
}

impl Body {
    /// Of a message that has a value and no key.
    pub fn of(payload: impl Into<Bytes>) -> Self {
        Self { bytes: payload.into(), key: None, has_payload: true }
    }
}

/// Where messages are copied to: many share a piece of memory.
#[derive(Debug, Default)]
pub struct Copies(BytesMut);

/// A piece of memory for messages.
const PIECE: usize = 64 << 10;

impl Copies {
    /// A copy.
    pub fn of(&mut self, key: Option<&[u8]>, payload: Option<&[u8]>) -> Body {
        let parts = [key.unwrap_or_default(), payload.unwrap_or_default()];
        let length = parts[0].len() + parts[1].len();
        if self.0.capacity() < length {
            self.0 = BytesMut::with_capacity(length.max(PIECE));
        }
        for part in parts {
            self.0.extend_from_slice(part);
        }
        Body { bytes: self.0.split().freeze(), key: key.map(<[u8]>::len), has_payload: payload.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is copied, into pieces that are shared or of its own, is what was there; no key is not an empty one.
        #[test]
        fn a_copy_is_as_the_message_was(
            messages in proptest::collection::vec((proptest::option::of(0..40_000usize), proptest::option::of(0..40_000usize)), 0..20)
        ) {
            let part = |seed: usize, length: Option<usize>| length.map(|length| vec![seed as u8; length]);
            let mut copies = Copies::default();
            let copy = |(at, (key, payload)): (usize, &(Option<usize>, Option<usize>))| {
                copies.of(part(at, *key).as_deref(), part(100 + at, *payload).as_deref())
            };
            let made: Vec<Body> = (1..).zip(&messages).map(copy).collect();
            for ((at, (key, payload)), body) in (1..).zip(&messages).zip(made) {
                let message = Message { body, ..Message::default() };
                prop_assert_eq!(message.key().map(<[u8]>::to_vec), part(at, *key));
                prop_assert_eq!(message.payload().map(<[u8]>::to_vec), part(100 + at, *payload));
                if key.is_none() && let Some(payload) = message.payload() {
                    prop_assert_eq!(Body::of(payload.to_vec()), message.body);
                }
            }
        }
    }
}
