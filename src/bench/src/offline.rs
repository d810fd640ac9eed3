//! `larder-bench offline`: training sets and materialization beside peers, one work after the other. What fails is
//! noted, and the next starts. Knows no Arrow: Python does the clients' part.

mod fill;
mod joins;
mod report;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli;
use crate::error::{Error, Result, absolute, tried};
use crate::figures::Figures;
use crate::machine;
use crate::peers::Setup;
use world::World;

/// What can be asked for: the lines of the table.
const WORKS: [&str; 6] = ["A", "B", "C", "D", "E", "F"];
const PEERS: [&str; 4] = ["duckdb", "polars", "feast-dask", "feast-duckdb"];

/// What a run has in common.
struct Bench {
    world: World,
    works: Vec<String>,
    peers: Vec<String>,
    runs: usize,
    /// The machine's load before anything was started.
    load: String,
    figures: Figures,
    /// What peers did not do, or did otherwise: that is a result, no failure of the measurement.
    notes: Vec<String>,
}

impl Bench {
    fn wants(&self, work: &str) -> bool {
        self.works.iter().any(|w| w == work)
    }

    fn note(&mut self, text: String) {
        println!("  {text}");
        self.notes.push(text);
    }
}

/// What `list` names; all of them where it names none.
fn chosen(option: &str, list: Option<&[String]>, all: &[&str]) -> Result<Vec<String>> {
    let Some(list) = list else { return Ok(all.iter().map(|&s| s.to_owned()).collect()) };
    match list.iter().find(|name| !all.contains(&name.as_str())) {
        Some(name) => Err(Error::Missing(format!("{option} {name}: is none of {}", all.join(", ")))),
        None => Ok(list.to_vec()),
    }
}

/// Runs what is asked for.
pub(crate) fn run(options: &cli::Offline) -> Result<()> {
    let (start, load) = (Instant::now(), machine::load());
    let only = (!options.only.is_empty()).then_some(options.only.as_slice());
    let works = chosen("--only", only, &WORKS)?;
    let server = absolute(&options.server)?;
    let shared = absolute(&options.shared)?.join("asof_data.py");
    for needed in [&server, &shared] {
        if !needed.is_file() {
            let message = format!("{} is not there: name it with --server or --shared", needed.display());
            return Err(Error::Missing(message));
        }
    }
    if !(options.scale > 0.0 && options.scale <= 1.0) {
        return Err(Error::Missing(format!("--scale {}: is a part, more than 0 and at most 1", options.scale)));
    }
    let setup = Setup {
        work: absolute(&options.work)?,
        larder: server,
        venv: absolute(&options.venv)?,
        script: Path::new(env!("CARGO_MANIFEST_DIR")).join("python/offline_peer.py"),
        core: None,
    };
    std::fs::create_dir_all(&setup.work).map_err(tried(format!("making {}", setup.work.display())))?;
    let world = World::new(setup, shared, options.scale, Duration::from_secs(options.patience), options.space)?;
    let mut bench = Bench {
        world,
        works,
        peers: chosen("--peers", options.peers.as_deref(), &PEERS)?,
        runs: options.runs.max(1),
        load,
        figures: Figures::default(),
        notes: Vec::new(),
    };
    bench.world.prepare(&bench.works)?;
    println!("  ({:.0} s for data and packages)", start.elapsed().as_secs_f64());
    for case in &joins::CASES {
        if bench.works.iter().any(|work| work == case.bar) {
            if let Err(error) = joins::run(&mut bench, case) {
                bench.figures.failed(case.name, error);
            }
            println!("  ({:.0} s so far)", start.elapsed().as_secs_f64());
        }
    }
    if bench.wants("F") {
        fill::run(&mut bench);
        println!("  ({:.0} s so far)", start.elapsed().as_secs_f64());
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
