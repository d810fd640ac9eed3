//! Reads at saturation of what others do with the same rows: Feast's Python server on SQLite and on Redis, and
//! Redis alone.

use super::reads::{self, KEYS};
use super::{Bench, Item};
use crate::error::Result;
use crate::load;
use crate::peers::Server;
use crate::redis;
use crate::wire::{Prepared, Protocol};
use crate::workload;

/// Different requests to Redis of one shape: they are large.
const REDIS_REQUESTS: usize = 100;

pub(super) fn run(bench: &mut Bench) {
    if bench.items.is_empty() {
        return;
    }
    if bench.has_peer("feast-sqlite") {
        println!("\nFeast's Python server on SQLite");
        match bench.setup.feast("sqlite", KEYS, bench.views()) {
            Ok(server) => feast(bench, &server),
            Err(error) => bench.figures.failed("feast-sqlite", error),
        }
    }
    if (bench.has_peer("redis") || bench.has_peer("feast-redis"))
        && let Err(error) = with_redis(bench)
    {
        bench.figures.failed("redis", error);
    }
}

fn feast(bench: &mut Bench, server: &Server) {
    let runs = bench.runs;
    bench.runs = runs.min(2);
    for item in bench.items.clone() {
        if item.protocol == Protocol::Http {
            reads::saturate(bench, item, &reads::requests(item, KEYS), &[server], KEYS);
        }
    }
    bench.runs = runs;
}

fn with_redis(bench: &mut Bench) -> Result<()> {
    println!("\nRedis, the same rows in Feast's layout");
    let server = bench.setup.redis()?;
    load::each(server.target(Protocol::Redis), &redis::fill(KEYS, bench.views())?)?;
    if bench.has_peer("redis") {
        let mut shapes: Vec<_> = bench.items.iter().map(|i| i.shape).collect();
        shapes.sort();
        shapes.dedup();
        for shape in shapes {
            let users = workload::users(shape, KEYS, REDIS_REQUESTS);
            let requests: Vec<Prepared> = users.iter().map(|users| redis::read(shape, users)).collect::<Result<_>>()?;
            reads::saturate(bench, Item { protocol: Protocol::Redis, shape }, &requests, &[&server], KEYS);
        }
    }
    if bench.has_peer("feast-redis") {
        println!("\nFeast's Python server on that Redis");
        match bench.setup.feast(&server.address.to_string(), 0, 0) {
            Ok(feast_server) => feast(bench, &feast_server),
            Err(error) => bench.figures.failed("feast-redis", error),
        }
    }
    Ok(())
}
