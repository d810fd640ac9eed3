//! The report: the bars and the tables, as Markdown. Knows no measurement, only names of figures.

use std::fmt::Write as _;

use super::{Bench, Item, latency};
use crate::figures::{Figures, number};
use crate::machine;
use crate::page::{self, Bar, cell};
use crate::wire::Protocol;
use crate::workload::{SHAPES, Shape};

/// The bars of issue 3, "Fast".
fn bars(figures: &Figures) -> Vec<Bar> {
    let cpu = |item: &str, server: &str| format!("{item}/{server}/per-cpu-second");
    let against = |item: &str, peer: &str| figures.ratio(&cpu(item, "larder"), &cpu(item, peer));
    let p99 = |server: &str| latency::key(latency::ITEMS[0], server, 0.5, "p99");
    let pushes = |what: &str| figures.ratio(&format!("push/{what}/larder"), &format!("push/{what}/feast-sqlite"));
    let (least, most) = (Bar::at_least, Bar::at_most);
    vec![
        least("gRPC, 100 × 50, requests per CPU-second : null server", 0.6, against("grpc-100x50", "null")),
        least("gRPC, 1 × 50, requests per CPU-second : null server", 0.75, against("grpc-1x50", "null")),
        least(
            "HTTP JSON, 1 × 50, requests per CPU-second : Feast on SQLite",
            200.0,
            against("http-1x50", "feast-sqlite"),
        ),
        least(
            "HTTP JSON, 100 × 50, requests per CPU-second : Feast on SQLite",
            400.0,
            against("http-100x50", "feast-sqlite"),
        ),
        most(
            "p99 at half of saturation, 100 × 50 gRPC : null server at the same rate",
            3.0,
            figures.ratio(&p99("larder"), &p99("null")),
        ),
        most(
            "cost of 100 × 50 gRPC, many keys : 10,000 keys",
            1.4,
            figures.ratio("grpc-100x50/many/cost", "grpc-100x50/few/cost"),
        ),
        most(
            "cost of 1 × 50 gRPC, many keys : 10,000 keys",
            1.4,
            figures.ratio("grpc-1x50/many/cost", "grpc-1x50/few/cost"),
        ),
        least(
            "rows read and assembled in process per CPU-second (100 entities × 5 views, 10,000 keys)",
            4e6,
            figures.get("in-process/few"),
        ),
        least("pushed rows per CPU-second, fresh keys : Feast on SQLite", 10.0, pushes("fresh")),
        least("pushed rows per CPU-second, the same 10,000 keys : Feast on SQLite", 20.0, pushes("same")),
    ]
}

/// The table of bars; also what is printed at the end.
pub(super) fn table(figures: &Figures) -> String {
    page::table(&bars(figures))
}

fn reads(out: &mut String, bench: &Bench) {
    let figures = &bench.figures;
    for (protocol, title) in [
        (Protocol::Grpc, "gRPC"),
        (Protocol::Http, "HTTP JSON"),
        (Protocol::Redis, "Redis alone (HMGET of the same rows, pipelined; no feature server)"),
    ] {
        let _ = writeln!(out, "\n### {title}\n");
        out.push_str(
            "| entities × features | server | requests per CPU-second | requests per second | MB resident |\n",
        );
        out.push_str("|---|---|---|---|---|\n");
        for shape in SHAPES {
            let item = Item { protocol, shape };
            for server in ["larder", "null", "feast-sqlite", "feast-redis", "redis"] {
                let of = |what: &str| figures.get(&format!("{item}/{server}/{what}"));
                let Some(cpu) = of("per-cpu-second") else { continue };
                let (second, rss) = (cell(of("per-second")), of("rss").map_or(0.0, |f| f.median));
                let Shape { entities, features } = shape;
                let _ = writeln!(out, "| {entities} × {features} | {server} | {cpu} | {second} | {} |", number(rss));
            }
        }
    }
}

fn latencies(out: &mut String, figures: &Figures) {
    out.push_str(
        "\n## Latency, µs\n\nOpen loop; the rate is a share of what Larder does at saturation on one core.\n\n",
    );
    out.push_str("| request | share | server | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|\n");
    for item in latency::ITEMS {
        for share in latency::SHARES {
            for server in ["larder", "null"] {
                let cells = latency::QUANTILES.map(|(name, _)| figures.get(&latency::key(item, server, share, name)));
                if cells.iter().any(Option::is_some) {
                    let cells = cells.map(cell).join(" | ");
                    let _ = writeln!(out, "| {item} | {share} | {server} | {cells} |");
                }
            }
        }
    }
}

fn rest(out: &mut String, figures: &Figures) {
    out.push_str("\n## Many keys, in process, pushes\n\n| measure | |\n|---|---|\n");
    for (name, title) in [
        ("grpc-100x50/few/cost", "gRPC 100 × 50, 10,000 keys, CPU-µs a request"),
        ("grpc-100x50/many/cost", "gRPC 100 × 50, many keys, CPU-µs a request"),
        ("grpc-1x50/few/cost", "gRPC 1 × 50, 10,000 keys, CPU-µs a request"),
        ("grpc-1x50/many/cost", "gRPC 1 × 50, many keys, CPU-µs a request"),
        ("many/rss", "MB resident with many keys (5 views)"),
        ("in-process/few", "rows per CPU-second in process, 10,000 keys"),
        ("in-process/many", "rows per CPU-second in process, many keys"),
        ("push/fresh/larder", "pushed rows per CPU-second, fresh keys, Larder"),
        ("push/same/larder", "pushed rows per CPU-second, the same 10,000 keys, Larder"),
        ("push/fresh/feast-sqlite", "pushed rows per CPU-second, fresh keys, Feast on SQLite"),
        ("push/same/feast-sqlite", "pushed rows per CPU-second, the same 10,000 keys, Feast on SQLite"),
    ] {
        let _ = writeln!(out, "| {title} | {} |", cell(figures.get(name)));
    }
}

const METHOD: &str = "\
## How it was measured

- One row is one view's ten int64 features of one user; 25 views. Every server has the same rows, whose values are a function of \
user, view and feature; before a server is measured, its answers to 20 requests of each kind are decoded and compared with that \
function by a hash of values and statuses (the null server's are a copy of Larder's).
- Larder is `larder --no-default-features` (without Kafka and DataFusion, which cost 53 CPU-minutes to build and take no part in \
serving), on its embedded store with `fsync`, with Feast's own registry file. Feast's registry was applied by its SDK.
- The many keys (see above how many) are in five of the views only, those that a 50-feature request reads.
- Feast on SQLite was filled by Feast's SDK; Redis was filled in Feast's layout by this program.
- Larder, the null server and Redis run on one core, the generator on another; Feast's workers, one per core, run anywhere. CPU is \
user and system time of a process and its descendants from `/proc`.
- A figure is the median of the runs, with the least and the greatest. Larder and the null server run in turn, and their ratio is \
taken run by run.
- Saturation: a closed loop of 4 connections with 8 requests in flight each (HTTP/1.1: 32 connections; Feast: 4). Latency: an open \
loop with random (Poisson) arrivals, counted from the scheduled arrival, with three times as many runs.
- Pushes are JSON over HTTP, 500 rows each, 32 at a time to Larder and one at a time to Feast (on SQLite it \
refuses more); the CPU counts until the server rests.
";

/// The whole page.
pub(super) fn page(bench: &Bench, command: &str) -> String {
    let mut out = "# Online serving, measured\n\nWritten by `make bench-online`; do not edit.\n\n".to_owned();
    let lines = [
        format!("peers: {}", page::versions(&bench.setup.venv, &bench.setup.work, &["feast"])),
        machine::first_line("redis-server", &["--version"]),
        format!("many keys: {}", number(bench.many as f64)),
        format!("runs: {} of {} s each (Feast: at most 2)", bench.runs, bench.seconds),
    ];
    page::head(&mut out, &bench.setup.larder, command, &bench.load, &lines);
    let _ = writeln!(out, "\n## Bars\n\n{}", table(&bench.figures));
    page::failures(&mut out, &bench.figures);
    out.push_str(METHOD);
    out.push_str("\n## At saturation\n");
    reads(&mut out, bench);
    latencies(&mut out, &bench.figures);
    rest(&mut out, &bench.figures);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_passed_missed_or_not_measured() {
        let mut figures = Figures::default();
        figures.put("grpc-100x50/larder/per-cpu-second", &[50.0, 60.0]);
        figures.put("grpc-100x50/null/per-cpu-second", &[100.0, 100.0]);
        figures.put("in-process/few", &[4_000_000.0]);
        figures.put("grpc-100x50/many/cost", &[10.0]);
        figures.put("grpc-100x50/few/cost", &[5.0]);
        let table = table(&figures);
        let line = |what: &str| table.lines().find(|l| l.contains(what)).expect("is there").to_owned();
        assert!(
            line("100 × 50, requests per CPU-second : null")
                .contains("| 0.550 (0.500 – 0.600) | at least 0.600 | **missed** |")
        );
        assert!(line("in process").contains("| passed |"));
        assert!(line("cost of 100").contains("| 2.00 (2.00 – 2.00) | at most 1.40 | **missed** |"));
        assert!(line("fresh keys").contains("| – | at least 10.0 | not measured |"));
    }
}
