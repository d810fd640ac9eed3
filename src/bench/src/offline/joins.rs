//! Training sets: who makes which, in turn, and whether all made the same. Knows no process.

use std::collections::BTreeMap;

use super::Bench;
use super::world::{Memory, Outcome};
use crate::error::Result;
use crate::figures::number;

/// One training set.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The line of the table that asks for it.
    pub(super) bar: &'static str,
    /// The script's name of the work.
    work: &'static str,
    pub(super) systems: &'static [&'static str],
    /// The first so many entity rows; 0 is all.
    rows: usize,
    memory: Memory,
}

const ALL: &[&str] = &["larder", "larder-bare", "larder-frame", "larder-export", "duckdb", "polars"];

const fn case(name: &'static str, bar: &'static str, work: &'static str, systems: &'static [&'static str]) -> Case {
    Case { name, bar, work, systems, rows: 0, memory: Memory::Default }
}

/// In the order of the report.
pub(super) const CASES: [Case; 8] = [
    case("A", "A", "A", ALL),
    case("B", "B", "B", ALL),
    case(
        "C",
        "C",
        "C",
        &["larder", "larder-bare", "larder-frame", "larder-export", "duckdb", "polars", "feast-duckdb"],
    ),
    Case { rows: 1_000, ..case("C, 1,000 flights", "C", "C", &["larder-frame", "feast-duckdb", "feast-dask"]) },
    case("D", "D", "D", ALL),
    Case { rows: 10_000, ..case("D, 10,000 rows", "D", "D", &["larder-frame", "feast-duckdb", "feast-dask"]) },
    Case { memory: Memory::Joins(512_000_000), ..case("E", "E", "D", &["larder", "larder-bare", "larder-export"]) },
    Case { memory: Memory::Joins(512_000_000), ..case("E, 10 times the entity rows", "E", "D", &["larder-tenfold"]) },
];

/// Measures one.
pub(super) fn run(bench: &mut Bench, case: &Case) -> Result<()> {
    println!("\n{}", case.name);
    let server = bench.world.larder(case.memory)?;
    // As the peers' imports are: what a process does once.
    bench.world.join("larder-bare", case.work, 1)?;
    let mut systems: Vec<&str> = case.systems.to_vec();
    systems.retain(|s| s.starts_with("larder") || bench.peers.iter().any(|p| p == s));
    let mut runs: BTreeMap<&str, Vec<Outcome>> = BTreeMap::new();
    for run in 0..bench.runs {
        // Feast's stores take minutes
        let mut turn: Vec<&str> = systems.iter().copied().filter(|s| run == 0 || !s.starts_with("feast")).collect();
        // Whoever comes first finds the memory as others left it.
        let first = run % turn.len().max(1);
        turn.rotate_left(first);
        for system in turn {
            let world = &bench.world;
            let done = match system {
                "larder-export" => world.export(case.work, case.memory, case.rows),
                s if s.starts_with("larder") => server.measure(|| world.join(s, case.work, case.rows)),
                s => world.join(s, case.work, case.rows),
            };
            match done {
                Ok(outcome) => {
                    show(system, &outcome);
                    runs.entry(system).or_default().push(outcome);
                }
                Err(error) => {
                    systems.retain(|s| *s != system);
                    if system.starts_with("feast") {
                        bench.note(format!("{}: {system}: {error}", case.name));
                    } else {
                        bench.figures.failed(format!("{}: {system}", case.name), error);
                    }
                }
            }
        }
    }
    keep(bench, case, &runs);
    server.stop()
}

/// Keeps the figures, and compares what came out: with DuckDB's, or with the first that there is.
fn keep(bench: &mut Bench, case: &Case, runs: &BTreeMap<&str, Vec<Outcome>>) {
    let reference = ["duckdb"].iter().chain(case.systems).find_map(|s| Some((*s, runs.get(s)?.first()?.clone())));
    for (system, outcomes) in runs {
        let name = |what: &str| format!("{}/{system}/{what}", case.name);
        let mut put = |what: &str, of: &dyn Fn(&Outcome) -> Option<f64>| {
            let values: Vec<f64> = outcomes.iter().filter_map(of).collect();
            if !values.is_empty() {
                bench.figures.put(name(what), &values);
            }
        };
        put("wall", &|o| Some(o.wall));
        put("cpu", &|o| Some(o.cpu));
        put("rss", &|o| Some(o.rss));
        put("first", &|o| o.first);
        let Some((of, wanted)) = &reference else { continue };
        if let Some(other) = outcomes.iter().find(|o| o.hash != wanted.hash) {
            let (rows, wanted) = (number(other.rows as f64), number(wanted.rows as f64));
            let text = format!("{system} gives {rows} rows, {of} {wanted}, and their contents differ");
            if system.starts_with("feast") {
                bench.note(format!("{}: {text}", case.name));
            } else {
                bench.figures.failed(case.name, text);
            }
        }
    }
}

fn show(system: &str, outcome: &Outcome) {
    println!(
        "  {system:<13} {:>8} s {:>8} CPU-s {:>7} MB{}, {} rows, {}",
        number(outcome.wall),
        number(outcome.cpu),
        number(outcome.rss),
        outcome.first.map(|s| format!(", first batch after {} s", number(s))).unwrap_or_default(),
        number(outcome.rows as f64),
        outcome.hash,
    );
}
