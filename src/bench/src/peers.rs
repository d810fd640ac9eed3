//! The servers that are compared: how each is configured, started and filled. All listen on loopback.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, tried};
use crate::load::{self, Target};
use crate::machine;
use crate::null;
use crate::process::{self, Process, command};
use crate::wire::{Prepared, Protocol};
use crate::workload::{self, PROJECT, PUSH_ROWS, Shape};

/// How long a server may take from its first listening to its first answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Where data and logs go; what was prepared there by an earlier run is used again.
    pub(crate) work: PathBuf,
    /// The binary `larder`.
    pub(crate) larder: PathBuf,
    /// The Python environment with Feast.
    pub(crate) venv: PathBuf,
    /// `feast_peer.py`, or `offline_peer.py`.
    pub(crate) script: PathBuf,
    /// The core that servers run on; this process runs on another. `None` pins nothing.
    pub(crate) core: Option<usize>,
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The server under load of one protocol: 4 connections with 8 requests each in flight (HTTP: 32
    /// connections with one; Redis: 4 with 4; Feast: 4 connections, which keep all its processes busy).
    pub(crate) fn target(&self, protocol: Protocol) -> Target {
        let depth = match (protocol, self.name) {
            (_, "feast-sqlite" | "feast-redis") => 1,
            (Protocol::Redis, _) => 4,
            _ => 8,
        };
        Target { protocol, address: self.address, pid: self.pid(), connections: 4, depth }
    }

    /// Waits until it rests from its background work: the CPU seconds that it has used by then.
    pub(crate) fn rest(&self) -> Result<f64> {
        machine::at_rest(self.pid()).ok_or_else(|| self.process.error("did not come to rest"))
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(tried(format!("writing {}", path.display())))
}

impl Setup {
    /// Runs the script with these arguments.
    pub(crate) fn python(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let python = self.venv.join("bin/python");
        if !python.exists() {
            return Err(Error::Missing(format!("{} is not there: run scripts/setup.sh", python.display())));
        }
        let script = self.script.display().to_string();
        let words: Vec<&str> = [script.as_str()].into_iter().chain(arguments.iter().copied()).collect();
        Process::spawn(name, &command(&python, &words), &self.work, None)?.wait()
    }

    /// Does `work` unless an earlier run did it in `dir` as `what`.
    pub(crate) fn once(dir: &Path, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = dir.join(format!(".{what}"));
        if !stamp.exists() {
            work()?;
            write(&stamp, "")?;
        }
        Ok(())
    }

    /// The directory of a feature repo applied by Feast's own SDK to a registry file.
    pub(crate) fn repo(&self, store: &str) -> Result<PathBuf> {
        let dir = self.work.join(format!("feast-{}", store.replace(':', "-")));
        Self::once(&dir, "applied", || self.python("feast-apply", &["apply", &dir.display().to_string(), store]))?;
        Ok(dir)
    }

    /// Starts Larder on its embedded store in `work/<name>`, with Feast's registry file.
    pub(crate) fn larder(&self, name: &str, durability: &str) -> Result<Server> {
        let repo = self.repo("sqlite")?;
        let dir = self.work.join(name);
        fs::create_dir_all(&dir).map_err(tried(format!("making {}", dir.display())))?;
        let registry = repo.join("data/registry.db");
        // The tier and sled's cache hold the largest data set whole.
        let yaml = format!(
            "project: {PROJECT}\nregistry:\n  type: file\n  path: {}\nonline_store:\n  type: sled\n  durability: \
             {durability}\n  tier_bytes: {}\n  cache_bytes: {}\n",
            registry.display(),
            4_u64 << 30,
            3_u64 << 30
        );
        write(&dir.join("larder.yaml"), &yaml)?;
        let (address, metrics) = (process::free_address()?, process::free_address()?);
        let (port, metrics) = (address.port().to_string(), metrics.port().to_string());
        let here = dir.display().to_string();
        let arguments =
            ["serve", "-c", &here, "--services", "online", "--online-port", &port, "--metrics-port", &metrics];
        let mut process = Process::spawn("larder", &command(&self.larder, &arguments), &dir, self.core)?;
        process.wait_for(address)?;
        let server = Server { name: "larder", address, process };
        // what an earlier run left in the log goes into sled first: that is no part of a read
        server.rest()?;
        Ok(server)
    }

    /// Larder with the rows of `keys` users in the first `views` views, pushed there in 500s.
    pub(crate) fn filled_larder(&self, keys: u64, views: usize) -> Result<Server> {
        let name = format!("larder-{keys}-{views}");
        let dir = self.work.join(&name);
        if !dir.join(".filled").exists() && dir.exists() {
            fs::remove_dir_all(&dir).map_err(tried(format!("removing {}", dir.display())))?;
        }
        Self::once(&dir, "filled", || {
            let server = Self { core: None, ..self.clone() }.larder(&name, "memory")?;
            for view in 0..views {
                for start in (0..keys).step_by(PUSH_ROWS * 200) {
                    let users: Vec<i64> = (start as i64..keys.min(start + PUSH_ROWS as u64 * 200) as i64).collect();
                    let pushes: Vec<Prepared> =
                        users.chunks(PUSH_ROWS).map(|users| workload::push(view, users, 0)).collect();
                    load::each(server.target(Protocol::Http), &pushes)?;
                }
            }
            server.stop()
        })?;
        self.larder(&name, "fsync")
    }

    /// The null server, with answers of Larder's to the first of each shape's requests.
    pub(crate) fn null(&self, larder: &Server, shapes: &[Shape]) -> Result<Server> {
        let dir = self.work.join("null");
        fs::create_dir_all(&dir).map_err(tried(format!("making {}", dir.display())))?;
        for shape in shapes {
            let users = workload::users(*shape, 10_000, 1).remove(0);
            for (protocol, name, request) in [
                (Protocol::Grpc, "grpc", workload::grpc(*shape, &users)),
                (Protocol::Http, "http", workload::http(*shape, &users)),
            ] {
                let path = null::file(&dir, name, *shape);
                let answer = load::ask(larder.target(protocol), &[request])?.remove(0);
                fs::write(&path, answer).map_err(tried(format!("writing {}", path.display())))?;
            }
        }
        let address = process::free_address()?;
        let me = std::env::current_exe().map_err(tried("this program's path"))?;
        let arguments = ["null", "--answers", &dir.display().to_string(), "--port", &address.port().to_string()];
        let mut process = Process::spawn("null", &command(&me, &arguments), &dir, self.core)?;
        process.wait_for(address)?;
        Ok(Server { name: "null", address, process })
    }

    /// `feast serve`, one worker process per core, on a repo that is filled through the SDK
    /// (with no keys it is not).
    pub(crate) fn feast(&self, store: &str, keys: u64, views: usize) -> Result<Server> {
        if store != "sqlite" {
            self.packages()?;
        }
        let dir = self.repo(store)?;
        if keys > 0 {
            Self::once(&dir, &format!("filled-{keys}-{views}"), || {
                let words = ["fill", &dir.display().to_string(), &keys.to_string(), &views.to_string()];
                self.python("feast-fill", &words)
            })?;
        }
        let address = process::free_address()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let port = address.port().to_string();
        let feast = self.venv.join("bin/feast");
        // a worker that restarts after some requests, as is the default, would be measured as work
        let arguments = ["serve", "-p", &port, "-w", &cores, "--no-access-log", "--max-requests", "0"];
        let mut process = Process::spawn("feast-serve", &command(&feast, &arguments), &dir, None)?;
        process.wait_for(address)?;
        let name = if store == "sqlite" { "feast-sqlite" } else { "feast-redis" };
        let server = Server { name, address, process };
        // gunicorn listens before its workers are there
        let shape = Shape { entities: 1, features: 50 };
        let first = [workload::http(shape, &[1])];
        let start = Instant::now();
        loop {
            match load::ask(server.target(Protocol::Http), &first) {
                Ok(_) => return Ok(server),
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                // nothing tells when another process answers: ask again
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Installs what peers need and the environment has not, beside the data; again when the list has changed.
    pub(crate) fn packages(&self) -> Result<()> {
        let target = self.work.join(process::PACKAGES);
        let list = self.script.with_file_name("requirements.txt");
        let mut wanted = DefaultHasher::new();
        fs::read(&list).map_err(tried(list.display().to_string()))?.hash(&mut wanted);
        Self::once(&self.work, &format!("packages-{:016x}", wanted.finish()), || {
            if target.exists() {
                fs::remove_dir_all(&target).map_err(tried(format!("removing {}", target.display())))?;
            }
            let list = list.display().to_string();
            let target = target.display().to_string();
            let words = ["install", "-q", "--disable-pip-version-check", "--no-deps", "--target", &target, "-r", &list];
            Process::spawn("pip", &command(&self.venv.join("bin/pip"), &words), &self.work, None)?.wait()
        })
    }

    /// An empty `redis-server` that keeps nothing on disk.
    pub(crate) fn redis(&self) -> Result<Server> {
        let address = process::free_address()?;
        let port = address.port().to_string();
        let dir = self.work.join("redis");
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let mut process = Process::spawn("redis", &command(Path::new("redis-server"), &arguments), &dir, self.core)?;
        process.wait_for(address)?;
        Ok(Server { name: "redis", address, process })
    }
}
