//! A non-blocking socket with a buffer each way. Knows no protocol.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

/// Bytes asked of the kernel at a time.
const READ: usize = 256 << 10;

pub(super) struct Socket {
    stream: TcpStream,
    /// What is to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// What came, from `taken` to `filled`.
    input: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl Socket {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, out: Vec::new(), sent: 0, input: vec![0; READ], taken: 0, filled: 0 })
    }

    /// Where to put what is to be sent.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What came and was not consumed.
    pub(super) fn input(&self) -> &[u8] {
        &self.input[self.taken..self.filled]
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    /// Sends what can be sent. Gives whether anything was.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let before = self.sent;
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let progress = self.sent > before;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(progress)
    }

    /// Receives what there is, up to a buffer full. Gives whether anything came.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.input.len() - self.filled < READ / 2 {
            self.input.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
            if self.input.len() - self.filled < READ / 2 {
                self.input.resize(self.input.len() * 2, 0);
            }
        }
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            Ok(bytes) => {
                self.filled += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}
