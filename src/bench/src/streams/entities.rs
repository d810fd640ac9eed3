//! Many entities: what an event costs when none comes twice, beside few that come often, and what resting states take of
//! memory. Knows no broker.

use std::sync::Arc;
use std::time::Instant;

use ingest::message::{Body, Message};
use model::ports::{OnlineStore, Read};
use model::value::proto_value::Val;
use model::{EntityKey, Timestamp, Value};
use service::windows::live::Live;

use super::{Reader, checkpoints, feeds, runtime, store, time_of};
use crate::cli;
use crate::error::Result;
use crate::figures::Figures;
use crate::machine;

/// Entities whose events come often.
const FEW: u64 = 10_000;
/// As many events of them.
const EVENTS: u64 = 1_000_000;
/// Events of each entity whose memory is measured, over 55 minutes; so many entities have theirs at a time.
const EACH: u64 = 20;
const AT_A_TIME: u64 = 20_000;
/// Neighbours in the stream are no neighbours in the store: prime to all numbers of entities here.
const STEP: u64 = 7_368_787;
/// Events of one ms of the stream's time, as in `events.py`: about 0.55.
const A_SECOND: u64 = 555;
/// They take half a minute each.
const RUNS: usize = 3;
const BEGIN_MS: u64 = 1_700_000_000_000;

/// What some events took.
struct Taken {
    cpu: f64,
    wall: f64,
}

/// All that is asked for.
pub(super) fn run(options: &cli::Streams, figures: &mut Figures) -> Result<()> {
    let runtime = runtime()?;
    if options.resident > 0 {
        // first: what other measurements leave would count
        runtime.block_on(resident(options, figures))?;
    }
    if options.entities > 0 {
        let both = [("few", FEW, EVENTS), ("many", options.entities, options.entities)];
        let mut all: [Vec<Taken>; 2] = Default::default();
        // one beside the other: the machine is not always as quick
        for _ in 0..options.runs.min(RUNS) {
            for ((_, entities, events), taken) in both.iter().zip(&mut all) {
                taken.push(runtime.block_on(spread(*entities, *events, options))?);
            }
        }
        for ((name, entities, events), taken) in both.into_iter().zip(all) {
            let millions = events as f64 / 1e6;
            let mut put = |what: &str, of: &dyn Fn(&Taken) -> f64| {
                figures.put(format!("entities/{name}/{what}"), &taken.iter().map(of).collect::<Vec<_>>())
            };
            let cpu = put("cpu", &|taken| taken.cpu / millions);
            let rate = put("rate", &|taken| events as f64 / taken.wall);
            put("wall", &|taken| taken.wall / millions);
            println!("{entities} entities: {cpu} CPU-seconds a million events, {rate} events a second");
        }
    }
    Ok(())
}

/// An event of 171 bytes, as those of `events.py`.
fn event(number: u64, user: u64, ts: u64) -> Message {
    let text = format!(
        "{{\"user_id\": \"u{user:08}\", \"ts\": {ts}, \"amount\": {}.{:02}, \"merchant\": \"m{:05}\", \"country\": \"DE\", \
             \"device\": \"{:032x}\", \"ch\": \"web\", \"ok\": true}}",
        number % 500,
        number % 100,
        number % 300,
        number.wrapping_mul(STEP)
    );
    Message { offset: number as i64, body: Body::of(text), ..Message::default() }
}

/// Entities in turn, as time goes on.
fn in_turn(number: u64, entities: u64) -> Message {
    event(number, number.wrapping_mul(STEP) % entities, BEGIN_MS + number * 1000 / A_SECOND)
}

/// Some entities' last hour, then that of the next.
fn in_groups(number: u64) -> Message {
    let (group, within) = (number / (AT_A_TIME * EACH), number % (AT_A_TIME * EACH));
    let minute = within / AT_A_TIME * 55 / (EACH - 1);
    event(number, group * AT_A_TIME + within % AT_A_TIME, BEGIN_MS + minute * 60_000)
}

/// Takes events through the pipeline until they are durable.
async fn feed(reader: &mut Reader, events: u64, batch: usize, event: impl Fn(u64) -> Message) -> Result<()> {
    let mut now = Timestamp(0);
    let mut from = 0;
    while from < events {
        let to = (from + batch as u64).min(events);
        let messages: Vec<Message> = (from..to).map(&event).collect();
        now = now.max(Timestamp(messages.last().map_or(0, time_of)));
        reader.step(&messages, now).await?;
        from = to;
    }
    reader.checkpoint(now, &[true]).await
}

/// Processor time of events until they are all durable and the store is closed.
async fn spread(entities: u64, events: u64, options: &cli::Streams) -> Result<Taken> {
    let store: Arc<dyn OnlineStore> = Arc::new(store(&options.work)?);
    let live = Arc::<Live>::default();
    let mut reader = Reader::new(feeds(1, 3, 5)?, &store, &live, checkpoints(options));
    let (start, cpu) = (Instant::now(), machine::cpu_seconds(std::process::id()));
    feed(&mut reader, events, options.batch, |number| in_turn(number, entities)).await?;
    store.close().await?;
    Ok(Taken { cpu: machine::cpu_seconds(std::process::id()) - cpu, wall: start.elapsed().as_secs_f64() })
}

/// Memory with the states of many entities, of which most rest.
async fn resident(options: &cli::Streams, figures: &mut Figures) -> Result<()> {
    let before = machine::rss_mb(std::process::id());
    let store: Arc<dyn OnlineStore> = Arc::new(store(&options.work)?);
    let live = Arc::<Live>::default();
    // an hour each, which all events are in
    let feeds = feeds(1, 3, 60)?;
    let table = Arc::clone(&feeds[0].view.table);
    let mut reader = Reader::new(feeds, &store, &live, checkpoints(options));
    let entities = options.resident;
    feed(&mut reader, entities * EACH, options.batch, in_groups).await?;
    let after = machine::rss_mb(std::process::id());
    let mut bytes = 0;
    for from in (0..entities).step_by(1000) {
        let key = |user: u64| {
            let value = Value { val: Some(Val::StringVal(format!("u{user:08}"))) };
            EntityKey::encode(&[("user_id", &value)])
        };
        let keys: Vec<EntityKey> = (from..entities.min(from + 1000)).map(key).collect::<model::Result<_>>()?;
        bytes += keys.iter().map(|key| key.as_bytes().len()).sum::<usize>();
        let read = Read { table: Arc::clone(&table), keys };
        let states = store.read_states(std::slice::from_ref(&read)).await?;
        bytes += states.into_iter().flatten().flatten().map(|state| state.len()).sum::<usize>();
    }
    let state = figures.put("resident/state", &[bytes as f64 / 1e6]);
    let rss = figures.put("resident/rss", &[after - before]);
    figures.put("resident/entity", &[(after - before) * 1e6 / entities as f64]);
    figures.put("resident/state_entity", &[bytes as f64 / entities as f64]);
    println!("{entities} entities of three windows: {state} MB of keys and states, {rss} MB more resident");
    drop(reader);
    store.close().await?;
    Ok(())
}
