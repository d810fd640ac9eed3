//! Clients that cost little: prebuilt requests go out, answers are counted and only kept where somebody
//! asks. Nothing here blocks, so that one thread can keep a schedule over many connections.

mod http1;
mod http2;
mod resp;
mod socket;

use std::io;
use std::net::SocketAddr;

pub(crate) use http1::request as http1_request;
pub(crate) use http2::frame as grpc_frame;
pub(crate) use resp::command as redis_command;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC over HTTP/2 without TLS, to `feast.serving.ServingService/GetOnlineFeatures`.
    Grpc,
    /// HTTP/1.1, kept alive.
    Http,
    /// Redis, pipelined.
    Redis,
}

/// A request as its bytes: a gRPC frame, a whole HTTP/1.1 request, or Redis commands.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) bytes: Vec<u8>,
    /// How many replies belong to it (Redis commands are answered one by one).
    pub(crate) replies: usize,
}

impl Prepared {
    pub(crate) fn one(bytes: Vec<u8>) -> Self {
        Self { bytes, replies: 1 }
    }
}

/// A request that was answered.
#[derive(Debug)]
pub(crate) struct Done {
    /// What it was sent with.
    pub(crate) tag: u64,
    /// Whether the server did what was asked.
    pub(crate) ok: bool,
    /// The answer's body, where bodies are kept.
    pub(crate) body: Vec<u8>,
}

/// One connection. Requests are queued by `send`; `poll` moves bytes both ways without waiting.
pub(crate) trait Connection {
    /// Takes a request, or says that there is no room for it now.
    fn send(&mut self, request: &Prepared, tag: u64) -> bool;
    /// Moves what can be moved. Gives whether anything was.
    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<bool>;
}

/// Opens a connection that takes up to `depth` requests at a time (HTTP/1.1: one). `keep` keeps bodies.
pub(crate) fn connect(
    protocol: Protocol,
    address: SocketAddr,
    depth: usize,
    keep: bool,
) -> io::Result<Box<dyn Connection>> {
    let socket = socket::Socket::connect(address)?;
    Ok(match protocol {
        Protocol::Grpc => Box::new(http2::Grpc::new(socket, depth, keep)),
        Protocol::Http => Box::new(http1::Http::new(socket, keep)),
        Protocol::Redis => Box::new(resp::Redis::new(socket, depth, keep)),
    })
}
