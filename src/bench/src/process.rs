//! Child processes: started on a core, with a log file, ended when they are dropped. Knows no server.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, tried};

/// How long a server may take until it accepts connections.
const START: Duration = Duration::from_mins(2);
/// How long one may take to end after SIGTERM.
const STOP: Duration = Duration::from_mins(1);

/// Python packages beside the data that are not in the environment.
pub(crate) const PACKAGES: &str = "python";

/// A child process and what it starts, in a process group of their own; dropping it kills them.
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

/// A port on loopback that nobody listened on a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    free_addresses().map(|[address]| address)
}

/// Some such ports, all different.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    let mut listeners = Vec::with_capacity(N);
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).map_err(tried("looking for a free port"))?;
        *address = listener.local_addr().map_err(tried("looking for a free port"))?;
        listeners.push(listener);
    }
    Ok(addresses)
}

/// What to start: program and arguments.
pub(crate) fn command(program: &Path, arguments: &[&str]) -> Vec<String> {
    let arguments = arguments.iter().map(|a| (*a).to_owned());
    std::iter::once(program.display().to_string()).chain(arguments).collect()
}

impl Process {
    /// Starts it in `dir`, on one core where one is named. It dies with this process, however that ends.
    pub(crate) fn spawn(name: &str, command: &[String], dir: &Path, core: Option<usize>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(tried(format!("making {}", dir.display())))?;
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log).map_err(tried(format!("making {}", log.display())))?;
        let errors = output.try_clone().map_err(tried("a log file"))?;
        let mut words: Vec<String> = ["setpriv", "--pdeathsig", "KILL", "--"].map(String::from).to_vec();
        if let Some(core) = core {
            words.extend(["taskset", "-c", &core.to_string()].map(String::from));
        }
        words.extend_from_slice(command);
        // what was installed beside the data, seen from the working directory or one below it
        let packages = format!("{}:{}", dir.join(PACKAGES).display(), dir.join("..").join(PACKAGES).display());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(dir)
            .env("PYTHONWARNINGS", "ignore")
            .env("PYTHONPATH", packages)
            .env("FEAST_USAGE", "False")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(tried(format!("starting {name}")))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::Process { name: self.name.clone(), what: what.into(), log: self.log.clone() }
    }

    /// Waits until it accepts connections.
    pub(crate) fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.error(format!("ended at once, {status}")));
            }
            if start.elapsed() > START {
                return Err(self.error(format!("did not listen within {} s", START.as_secs())));
            }
            // nothing tells when another process listens: ask again
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until it ended by itself.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait().map_err(tried("waiting for a child"))?;
        if status.success() { Ok(()) } else { Err(self.failed(status)) }
    }

    /// The same, but not for longer than `patience`: then it is killed.
    pub(crate) fn wait_within(mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < patience {
            match self.child.try_wait().map_err(tried("waiting for a child"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failed(status)),
                // std waits for a child without end or not at all: ask again
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(self.error(format!("did not finish within {} s", patience.as_secs())))
    }

    /// How it ended, with the last line of its log, where programs say why.
    fn failed(&self, status: ExitStatus) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
        self.error(format!("failed, {status}: {}", last.chars().take(300).collect::<String>()))
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = self.pid().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().map_err(tried("kill"))?;
        let start = Instant::now();
        while start.elapsed() < STOP {
            if self.child.try_wait().map_err(tried("waiting for a child"))?.is_some() {
                return Ok(());
            }
            // std waits for a child without end or not at all: ask again
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.error(format!("did not end within {} s", STOP.as_secs())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that has ended already is no error here. Its workers would outlive it: they are killed with it.
        let group = format!("-{}", self.pid());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
