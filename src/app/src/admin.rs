//! The commands that steer a running server over its HTTP port: `backfill` and `streams`. Knows no store and no stream:
//! it asks and shows.

use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use reqwest::{Client, Method};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli;
use crate::config::Config;

/// How often a job is asked how far it is.
const ASK: Duration = Duration::from_millis(200);

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no server answers at {address}: {source} (name a running one with --server http://HOST:PORT)")]
    Away { address: String, source: reqwest::Error },
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("the server at {address} gave an answer that is not Larder's: {source}")]
    Answer { address: String, source: serde_json::Error },
    #[error("the backfill ended as {status}: {reason}")]
    Ended { status: String, reason: String },
    #[error("the job {0} is not known to the server any more")]
    Lost(String),
}

/// A running server, and the project that is meant.
pub(crate) struct Server {
    client: Client,
    address: String,
    project: String,
}

#[derive(Deserialize)]
struct Accepted {
    id: String,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    id: String,
    status: String,
    phase: Option<String>,
    lag: Option<u64>,
    waits: Option<String>,
    #[serde(default)]
    rows: u64,
    #[serde(default)]
    applied: u64,
    #[serde(default)]
    skipped: u64,
    end_ts: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Streams {
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Stream {
    feature_view: String,
    topic: String,
    state: String,
    reason: Option<String>,
    cut_over: Option<String>,
    partitions: Vec<Partition>,
}

#[derive(Deserialize)]
struct Partition {
    #[serde(rename = "partition")]
    number: i32,
    position: Option<i64>,
    lag: Option<i64>,
    watermark: Option<String>,
}

impl Server {
    /// The one that is named, else that of the configuration.
    pub(crate) fn new(config: &Config, server: &cli::Server) -> Self {
        let address = match &server.address {
            Some(address) if address.contains("://") => address.trim_end_matches('/').to_owned(),
            Some(address) => format!("http://{address}"),
            None => format!("http://{}:{}", config.host, config.ports.online),
        };
        let project = server.project.clone().unwrap_or_else(|| config.project.clone());
        Self { client: Client::new(), address, project }
    }

    /// Asks; gives the answer's text, or the reason of a refusal.
    pub(crate) async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Error> {
        let away = |source| Error::Away { address: self.address.clone(), source };
        let mut request = self.client.request(method, format!("{}{path}", self.address));
        request = request.header("feast-project", &self.project);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let text = answer.text().await.map_err(away)?;
        if !status.is_success() {
            let told = serde_json::from_str::<Value>(&text).ok();
            let reason = told.as_ref().and_then(|v| v["detail"].as_str().or_else(|| v["error"].as_str()));
            return Err(Error::Refused(reason.map_or_else(|| format!("{status} {text}"), str::to_owned)));
        }
        serde_json::from_str(&text).map_err(|source| Error::Answer { address: self.address.clone(), source })
    }
}

/// Builds a windowed view's state from its batch source, and shows how far that is.
pub(crate) async fn backfill(config: Config, options: cli::Backfill) -> Result<(), Error> {
    let server = Server::new(&config, &options.server);
    let body = json!({
        "start_ts": options.from, "end_ts": options.cutover, "feature_views": [options.view.clone()],
    });
    let Accepted { id } = server.ask(Method::POST, "/materialize?async=true", Some(body)).await?;
    let (start, bar) = (Instant::now(), ProgressBar::new_spinner());
    // the template is ours
    let style = ProgressStyle::with_template("{elapsed} {spinner} {human_pos} events, {msg}, {per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    loop {
        let Jobs { jobs } = server.ask(Method::GET, "/jobs", None).await?;
        let job = jobs.into_iter().find(|job| job.id == id).ok_or_else(|| Error::Lost(id.clone()))?;
        bar.set_position(job.rows);
        bar.set_message(how_far(&job));
        match job.status.as_str() {
            "waiting" | "running" => tokio::time::sleep(ASK).await, // a job can only be asked how far it is
            "done" => {
                bar.finish_and_clear();
                println!(
                    "{}: {} entities from {} events ({} rows without key or time) in {}; the stream goes on from {}",
                    options.view,
                    HumanCount(job.applied),
                    HumanCount(job.rows),
                    HumanCount(job.skipped),
                    HumanDuration(start.elapsed()),
                    job.end_ts.unwrap_or_default()
                );
                return Ok(());
            }
            status => {
                bar.finish_and_clear();
                return Err(Error::Ended { status: status.to_owned(), reason: job.error.unwrap_or_default() });
            }
        }
    }
}

/// What the bar says beside the number of events.
fn how_far(job: &Job) -> String {
    let entities = format!("{} entities", HumanCount(job.applied));
    match (job.phase.as_deref(), &job.waits, job.lag) {
        (Some("catching_up"), Some(waits), _) => format!("{entities}; to catch up with the stream it waits: {waits}"),
        (Some("catching_up"), None, Some(lag)) => {
            format!("{entities}; catching up with the stream, {} messages behind", HumanCount(lag))
        }
        (Some("catching_up"), None, None) => format!("{entities}; catching up with the stream"),
        _ => entities,
    }
}

/// Lists the streams, or steers one and shows it.
pub(crate) async fn streams(config: Config, options: cli::Streams) -> Result<(), Error> {
    let server = Server::new(&config, &options.server);
    let (view, verb, body) = match options.verb {
        None => {
            let Streams { streams } = server.ask(Method::GET, "/streams", None).await?;
            show(&streams);
            return Ok(());
        }
        Some(cli::Steer::Pause { view }) => (view, "pause", None),
        Some(cli::Steer::Resume { view }) => (view, "resume", None),
        Some(cli::Steer::Seek { view, to }) => (view, "seek", Some(json!({ "to": to }))),
    };
    let stream: Stream = server.ask(Method::POST, &format!("/streams/{view}/{verb}"), body).await?;
    show(&[stream]);
    Ok(())
}

fn show(streams: &[Stream]) {
    let row = |view: &str, topic: &str, partition: &str, state: &str, position: &str, lag: &str, watermark: &str| {
        println!("{view:<32} {topic:<32} {partition:>9} {state:<10} {position:>12} {lag:>10} {watermark}");
    };
    row("VIEW", "TOPIC", "PARTITION", "STATE", "POSITION", "LAG", "WATERMARK");
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for stream in streams {
        let Stream { feature_view: view, topic, state, .. } = stream;
        if stream.partitions.is_empty() {
            row(view, topic, "-", state, "-", "-", "-");
        }
        for p in &stream.partitions {
            let watermark = p.watermark.as_deref().unwrap_or("-");
            row(view, topic, &p.number.to_string(), state, &number(p.position), &number(p.lag), watermark);
        }
        if let Some(cut_over) = &stream.cut_over {
            println!("  events from before {cut_over} come from a backfill");
        }
        if let Some(reason) = &stream.reason {
            println!("  {reason}");
        }
    }
}
