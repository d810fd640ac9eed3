//! Where things are: the data, the Feast repos, the server under measure. Knows no work's numbers.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result, tried};
use crate::machine;
use crate::peers::Setup;
use crate::process::{self, Process, command};

/// How long the preparations and Larder itself may take for one thing.
const PATIENCE: Duration = Duration::from_hours(1);

/// What one run took, and what came out.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Outcome {
    /// Seconds from the request to the Arrow table.
    pub(super) wall: f64,
    /// CPU seconds of the client; the server's are added.
    pub(super) cpu: f64,
    /// The peak of who did the work, MB.
    pub(super) rss: f64,
    /// Seconds to the first batch.
    pub(super) first: Option<f64>,
    pub(super) rows: u64,
    pub(super) hash: String,
    /// Milliseconds that a read took, by quantile: before (`quiet_p50`), while rows were written (`busy_p50`), and while
    /// training sets were exported (`export_p50`).
    #[serde(default)]
    pub(super) reads: BTreeMap<String, f64>,
}

pub(super) struct World {
    pub(super) setup: Setup,
    shared: PathBuf,
    pub(super) scale: f64,
    patience: Duration,
    space: u64,
    online: SocketAddr,
    offline: SocketAddr,
    metrics: SocketAddr,
}

/// What Larder may take of memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Memory {
    Default,
    /// Joins may take so many bytes.
    Joins(u64),
    /// Little of everything.
    Small,
}

/// A store that keeps little in memory, and what offline work may take beside it, bytes.
const SMALL_STORE: &str =
    "online_store:\n  type: sled\n  tier_bytes: 32000000\n  cache_bytes: 64000000\n  log_bytes: 16000000\n";
const SMALL_LIMIT: u64 = 128_000_000;

/// Larder, serving.
pub(super) struct Server {
    process: Process,
}

impl Server {
    /// Runs `work`; adds the server's CPU until it rests, and takes its peak.
    pub(super) fn measure(&self, work: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
        let (pid, rest) = (self.process.pid(), || self.process.error("did not come to rest"));
        let before = machine::at_rest(pid).ok_or_else(rest)?;
        machine::forget_peak(pid).map_err(tried("resetting the peak of larder"))?;
        let mut out = work()?;
        out.rss = machine::peak_mb(pid);
        out.cpu += machine::at_rest(pid).ok_or_else(rest)? - before;
        Ok(out)
    }

    pub(super) fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(tried(format!("removing {}", dir.display())))?;
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl World {
    pub(super) fn new(setup: Setup, shared: PathBuf, scale: f64, patience: Duration, space: u64) -> Result<Self> {
        let [online, offline, metrics] = process::free_addresses()?;
        Ok(Self { setup, shared, scale, patience, space, online, offline, metrics })
    }

    /// The Parquet files.
    pub(super) fn data(&self) -> PathBuf {
        self.setup.work.join(format!("data-{}", self.scale))
    }

    /// The Feast repo of a system: `larder`, `dask` or `duckdb`.
    fn repo(&self, system: &str) -> PathBuf {
        self.setup.work.join(format!("repo-{}-{system}", self.scale))
    }

    /// Writes the data that is not there yet, installs the peers, and registers all that is there.
    pub(super) fn prepare(&self, works: &[String]) -> Result<()> {
        println!("Data, packages and repos in {}", self.setup.work.display());
        self.setup.packages()?;
        let data = self.data();
        fs::create_dir_all(&data).map_err(tried(format!("making {}", data.display())))?;
        for work in works {
            // one script writes A and B; E is D with less memory
            let parts: &[&str] = match work.as_str() {
                "A" | "B" => &["A"],
                "C" => &["C"],
                "F" => &["F", "F-tenth", "F-triple"],
                _ => &["D"],
            };
            for part in parts {
                Setup::once(&data, part, || {
                    let words = ["data", &text(&data), &self.scale.to_string(), part, &text(&self.shared)];
                    self.setup.python(&format!("data-{part}"), &words)
                })?;
            }
        }
        for (system, store) in
            [("larder", self.offline.to_string()), ("dask", "dask".to_owned()), ("duckdb", "duckdb".to_owned())]
        {
            let repo = self.repo(system);
            remove(&repo)?;
            self.setup.python("apply", &["apply", &text(&data), &text(&repo), &store])?;
        }
        Ok(())
    }

    fn configure(&self, dir: &Path, memory: Memory) -> Result<()> {
        remove(dir)?;
        fs::create_dir_all(dir).map_err(tried(format!("making {}", dir.display())))?;
        let registry = self.repo("larder").join("registry.db");
        let limit = |bytes: u64| format!("offline:\n  memory_limit_bytes: {bytes}\n");
        let more = match memory {
            Memory::Default => String::new(),
            Memory::Joins(bytes) => limit(bytes),
            Memory::Small => SMALL_STORE.to_owned() + &limit(SMALL_LIMIT),
        };
        let yaml = format!("project: bench\nregistry:\n  type: file\n  path: {}\n{more}", registry.display());
        fs::write(dir.join("larder.yaml"), yaml).map_err(tried(format!("configuring {}", dir.display())))
    }

    /// Starts Larder with nothing in its online store.
    pub(super) fn larder(&self, memory: Memory) -> Result<Server> {
        let dir = self.setup.work.join("larder");
        self.configure(&dir, memory)?;
        let ports = [self.online, self.offline, self.metrics].map(|address| address.port().to_string());
        let arguments = [
            "serve",
            "-c",
            &text(&dir),
            "--services",
            "online,offline",
            "--online-port",
            &ports[0],
            "--offline-port",
            &ports[1],
            "--metrics-port",
            &ports[2],
        ];
        let mut process = Process::spawn("larder", &command(&self.setup.larder, &arguments), &dir, None)?;
        process.wait_for(self.online)?;
        process.wait_for(self.offline)?;
        Ok(Server { process })
    }

    /// Runs the script, for a peer within limits; it writes what it measured into a file.
    fn script(&self, name: &str, peer: bool, words: &[&str]) -> Result<Outcome> {
        let out = self.setup.work.join("outcome.json");
        let python = text(&self.setup.venv.join("bin/python"));
        let (script, limit) = (text(&self.setup.script), format!("--as={}", self.space * 1_000_000_000));
        let mut all: Vec<String> = Vec::new();
        if peer {
            all.extend(["prlimit".to_owned(), limit]);
        }
        all.extend([python, script, words[0].to_owned(), text(&out)]);
        all.extend(words[1..].iter().map(|&w| w.to_owned()));
        let process = Process::spawn(name, &all, &self.setup.work, None)?;
        process.wait_within(if peer { self.patience } else { PATIENCE })?;
        let json = fs::read(&out).map_err(tried(text(&out)))?;
        serde_json::from_slice(&json).map_err(|e| Error::Answer(format!("{}: {e}", out.display())))
    }

    /// One training set by a client or a peer.
    pub(super) fn join(&self, system: &str, work: &str, rows: usize) -> Result<Outcome> {
        let peer = !system.starts_with("larder");
        let repo = self.repo(system.strip_prefix("feast-").unwrap_or("larder"));
        let words = ["join", system, work, &text(&self.data()), &text(&repo), &rows.to_string()];
        self.script(system, peer, &words)
    }

    /// One training set by `larder export`, in a process of its own, into a Parquet file.
    pub(super) fn export(&self, work: &str, memory: Memory, rows: usize) -> Result<Outcome> {
        let dir = self.setup.work.join("export");
        self.configure(&dir, memory)?;
        let words = ["export", &text(&self.setup.larder), work, &text(&dir), &rows.to_string()];
        self.script("larder-export", false, &words)
    }

    /// Reads while training sets are exported.
    pub(super) fn beside(&self, work: &str) -> Result<Outcome> {
        let words = ["beside", work, &text(&self.repo("larder")), &self.online.to_string()];
        self.script("beside", false, &words)
    }

    /// One materialization of a work's view, by `larder` or `feast`.
    pub(super) fn fill(&self, system: &str, work: &str) -> Result<Outcome> {
        let (peer, online) = (system != "larder", self.online.to_string());
        let repo = self.repo(if peer { "dask" } else { "larder" });
        let words = ["materialize", system, work, &text(&self.data()), &text(&repo), &online];
        self.script(&format!("materialize-{system}"), peer, &words)
    }
}
