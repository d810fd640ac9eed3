//! One worker process: a Python interpreter that runs our script (`worker.py`) and serves one call at a
//! time on a Unix socket in a directory that only this user can enter.
//!
//! A worker that takes too long, has too much memory or ended is of no more use; who holds it starts
//! another. Dropping it kills the process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use model::{Error, Kind, Result};
use proto::feast::serving::{TransformFeaturesRequest, TransformFeaturesResponse};
use rpc::stubs::feast::serving::transformation_service_client::TransformationServiceClient;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tonic::metadata::{BinaryMetadataValue, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use super::call::{refused, too_long};

/// The script's name in the directory.
pub(super) const SCRIPT: &str = "worker.py";
/// How long an interpreter may take to import Feast.
const START: Duration = Duration::from_mins(2);
/// How often a running worker's memory is looked at.
const WATCH: Duration = Duration::from_millis(50);
/// How long a broken connection may be ahead of the process's end.
const ENDING: Duration = Duration::from_secs(2);
/// The lines of a worker's standard error that are kept for the message of a failed start.
const LAST_LINES: usize = 20;

/// A worker that is ready.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    client: TransformationServiceClient<Channel>,
}

/// What came of a call, and whether the worker can take another.
pub(super) struct Outcome {
    pub(super) result: Result<TransformFeaturesResponse>,
    /// Why it must be replaced; `None` where it need not be.
    pub(super) broken: Option<&'static str>,
}

impl Worker {
    /// Starts a process and waits until it serves.
    ///
    /// Errors: `Unavailable` with what the process said on its standard error.
    pub(super) async fn start(starter: &Starter, interpreter: &Path, directory: &Path, name: &str) -> Result<Self> {
        let socket = directory.join(name);
        let mut command = Command::new(interpreter);
        command.arg(directory.join(SCRIPT)).arg(directory).arg(&socket).env("FEAST_USAGE", "False");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |why: String| {
            let message = format!("the interpreter {} runs no transformation worker: {why}", interpreter.display());
            Error::new(Kind::Unavailable, message)
        };
        let mut process = starter.spawn(command).await.map_err(|e| failed(e.to_string()))?;
        let said = process.log().map_err(|e| failed(e.to_string()))?;
        let ready = process.ready().map_err(|e| failed(e.to_string()))?;
        if timeout(START, ready).await.ok() != Some(true) {
            sleep(Duration::from_millis(100)).await; // its last words may still be in the pipe
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(failed(said.iter().map(String::as_str).collect::<Vec<_>>().join("\n")));
        }
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://worker")
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(8 << 20);
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| failed(e.to_string()))?;
        let client = TransformationServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(Self { process, client })
    }

    /// Whether the process has not ended.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.process.child.try_wait(), Ok(None))
    }

    /// Makes one call.
    pub(super) async fn run(
        &mut self,
        request: TransformFeaturesRequest,
        about: &[u8],
        deadline: Duration,
        memory_bytes: u64,
    ) -> Outcome {
        let mut request = tonic::Request::new(request);
        let about: BinaryMetadataValue = MetadataValue::from_bytes(about);
        request.metadata_mut().insert_bin("larder-call-bin", about);
        let until = Instant::now() + deadline;
        let mut client = self.client.clone();
        let call = client.transform_features(request);
        tokio::pin!(call);
        let mut watch = interval(WATCH);
        let too_much = |bytes: u64| {
            let limit = memory_bytes >> 20;
            Error::invalid(format!(
                "its function made its process {} MiB large, over the limit of {limit} MiB (transformations.memory_mb): \
                 ask for fewer rows, or mend it",
                bytes >> 20
            ))
        };
        loop {
            tokio::select! {
                answer = &mut call => {
                    let result = match answer {
                        Ok(answer) => Ok(answer.into_inner()),
                        Err(status) => match refused(&status) {
                            Some(error) => Err(error),
                            None => return self.broken(status).await,
                        },
                    };
                    let swollen = self.process.memory().is_some_and(|bytes| bytes > memory_bytes);
                    return Outcome { result, broken: swollen.then_some("memory") };
                }
                () = sleep_until(until) => return Outcome { result: Err(too_long(deadline)), broken: Some("deadline") },
                _ = watch.tick() => {
                    if let Some(bytes) = self.process.memory().filter(|bytes| *bytes > memory_bytes) {
                        return Outcome { result: Err(too_much(bytes)), broken: Some("memory") };
                    }
                }
            }
        }
    }

    /// The connection broke: the process ended, most likely.
    async fn broken(&mut self, status: tonic::Status) -> Outcome {
        let until = Instant::now() + ENDING;
        while Instant::now() < until {
            if let Ok(Some(ended)) = self.process.child.try_wait() {
                let message = format!("its function ended its process ({})", how(ended));
                return Outcome { result: Err(Error::invalid(message)), broken: Some("ended") };
            }
            sleep(Duration::from_millis(5)).await;
        }
        let error = Error::new(Kind::Unavailable, "the connection to its worker broke").with_cause(status);
        Outcome { result: Err(error), broken: Some("connection") }
    }
}

fn how(ended: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => ended.to_string(),
    }
}

/// A child process that is killed when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    /// The worker ends when this closes.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Sends its standard error to the log, line by line; gives the last lines.
    fn log(&mut self) -> io::Result<Arc<Mutex<VecDeque<String>>>> {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let Some(stderr) = self.child.stderr.take() else { return Ok(last) };
        let mut lines = BufReader::new(Receiver::from_owned_fd(OwnedFd::from(stderr))?).lines();
        let (kept, pid) = (last.clone(), self.child.id());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::info!(pid, "transformation worker: {line}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == LAST_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Ok(last)
    }

    /// Waits for the word `ready` on its standard output; false where that ends without it.
    fn ready(&mut self) -> io::Result<impl Future<Output = bool> + use<>> {
        let stdout = self.child.stdout.take().map(|s| Receiver::from_owned_fd(OwnedFd::from(s))).transpose()?;
        Ok(async move {
            let Some(stdout) = stdout else { return false };
            let line = BufReader::new(stdout).lines().next_line().await;
            matches!(line, Ok(Some(line)) if line == "ready")
        })
    }

    /// Its resident memory, bytes; `None` where this system does not say.
    fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails only where it ended before
        let _ = self.child.wait();
    }
}

/// A thread that starts processes. They ask the kernel to be killed when the thread that started them
/// ends, so that must be one that lasts: no thread of the runtime promises that.
#[derive(Debug)]
pub(super) struct Starter {
    orders: mpsc::Sender<(Command, oneshot::Sender<io::Result<Process>>)>,
}

impl Starter {
    pub(super) fn new() -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<(Command, oneshot::Sender<io::Result<Process>>)>();
        thread::Builder::new().name("transformations".into()).spawn(move || {
            for (mut command, started) in taken {
                let process = command.spawn().map(|mut child| Process { _stdin: child.stdin.take(), child });
                let _ = started.send(process); // nobody waits any more: dropped, and so killed
            }
        })?;
        Ok(Self { orders })
    }

    async fn spawn(&self, command: Command) -> io::Result<Process> {
        let (started, process) = oneshot::channel();
        let gone = || io::Error::other("the starting thread has ended");
        self.orders.send((command, started)).map_err(|_| gone())?;
        process.await.map_err(|_| gone())?
    }
}
