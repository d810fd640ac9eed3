//! As much of Redis's protocol (RESP 2) as a client needs that pipelines prebuilt commands and counts
//! their replies.

use std::collections::VecDeque;
use std::io;

use super::socket::Socket;
use super::{Connection, Done, Prepared};

pub(super) struct Redis {
    socket: Socket,
    depth: usize,
    keep: bool,
    /// Requests in the order sent: tag, replies still to come, what came of them.
    waiting: VecDeque<(u64, usize, Vec<u8>)>,
    failed: bool,
}

impl Redis {
    pub(super) fn new(socket: Socket, depth: usize, keep: bool) -> Self {
        Self { socket, depth, keep, waiting: VecDeque::new(), failed: false }
    }
}

/// A command as an array of bulk strings.
pub(crate) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// A line `<kind><number>` at `at`: the kind, the number, where the next byte is.
fn line(input: &[u8], at: usize) -> io::Result<Option<(u8, i64, usize)>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "RESP: a line without a number");
    let Some(rest) = input.get(at..) else { return Ok(None) };
    let Some(end) = rest.iter().take(4096).position(|b| *b == b'\r').filter(|end| rest.len() > end + 1) else {
        return Ok(None);
    };
    let kind = rest[0];
    let text = std::str::from_utf8(&rest[1..end]).map_err(|_| bad())?;
    let number = if matches!(kind, b'+' | b'-') { 0 } else { text.parse().map_err(|_| bad())? };
    Ok(Some((kind, number, at + end + 2)))
}

/// The length of the whole reply at the start of `input`, and whether it is no error. A reply is a line, a bulk
/// string, or an array of those.
fn reply(input: &[u8]) -> io::Result<Option<(usize, bool)>> {
    let Some((kind, number, mut at)) = line(input, 0)? else { return Ok(None) };
    let bulk = |at: usize, len: i64| at + usize::try_from(len).map_or(0, |len| len + 2);
    match kind {
        b'$' => at = bulk(at, number),
        b'*' => {
            for _ in 0..number {
                let Some((kind, len, next)) = line(input, at)? else { return Ok(None) };
                at = if kind == b'$' { bulk(next, len) } else { next };
            }
        }
        _ => {}
    }
    Ok((at <= input.len()).then_some((at, kind != b'-')))
}

impl Connection for Redis {
    fn send(&mut self, request: &Prepared, tag: u64) -> bool {
        if self.waiting.len() >= self.depth {
            return false;
        }
        self.socket.out().extend_from_slice(&request.bytes);
        self.waiting.push_back((tag, request.replies, Vec::new()));
        true
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        let mut progress = self.socket.flush()?;
        if !self.socket.fill()? {
            return Ok(progress);
        }
        progress = true;
        while let Some((len, ok)) = reply(self.socket.input())? {
            let Some((tag, left, mut body)) = self.waiting.pop_front() else {
                return Err(io::Error::other("Redis answered what nobody asked"));
            };
            if self.keep {
                body.extend_from_slice(&self.socket.input()[..len]);
            }
            self.socket.consume(len);
            self.failed |= !ok;
            if left > 1 {
                self.waiting.push_front((tag, left - 1, body));
            } else {
                done.push(Done { tag, ok: !std::mem::take(&mut self.failed), body });
            }
        }
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_whole_or_not_yet() {
        for whole in
            [b"+OK\r\n".as_slice(), b"$3\r\na\r\n\r\n", b"*3\r\n$1\r\nx\r\n$-1\r\n:5\r\n", b"$-1\r\n", b"*0\r\n"]
        {
            for len in 0..whole.len() {
                assert_eq!(reply(&whole[..len]).expect("is RESP"), None, "{len} of {whole:?}");
            }
            let more = [whole, b"+next\r\n"].concat();
            assert_eq!(reply(&more).expect("is RESP"), Some((whole.len(), true)));
        }
        assert_eq!(reply(b"-ERR no\r\n").expect("is RESP"), Some((9, false)));
    }
}
