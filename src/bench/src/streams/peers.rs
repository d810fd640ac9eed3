//! What `stream_peer.py` measures: Larder behind a real broker, and other engines on the same events, in turn. Knows no window.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::cli;
use crate::error::{Error, Result, absolute, tried};
use crate::figures::{Figures, number};
use crate::peers::Setup;
use crate::process::{Process, command};

/// What PyFlink and PySpark give for the million events: rows, and the sum of their counts.
pub(super) const ANSWER: (u64, u64) = (345_151, 5_000_000);
/// The longest that one run may take.
const PATIENCE: Duration = Duration::from_mins(20);
/// Events a second while freshness is measured, and for how many seconds.
const FRESH: [&str; 2] = ["50000", "20"];

/// What one run took, and what came out.
#[derive(Debug, Deserialize)]
struct Outcome {
    wall: f64,
    cpu: f64,
    rss: f64,
    rows: f64,
    sum: f64,
}

/// Milliseconds from an event's production to its value in an answer.
#[derive(Debug, Deserialize)]
struct Fresh {
    p50: f64,
    p99: f64,
    worst: f64,
    rate: f64,
}

/// Everything that runs outside this process.
pub(super) struct Peers {
    setup: Setup,
    events: PathBuf,
    flink: PathBuf,
    spark: PathBuf,
    shared: PathBuf,
}

impl Peers {
    /// Where things are. `None` where no server is named.
    pub(super) fn of(options: &cli::Streams) -> Result<Option<Self>> {
        let Some(server) = &options.server else { return Ok(None) };
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python/stream_peer.py");
        let setup = Setup {
            work: absolute(&options.work)?,
            larder: absolute(server)?,
            venv: absolute(&options.venv)?,
            script,
            core: None,
        };
        let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let python = |engine: &str| examples.join(engine).join(".venv/bin/python");
        Ok(Some(Self {
            setup,
            events: absolute(&options.events)?,
            flink: python("flink"),
            spark: python("spark"),
            shared: absolute(&options.shared)?.join("flink_hop.py"),
        }))
    }

    /// The binary under measure.
    pub(super) fn larder(&self) -> &PathBuf {
        &self.setup.larder
    }

    /// All systems in turn, `runs` times; then freshness, once.
    pub(super) fn run(&self, figures: &mut Figures, runs: usize) {
        let (flink, spark, hop) = (self.flink.display(), self.spark.display(), self.shared.display());
        let larder = self.setup.larder.display().to_string();
        let systems = [
            ("kafka/1x3", vec!["kafka".to_owned(), larder.clone(), "1x3".to_owned()]),
            ("flink", vec!["flink".to_owned(), flink.to_string(), hop.to_string()]),
            ("spark", vec!["spark".to_owned(), spark.to_string()]),
        ];
        let mut seen = systems.each_ref().map(|_| Vec::new());
        for _ in 0..runs {
            for ((name, words), seen) in systems.iter().zip(&mut seen) {
                match self.one::<Outcome>(words) {
                    Ok(outcome) => {
                        println!(
                            "  {name:<9} {:>8} s {:>8} CPU-s {:>7} MB",
                            number(outcome.wall),
                            number(outcome.cpu),
                            number(outcome.rss)
                        );
                        seen.push(outcome);
                    }
                    Err(error) => figures.failed(*name, error),
                }
            }
        }
        for ((name, _), seen) in systems.iter().zip(&seen) {
            if let Some(other) = seen.iter().map(|o| (o.rows as u64, o.sum as u64)).find(|o| !right(name, *o)) {
                figures.failed(*name, format!("{} rows, their sum {}: that is wrong", other.0, other.1));
            }
            let mut put = |what: &str, of: &dyn Fn(&Outcome) -> f64| {
                if !seen.is_empty() {
                    figures.put(format!("{name}/{what}"), &seen.iter().map(of).collect::<Vec<_>>());
                }
            };
            put("wall", &|o| o.wall);
            put("cpu", &|o| o.cpu);
            put("rss", &|o| o.rss);
            put("rate", &|o| 1e6 / o.wall);
        }
        self.fresh(figures, &larder);
    }

    fn fresh(&self, figures: &mut Figures, larder: &str) {
        let words = ["fresh", larder, FRESH[0], FRESH[1]].map(str::to_owned);
        match self.one::<Fresh>(&words) {
            Ok(fresh) => {
                for (what, value) in
                    [("p50", fresh.p50), ("p99", fresh.p99), ("worst", fresh.worst), ("rate", fresh.rate)]
                {
                    println!("  fresh, {what}: {}", number(value));
                    figures.put(format!("fresh/{what}"), &[value]);
                }
            }
            Err(error) => figures.failed("fresh", error),
        }
    }

    /// One run of the script: `words` are its command and what stands behind the directories.
    fn one<T: for<'a> Deserialize<'a>>(&self, words: &[String]) -> Result<T> {
        let python = self.setup.venv.join("bin/python");
        let out = self.setup.work.join("outcome.json");
        let [script, file, events, work] =
            [&self.setup.script, &out, &self.events, &self.setup.work].map(|path| path.display().to_string());
        let Some((what, rest)) = words.split_first() else { return Err(Error::Missing("a command".into())) };
        let arguments: Vec<&str> =
            [script.as_str(), what, &file, &events, &work].into_iter().chain(rest.iter().map(String::as_str)).collect();
        Process::spawn(what, &command(&python, &arguments), &self.setup.work, None)?.wait_within(PATIENCE)?;
        let text = std::fs::read(&out).map_err(tried(out.display().to_string()))?;
        serde_json::from_slice(&text).map_err(|e| Error::Answer(format!("{what} wrote no outcome: {e}")))
    }
}

/// Whether what came out is what must: all events by their users behind the broker, the shared answer of the rest.
fn right(name: &str, (rows, sum): (u64, u64)) -> bool {
    if name.starts_with("kafka") { sum == 1_000_000 && rows == 10_000 } else { (rows, sum) == ANSWER }
}
