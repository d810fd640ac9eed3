//! `feast.serving.GetOnlineFeaturesResponse` as the stubs have it: to a server the answer's blocks, or
//! bytes; to a client the bytes that came. Neither is ever a message of values.

use model::answer::Answer;
use prost::DecodeError;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::codec::{DecodeBuf, EncodeBuf};

use crate::codec::Wire;

/// The response, on its way out or in.
#[derive(Clone, Debug)]
pub enum OnlineFeatures {
    /// A server's: it is encoded from its blocks, straight into the buffer that is sent.
    Answer(Box<Answer>),
    /// The message's bytes.
    Bytes(Bytes),
}

impl From<Answer> for OnlineFeatures {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

/// The answer as gRPC sends a message: uncompressed, behind its length.
///
/// Errors: it is larger than gRPC's lengths go.
pub fn framed(answer: &Answer) -> Result<Vec<u8>, Status> {
    let len = answer.encoded_len();
    let Ok(prefix) = u32::try_from(len) else {
        return Err(Status::resource_exhausted(format!(
            "Cannot return body with more than 4GB of data but got {len} bytes"
        )));
    };
    let mut out = Vec::with_capacity(5 + len);
    out.put_u8(0);
    out.put_u32(prefix);
    answer.encode_to(&mut out);
    Ok(out)
}

impl Wire for OnlineFeatures {
    fn wire_len(&self) -> usize {
        match self {
            Self::Answer(answer) => answer.encoded_len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn put(self, buf: &mut EncodeBuf<'_>) {
        match self {
            Self::Answer(answer) => answer.encode_to(buf),
            Self::Bytes(bytes) => buf.put_slice(&bytes),
        }
    }

    fn take(buf: &mut DecodeBuf<'_>) -> Result<Self, DecodeError> {
        Ok(Self::Bytes(buf.copy_to_bytes(buf.remaining())))
    }
}
