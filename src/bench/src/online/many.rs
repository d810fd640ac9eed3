//! What many keys cost: the same requests against 10,000 and many keys, over gRPC and in process.

use super::reads::{self, KEYS};
use super::{Bench, Item};
use crate::error::{Result, tried};
use crate::load;
use crate::process::{self, Process};
use crate::wire::{Prepared, Protocol};
use crate::workload::{self, Shape};

const SHAPE: Shape = Shape { entities: 100, features: 50 };

/// The large data set behind a server, beside the small one.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let many = bench.many;
    println!("\n{many} keys beside {KEYS}");
    let large = bench.setup.filled_larder(many, SHAPE.views())?;
    let small = bench.setup.filled_larder(KEYS, bench.views())?;
    let all: Vec<i64> = (0..many as i64).collect();
    let every: Vec<Prepared> = all.chunks(SHAPE.entities).map(|users| workload::grpc(SHAPE, users)).collect();
    load::each(large.target(Protocol::Grpc), &every)?;
    for shape in [SHAPE, Shape { entities: 1, features: 50 }] {
        let item = Item { protocol: Protocol::Grpc, shape };
        let (few_requests, many_requests) = (reads::requests(item, KEYS), reads::requests(item, many));
        reads::check(&large, item, &many_requests, many)?;
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..bench.runs {
            for (at, (server, requests)) in [(&small, &few_requests), (&large, &many_requests)].into_iter().enumerate()
            {
                let seen = load::closed(server.target(Protocol::Grpc), requests, bench.warm_up(), bench.time())?;
                costs[at].push(1e6 / seen.per_cpu_second());
            }
        }
        for (costs, keys) in costs.iter().zip(["few", "many"]) {
            let figure = bench.figures.put(format!("{item}/{keys}/cost"), costs);
            println!("  {item:<14} {keys:<5} keys {figure} CPU-µs a request");
        }
    }
    bench.figures.put("many/rss", &[crate::machine::rss_mb(large.pid())]);
    large.stop()?;
    small.stop()
}

/// Rows read and assembled without a network, of the data sets that are there.
pub(super) fn in_process(bench: &mut Bench) -> Result<()> {
    println!("\nIn process, 100 entities x 5 views");
    let registry = bench.setup.repo("sqlite")?.join("data/registry.db").display().to_string();
    let mut sets = vec![("few", KEYS, bench.views())];
    if bench.wants("million") {
        sets.push(("many", bench.many, SHAPE.views()));
    }
    for (name, keys, views) in sets {
        bench.setup.filled_larder(keys, views)?.stop()?;
        let data = bench.setup.work.join(format!("larder-{keys}-{views}/data/online")).display().to_string();
        let me = std::env::current_exe().map_err(tried("this program's path"))?;
        let (seconds, runs, count) = (bench.seconds.to_string(), bench.runs.to_string(), keys.to_string());
        let words = ["in-process", "--registry", &registry, "--data", &data, "--keys", &count];
        let words = [words.as_slice(), &["--seconds", &seconds, "--runs", &runs]].concat();
        let dir = bench.setup.work.join("in-process");
        Process::spawn("in-process", &process::command(&me, &words), &dir, bench.setup.core)?.wait()?;
        let log = std::fs::read_to_string(dir.join("in-process.log")).map_err(tried("in-process.log"))?;
        let rows: Vec<f64> = log.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let figure = bench.figures.put(format!("in-process/{name}"), &rows);
        println!("  {keys} keys: {figure} rows/CPU-s");
    }
    Ok(())
}
