//! Materialization: rows of the source for a second, of Larder into sled and of Feast into SQLite. Knows no process.

use super::Bench;
use super::world::{Memory, Outcome};
use crate::error::Result;
use crate::figures::number;

/// The times of reads.
pub(super) const QUANTILES: [&str; 6] = ["quiet_p50", "quiet_p99", "busy_p50", "busy_p99", "export_p50", "export_p99"];

pub(super) fn run(bench: &mut Bench) {
    println!("\nF");
    let works = [("F-tenth", 1, Memory::Default), ("F", bench.runs, Memory::Default)];
    // a peak of memory is another in each run
    let small = [("F-tenth", 1), ("F", bench.runs), ("F-triple", bench.runs)];
    let small = small.map(|(work, runs)| (work, runs, Memory::Small));
    for (work, runs, memory) in works.into_iter().chain(small) {
        if let Err(error) = larder(bench, work, runs, memory) {
            bench.figures.failed(format!("{work}: larder"), error);
        }
    }
    if bench.peers.iter().any(|p| p == "feast-dask") {
        match bench.world.fill("feast", "F-tenth") {
            Ok(outcome) => keep(bench, "F-tenth", "feast", &[outcome]),
            Err(error) => bench.figures.failed("F: feast", error),
        }
    }
}

fn larder(bench: &mut Bench, work: &str, runs: usize, memory: Memory) -> Result<()> {
    let name = if matches!(memory, Memory::Small) { "larder-small" } else { "larder" };
    let mut outcomes = Vec::new();
    for _ in 0..runs {
        // an online store of its own: the first time is what is measured
        let server = bench.world.larder(memory)?;
        let mut outcome = server.measure(|| bench.world.fill("larder", work))?;
        if matches!(memory, Memory::Default) {
            outcome.reads.extend(bench.world.beside(work)?.reads);
        }
        outcomes.push(outcome);
        server.stop()?;
    }
    keep(bench, work, name, &outcomes);
    Ok(())
}

fn keep(bench: &mut Bench, work: &str, system: &str, outcomes: &[Outcome]) {
    for o in outcomes {
        let (rows, wall) = (number(o.rows as f64), number(o.wall));
        println!("  {system:<12} {rows:>10} rows {wall:>8} s {:>8} CPU-s {:>7} MB", number(o.cpu), number(o.rss));
    }
    for quantile in QUANTILES {
        let values: Vec<f64> = outcomes.iter().filter_map(|o| o.reads.get(quantile)).copied().collect();
        if !values.is_empty() {
            println!("  read, {quantile}: {} ms", bench.figures.put(format!("{work}/{system}/{quantile}"), &values));
        }
    }
    let mut put = |what: &str, of: &dyn Fn(&Outcome) -> f64| {
        let values: Vec<f64> = outcomes.iter().map(of).collect();
        bench.figures.put(format!("{work}/{system}/{what}"), &values);
    };
    put("wall", &|o| o.wall);
    put("cpu", &|o| o.cpu);
    put("rss", &|o| o.rss);
    put("rows-per-second", &|o| o.rows as f64 / o.wall);
    put("rows-per-cpu-second", &|o| o.rows as f64 / o.cpu);
}
