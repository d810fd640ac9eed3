//! `larder-bench online`: the sections of the comparison, one after the other. A section that fails is noted,
//! and the next one starts. Knows no protocol's bytes.

mod latency;
mod many;
mod peers;
mod pushes;
mod reads;
mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli;
use crate::error::{Error, Result, absolute, tried};
use crate::figures::Figures;
use crate::machine;
use crate::peers::Setup;
use crate::wire::Protocol;
use crate::workload::{SHAPES, Shape};

/// One read that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) protocol: Protocol,
    pub(crate) shape: Shape,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Grpc => "grpc",
            Protocol::Http => "http",
            Protocol::Redis => "redis",
        };
        write!(f, "{protocol}-{}", self.shape)
    }
}

/// What a run has in common.
pub(crate) struct Bench {
    pub(crate) setup: Setup,
    pub(crate) items: Vec<Item>,
    pub(crate) sections: Vec<&'static str>,
    pub(crate) peers: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) runs: usize,
    /// Users of the large data set.
    pub(crate) many: u64,
    /// The machine's load before anything was started.
    pub(crate) load: String,
    pub(crate) figures: Figures,
}

const SECTIONS: [&str; 4] = ["latency", "million", "in-process", "push"];

impl Bench {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long a server runs under load before anything counts.
    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64((self.seconds / 4.0).clamp(0.2, 2.0))
    }

    pub(crate) fn has_peer(&self, name: &str) -> bool {
        self.peers.iter().any(|p| p == name)
    }

    /// How many views the data sets have: all, unless only requests of 50 features are asked for.
    pub(crate) fn views(&self) -> usize {
        self.items.iter().map(|i| i.shape.views()).max().unwrap_or(SHAPES[0].views())
    }

    pub(crate) fn wants(&self, section: &str) -> bool {
        self.sections.contains(&section)
    }
}

/// The reads and the sections that `--only` names; all of them where it names none.
fn chosen(only: &[String]) -> Result<(Vec<Item>, Vec<&'static str>)> {
    let all: Vec<Item> = [Protocol::Grpc, Protocol::Http]
        .into_iter()
        .flat_map(|protocol| SHAPES.map(|shape| Item { protocol, shape }))
        .collect();
    if only.is_empty() {
        return Ok((all, SECTIONS.to_vec()));
    }
    let (mut items, mut sections) = (Vec::new(), Vec::new());
    for name in only {
        if let Some(item) = all.iter().find(|i| i.to_string() == *name) {
            items.push(*item);
        } else if let Some(section) = SECTIONS.into_iter().find(|s| s == name) {
            sections.push(section);
        } else {
            let items: Vec<String> = all.iter().map(ToString::to_string).collect();
            let message = format!("--only {name}: is none of {}, {}", items.join(", "), SECTIONS.join(", "));
            return Err(Error::Missing(message));
        }
    }
    Ok((items, sections))
}

/// Runs what is asked for.
pub(crate) fn run(options: &cli::Online) -> Result<()> {
    let (start, load) = (Instant::now(), machine::load());
    let elapsed = || println!("  ({:.0} s so far)", start.elapsed().as_secs_f64());
    let (items, sections) = chosen(&options.only)?;
    let all = ["null", "feast-sqlite", "feast-redis", "redis"].map(String::from).to_vec();
    let default = if options.only.is_empty() { all } else { vec!["null".to_owned()] };
    let server = absolute(&options.server)?;
    if !server.is_file() {
        return Err(Error::Missing(format!("{} is not there: name the binary with --server", server.display())));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let setup = Setup {
        work: absolute(&options.work)?,
        larder: server,
        venv: absolute(&options.venv)?,
        script: Path::new(env!("CARGO_MANIFEST_DIR")).join("python/feast_peer.py"),
        core: (cores > 1).then_some(options.core),
    };
    if cores > 1 {
        pin((options.core + 1) % cores)?;
    }
    let mut bench = Bench {
        setup,
        items,
        sections,
        peers: options.peers.clone().unwrap_or(default),
        seconds: options.seconds,
        runs: options.runs.max(1),
        many: options.many,
        load,
        figures: Figures::default(),
    };
    reads::run(&mut bench);
    elapsed();
    peers::run(&mut bench);
    elapsed();
    for (name, section) in [("million", many::run as fn(&mut Bench) -> Result<()>), ("in-process", many::in_process)] {
        if bench.wants(name) {
            if let Err(error) = section(&mut bench) {
                bench.figures.failed(name, error);
            }
            elapsed();
        }
    }
    if bench.wants("push") {
        pushes::run(&mut bench);
        elapsed();
    }
    println!("\n{}", report::table(&bench.figures));
    if let Some(path) = &options.report {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        std::fs::write(path, report::page(&bench, &command)).map_err(tried(path.display().to_string()))?;
        println!("written to {}", path.display());
    }
    if bench.figures.failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Answer(format!("{} things could not be measured: see above", bench.figures.failures.len())))
    }
}

/// Puts this process on one core.
fn pin(core: usize) -> Result<()> {
    let me = std::process::id().to_string();
    let done = std::process::Command::new("taskset").args(["-cp", &core.to_string(), &me]).output();
    let done = done.map_err(tried("taskset (of util-linux)"))?;
    if done.status.success() { Ok(()) } else { Err(Error::Missing("taskset could not pin this process".into())) }
}
