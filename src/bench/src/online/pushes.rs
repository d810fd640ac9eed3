//! Pushes: rows for a CPU second of the server, its background work included: the CPU counts until the server
//! rests.

use super::Bench;
use crate::error::{Result, tried};
use crate::figures::number;
use crate::load;
use crate::machine;
use crate::peers::Server;
use crate::wire::{Prepared, Protocol};
use crate::workload::{self, PUSH_ROWS};

/// Pushes of one run to Larder.
const PUSHES: usize = 600;
/// Pushes of one run to Feast, which takes longer.
const FEAST_PUSHES: usize = 20;
/// Users that are written again and again.
const SAME: i64 = 10_000;

pub(super) fn run(bench: &mut Bench) {
    println!("\nPushes of {PUSH_ROWS} rows of 10 features, fsync");
    for (what, fresh) in [("fresh", true), ("same", false)] {
        if let Err(error) = larder(bench, what, fresh) {
            bench.figures.failed(format!("push {what}"), error);
        }
    }
    if bench.has_peer("feast-sqlite")
        && let Err(error) = feast(bench)
    {
        bench.figures.failed("push feast-sqlite", error);
    }
}

/// Pushes with keys never seen before, or of the same users again and again with other values.
fn pushes(count: usize, run: usize, fresh: bool) -> Vec<Prepared> {
    // Other users in each run of the program, where the server's data is older than it.
    let new = 1_000_000_000 + i64::from(std::process::id()) * 10_000_000;
    let build = |at: usize| {
        let first = ((run * count + at) * PUSH_ROWS) as i64;
        let users: Vec<i64> =
            (first..first + PUSH_ROWS as i64).map(|user| if fresh { new + user } else { user % SAME }).collect();
        workload::push(0, &users, first / SAME)
    };
    (0..count).map(build).collect()
}

/// Sends them and waits for rest. Gives rows for a CPU second.
fn measure(server: &Server, pushes: &[Prepared]) -> Result<f64> {
    let before = machine::cpu_seconds(server.pid());
    let mut target = server.target(Protocol::Http);
    if server.name != "larder" {
        // Feast's SQLite store refuses pushes at the same time ("cannot start a transaction within a transaction").
        target.connections = 1;
    }
    let took = load::each(target, pushes)?;
    let acknowledged = machine::cpu_seconds(server.pid());
    let cpu = server.rest()? - before;
    let rows = (pushes.len() * PUSH_ROWS) as f64;
    println!(
        "  {:<13} {:>9} rows/CPU-s {:>9} rows/s; CPU {} s until acknowledged, {} s until at rest; {} MB",
        server.name,
        number(rows / cpu),
        number(rows / took.as_secs_f64()),
        number(acknowledged - before),
        number(cpu),
        number(machine::rss_mb(server.pid())),
    );
    Ok(rows / cpu)
}

fn larder(bench: &mut Bench, what: &str, fresh: bool) -> Result<()> {
    let name = format!("larder-push-{what}");
    let dir = bench.setup.work.join(&name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(tried(format!("removing {}", dir.display())))?;
    }
    let server = bench.setup.larder(&name, "fsync")?;
    println!("  {what} keys");
    let runs =
        (0..bench.runs.min(3)).map(|run| measure(&server, &pushes(PUSHES, run, fresh))).collect::<Result<Vec<_>>>()?;
    bench.figures.put(format!("push/{what}/larder"), &runs);
    server.stop()
}

fn feast(bench: &mut Bench) -> Result<()> {
    let server = bench.setup.feast("sqlite", super::reads::KEYS, bench.views())?;
    for (what, fresh) in [("fresh", true), ("same", false)] {
        println!("  {what} keys");
        let runs = (0..bench.runs.min(2))
            // The same users always get the values that reads expect of them: this data is used again.
            .map(|run| measure(&server, &pushes(FEAST_PUSHES, if fresh { run } else { 0 }, fresh)))
            .collect::<Result<Vec<_>>>()?;
        bench.figures.put(format!("push/{what}/feast-sqlite"), &runs);
    }
    Ok(())
}
