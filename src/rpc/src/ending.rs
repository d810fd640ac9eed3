//! The body of an answer that tells how the answer ended: a stream's code stands behind its last message, and a caller
//! may hang up before. Knows no call and nothing that is counted.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tonic::Code;

use crate::outcome::Outcome;

type Told = Box<dyn FnOnce(Outcome) + Send>;

/// A body that is watched to its end.
pub struct Watched<B: Body + Unpin> {
    body: B,
    told: Option<Told>,
}

impl<B: Body + Unpin> Watched<B> {
    /// `told` is called once, when the body is at its end or let go of: with the code of its trailers, `OK` where they
    /// have none, and `CANCELLED` where the caller hung up.
    pub fn new(body: B, told: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self { body, told: Some(Box::new(told)) }
    }

    fn tell(&mut self, code: Code) {
        if let Some(told) = self.told.take() {
            told(Outcome::Grpc(code));
        }
    }
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => this.tell(Code::Ok),
            Poll::Ready(Some(Err(_))) => this.tell(Code::Unknown),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status")) {
                    this.tell(Code::from_bytes(code.as_bytes()));
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body + Unpin> Drop for Watched<B> {
    fn drop(&mut self) {
        self.tell(if self.body.is_end_stream() { Code::Ok } else { Code::Cancelled });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use http::HeaderMap;

    use super::*;

    /// Frames, one after the other.
    struct Frames(VecDeque<Frame<&'static [u8]>>);

    impl Body for Frames {
        type Data = &'static [u8];
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<&'static [u8]>, Self::Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    #[test]
    fn the_end_is_told_once_whatever_it_is() {
        let trailers = |code: &'static str| {
            let mut map = HeaderMap::new();
            map.insert("grpc-status", code.parse().expect("a value"));
            Frame::trailers(map)
        };
        for (ending, polls, wanted) in [
            (Some(trailers("0")), 3, Code::Ok),
            (Some(trailers("3")), 3, Code::InvalidArgument),
            (None, 2, Code::Ok),
            (Some(trailers("0")), 1, Code::Cancelled),
        ] {
            let told = Arc::new(Mutex::new(Vec::new()));
            let heard = told.clone();
            let frames = [Frame::data(&b"x"[..])].into_iter().chain(ending).collect();
            let mut body = Watched::new(Frames(frames), move |outcome| heard.lock().expect("alone").push(outcome));
            let mut context = Context::from_waker(std::task::Waker::noop());
            for _ in 0..polls {
                assert!(Pin::new(&mut body).poll_frame(&mut context).is_ready());
            }
            drop(body);
            assert_eq!(*told.lock().expect("alone"), [Outcome::Grpc(wanted)]);
        }
    }
}
