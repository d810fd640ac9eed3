//! `feast.serving.GetOnlineFeaturesResponse` as the stubs have it: to a server the answer's blocks,
//! to a client the bytes that came. Neither is ever a message of values.

use model::answer::Answer;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};
use proto::Raw;

/// The response, on its way out or in.
#[derive(Clone, Debug)]
pub enum OnlineFeatures {
    /// A server's: it is encoded from its blocks, straight into the buffer that is sent.
    Answer(Box<Answer>),
    /// A client's.
    Bytes(Raw),
}

impl OnlineFeatures {
    /// The message's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Answer(answer) => answer.encode(),
            Self::Bytes(raw) => raw.0,
        }
    }
}

impl Default for OnlineFeatures {
    fn default() -> Self {
        Self::Bytes(Raw::default())
    }
}

impl From<Answer> for OnlineFeatures {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl Message for OnlineFeatures {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        match self {
            Self::Answer(answer) => answer.encode_to(buf),
            Self::Bytes(raw) => raw.encode_raw(buf),
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut raw = Raw(std::mem::take(self).into_bytes());
        let merged = raw.merge_field(tag, wire_type, buf, ctx);
        *self = Self::Bytes(raw);
        merged
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Answer(answer) => answer.encoded_len(),
            Self::Bytes(raw) => raw.encoded_len(),
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
