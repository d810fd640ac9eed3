//! A connection whose client must begin in time and must take what it is sent. Knows no request: when
//! the first head (or HTTP/2's preface) is there, hyper's own timers take over.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The stream of a connection.
pub(super) struct Patient<S> {
    inner: S,
    /// Runs until the first head is there.
    beginning: Option<Beginning>,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
}

struct Beginning {
    timer: Pin<Box<Sleep>>,
    patience: Duration,
    heard: u64,
    preface: Option<usize>,
    /// How much of an empty line the last bytes are.
    blank: usize,
}

impl Beginning {
    /// Takes note of bytes; says whether the beginning is over.
    fn hear(&mut self, bytes: &[u8]) -> bool {
        self.heard += bytes.len() as u64;
        for byte in bytes {
            self.preface = self.preface.filter(|at| PREFACE[*at] == *byte).map(|at| at + 1);
            if self.preface == Some(PREFACE.len()) {
                return true;
            }
            self.blank = match (byte, self.blank) {
                (b'\n', blank) => blank + 1,
                (b'\r', blank) => blank,
                _ => 0,
            };
            if self.blank == 2 && self.preface.is_none() {
                return true;
            }
        }
        false
    }
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, header_timeout: Duration, write_timeout: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(header_timeout));
        let beginning = Beginning { timer, patience: header_timeout, heard: 0, preface: Some(0), blank: 0 };
        Self { inner, beginning: Some(beginning), stalled: None, write_timeout }
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    /// Ends a connection that did not begin in time: an HTTP/1 client that has said something is told why.
    fn give_up(&mut self, cx: &mut Context<'_>) -> io::Error {
        rpc::status::refused("header_timeout_seconds");
        if let Some(Beginning { heard: 1.., preface: None, patience, .. }) = &self.beginning {
            let seconds = patience.as_secs();
            let message = format!("the request's head did not come within {seconds} s (limits.header_timeout_seconds)");
            let (_, body) = rpc::status::to_http(&model::Error::new(model::Kind::TooSlow, message));
            let answer = format!(
                "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            // One try: it fits into the socket's buffer, or the client is not worth more.
            let _ = Pin::new(&mut self.inner).poll_write(cx, answer.as_bytes());
            let _ = Pin::new(&mut self.inner).poll_flush(cx);
            let _ = Pin::new(&mut self.inner).poll_shutdown(cx);
        }
        io::Error::new(io::ErrorKind::TimedOut, "the request's head did not come in time")
    }

    /// Lets a write through, or ends the connection where nothing was taken for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        rpc::status::refused("write_timeout_seconds");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no byte of its answer")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if let Some(beginning) = &mut this.beginning {
            if beginning.hear(&buffer.filled()[before..]) {
                this.beginning = None;
            } else if read.is_pending() && beginning.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(this.give_up(cx)));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.watch(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bytes);
        this.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.watch(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.watch(cx, shut)
    }
}
