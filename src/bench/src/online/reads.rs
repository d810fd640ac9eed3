//! Reads at saturation: requests for a CPU second of each server, in turn, after checking that all give the
//! same answers.

use super::{Bench, Item};
use crate::answers;
use crate::error::{Error, Result};
use crate::figures::number;
use crate::load::{self, Saturation};
use crate::peers::Server;
use crate::wire::{Prepared, Protocol};
use crate::workload::{self, Shape};

/// Users with rows, unless a section says otherwise.
pub(super) const KEYS: u64 = 10_000;
/// Bytes of prebuilt requests for one item, about.
const REQUEST_BYTES: usize = 24 << 20;
/// Requests whose answers are compared.
const CHECKED: usize = 20;

/// Requests of an item for random users.
pub(super) fn requests(item: Item, keys: u64) -> Vec<Prepared> {
    let build = |users: &Vec<i64>| match item.protocol {
        Protocol::Http => workload::http(item.shape, users),
        _ => workload::grpc(item.shape, users),
    };
    let size = build(&vec![0; item.shape.entities]).bytes.len();
    let count = (REQUEST_BYTES / size).clamp(100, 20_000);
    workload::users(item.shape, keys, count).iter().map(build).collect()
}

/// Compares the server's answers with what they must be; gives their hash.
pub(super) fn check(server: &Server, item: Item, requests: &[Prepared], keys: u64) -> Result<u64> {
    let bodies = load::ask(server.target(item.protocol), &requests[..CHECKED.min(requests.len())])?;
    let tables = bodies
        .iter()
        .map(|body| match item.protocol {
            Protocol::Grpc => answers::of_grpc(body),
            Protocol::Http => answers::of_http(body),
            Protocol::Redis => answers::of_redis(item.shape, body),
        })
        .collect::<Result<Vec<_>>>()?;
    let users = workload::users(item.shape, keys, tables.len());
    let expected: Vec<_> = users.iter().map(|users| answers::expected(item.shape, users)).collect();
    let (is, wanted) = (answers::hash(&tables), answers::hash(&expected));
    if is == wanted {
        return Ok(is);
    }
    Err(Error::Answer(format!("{} {item}: the answers' hash is {is:016x}, it must be {wanted:016x}", server.name)))
}

fn line(server: &Server, item: Item, seen: Saturation) {
    println!(
        "  {item:<14} {:<13} {:>9} requests/CPU-s {:>9} requests/s {:>6} of a core {:>8} MB",
        server.name,
        number(seen.per_cpu_second()),
        number(seen.per_second()),
        number(seen.cores()),
        number(crate::machine::rss_mb(server.pid())),
    );
}

pub(super) fn run(bench: &mut Bench) {
    if bench.items.is_empty() && !bench.wants("latency") {
        return;
    }
    println!("\nReads, {KEYS} keys");
    let larder = match bench.setup.filled_larder(KEYS, bench.views()) {
        Ok(larder) => larder,
        Err(error) => return bench.figures.failed("larder", error),
    };
    let latencies = super::latency::ITEMS.iter().filter(|_| bench.wants("latency"));
    let mut shapes: Vec<Shape> = bench.items.iter().chain(latencies).map(|i| i.shape).collect();
    shapes.sort();
    shapes.dedup();
    let mut servers = vec![larder];
    if bench.has_peer("null") {
        match bench.setup.null(&servers[0], &shapes) {
            Ok(null) => servers.push(null),
            Err(error) => bench.figures.failed("null", error),
        }
    }
    let servers: Vec<&Server> = servers.iter().collect();
    for item in bench.items.clone() {
        saturate(bench, item, &requests(item, KEYS), &servers, KEYS);
    }
    if bench.wants("latency") {
        super::latency::run(bench, &servers);
    }
}

/// Measures one item on servers in turn, so that what else the machine does meets all of them.
pub(super) fn saturate(bench: &mut Bench, item: Item, requests: &[Prepared], servers: &[&Server], keys: u64) {
    let mut alive = Vec::new();
    for server in servers {
        match if server.name == "null" { Ok(0) } else { check(server, item, requests, keys) } {
            Ok(_) => alive.push((*server, Vec::new(), Vec::new())),
            Err(error) => bench.figures.failed(format!("{item} {}", server.name), error),
        }
    }
    for _ in 0..bench.runs {
        for (server, per_cpu, per_second) in &mut alive {
            match load::closed(server.target(item.protocol), requests, bench.warm_up(), bench.time()) {
                Ok(seen) => {
                    line(server, item, seen);
                    per_cpu.push(seen.per_cpu_second());
                    per_second.push(seen.per_second());
                }
                Err(error) => bench.figures.failed(format!("{item} {}", server.name), error),
            }
        }
    }
    for (server, per_cpu, per_second) in alive {
        let name = format!("{item}/{}", server.name);
        bench.figures.put(format!("{name}/per-cpu-second"), &per_cpu);
        bench.figures.put(format!("{name}/per-second"), &per_second);
        bench.figures.put(format!("{name}/rss"), &[crate::machine::rss_mb(server.pid())]);
        let null = format!("{item}/null/per-cpu-second");
        if server.name == "null"
            && let Some(ratio) = bench.figures.ratio(&format!("{item}/larder/per-cpu-second"), &null)
        {
            println!("  {item:<14} larder : null {ratio}");
        }
    }
}
