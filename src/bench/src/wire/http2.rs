//! As much of HTTP/2 (RFC 9113) as a gRPC client needs that sends one kind of request: headers from two
//! prebuilt blocks, answers by their frames' headers alone. It announces the frame size that gRPC clients
//! announce by default (16 KiB) and windows that never fill.

use std::io;

use super::socket::Socket;
use super::{Connection, Done, Prepared};

const PATH: &str = "/feast.serving.ServingService/GetOnlineFeatures";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The greatest frame that either side may send.
const FRAME: usize = 16 << 10;
const HEAD: usize = 9;
/// The greatest window; what came is given back at half of it.
const WINDOW: u32 = (1 << 31) - 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const LAST: u8 = 1;
const END_HEADERS: u8 = 4;

struct Stream {
    id: u32,
    tag: u64,
    bytes: usize,
    body: Vec<u8>,
}

pub(super) struct Grpc {
    socket: Socket,
    streams: Vec<Stream>,
    depth: usize,
    keep: bool,
    next: u32,
    /// Bytes of bodies that the server takes now, over all streams.
    window: i64,
    /// Bytes of bodies that came and were not given back to the server's window.
    owed: u32,
}

/// A message in gRPC's length-prefixed frame, uncompressed.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

fn head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(len as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// The request's headers (HPACK, RFC 7541). The first block puts four of them into the dynamic table, the
/// later ones name them by their place there, as any client's do.
fn headers(first: bool) -> Vec<u8> {
    let mut out = vec![0x83, 0x86]; // POST, http
    if !first {
        out.extend_from_slice(&[0xc1, 0xc0, 0xbf, 0xbe]);
        return out;
    }
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    };
    for (name, value) in [(0x44, PATH), (0x41, "localhost"), (0x5f, "application/grpc")] {
        out.push(name);
        text(&mut out, value);
    }
    out.push(0x40);
    text(&mut out, "te");
    text(&mut out, "trailers");
    out
}

impl Grpc {
    pub(super) fn new(mut socket: Socket, depth: usize, keep: bool) -> Self {
        let out = socket.out();
        out.extend_from_slice(PREFACE);
        let settings: [(u16, u32); 3] = [(2, 0), (4, WINDOW), (5, FRAME as u32)];
        head(out, settings.len() * 6, SETTINGS, 0, 0);
        for (setting, value) in settings {
            out.extend_from_slice(&setting.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        head(out, 4, WINDOW_UPDATE, 0, 0);
        out.extend_from_slice(&(WINDOW - 0xffff).to_be_bytes());
        Self { socket, streams: Vec::new(), depth, keep, next: 1, window: 0xffff, owed: 0 }
    }

    /// Takes one whole frame from the input, if there is one.
    fn frame(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        let input = self.socket.input();
        let Some((head_bytes, rest)) = input.split_first_chunk::<HEAD>() else { return Ok(false) };
        let [l0, l1, l2, kind, flags, id @ ..] = *head_bytes;
        let len = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let Some(payload) = rest.get(..len) else { return Ok(false) };
        let id = u32::from_be_bytes(id) & WINDOW;
        let word = |at: usize| payload.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let mut ended = flags & LAST != 0 && (kind == DATA || kind == HEADERS);
        match kind {
            DATA => {
                self.owed += len as u32;
                if let Some(stream) = self.streams.iter_mut().find(|s| s.id == id) {
                    stream.bytes += len;
                    if self.keep {
                        stream.body.extend_from_slice(payload);
                    }
                }
            }
            RST_STREAM => {
                ended = true;
                if let Some(stream) = self.streams.iter_mut().find(|s| s.id == id) {
                    stream.bytes = 0;
                }
            }
            SETTINGS if flags & LAST == 0 => head(self.socket.out(), 0, SETTINGS, LAST, 0),
            PING if flags & LAST == 0 => {
                let echo = payload.to_vec();
                let out = self.socket.out();
                head(out, echo.len(), PING, LAST, 0);
                out.extend_from_slice(&echo);
            }
            GOAWAY => return Err(io::Error::other(format!("the server said goodbye, HTTP/2 error {}", word(4)))),
            WINDOW_UPDATE if id == 0 => self.window += i64::from(word(0)),
            _ => {}
        }
        self.socket.consume(HEAD + len);
        if ended && let Some(at) = self.streams.iter().position(|s| s.id == id) {
            let stream = self.streams.swap_remove(at);
            // An error is a gRPC answer without a message.
            let body = stream.body.get(5..).unwrap_or_default().to_vec();
            done.push(Done { tag: stream.tag, ok: stream.bytes > 5, body });
        }
        if self.owed > WINDOW / 2 {
            let owed = std::mem::take(&mut self.owed);
            let out = self.socket.out();
            head(out, 4, WINDOW_UPDATE, 0, 0);
            out.extend_from_slice(&owed.to_be_bytes());
        }
        Ok(true)
    }
}

impl Connection for Grpc {
    fn send(&mut self, request: &Prepared, tag: u64) -> bool {
        let len = request.bytes.len();
        if self.streams.len() >= self.depth || self.window < len as i64 {
            return false;
        }
        self.window -= len as i64;
        let (id, block) = (self.next, headers(self.next == 1));
        self.next += 2;
        let out = self.socket.out();
        head(out, block.len(), HEADERS, END_HEADERS, id);
        out.extend_from_slice(&block);
        let mut chunks = request.bytes.chunks(FRAME).peekable();
        while let Some(chunk) = chunks.next() {
            head(out, chunk.len(), DATA, u8::from(chunks.peek().is_none()), id);
            out.extend_from_slice(chunk);
        }
        self.streams.push(Stream { id, tag, bytes: 0, body: Vec::new() });
        true
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        let mut progress = self.socket.flush()?;
        if self.socket.fill()? {
            progress = true;
            while self.frame(done)? {}
        }
        Ok(progress)
    }
}
