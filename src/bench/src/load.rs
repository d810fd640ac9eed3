//! The load generator: one thread, many connections. Closed loop, to see what a server's CPU second buys at
//! saturation; open loop, to see latencies at a rate that does not wait for the server (no coordinated
//! omission: an arrival has its time from the schedule, and its latency counts from then).

mod schedule;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::error::{Error, Result, tried};
use crate::machine;
use crate::wire::{self, Connection, Done, Prepared, Protocol};
use schedule::Arrivals;

/// How long an answer may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest latency that is told apart, ns: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Whom to load, and how wide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    /// The process whose CPU counts, with its descendants.
    pub(crate) pid: u32,
    pub(crate) connections: usize,
    /// Requests in flight on each connection.
    pub(crate) depth: usize,
}

/// What a closed loop saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saturation {
    pub(crate) requests: u64,
    pub(crate) wall: f64,
    /// CPU seconds of the server.
    pub(crate) cpu: f64,
}

impl Saturation {
    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.requests as f64 / self.cpu.max(0.01)
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.wall
    }

    /// The share of one core that the server had.
    pub(crate) fn cores(&self) -> f64 {
        self.cpu / self.wall
    }
}

/// What an open loop saw.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// Arrivals a second that were scheduled.
    pub(crate) rate: f64,
    /// Nanoseconds from the scheduled arrival to the whole answer.
    histogram: Histogram<u64>,
}

impl Latencies {
    /// A quantile (0 to 1) in µs.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64 / 1e3
    }
}

fn connect(target: Target, depth: usize, keep: bool) -> Result<Vec<Box<dyn Connection>>> {
    let connections = if target.protocol == Protocol::Http { target.connections * depth } else { target.connections };
    (0..connections)
        .map(|_| wire::connect(target.protocol, target.address, depth, keep))
        .collect::<io::Result<_>>()
        .map_err(tried(format!("connecting to {}", target.address)))
}

fn failed(error: io::Error) -> Error {
    Error::Io { what: "a connection under load".into(), source: error }
}

fn refused() -> Error {
    Error::Answer("the server refused a request under load: see its log".into())
}

/// Sends the requests in turn, as many at a time as the target takes, for `warm_up` and then for `time`.
pub(crate) fn closed(target: Target, requests: &[Prepared], warm_up: Duration, time: Duration) -> Result<Saturation> {
    let mut connections = connect(target, target.depth, false)?;
    let start = Instant::now();
    let (mut next, mut answered, mut done) = (0, 0_u64, Vec::new());
    let mut measured: Option<(Instant, u64, f64)> = None;
    let mut last = start;
    loop {
        let now = Instant::now();
        match measured {
            None if now - start >= warm_up => measured = Some((now, answered, machine::cpu_seconds(target.pid))),
            Some((from, before, cpu)) if now - from >= time => {
                let cpu = machine::cpu_seconds(target.pid) - cpu;
                return Ok(Saturation { requests: answered - before, wall: from.elapsed().as_secs_f64(), cpu });
            }
            _ => {}
        }
        let before = answered;
        for connection in &mut connections {
            while connection.send(&requests[next], 0) {
                next = (next + 1) % requests.len();
            }
            connection.poll(&mut done).map_err(failed)?;
            answered += done.len() as u64;
            if !done.drain(..).all(|d| d.ok) {
                return Err(refused());
            }
        }
        if answered > before {
            last = now;
        } else {
            if now - last > PATIENCE {
                return Err(Error::Answer(format!("no answer for {} s under load", PATIENCE.as_secs())));
            }
            std::thread::yield_now();
        }
    }
}

/// Sends at `rate` a second on a random schedule for `warm_up` and then for `time`; latencies are of what
/// was scheduled after the warm-up. Ends when all was answered.
pub(crate) fn open(
    target: Target,
    requests: &[Prepared],
    rate: f64,
    warm_up: Duration,
    time: Duration,
) -> Result<Latencies> {
    // Deep enough that a slow moment of the server is its own, not the generator's.
    let mut connections = connect(target, target.depth.max(16), false)?;
    let mut histogram =
        Histogram::new_with_bounds(1, LONGEST, 3).map_err(|e| Error::Answer(format!("histogram: {e}")))?;
    let mut arrivals = Arrivals::new(rate).peekable();
    let (start, end) = (Instant::now(), warm_up + time);
    let (mut due, mut done): (VecDeque<Duration>, Vec<Done>) = (VecDeque::new(), Vec::new());
    let (mut sent, mut answered, mut at) = (0_usize, 0_usize, 0);
    loop {
        let now = start.elapsed();
        while let Some(arrival) = arrivals.next_if(|arrival| *arrival <= now && *arrival < end) {
            due.push_back(arrival);
        }
        if now > end && due.is_empty() && answered == sent {
            return Ok(Latencies { rate, histogram });
        }
        if now > end + PATIENCE {
            return Err(Error::Answer(format!("{} requests not answered at {rate:.0} a second", sent - answered)));
        }
        // round robin, so that a connection's answers come in turn
        for _ in 0..connections.len() {
            let Some(arrival) = due.front() else { break };
            at = (at + 1) % connections.len();
            if connections[at].send(&requests[sent % requests.len()], arrival.as_nanos() as u64) {
                due.pop_front();
                sent += 1;
            }
        }
        for connection in &mut connections {
            connection.poll(&mut done).map_err(failed)?;
        }
        if done.is_empty() {
            std::thread::yield_now();
            continue;
        }
        let now = start.elapsed();
        answered += done.len();
        for Done { tag, ok, .. } in done.drain(..) {
            if !ok {
                return Err(refused());
            }
            if tag >= warm_up.as_nanos() as u64 {
                histogram.saturating_record((now.as_nanos() as u64).saturating_sub(tag));
            }
        }
    }
}

/// Sends each request once, in order, on one connection; gives the answers' bodies.
pub(crate) fn ask(target: Target, requests: &[Prepared]) -> Result<Vec<Vec<u8>>> {
    let mut connections = connect(Target { connections: 1, ..target }, 1, true)?;
    let (mut bodies, mut done) = (Vec::new(), Vec::new());
    for (tag, request) in requests.iter().enumerate() {
        let start = Instant::now();
        for connection in &mut connections {
            while !connection.send(request, tag as u64) {
                connection.poll(&mut done).map_err(failed)?;
            }
            while done.is_empty() {
                if start.elapsed() > PATIENCE {
                    return Err(Error::Answer(format!("no answer for {} s", PATIENCE.as_secs())));
                }
                if !connection.poll(&mut done).map_err(failed)? {
                    std::thread::yield_now();
                }
            }
        }
        for done in done.drain(..) {
            if !done.ok {
                let body = String::from_utf8_lossy(&done.body);
                return Err(Error::Answer(format!("the server refused a request: {}", body.trim())));
            }
            bodies.push(done.body);
        }
    }
    Ok(bodies)
}

/// Sends each request once, several at a time; gives how long it took.
pub(crate) fn each(target: Target, requests: &[Prepared]) -> Result<Duration> {
    let mut connections = connect(target, target.depth, true)?;
    let start = Instant::now();
    let (mut sent, mut answered, mut done) = (0, 0, Vec::new());
    let mut last = start;
    while answered < requests.len() {
        for connection in &mut connections {
            while sent < requests.len() && connection.send(&requests[sent], 0) {
                sent += 1;
            }
            connection.poll(&mut done).map_err(failed)?;
        }
        if done.is_empty() {
            if last.elapsed() > PATIENCE {
                return Err(Error::Answer(format!("no answer for {} s", PATIENCE.as_secs())));
            }
            std::thread::yield_now();
            continue;
        }
        last = Instant::now();
        answered += done.len();
        if let Some(bad) = done.drain(..).find(|d| !d.ok) {
            return Err(Error::Answer(format!("a request was refused: {}", String::from_utf8_lossy(&bad.body))));
        }
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests;
