//! Views of one stream whose window states are kept as one: whoever takes which messages when, starts again, fails to
//! write or crashes, each view answers, and leaves in the store, what its own events are. Knows no Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ingest::decode::avro::Writers;
use ingest::feed::Feed;
use ingest::message::{Body, Message};
use ingest::pipeline::{self, Batch, Failure, Progress, Taker};
use ingest::writer::{Checkpoints, Writer};
use model::value::ValueType;
use model::{Timestamp, Value};
use proptest::prelude::*;
use service::windows::live::Live;
use window::{Event, Scalar, State};

use crate::support::{MemoryStore, SECOND, Stream, T0, entity};

const USERS: usize = 4;

fn streams() -> [Stream; 3] {
    let of = |name, window_seconds, aggregations: Vec<(&'static str, &'static str, &'static str)>| Stream {
        window_seconds,
        schema: "user string, amount bigint, price bigint, ts timestamp",
        features: aggregations.iter().map(|(feature, ..)| (*feature, ValueType::Int64)).collect(),
        aggregations,
        ..Stream::windowed(name, "localhost:9092", "t")
    };
    [
        of("a", 60, vec![("n", "count", "amount"), ("total", "sum", "amount")]),
        of("b", 20, vec![("low", "min", "amount"), ("different", "count_distinct", "amount")]),
        of("c", 90, vec![("n", "count", "amount"), ("last", "last", "price"), ("high", "max", "amount")]),
    ]
}

#[derive(Clone, Debug)]
struct LogEntry {
    partition: i32,
    user: usize,
    amount: i64,
    /// Event time; no two are equal, for arrival is no order here.
    ts: i64,
}

impl LogEntry {
    /// Another column, that not all views read.
    fn price(&self) -> i64 {
        10 * self.amount + 1
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Views (bits) take so many messages from where the last of them is.
    Take { views: u8, size: usize },
    /// The same, but one of them is given up before it hears of them; the others may go on first, and it may try to write
    /// a checkpoint.
    Lose { views: u8, size: usize, lost: usize, later: bool, checkpoint: bool },
    /// Views write checkpoints, of which some fail.
    Checkpoint { views: u8, failing: u8 },
    /// A view starts again.
    Restart(usize),
    /// All do.
    Crash,
    /// So many seconds pass.
    Tick(i64),
}

fn step() -> impl Strategy<Value = Step> {
    // mostly all of them
    let views = || prop_oneof![6 => Just(7u8), 2 => 1..8u8];
    prop_oneof![
        8 => (views(), 1..12usize).prop_map(|(views, size)| Step::Take { views, size }),
        2 => (views(), 1..12usize, 0..3usize, any::<bool>(), any::<bool>()).prop_map(
            |(views, size, lost, later, checkpoint)| Step::Lose { views, size, lost, later, checkpoint }
        ),
        4 => (views(), prop_oneof![4 => Just(0u8), 1 => 0..8u8])
            .prop_map(|(views, failing)| Step::Checkpoint { views, failing }),
        1 => (0..3usize).prop_map(Step::Restart),
        1 => Just(Step::Crash),
        2 => (0..15i64).prop_map(Step::Tick),
    ]
}

fn log() -> impl Strategy<Value = Vec<LogEntry>> {
    let entry = (0..2i32, 0..USERS, -5..5i64, 0..40i64);
    let numbered = |(n, (partition, user, amount, age)): (usize, (i32, usize, i64, i64))| LogEntry {
        partition,
        user,
        amount,
        ts: T0 - age * SECOND - n as i64,
    };
    prop::collection::vec(entry, 0..80).prop_map(move |list| list.into_iter().enumerate().map(numbered).collect())
}

struct View {
    stream: Stream,
    feed: Arc<Feed>,
    writer: Writer,
    progress: BTreeMap<i32, Progress>,
}

struct World {
    views: Vec<View>,
    log: Vec<LogEntry>,
    partitions: BTreeMap<i32, Vec<Message>>,
    store: Arc<MemoryStore>,
    live: Arc<Live>,
    memory: usize,
    now: i64,
}

impl World {
    async fn new(log: Vec<LogEntry>, memory: usize) -> Self {
        let mut partitions: BTreeMap<i32, Vec<Message>> = BTreeMap::new();
        for entry in &log {
            let partition = partitions.entry(entry.partition).or_default();
            let ts = Timestamp(entry.ts).to_rfc3339();
            let (user, price) = (format!("u{}", entry.user), entry.price());
            let payload = serde_json::json!({"user": user, "amount": entry.amount, "price": price, "ts": ts});
            let (offset, body) = (partition.len() as i64, Body::of(payload.to_string()));
            partition.push(Message { partition: entry.partition, offset, body, ..Message::default() });
        }
        let (store, live) = (Arc::<MemoryStore>::default(), Arc::<Live>::default());
        let mut world = Self { views: Vec::new(), log, partitions, store, live, memory, now: T0 };
        for stream in streams() {
            let feed = Arc::new(stream.feed());
            let (writer, progress) = world.begin(&feed).await;
            world.views.push(View { stream, feed, writer, progress });
        }
        world
    }

    /// A view as it starts, from what the store says.
    async fn begin(&self, feed: &Arc<Feed>) -> (Writer, BTreeMap<i32, Progress>) {
        let checkpoints = Checkpoints { interval: Duration::ZERO, entities: 1, memory: self.memory };
        let writer = Writer::new(feed, self.store.clone(), &self.live, checkpoints);
        (writer, pipeline::stored_progress(feed, &*self.store).await.expect("readable"))
    }

    async fn restart(&mut self, view: usize) {
        let feed = Arc::clone(&self.views[view].feed);
        let (writer, progress) = self.begin(&feed).await;
        (self.views[view].writer, self.views[view].progress) = (writer, progress);
    }

    /// Views take messages; `lost` hears nothing of them.
    async fn take(&mut self, which: u8, size: usize, lost: Option<usize>) {
        let elsewhere = BTreeSet::new();
        let chosen: Vec<usize> = (0..self.views.len()).filter(|view| which >> view & 1 == 1).collect();
        let next = |view: &View, p: i32| view.progress.get(&p).map_or(0, |at| at.next) as usize;
        let from = |p: i32| chosen.iter().map(|view| next(&self.views[*view], p)).min().unwrap_or(0);
        let messages = self.partitions.iter().flat_map(|(p, log)| log.iter().skip(from(*p)).take(size));
        let messages: Vec<Message> = messages.take(size).cloned().collect();
        let takers: Vec<Taker<'_>> = chosen
            .iter()
            .map(|at| Taker { feed: &self.views[*at].feed, progress: &self.views[*at].progress, elsewhere: &elsewhere })
            .collect();
        let batches = pipeline::prepare(&takers, &Writers::new(), &messages, Timestamp(self.now), 0);
        let work: Vec<(usize, Batch)> = chosen.into_iter().zip(batches).filter(|(_, b)| b.messages > 0).collect();
        let batch_of = |at: usize| work.iter().find(|(view, _)| *view == at).map(|(_, batch)| batch);
        let views = self.views.iter_mut().enumerate();
        let joining = views.filter_map(|(at, view)| Some((&mut view.writer, batch_of(at)?)));
        Writer::join(&mut joining.collect::<Vec<_>>());
        for (at, batch) in &work {
            if lost == Some(*at) {
                continue;
            }
            let view = &mut self.views[*at];
            view.writer.apply(batch, Timestamp(self.now)).await.expect("applied");
            view.progress.extend(batch.progress.clone());
        }
    }

    async fn checkpoint(&mut self, view: usize, fails: bool) {
        let pending = self.views[view].writer.is_pending();
        self.store.fail_writes.store(u32::from(fails), Ordering::SeqCst);
        let written = self.views[view].writer.checkpoint(Timestamp(self.now)).await;
        self.store.fail_writes.store(0, Ordering::SeqCst);
        assert_eq!(written.is_err(), fails && pending, "{written:?}");
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Take { views, size } => self.take(views, size, None).await,
            Step::Lose { views, size, lost, later, checkpoint } => {
                self.take(views, size, Some(lost)).await;
                if later {
                    self.take(views & !(1 << lost), size, None).await;
                }
                if checkpoint {
                    // either before those events, or not at all
                    let _ = self.views[lost].writer.checkpoint(Timestamp(self.now)).await;
                }
                self.restart(lost).await;
            }
            Step::Checkpoint { views, failing } => {
                for view in (0..self.views.len()).filter(|view| views >> view & 1 == 1) {
                    self.checkpoint(view, failing >> view & 1 == 1).await;
                }
            }
            Step::Restart(view) => self.restart(view).await,
            Step::Crash => {
                for view in 0..self.views.len() {
                    self.restart(view).await;
                }
            }
            Step::Tick(seconds) => self.now += seconds * SECOND,
        }
    }

    /// What a state says that takes in the events up to some offsets, and nothing else.
    fn alone(&self, view: &View, user: usize, until: &BTreeMap<i32, Progress>, at: i64) -> Option<Vec<Value>> {
        let registered = view.stream.view();
        let spec = service::windows::spec_of(&registered).expect("a good definition");
        let mut state = State::new(&spec);
        let mut offsets: BTreeMap<i32, i64> = BTreeMap::new();
        for entry in &self.log {
            let offset = offsets.entry(entry.partition).or_default();
            *offset += 1;
            if entry.user != user || until.get(&entry.partition).is_none_or(|until| *offset > until.next) {
                continue;
            }
            let column = |name: &String| Scalar::Int(if name == "price" { entry.price() } else { entry.amount });
            let event = Event { ts_us: entry.ts, columns: &spec.columns().iter().map(column).collect::<Vec<_>>() };
            state.apply(&spec, event, T0 - 1000 * SECOND).expect("fits");
        }
        let answer = state.evaluate(&spec, at)?;
        Some(service::windows::values(answer.values, &spec, &registered).expect("values"))
    }

    /// Everybody reads what the views' own events are.
    fn check(&self) {
        for view in &self.views {
            let registered = view.stream.view();
            let spec = service::windows::spec_of(&registered).expect("a good definition");
            let states = self.live.get(&registered.table, &spec).expect("owned");
            for user in 0..USERS {
                let name = format!("u{user}");
                let live = states.answer(&entity("user", &name), &spec, &registered, Timestamp(self.now));
                let found = match live {
                    Some(answer) => answer.expect("readable").map(|(_, values)| values),
                    None => self.store.answer(&registered, &name, self.now),
                };
                assert_eq!(found, self.alone(view, user, &view.progress, self.now), "{name} of {}", registered.name);
            }
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn each_view_has_its_own_events_once(
        log in log(),
        steps in prop::collection::vec(step(), 1..40),
        memory in prop_oneof![Just(0_usize), Just(2000), Just(usize::MAX)],
    ) {
        block_on(async {
            let mut world = World::new(log, memory).await;
            for step in steps {
                world.step(step).await;
                world.check();
            }
            for _ in 0..2 {
                for view in 0..3 {
                    world.take(1 << view, usize::MAX, None).await;
                }
                world.check();
            }
            for view in 0..3 {
                world.checkpoint(view, false).await;
            }
            let all = world.partitions.iter().map(|(p, log)| (*p, log.len() as i64));
            let all = all.map(|(p, next)| (p, Progress { next, max_event: Timestamp(T0) })).collect();
            for view in &world.views {
                for (partition, messages) in &world.partitions {
                    assert_eq!(world.store.position(view.stream.name, "t", *partition), Some(messages.len() as i64));
                }
                for at in [0, 1, 19, 60, 200].map(|seconds| world.now + seconds * SECOND) {
                    for user in 0..USERS {
                        let found = world.store.answer(&view.stream.view(), &format!("u{user}"), at);
                        assert_eq!(found, world.alone(view, user, &all, at), "user {user} of {} at {at}", view.stream.name);
                    }
                }
            }
        });
    }
}

#[test]
fn views_that_begin_together_share_their_states_until_one_leaves() {
    let log: Vec<LogEntry> =
        (0..40).map(|n| LogEntry { partition: 0, user: n % USERS, amount: n as i64, ts: T0 - n as i64 }).collect();
    block_on(async {
        let mut world = World::new(log, usize::MAX).await;
        let joined =
            |world: &mut World| -> Vec<bool> { world.views.iter_mut().map(|view| view.writer.is_joined()).collect() };
        world.take(7, 10, None).await;
        assert_eq!(joined(&mut world), [true; 3]);
        // the others take something that it does not
        world.take(3, 10, None).await;
        assert_eq!(joined(&mut world), [false; 3]);
        world.check();
        world.take(4, 10, None).await;
        world.check();
        // together again, but what they changed is not written yet
        world.take(7, 5, None).await;
        assert_eq!(joined(&mut world), [false; 3]);
        let mut again = 0;
        while joined(&mut world) != [true; 3] {
            for view in 0..3 {
                world.checkpoint(view, false).await;
            }
            world.take(7, 1, None).await;
            again += 1;
        }
        assert_eq!(again, 2, "what parted them may come again");
        world.restart(1).await;
        assert_eq!(joined(&mut world), [true, false, true], "those who stay go on");
        world.take(5, 5, None).await;
        world.take(2, 5, None).await;
        world.check();
    });
}

#[test]
fn the_damaged_state_of_one_view_stops_no_other() {
    let log: Vec<LogEntry> =
        (0..40).map(|n| LogEntry { partition: 0, user: n % USERS, amount: n as i64, ts: T0 - n as i64 }).collect();
    block_on(async {
        // nothing that rests stays in memory
        let mut world = World::new(log, 0).await;
        world.take(7, 20, None).await;
        for view in 0..3 {
            world.checkpoint(view, false).await;
        }
        let damaged = world.views[1].stream.view();
        for ((table, _), state) in &mut world.store.content().states {
            if *table == *damaged.table {
                let mut bytes = state.to_vec();
                bytes[20] ^= 1;
                *state = bytes.into();
            }
        }
        let (progress, elsewhere) = (world.views[0].progress.clone(), BTreeSet::new());
        let taker = |view: usize| Taker { feed: &world.views[view].feed, progress: &progress, elsewhere: &elsewhere };
        let messages = &world.partitions[&0][20..];
        let batches = pipeline::prepare(&[0, 1, 2].map(taker), &Writers::new(), messages, Timestamp(T0), 0);
        let mut failed = Vec::new();
        for (view, batch) in world.views.iter_mut().zip(&batches) {
            match view.writer.apply(batch, Timestamp(T0)).await {
                Ok(_) => view.progress.extend(batch.progress.clone()),
                Err(failure) => {
                    assert!(matches!(failure, Failure::State(_)), "{failure:?}");
                    failed.push(view.stream.name);
                }
            }
        }
        assert_eq!(failed, ["b"]);
        world.views.remove(1);
        world.check();
    });
}
