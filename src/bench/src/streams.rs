//! `larder-bench streams`: JSON events through the pipeline of a consumer, decoded, folded into windows and durable
//! in the embedded store, with no broker; then, where a server is named, behind one and beside peers. Knows no Kafka
//! client.

mod entities;
mod hot;
mod peers;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ingest::decode::avro::Writers;
use ingest::feed::Feed;
use ingest::formats::Formats;
use ingest::message::{Body, Copies, Message};
use ingest::pipeline::{self, Progress, Taker};
use ingest::writer::{Checkpoints, Pace, Writer};
use model::ports::{Object, ObjectKind, OnlineStore};
use model::registry::Registry;
use model::value::{ValueType, proto_value::Val};
use model::{EntityKey, Timestamp, Value};
use prost::Message as _;
use proto::feast::core::{self, stream_format};
use service::windows::live::Live;

use crate::cli;
use crate::error::{Error, Result, tried};
use crate::figures::Figures;
use crate::{machine, page};
use peers::{ANSWER, Peers};

const PROJECT: &str = "bench";
const MINUTE: i64 = 60_000_000;
/// The events come out of order by as much.
const DISORDER: i64 = 5_000_000;

/// Runs what is asked for.
pub(crate) fn run(options: &cli::Streams) -> Result<()> {
    let load = machine::load();
    let mut figures = Figures::default();
    std::fs::create_dir_all(&options.work).map_err(tried(format!("making {}", options.work.display())))?;
    entities::run(options, &mut figures)?;
    in_process(options, &mut figures)?;
    hot::run(options, &mut figures)?;
    let peers = Peers::of(options)?;
    if let Some(peers) = &peers {
        peers.run(&mut figures, options.runs);
    }
    let entities = report::Entities::of(options);
    println!("\n{}", report::table(&figures, entities));
    if let (Some(path), Some(peers)) = (&options.report, &peers) {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let mut head = String::new();
        page::head(&mut head, peers.larder(), &command, &load, &[format!("runs: {}", options.runs)]);
        std::fs::write(path, report::page(&head, &figures, entities)).map_err(tried(path.display().to_string()))?;
        println!("written to {}", path.display());
    }
    if figures.failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Answer(format!("{} things could not be measured: see above", figures.failures.len())))
    }
}

/// The events from the file through the pipeline.
fn in_process(options: &cli::Streams, figures: &mut Figures) -> Result<()> {
    let messages = messages(&options.events)?;
    println!("{} events of {}", messages.len(), options.events.display());
    runtime()?.block_on(async {
        let (rows, sum) = hopping(&messages, options).await?;
        println!("count over 5 minutes hopping by 1 minute: {rows} rows, their sum {sum}");
        if messages.len() == 1_000_000 && (rows, sum) != ANSWER {
            return Err(Error::Answer(format!("the peers have {} rows, their sum {}", ANSWER.0, ANSWER.1)));
        }
        for shape in &options.views {
            let counts = shape.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let (views, windows) = counts.ok_or_else(|| Error::Missing(format!("--views {shape}: write it as 1x3")))?;
            let mut runs = Vec::new();
            for _ in 0..options.runs {
                runs.push(timed(&messages, views, windows, options).await?);
            }
            let millions = messages.len() as f64 / 1e6;
            let mut put = |what: &str, of: &dyn Fn(&Run) -> f64| {
                figures.put(format!("file/{shape}/{what}"), &runs.iter().map(of).collect::<Vec<_>>())
            };
            let (cpu, rate) =
                (put("cpu", &|run| run.cpu / millions), put("rate", &|run| messages.len() as f64 / run.wall));
            put("wall", &|run| run.wall / millions);
            println!("{shape} windows: {cpu} CPU-seconds a million events, {rate} events a second");
        }
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(tried("the runtime"))
}

fn messages(path: &Path) -> Result<Vec<Message>> {
    let file = std::fs::File::open(path).map_err(tried(format!("opening {}", path.display())))?;
    let lines = BufReader::new(file).split(b'\n').enumerate();
    let message = |(offset, line): (usize, std::io::Result<Vec<u8>>)| {
        let body = Body::of(line.map_err(tried(format!("reading {}", path.display())))?);
        Ok(Message { offset: offset as i64, body, ..Message::default() })
    };
    lines.map(message).collect()
}

/// The views' feeds: aggregations of the amount in turn, over 5 minutes, 10, 15, … each, in each view a minute more than in
/// the one before.
fn feeds(views: usize, windows: usize, minutes: i64) -> Result<Vec<Feed>> {
    let object = |kind, name: &str, bytes: Vec<u8>| Object {
        kind,
        project: PROJECT.to_owned(),
        name: name.to_owned(),
        bytes: bytes.into(),
    };
    let user = core::Entity {
        spec: Some(core::EntitySpecV2 {
            name: "user_id".into(),
            join_key: "user_id".into(),
            value_type: ValueType::String as i32,
            ..Default::default()
        }),
        meta: None,
    };
    let made: Vec<_> = (0..views).map(|n| view(n, windows, minutes)).collect();
    let objects = made
        .iter()
        .enumerate()
        .map(|(n, view)| object(ObjectKind::StreamFeatureView, &format!("v{n}"), view.encode_to_vec()));
    let registry = Registry::resolve(
        1,
        std::iter::once(object(ObjectKind::Entity, "user_id", user.encode_to_vec())).chain(objects),
    )?;
    let views = registry.projects[PROJECT].views.values();
    views
        .map(|view| {
            let feed =
                Feed::of(view, "bench", &Formats::default())?.ok_or_else(|| Error::Missing("a stream".into()))?;
            // as a server without an event log
            Ok(Feed { is_logged: false, ..feed })
        })
        .collect()
}

fn view(number: usize, windows: usize, minutes: i64) -> core::StreamFeatureView {
    let field = |name: String, value_type: ValueType| core::FeatureSpecV2 {
        name,
        value_type: value_type as i32,
        ..Default::default()
    };
    let seconds = |minutes: i64| Some(prost_types::Duration { seconds: minutes * 60, nanos: 0 });
    let functions = [("count", ""), ("sum", "amount"), ("max", "amount"), ("mean", "amount"), ("min", "amount")];
    let features = (0..windows).map(|n| (n, functions[n % functions.len()]));
    let aggregations = features.clone().map(|(n, (function, column))| core::Aggregation {
        name: format!("f{n}"),
        function: function.into(),
        column: column.into(),
        time_window: seconds(minutes * if views_differ(windows) { 1 + n as i64 } else { 1 } + number as i64),
        slide_interval: seconds(1),
    });
    let format = stream_format::Format::JsonFormat(stream_format::JsonFormat {
        schema_json: "user_id string, ts bigint, amount double, merchant string".into(),
    });
    let source = core::DataSource {
        name: "events".into(),
        timestamp_field: "ts".into(),
        options: Some(core::data_source::Options::KafkaOptions(core::data_source::KafkaOptions {
            kafka_bootstrap_servers: "none:1".into(),
            topic: "events".into(),
            message_format: Some(core::StreamFormat { format: Some(format) }),
            watermark_delay_threshold: seconds(1),
        })),
        ..Default::default()
    };
    core::StreamFeatureView {
        spec: Some(core::StreamFeatureViewSpec {
            name: format!("v{number}"),
            project: PROJECT.into(),
            entities: vec!["user_id".into()],
            entity_columns: vec![field("user_id".into(), ValueType::String)],
            features: features
                .map(|(n, (function, _))| {
                    field(format!("f{n}"), if function == "count" { ValueType::Int64 } else { ValueType::Double })
                })
                .collect(),
            aggregations: aggregations.collect(),
            stream_source: Some(source),
            online: true,
            ..Default::default()
        }),
        meta: None,
    }
}

/// Whether the windows of a view are of different widths.
fn views_differ(windows: usize) -> bool {
    windows > 3
}

fn checkpoints(options: &cli::Streams) -> Checkpoints {
    let interval = Duration::from_millis(options.checkpoint_ms);
    Checkpoints { interval, ..ingest::Settings::default().checkpoints }
}

fn store(work: &Path) -> Result<online::sled::Store> {
    let data = work.join("store");
    if data.exists() {
        std::fs::remove_dir_all(&data).map_err(tried("removing the last run's store"))?;
    }
    std::fs::create_dir_all(&data).map_err(tried("making the store's directory"))?;
    Ok(online::sled::Store::open(online::sled::Settings::new(&data)).map_err(model::Error::from)?)
}

/// The reader of views that share a topic, without its client.
struct Reader {
    views: Vec<Reads>,
    pace: Pace,
}

struct Reads {
    feed: Arc<Feed>,
    writer: Writer,
    progress: BTreeMap<i32, Progress>,
}

impl Reader {
    fn new(feeds: Vec<Feed>, store: &Arc<dyn OnlineStore>, live: &Arc<Live>, checkpoints: Checkpoints) -> Self {
        let reads = |feed| {
            let feed = Arc::new(feed);
            let writer = Writer::new(&feed, Arc::clone(store), live, checkpoints);
            Reads { feed, writer, progress: BTreeMap::new() }
        };
        Self { views: feeds.into_iter().map(reads).collect(), pace: Pace::new(checkpoints) }
    }

    /// One batch, as a reader applies it.
    async fn step(&mut self, messages: &[Message], now: Timestamp) -> Result<()> {
        // as they are copied from the client's buffer
        let mut copies = Copies::default();
        let mut messages = messages.to_vec();
        for message in &mut messages {
            message.body = copies.of(message.key(), message.payload());
        }
        let elsewhere = BTreeSet::new();
        let views = self.views.iter();
        let takers: Vec<Taker<'_>> =
            views.map(|view| Taker { feed: &view.feed, progress: &view.progress, elsewhere: &elsewhere }).collect();
        let batches = pipeline::prepare(&takers, &Writers::new(), &messages, now, 2 * DISORDER);
        let joining = self.views.iter_mut().zip(&batches).map(|(view, batch)| (&mut view.writer, batch));
        Writer::join(&mut joining.collect::<Vec<_>>());
        for (view, batch) in self.views.iter_mut().zip(batches) {
            if let Some(dead) = batch.dead.first() {
                return Err(Error::Answer(format!("a dead letter: {}", dead.reason)));
            }
            let applied = view.writer.apply(&batch, now).await;
            applied.map_err(|failure| Error::Answer(format!("a batch was not applied: {failure:?}")))?;
            view.progress.extend(batch.progress);
        }
        let due: Vec<bool> = self.views.iter().map(|view| self.pace.is_due(&view.writer)).collect();
        if due.contains(&true) { self.checkpoint(now, &due).await } else { Ok(()) }
    }

    /// A checkpoint of some views.
    async fn checkpoint(&mut self, now: Timestamp, which: &[bool]) -> Result<()> {
        let began = Instant::now();
        for (view, _) in self.views.iter_mut().zip(which).filter(|(_, due)| **due) {
            let written = view.writer.checkpoint(now).await;
            written.map_err(|failure| Error::Answer(format!("a checkpoint was not written: {failure:?}")))?;
        }
        self.pace.done(began);
        Ok(())
    }
}

/// The event's time, by a look for its member.
fn time_of(message: &Message) -> i64 {
    let text = message.payload().unwrap_or_default();
    let text = std::str::from_utf8(text).unwrap_or_default();
    let digits = text.split_once("\"ts\": ").map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse::<i64>().map_or(0, |ms| ms * 1000)
}

/// What the peers compute: at the end of each minute, for every user with an event in the last five, their count.
///
/// A window here reaches from t back to the full hop before t - W: one of four minutes that hops by one covers, a
/// moment before a full minute, exactly the last five.
async fn hopping(messages: &[Message], options: &cli::Streams) -> Result<(u64, u64)> {
    let feeds = feeds(1, 1, 4)?;
    let view = Arc::clone(&feeds[0].view);
    let store: Arc<dyn OnlineStore> = Arc::new(store(&options.work)?);
    let live = Arc::<Live>::default();
    let mut reader = Reader::new(feeds, &store, &live, checkpoints(options));
    let users: BTreeSet<String> = messages.iter().filter_map(user_of).collect();
    let keys = users.iter().map(|user| {
        let value = Value { val: Some(Val::StringVal(user.clone())) };
        EntityKey::encode(&[("user_id", &value)])
    });
    let keys: Vec<EntityKey> = keys.collect::<model::Result<_>>()?;
    let spec = service::windows::spec_of(&view)?;
    let first = time_of(&messages[0]) - DISORDER;
    let last = messages.iter().map(time_of).max().unwrap_or(0);
    let (mut end, mut rows, mut sum) = (first.div_euclid(MINUTE) * MINUTE + MINUTE, 0, 0);
    let mut chunks = messages.chunks(options.batch).peekable();
    let mut latest = first;
    // a window is over when no event of it can come
    while end <= last + 5 * MINUTE {
        while latest < end + DISORDER
            && let Some(chunk) = chunks.next()
        {
            let newest = chunk.iter().map(time_of).max().unwrap_or(latest).max(latest);
            reader.step(chunk, Timestamp((newest - DISORDER).min(end - 1))).await?;
            latest = newest;
        }
        let states = live.get(&view.table, &spec).ok_or_else(|| Error::Missing("the live states".into()))?;
        for key in &keys {
            // what is not in memory is empty: these are few keys
            let answer = states.answer(key, &spec, &view, Timestamp(end - 1)).transpose()?.flatten();
            let count = answer.and_then(|(_, values)| match values[0].val {
                Some(Val::Int64Val(count)) => u64::try_from(count).ok(),
                _ => None,
            });
            rows += u64::from(count.is_some_and(|count| count > 0));
            sum += count.unwrap_or(0);
        }
        end += MINUTE;
    }
    store.close().await?;
    Ok((rows, sum))
}

fn user_of(message: &Message) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(message.payload()?).ok()?;
    Some(json.get("user_id")?.as_str()?.to_owned())
}

struct Run {
    cpu: f64,
    wall: f64,
}

/// The whole stream through some views, until all of it is durable.
async fn timed(messages: &[Message], views: usize, windows: usize, options: &cli::Streams) -> Result<Run> {
    let feeds = feeds(views, windows, 5)?;
    let store: Arc<dyn OnlineStore> = Arc::new(store(&options.work)?);
    let live = Arc::<Live>::default();
    // the clock is no part of what is measured
    let times: Vec<i64> = messages.iter().map(time_of).collect();
    let (start, cpu) = (Instant::now(), machine::cpu_seconds(std::process::id()));
    let mut reader = Reader::new(feeds, &store, &live, checkpoints(options));
    let mut now = 0;
    for (chunk, times) in messages.chunks(options.batch).zip(times.chunks(options.batch)) {
        now = times.iter().copied().max().unwrap_or(0).max(now);
        reader.step(chunk, Timestamp(now)).await?;
    }
    reader.checkpoint(Timestamp(now), &vec![true; views]).await?;
    let wall = start.elapsed().as_secs_f64();
    store.close().await?;
    Ok(Run { cpu: machine::cpu_seconds(std::process::id()) - cpu, wall })
}
