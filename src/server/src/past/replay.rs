//! A request's body that was read in part, and can be read again from its beginning. Knows no protocol.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use bytes::BytesMut;
use http_body::Frame;

/// A body with more bytes than these is not read to its end here.
const MOST: usize = 64 << 10;

type Read = Result<Frame<Bytes>, axum::Error>;

/// What was read of a body.
pub(super) struct Message {
    data: Bytes,
    /// What came behind the data and is none.
    odd: Option<Read>,
    ended: bool,
}

impl Message {
    /// Reads a body as far as it has data, if it is not large.
    pub(super) async fn read<B>(body: &mut B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = axum::Error> + Unpin,
    {
        let (mut whole, mut parts, mut odd) = (Bytes::new(), BytesMut::new(), None);
        let mut ended = body.is_end_stream();
        while !ended && whole.len() + parts.len() <= MOST {
            match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(|read| read.map(Frame::into_data)) {
                None => ended = true,
                Some(Ok(Ok(data))) => {
                    ended = body.is_end_stream();
                    if whole.is_empty() && parts.is_empty() {
                        // Mostly it is all of it.
                        whole = data;
                    } else {
                        parts.extend_from_slice(&std::mem::take(&mut whole));
                        parts.extend_from_slice(&data);
                    }
                }
                Some(Ok(Err(other))) => {
                    odd = Some(Ok(other));
                    break;
                }
                Some(Err(error)) => {
                    odd = Some(Err(error));
                    break;
                }
            }
        }
        Self { data: if parts.is_empty() { whole } else { parts.freeze() }, odd, ended }
    }

    /// The whole body, where that was read and is nothing but data.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        (self.ended && self.odd.is_none()).then_some(&self.data)
    }
}

/// What was read, and the rest of the body behind it.
pub(super) struct Replay<B> {
    data: Option<Bytes>,
    odd: Option<Read>,
    rest: B,
}

impl<B> Replay<B> {
    pub(super) fn new(read: Message, rest: B) -> Self {
        Self { data: Some(read.data).filter(|data| !data.is_empty()), odd: read.odd, rest }
    }
}

impl<B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Unpin> HttpBody for Replay<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Read>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(odd) = self.odd.take() {
            return Poll::Ready(Some(odd));
        }
        Pin::new(&mut self.rest).poll_frame(cx).map(|frame| frame.map(|read| read.map_err(axum::Error::new)))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.odd.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;

    /// A body of these frames.
    struct Frames(Vec<Frame<Bytes>>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Read>> {
            Poll::Ready((!self.0.is_empty()).then(|| Ok(self.0.remove(0))))
        }
    }

    async fn all(body: &mut (impl HttpBody<Data = Bytes, Error = axum::Error> + Unpin)) -> (Vec<u8>, usize) {
        let (mut data, mut trailers) = (Vec::new(), 0);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            match frame.expect("a frame").into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(_) => trailers += 1,
            }
        }
        (data, trailers)
    }

    #[tokio::test]
    async fn what_was_read_is_read_again() {
        let data = |size: usize| Frame::data(Bytes::from(vec![7; size]));
        let trailers = || Frame::trailers(HeaderMap::new());
        for (frames, whole) in [
            (vec![], Some(0)),
            (vec![data(3)], Some(3)),
            (vec![data(3), data(0), data(4)], Some(7)),
            (vec![data(3), trailers()], None),
            (vec![data(MOST), data(1), data(1)], None),
            (vec![data(MOST + 1), data(1), trailers()], None),
        ] {
            let is = |frame: &Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len);
            let (size, others) = (frames.iter().map(is).sum(), frames.iter().filter(|f| f.is_trailers()).count());
            let mut body = Frames(frames);
            let message = Message::read(&mut body).await;
            assert_eq!(message.whole().map(Bytes::len), whole);
            assert_eq!(all(&mut Replay::new(message, body)).await, (vec![7; size], others));
        }
    }
}
