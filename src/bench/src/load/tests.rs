//! The generator against a server whose speed is known.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

/// An HTTP server that stalls as a whole once, at its `calm`th request, and answers at once otherwise.
fn server(calm: usize, stall: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let seen = Arc::new(Mutex::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, seen) = (stream.expect("a client"), Arc::clone(&seen));
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {
                    let mut seen = seen.lock().expect("nobody panics");
                    *seen += 1;
                    if *seen == calm {
                        thread::sleep(stall); // the stall that is measured: it is what this server is for
                    }
                    drop(seen);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn target(address: SocketAddr) -> Target {
    Target { protocol: Protocol::Http, address, pid: std::process::id(), connections: 1, depth: 1 }
}

#[test]
fn requests_that_wait_for_a_stalled_server_count_their_wait() {
    let stall = Duration::from_millis(400);
    let request = [Prepared::one(wire::http1_request("/", "{}"))];
    let target = target(server(50, stall));
    let seen = open(target, &request, 500.0, Duration::ZERO, Duration::from_secs(1)).expect("answers");
    assert!(seen.histogram.len() > 300, "{}", seen.histogram.len());
    // The stall holds all connections: what was to be sent in its first 300 ms waits longer than 100 ms.
    let late = seen.histogram.iter_recorded().filter(|v| v.value_iterated_to() > 100_000_000);
    let late: u64 = late.map(|v| v.count_at_value()).sum();
    assert!(late > 50, "requests later than 100 ms: {late}");
}

#[test]
fn answers_come_in_the_order_asked() {
    let request = Prepared::one(wire::http1_request("/", "{}"));
    let bodies = ask(target(server(9, Duration::ZERO)), &[request.clone(), request]).expect("answers");
    assert_eq!(bodies, [b"ok", b"ok"]);
}
