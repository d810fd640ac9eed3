//! The pipeline against crashes, late events and a changed definition, held against the naive
//! oracle of `window`. Knows no Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ingest::decode::avro::Writers;
use ingest::feed::{Content, Feed};
use ingest::message::{Body, Message};
use ingest::pipeline::{self, Batch, Failure, Progress, Taker};
use ingest::writer::{Checkpoints, Pace, Writer};
use model::value::{NULL, ValueType};
use model::{Timestamp, Value};
use proptest::prelude::*;
use service::windows::live::Live;

use crate::support::{MemoryStore, SECOND, Stream, T0, entity, int};

fn stream() -> Stream {
    Stream::windowed("v", "localhost:9092", "t")
}

fn message(partition: i32, offset: i64, user: &str, amount: i64, ts: i64) -> Message {
    let payload = serde_json::json!({"user": user, "amount": amount, "ts": Timestamp(ts).to_rfc3339()});
    Message { partition, offset, body: Body::of(payload.to_string()), ..Message::default() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn writer(feed: &Feed, store: &Arc<MemoryStore>, live: &Arc<Live>, memory: usize) -> Writer {
    let checkpoints = Checkpoints { interval: Duration::ZERO, entities: 1, memory };
    Writer::new(&Arc::new(feed.clone()), store.clone(), live, checkpoints)
}

/// What one feed alone makes of messages.
fn prepared(feed: &Feed, messages: &[Message], progress: &BTreeMap<i32, Progress>, now: i64, skew: i64) -> Batch {
    let taker = Taker { feed, progress, elsewhere: &BTreeSet::new() };
    pipeline::prepare(&[taker], &Writers::new(), messages, Timestamp(now), skew).remove(0)
}

/// Prepares and writes one batch, as the consumer does.
fn step(feed: &Feed, store: &Arc<MemoryStore>, messages: &[Message], now: i64) -> (pipeline::Batch, pipeline::Applied) {
    block_on(async {
        let progress = pipeline::stored_progress(feed, &**store).await.expect("readable");
        let batch = prepared(feed, messages, &progress, now, 5 * SECOND);
        let mut writer = writer(feed, store, &Arc::default(), 0);
        let applied = writer.apply(&batch, Timestamp(now)).await.expect("applied");
        writer.checkpoint(Timestamp(now)).await.expect("written");
        (batch, applied)
    })
}

#[test]
fn a_batch_writes_states_and_positions_together() {
    let (stream, store) = (stream(), Arc::<MemoryStore>::default());
    let messages = vec![
        message(0, 10, "a", 1, T0 - 5 * SECOND),
        message(1, 3, "b", 2, T0 - 5 * SECOND),
        Message { partition: 0, offset: 11, body: Body::of(&b"{"[..]), ..Message::default() },
        message(0, 12, "a", 4, T0),
    ];
    let (batch, applied) = step(&stream.feed(), &store, &messages, T0);
    assert_eq!((applied.applied, applied.dropped, batch.late), (3, 0, BTreeMap::new()));
    assert_eq!(batch.dead.len(), 1);
    assert_eq!(batch.dead[0].message.offset, 11);
    assert_eq!(store.position("v", "t", 0), Some(13));
    assert_eq!(store.position("v", "t", 1), Some(4));
    assert_eq!(store.answer(&stream.view(), "a", T0), Some(vec![int(5), int(2)]));
    assert_eq!(store.answer(&stream.view(), "b", T0), Some(vec![int(2), int(1)]));
}

#[test]
fn late_events_count_until_no_window_reaches_them() {
    let (stream, store) = (stream(), Arc::<MemoryStore>::default());
    step(&stream.feed(), &store, &[message(0, 0, "a", 1, T0)], T0);
    // the watermark is 10 s behind the latest event of the partition, and survives a restart
    let late = vec![
        message(0, 1, "a", 2, T0 - 10 * SECOND),
        message(0, 2, "a", 4, T0 - 11 * SECOND),
        message(0, 3, "a", 8, T0 - 3600 * SECOND),
    ];
    let (batch, applied) = step(&stream.feed(), &store, &late, T0);
    assert_eq!((batch.late, applied.applied, applied.dropped), (BTreeMap::from([(0, 2)]), 2, 1));
    assert_eq!(applied.dropped_of, BTreeMap::from([(0, 1)]));
    assert_eq!(store.answer(&stream.view(), "a", T0), Some(vec![int(7), int(3)]));
    // another partition has its own watermark
    let (batch, _) = step(&stream.feed(), &store, &[message(1, 0, "b", 1, T0 - 30 * SECOND)], T0);
    assert_eq!(batch.late, BTreeMap::new());
}

#[test]
fn an_entity_whose_windows_are_empty_is_forgotten() {
    let (stream, store) = (stream(), Arc::<MemoryStore>::default());
    step(&stream.feed(), &store, &[message(0, 0, "a", 1, T0)], T0);
    assert_eq!(store.content().states.len(), 1);
    let old = message(0, 1, "a", 1, T0);
    step(&stream.feed(), &store, &[old], T0 + 3600 * SECOND);
    assert!(store.content().states.is_empty());
    assert_eq!(store.position("v", "t", 0), Some(2));
}

#[test]
fn plain_views_keep_the_newest_by_event_time() {
    let stream = Stream::plain("v", "localhost:9092", "t");
    let store = Arc::<MemoryStore>::default();
    step(&stream.feed(), &store, &[message(0, 0, "a", 1, T0), message(0, 1, "a", 2, T0 - SECOND)], T0);
    assert_eq!(store.feature(&stream.view(), "a", "amount"), Some(int(1)));
    let null = Message {
        offset: 2,
        body: Body::of(format!(r#"{{"user": "a", "ts": {}}}"#, T0 + SECOND)),
        ..Message::default()
    };
    let (_, applied) = step(&stream.feed(), &store, &[null], T0);
    assert_eq!(applied.applied, 1);
    assert_eq!(store.feature(&stream.view(), "a", "amount"), Some(NULL));
    assert!(store.content().rows.keys().all(|(_, key)| *key == entity("user", "a")));
    // which partitions brought what is older; what is no event stands between
    let bad = Message { partition: 0, offset: 3, body: Body::of(&b"{"[..]), ..Message::default() };
    let older = [bad, message(1, 0, "a", 3, T0), message(0, 4, "b", 4, T0), message(1, 1, "a", 5, T0)];
    let (batch, applied) = step(&stream.feed(), &store, &older, T0);
    assert_eq!((batch.dead.len(), applied.applied, applied.dropped), (1, 1, 2));
    assert_eq!(applied.dropped_of, BTreeMap::from([(1, 2)]));
}

#[test]
fn the_state_of_another_definition_is_never_continued() {
    let store = Arc::<MemoryStore>::default();
    step(&stream().feed(), &store, &[message(0, 0, "a", 1, T0)], T0);
    let mut changed = stream();
    changed.features.push(("low", ValueType::Int64));
    changed.aggregations.push(("low", "min", "amount"));
    let feed = changed.feed();
    assert_ne!(feed.definition(), stream().feed().definition());
    let batch = prepared(&feed, &[message(0, 1, "a", 1, T0)], &BTreeMap::new(), T0, 0);
    let mut writer = writer(&feed, &store, &Arc::default(), 0);
    let failure = block_on(writer.apply(&batch, Timestamp(T0))).expect_err("refused");
    assert!(matches!(&failure, Failure::State(e) if e.message().contains("'v'")), "{failure:?}");
    assert_eq!(store.position("v", "t", 0), Some(1));
    // closing a consumer writes a last checkpoint, even while its thread panics
    assert!(
        matches!(block_on(writer.checkpoint(Timestamp(T0))), Err(Failure::Other(_))),
        "some of the batch may be in it"
    );
    writer.forget();
    assert!(block_on(writer.checkpoint(Timestamp(T0))).expect("nothing is left to write").is_empty());
}

#[test]
fn checkpoints_that_take_long_come_less_often() {
    let (stream, store, live) = (stream(), Arc::<MemoryStore>::default(), Arc::<Live>::default());
    let feed = Arc::new(stream.feed());
    let checkpoints = Checkpoints { interval: Duration::from_millis(100), entities: 2, memory: usize::MAX };
    let mut writer = Writer::new(&feed, store.clone(), &live, checkpoints);
    let pace = Pace::new(checkpoints);
    let mut apply = |offset, user| {
        let batch = prepared(&feed, &[message(0, offset, user, 1, T0)], &BTreeMap::new(), T0, 0);
        block_on(writer.apply(&batch, Timestamp(T0))).expect("applied");
        pace.is_due(&writer)
    };
    let due = (0..10_000_000).find(|offset| apply(*offset, "a")).expect("when the interval is over");
    let mut rested = Pace::new(checkpoints);
    // it took a second: ten intervals of rest
    rested.done(Instant::now().checked_sub(Duration::from_secs(1)).expect("this machine is up for a second"));
    assert!(!rested.is_due(&writer));
    let batch = prepared(&feed, &[message(0, due + 1, "b", 1, T0)], &BTreeMap::new(), T0, 0);
    block_on(writer.apply(&batch, Timestamp(T0))).expect("applied");
    assert!(rested.is_due(&writer), "as many changed as one checkpoint should write");
}

#[derive(Clone, Debug)]
struct LogEntry {
    partition: i32,
    user: usize,
    amount: i64,
    ts: i64,
}

fn log() -> impl Strategy<Value = Vec<LogEntry>> {
    let entry = (0..3i32, 0..4usize, -50..50i64, 0..120i64).prop_map(|(partition, user, amount, second)| LogEntry {
        partition,
        user,
        amount,
        ts: T0 - second * SECOND,
    });
    proptest::collection::vec(entry, 0..60)
}

/// What a reader finds: the live state, else the stored one.
fn read(live: &Live, store: &MemoryStore, stream: &Stream, user: &str, at: i64) -> Option<Vec<Value>> {
    let view = stream.view();
    let Content::Windows { spec, .. } = stream.feed().content else { return None };
    let states = live.get(&view.table, &spec)?;
    match states.answer(&entity("user", user), &spec, &view, Timestamp(at)) {
        Some(answer) => answer.expect("readable").map(|(_, values)| values),
        None => store.answer(&view, user, at),
    }
}

/// What the naive oracle says of one user's events.
fn oracle(stream: &Stream, log: &[LogEntry], user: usize, at: i64) -> Option<Vec<Value>> {
    let events: Vec<&LogEntry> = log.iter().filter(|e| e.user == user).collect();
    let view = stream.view();
    let spec = service::windows::spec_of(&view).expect("a good definition");
    let start = spec.window_start(at);
    let inside: Vec<i64> = events.iter().filter(|e| e.ts >= start && e.ts <= at).map(|e| e.amount).collect();
    (!inside.is_empty()).then(|| vec![int(inside.iter().sum()), int(inside.len() as i64)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever crashes (before a checkpoint, in its write, or after it and before anyone knew), however the log is
    /// cut into batches and however little stays in memory: every event counts exactly once, and what is applied can be
    /// read at once.
    #[test]
    fn crashes_neither_lose_nor_repeat_an_event(
        log in log(),
        steps in proptest::collection::vec((1usize..9, 0..6u8), 1..200),
        memory in prop_oneof![Just(0_usize), Just(600), Just(usize::MAX)],
    ) {
        let (stream, store) = (stream(), Arc::<MemoryStore>::default());
        let feed = stream.feed();
        let mut partitions: BTreeMap<i32, Vec<Message>> = BTreeMap::new();
        for entry in &log {
            let partition = partitions.entry(entry.partition).or_default();
            let offset = partition.len() as i64;
            partition.push(message(entry.partition, offset, &format!("u{}", entry.user), entry.amount, entry.ts));
        }
        let live = Arc::<Live>::default();
        block_on(async {
            let mut progress: BTreeMap<i32, Progress> = BTreeMap::new();
            let mut owner = writer(&feed, &store, &live, memory);
            let rest = std::iter::repeat_n((50, 2), 10);
            for (size, fate) in steps.into_iter().chain(rest) {
                // what a broker would send from here, the partitions in turn
                let next = |p: i32| progress.get(&p).map_or(0, |at| at.next) as usize;
                let messages: Vec<Message> = partitions
                    .iter()
                    .flat_map(|(p, log)| log.iter().skip(next(*p)).take(size))
                    .take(size)
                    .cloned()
                    .collect();
                let batch = prepared(&feed, &messages, &progress, T0, 0);
                owner.apply(&batch, Timestamp(T0)).await.expect("applied");
                progress.extend(batch.progress.clone());
                let mut behind: BTreeMap<i32, usize> = BTreeMap::new();
                let taken: Vec<LogEntry> = log
                    .iter()
                    .filter(|entry| {
                        let offset = behind.entry(entry.partition).or_default();
                        *offset += 1;
                        progress.get(&entry.partition).is_some_and(|at| *offset as i64 <= at.next)
                    })
                    .cloned()
                    .collect();
                for user in 0..4 {
                    let answer = read(&live, &store, &stream, &format!("u{user}"), T0);
                    assert_eq!(answer, oracle(&stream, &taken, user, T0), "user {user}");
                }
                match fate {
                    0 => {
                        store.fail_writes.store(1, Ordering::SeqCst);
                        let written = owner.checkpoint(Timestamp(T0)).await;
                        assert!(batch.progress.is_empty() || matches!(written, Err(Failure::Unavailable(_))));
                        store.fail_writes.store(0, Ordering::SeqCst);
                    }
                    1 | 2 => drop(owner.checkpoint(Timestamp(T0)).await.expect("written")),
                    _ => {}
                }
                if matches!(fate, 0 | 1 | 3) {
                    // the process dies here; the next one knows only what the store says
                    drop(owner);
                    owner = writer(&feed, &store, &live, memory);
                    progress = pipeline::stored_progress(&feed, &*store).await.expect("readable");
                }
            }
        });
        for (partition, messages) in &partitions {
            prop_assert_eq!(store.position("v", "t", *partition), Some(messages.len() as i64));
        }
        for at in [T0, T0 + 30 * SECOND, T0 + 59 * SECOND, T0 + 200 * SECOND] {
            for user in 0..4 {
                let answer = store.answer(&stream.view(), &format!("u{user}"), at);
                prop_assert_eq!(answer, oracle(&stream, &log, user, at), "user {} at {}", user, at);
            }
        }
    }
}
