//! Latencies at fixed rates, open loop: Larder and the null server at the same rates.

use super::reads::{self, KEYS};
use super::{Bench, Item};
use crate::load;
use crate::peers::Server;
use crate::wire::Protocol;
use crate::workload::Shape;

/// What is measured.
pub(super) const ITEMS: [Item; 3] = [
    Item { protocol: Protocol::Grpc, shape: Shape { entities: 100, features: 50 } },
    Item { protocol: Protocol::Grpc, shape: Shape { entities: 1, features: 50 } },
    Item { protocol: Protocol::Http, shape: Shape { entities: 100, features: 50 } },
];
pub(super) const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// Rates as shares of what Larder does at saturation.
pub(super) const SHARES: [f64; 2] = [0.2, 0.5];
/// Times as many runs as elsewhere, each of Larder beside one of the null server: the 99th percentile of one
/// run is often the worst moment of a virtual machine whose core was given to somebody else.
pub(super) const MORE: usize = 3;

pub(super) fn run(bench: &mut Bench, servers: &[&Server]) {
    println!("\nLatency in µs at shares of Larder's saturation on one core");
    for item in ITEMS {
        let requests = reads::requests(item, KEYS);
        let saturation = format!("{item}/larder/per-second");
        let Some(larder) = servers.iter().find(|s| s.name == "larder") else { return };
        if bench.figures.get(&saturation).is_none() {
            match load::closed(larder.target(item.protocol), &requests, bench.warm_up(), bench.time()) {
                Ok(seen) => drop(bench.figures.put(&saturation, &[seen.per_second()])),
                Err(error) => bench.figures.failed(format!("latency {item}"), error),
            }
        }
        let Some(saturation) = bench.figures.get(&saturation) else { continue };
        for share in SHARES {
            let mut seen: Vec<(&Server, Vec<load::Latencies>)> = servers.iter().map(|s| (*s, Vec::new())).collect();
            for _ in 0..bench.runs * MORE {
                for (server, runs) in &mut seen {
                    let rate = saturation.median * share;
                    match load::open(server.target(item.protocol), &requests, rate, bench.warm_up(), bench.time()) {
                        Ok(latencies) => runs.push(latencies),
                        Err(error) => bench.figures.failed(format!("latency {item} {}", server.name), error),
                    }
                }
            }
            for (server, runs) in seen.iter().filter(|(_, runs)| !runs.is_empty()) {
                print!("  {item:<14} {:<8} {:>6.0} a second", server.name, runs[0].rate);
                for (name, quantile) in QUANTILES {
                    let values: Vec<f64> = runs.iter().map(|r| r.quantile(quantile)).collect();
                    let figure = bench.figures.put(key(item, server.name, share, name), &values);
                    print!("  {name} {figure}");
                }
                println!();
            }
        }
    }
}

/// The name of a figure.
pub(super) fn key(item: Item, server: &str, share: f64, quantile: &str) -> String {
    format!("{item}/{server}/{quantile}@{share}")
}
