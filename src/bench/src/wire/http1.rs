//! As much of HTTP/1.1 (RFC 9112) as a client needs that keeps its connection and waits for each answer:
//! bodies by their length or in chunks.

use std::io;

use super::socket::Socket;
use super::{Connection, Done, Prepared};

pub(super) struct Http {
    socket: Socket,
    keep: bool,
    waiting: Option<u64>,
}

/// A POST of a JSON body.
pub(crate) fn request(path: &str, json: &str) -> Vec<u8> {
    let len = json.len();
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n{json}")
        .into_bytes()
}

impl Http {
    pub(super) fn new(socket: Socket, keep: bool) -> Self {
        Self { socket, keep, waiting: None }
    }
}

/// One whole response at the start of `input`: its bytes, its status and its body.
struct Response {
    len: usize,
    status: u16,
    body: Vec<u8>,
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn response(input: &[u8], keep: bool) -> io::Result<Option<Response>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/1.1: {what}"));
    let Some(end) = find(input, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end]).map_err(|_| bad("the head is no text"))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status"))?;
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    };
    let body_at = end + 4;
    if let Some(len) = field("content-length") {
        let len: usize = len.parse().map_err(|_| bad("no content-length"))?;
        let Some(body) = input.get(body_at..body_at + len) else { return Ok(None) };
        return Ok(Some(Response { len: body_at + len, status, body: if keep { body.to_vec() } else { Vec::new() } }));
    }
    if field("transfer-encoding").is_none() {
        return Ok(Some(Response { len: body_at, status, body: Vec::new() }));
    }
    let (mut at, mut body) = (body_at, Vec::new());
    loop {
        let Some(line) = find(&input[at..], b"\r\n") else { return Ok(None) };
        let size =
            std::str::from_utf8(&input[at..at + line]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let size = size.ok_or_else(|| bad("no chunk size"))?;
        let start = at + line + 2;
        let Some(chunk) = input.get(start..start + size + 2) else { return Ok(None) };
        at = start + size + 2;
        if size == 0 {
            return Ok(Some(Response { len: at, status, body }));
        }
        if keep {
            body.extend_from_slice(&chunk[..size]);
        }
    }
}

impl Connection for Http {
    fn send(&mut self, request: &Prepared, tag: u64) -> bool {
        if self.waiting.is_some() {
            return false;
        }
        self.socket.out().extend_from_slice(&request.bytes);
        self.waiting = Some(tag);
        true
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        let mut progress = self.socket.flush()?;
        if self.waiting.is_some() && self.socket.fill()? {
            progress = true;
            if let Some(response) = response(self.socket.input(), self.keep)? {
                self.socket.consume(response.len);
                if let Some(tag) = self.waiting.take() {
                    done.push(Done { tag, ok: response.status == 200, body: response.body });
                }
            }
        }
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_or_not_yet() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        for whole in [plain.as_slice(), chunked] {
            for len in 0..whole.len() {
                assert!(response(&whole[..len], true).expect("is HTTP").is_none(), "{len} of {}", whole.len());
            }
            let response = response(whole, true).expect("is HTTP").expect("is whole");
            assert_eq!((response.len, response.status, response.body), (whole.len(), 200, b"abc".to_vec()));
        }
        assert!(response(b"HTTP/1.1 ?\r\n\r\n", true).is_err());
    }
}
