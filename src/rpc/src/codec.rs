//! Messages over gRPC, with the buffer of a message made in its full size at once: tonic's own codec
//! lets it grow as fields are written, and copies what is there each time.

use std::marker::PhantomData;

use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What is sent as a message and read as one: every [`Message`], and what stands for one.
pub trait Wire: Sized {
    /// The number of the message's bytes.
    fn wire_len(&self) -> usize;

    /// Writes the message's bytes, for which there is room.
    fn put(self, buf: &mut EncodeBuf<'_>);

    /// Reads a message from all bytes that are there. Errors where they are none.
    fn take(buf: &mut DecodeBuf<'_>) -> Result<Self, DecodeError>;
}

impl<T: Message + Default> Wire for T {
    fn wire_len(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, buf: &mut EncodeBuf<'_>) {
        self.encode_raw(buf);
    }

    fn take(buf: &mut DecodeBuf<'_>) -> Result<Self, DecodeError> {
        Self::decode(buf)
    }
}

/// Encodes `T`, decodes `U`.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// Encodes `T` into a buffer of its size.
#[derive(Debug)]
pub struct SizedEncoder<T>(PhantomData<T>);

/// Decodes `T`.
#[derive(Debug)]
pub struct WireDecoder<T>(PhantomData<T>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Wire + Send + 'static,
    U: Wire + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = WireDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SizedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        WireDecoder(PhantomData)
    }
}

impl<T: Wire> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.wire_len());
        item.put(buf);
        Ok(())
    }
}

impl<T: Wire> Decoder for WireDecoder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        // As tonic's own codec does (gRPC's doc/statuscodes.md).
        T::take(buf).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
