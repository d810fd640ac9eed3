//! The consumer against librdkafka's mock cluster: what a registry change starts and stops, where a
//! restart goes on, what becomes of bad messages and of a store that fails. A real Kafka is tested
//! from outside, in `integration-tests/`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ingest::gate::{Gate, Leftovers};
use ingest::writer::Checkpoints;
use ingest::{Deps, Settings};
use model::Timestamp;
use model::registry::Registry;
use proptest::prelude::*;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use service::clear::Streams as _;
use service::windows::live::Live;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{FakeClock, MemoryStore, SECOND, Stream, T0, int, registry};

struct Cluster {
    mock: MockCluster<'static, DefaultProducerContext>,
    producer: FutureProducer,
}

impl Cluster {
    fn start(topics: &[&str]) -> Self {
        let mock = MockCluster::new(1).expect("a mock cluster");
        for topic in topics {
            mock.create_topic(topic, 2, 1).expect("a topic");
            mock.create_topic(&format!("{topic}.dlq"), 1, 1).expect("a topic");
        }
        let mut config = ClientConfig::new();
        let producer = config.set("bootstrap.servers", mock.bootstrap_servers()).create().expect("a producer");
        Self { mock, producer }
    }

    fn servers(&self) -> String {
        self.mock.bootstrap_servers()
    }

    async fn send(&self, topic: &str, partition: i32, payload: Option<&str>) -> i64 {
        let headers = OwnedHeaders::new().insert(Header { key: "trace", value: Some("abc") });
        let mut record = FutureRecord::to(topic).partition(partition).key("k").headers(headers);
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        let sent = self.producer.send(record, Duration::from_secs(10)).await;
        sent.expect("sent").offset
    }

    async fn event(&self, topic: &str, partition: i32, user: &str, amount: i64) -> i64 {
        let ts = Timestamp(T0 - SECOND).to_rfc3339();
        let payload = serde_json::json!({"user": user, "amount": amount, "ts": ts}).to_string();
        self.send(topic, partition, Some(&payload)).await
    }

    /// The first `count` messages of a topic, each made into something.
    fn read<T>(&self, topic: &str, count: usize, make: impl Fn(&BorrowedMessage<'_>) -> T) -> Vec<T> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers()).set("group.id", "reader").set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.subscribe(&[topic]).expect("subscribed");
        let until = std::time::Instant::now() + Duration::from_mins(1);
        let mut out = Vec::new();
        while out.len() < count {
            assert!(std::time::Instant::now() < until, "{topic} has {} of {count} messages", out.len());
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                out.push(make(&message));
            }
        }
        out
    }
}

/// A running ingestion.
struct Ingest {
    registry: watch::Sender<Arc<Registry>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ingest::Error>>,
    leftovers: Leftovers,
    live: Arc<Live>,
}

impl Ingest {
    fn start(store: &Arc<MemoryStore>, streams: &[&Stream], settings: Settings) -> Self {
        let (sender, receiver) = watch::channel(registry(1, streams));
        let stop = CancellationToken::new();
        let gate = Gate::default();
        let leftovers =
            Leftovers { gate: gate.clone(), store: store.clone(), group_prefix: settings.group_prefix.clone() };
        let live = Arc::<Live>::default();
        let deps = Deps {
            registry: receiver,
            store: store.clone(),
            clock: FakeClock::at(T0),
            settings,
            gate,
            live: live.clone(),
            board: Arc::default(),
            event_log: None,
            stream_sql: None,
        };
        let task = tokio::spawn(ingest::run(deps, stop.clone()));
        Self { registry: sender, stop, task, leftovers, live }
    }

    fn apply(&self, streams: &[&Stream]) {
        self.registry.send_replace(registry(2, streams));
    }

    /// Whether a windowed view's stream is read.
    fn reads(&self, stream: &Stream) -> bool {
        let view = stream.view();
        let spec = service::windows::spec_of(&view).expect("a good definition");
        self.live.get(&view.table, &spec).is_some()
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_mins(1), self.task).await;
        ended.expect("it stops").expect("no panic").expect("no error");
    }
}

/// The mock cluster holds every join back for the session timeout less a second, and knows no static
/// members.
fn quick() -> Settings {
    let properties = [("session.timeout.ms", "4000"), ("heartbeat.interval.ms", "200")];
    Settings {
        group_instance_id: None,
        checkpoints: Checkpoints { interval: Duration::from_millis(50), ..Settings::default().checkpoints },
        consumer_properties: properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Settings::default()
    }
}

fn total(store: &MemoryStore, stream: &Stream, user: &str) -> Option<Vec<model::Value>> {
    store.answer(&stream.view(), user, T0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_at_the_stored_position() {
    let cluster = Cluster::start(&["t"]);
    let stream = Stream::windowed("v", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    for i in 0..20 {
        cluster.event("t", i % 2, "a", 1).await;
    }
    let first = Ingest::start(&store, &[&stream], Settings { batch_size: 3, ..quick() });
    store.until("both partitions are read", |c| c.positions.values().map(|p| p.offset).sum::<i64>() == 20).await;
    first.stop().await;
    assert_eq!(total(&store, &stream, "a"), Some(vec![int(20), int(20)]));
    for i in 0..10 {
        cluster.event("t", i % 2, "a", 1).await;
    }
    let second = Ingest::start(&store, &[&stream], quick());
    store.until("the rest is read", |c| c.positions.values().map(|p| p.offset).sum::<i64>() == 30).await;
    second.stop().await;
    assert_eq!(total(&store, &stream, "a"), Some(vec![int(30), int(30)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_become_dead_letters_and_the_stream_goes_on() {
    let cluster = Cluster::start(&["t"]);
    let stream = Stream::plain("v", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    cluster.send("t", 0, Some("not json")).await;
    cluster.send("t", 0, None).await;
    cluster.event("t", 0, "a", 7).await;
    let ingest = Ingest::start(&store, &[&stream], quick());
    store.until("the position is behind all", |c| c.positions.values().any(|p| p.offset == 3)).await;
    assert_eq!(store.feature(&stream.view(), "a", "amount"), Some(int(7)));
    ingest.stop().await;
    let letters = cluster.read("t.dlq", 2, |message| {
        let headers = message.headers().expect("headers");
        let headers: BTreeMap<String, String> = headers
            .iter()
            .map(|h| (h.key.to_owned(), String::from_utf8(h.value.unwrap_or_default().to_vec()).expect("text")))
            .collect();
        (headers, message.payload().map(<[u8]>::to_vec), message.key().map(<[u8]>::to_vec))
    });
    for (i, (headers, payload, key)) in letters.iter().enumerate() {
        let want = [("larder-topic", "t"), ("larder-partition", "0"), ("larder-view", "demo.v"), ("trace", "abc")];
        for (name, value) in want {
            assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(headers["larder-offset"], i.to_string());
        let (reason, value): (_, Option<&[u8]>) = [("undecodable: ", Some(&b"not json"[..])), ("tombstone: ", None)][i];
        assert!(headers["larder-reason"].starts_with(reason), "{headers:?}");
        assert_eq!((payload.as_deref(), key.as_deref()), (value, Some(&b"k"[..])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_come_and_go_with_the_registry() {
    let cluster = Cluster::start(&["t"]);
    let (one, two) =
        (Stream::windowed("one", &cluster.servers(), "t"), Stream::windowed("two", &cluster.servers(), "t"));
    let store = Arc::new(MemoryStore::default());
    let at = |view: &'static str, offset: i64| {
        move |c: &crate::support::Content| {
            c.positions.iter().any(|((group, ..), p)| group.ends_with(view) && p.offset == offset)
        }
    };
    cluster.event("t", 0, "a", 1).await;
    let ingest = Ingest::start(&store, &[&one], quick());
    store.until("one has read", at("one", 1)).await;
    ingest.apply(&[&one, &two]);
    store.until("two starts at the beginning", at("two", 1)).await;

    let off = Stream { disabled: true, ..Stream::windowed("two", &cluster.servers(), "t") };
    ingest.apply(&[&one, &off]);
    // once the view is no longer read, nothing of it moves on
    tokio::time::timeout(Duration::from_mins(1), async {
        // its states are live as long as it is read
        while ingest.reads(&two) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the switched-off view is no longer read");
    cluster.event("t", 0, "a", 1).await;
    store.until("one goes on", at("one", 2)).await;
    assert_eq!(store.position("two", "t", 0), Some(1));
    ingest.apply(&[&one, &two]);
    store.until("two goes on where it was", at("two", 2)).await;
    assert_eq!(total(&store, &two, "a"), Some(vec![int(2), int(2)]));

    ingest.apply(&[&one]);
    // as `service::clear` does it: the consumer is gone, and none comes, until the rows are removed
    let table = two.view().table.clone();
    let closed = ingest.leftovers.forget(&table).await.expect("it is forgotten");
    assert_eq!(store.position("two", "t", 0), Some(-1));
    model::ports::OnlineStore::clear(&*store, &table).await.expect("clears");
    drop(closed);
    assert_eq!(total(&store, &one, "a"), Some(vec![int(2), int(2)]));
    ingest.apply(&[&one, &two]);
    store.until("applied again, it reads from the beginning", at("two", 2)).await;
    assert_eq!(total(&store, &two, "a"), Some(vec![int(2), int(2)]));
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_loses_and_repeats_nothing() {
    let cluster = Cluster::start(&["t"]);
    let stream = Stream::windowed("v", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    let settings = Settings { batch_size: 2, max_backoff: Duration::from_millis(200), ..quick() };
    let ingest = Ingest::start(&store, &[&stream], settings);
    for _ in 0..3 {
        store.fail_writes.store(3, Ordering::SeqCst);
        for i in 0..6 {
            cluster.event("t", i % 2, "a", 1).await;
        }
    }
    store.until("all is read", |c| c.positions.values().map(|p| p.offset).sum::<i64>() == 18).await;
    assert_eq!(total(&store, &stream, "a"), Some(vec![int(18), int(18)]));
    assert_eq!(store.fail_writes.load(Ordering::SeqCst), 0, "the store did fail");
    ingest.stop().await;
}

/// Where a view's partitions stand together.
fn stands(view: &'static str) -> impl Fn(&crate::support::Content) -> i64 {
    move |c| {
        let of_view = c.positions.iter().filter(|((group, ..), _)| group.ends_with(&format!(".{view}")));
        of_view.map(|(_, p)| p.offset).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_view_cannot_write_stops_that_view_alone() {
    let cluster = Cluster::start(&["t"]);
    let [one, two] = ["one", "two"].map(|name| Stream::windowed(name, &cluster.servers(), "t"));
    let store = Arc::new(MemoryStore::default());
    let settings = Settings { max_backoff: Duration::from_millis(200), ..quick() };
    let ingest = Ingest::start(&store, &[&one, &two], settings);
    cluster.event("t", 0, "a", 1).await;
    store.until("both read", |c| stands("one")(c) == 1 && stands("two")(c) == 1).await;
    *store.refused.lock().expect("no holder panics") = Some("two");
    for i in 0..10 {
        cluster.event("t", i % 2, "a", 1).await;
        store.until("the other goes on", |c| stands("one")(c) == i64::from(i) + 2).await;
    }
    assert_eq!(stands("two")(&store.content()), 1);
    *store.refused.lock().expect("no holder panics") = None;
    store.until("it goes on where it was", |c| stands("two")(c) == 11).await;
    ingest.stop().await;
    for stream in [&one, &two] {
        assert_eq!(total(&store, stream, "a"), Some(vec![int(11), int(11)]), "{}", stream.name);
    }
}

/// Many events of a user, one behind the other in a partition.
async fn many(producer: &FutureProducer, partition: i32, user: &str, how_many: usize) {
    let ts = Timestamp(T0 - SECOND).to_rfc3339();
    let payload = serde_json::json!({"user": user, "amount": 1, "ts": ts}).to_string();
    let mut sent = Vec::new();
    for _ in 0..how_many {
        let record = FutureRecord::to("t").partition(partition).key("k").payload(&payload);
        sent.push(producer.send_result(record).map_err(|(e, _)| e).expect("queued"));
    }
    for delivery in sent {
        delivery.await.expect("not cancelled").expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_or_a_failure_while_batches_wait_loses_and_repeats_nothing() {
    let cluster = Cluster::start(&["t"]);
    let windowed = Stream::windowed("windows", &cluster.servers(), "t");
    let plain = Stream::plain("rows", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    // full batches: each is decoded while the one before it is applied
    let settings = || Settings { batch_size: 5, max_backoff: Duration::from_millis(100), ..quick() };
    let (rounds, each) = (4i64, 1500i64);
    for round in 1..=rounds {
        many(&cluster.producer, 0, "a", each as usize).await;
        many(&cluster.producer, 1, "b", each as usize).await;
        let ingest = Ingest::start(&store, &[&windowed, &plain], settings());
        let before = stands("rows")(&store.content());
        store.until("it is under way", |c| stands("rows")(c) > before + 50).await;
        // the rows of a batch, or a checkpoint, while the next batch waits
        store.fail_writes.store(3, Ordering::SeqCst);
        store.until("it goes on", |c| stands("rows")(c) > before + 500).await;
        if round == rounds {
            let all = 2 * rounds * each;
            store.until("all is read", |c| stands("rows")(c) == all && stands("windows")(c) == all).await;
        }
        ingest.stop().await;
        for user in ["a", "b"] {
            let partition = i32::from(user == "b");
            let read = store.position("windows", "t", partition).unwrap_or(0);
            let counted = total(&store, &windowed, user).map_or(0, |values| count(&values[1]));
            assert_eq!(counted, read.max(0), "round {round}: what is counted is what the position says");
        }
    }
    assert_eq!(total(&store, &windowed, "a"), Some(vec![int(rounds * each), int(rounds * each)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_move_while_batches_wait_are_counted_once() {
    let cluster = Cluster::start(&["t"]);
    let stream = Stream::windowed("v", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    let settings = || Settings { batch_size: 5, ..quick() };
    let first = Ingest::start(&store, &[&stream], settings());
    let done = CancellationToken::new();
    let (producer, until) = (cluster.producer.clone(), done.clone());
    // there is always more to come, so that batches wait whenever the group moves a partition; but less than the mock
    // cluster keeps of a partition (100,000 messages): who is behind that is never given one
    let taken = Arc::clone(&store);
    let producing = tokio::spawn(async move {
        let mut sent = 0i64;
        while !until.is_cancelled() {
            taken.until("the readers are not far behind", |c| stands("v")(c) > 2 * sent - 40_000).await;
            many(&producer, 0, "a", 200).await;
            many(&producer, 1, "b", 200).await;
            sent += 200;
        }
        sent
    });
    store.until("the first reads", |c| stands("v")(c) > 400).await;
    let second = Ingest::start(&store, &[&stream], settings());
    let spec = service::windows::spec_of(&stream.view()).expect("a good definition");
    let view = stream.view();
    tokio::time::timeout(Duration::from_mins(2), async {
        let reads = |ingest: &Ingest| {
            let live = ingest.live.get(&view.table, &spec);
            let knows = |user: &str| {
                let key = crate::support::entity("user", user);
                live.as_ref().is_some_and(|live| live.answer(&key, &spec, &view, Timestamp(T0)).is_some())
            };
            knows("a") || knows("b")
        };
        while !reads(&second) {
            // nothing tells when a state is there that is not written yet
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the second was given a partition, and reads it");
    first.stop().await;
    done.cancel();
    let sent = producing.await.expect("no panic");
    store.until("all is read", |c| stands("v")(c) == 2 * sent).await;
    second.stop().await;
    for user in ["a", "b"] {
        assert_eq!(total(&store, &stream, user), Some(vec![int(sent), int(sent)]), "{user}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// So many events into a partition.
    Produce(i32, u8),
    /// These of the views are registered.
    Apply([bool; 3]),
    /// Until the views that are registered have read all.
    Settle,
    /// The process dies with what it holds, or is stopped, and starts again.
    Restart { dies: bool },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..2i32, 1..30u8).prop_map(|(partition, n)| Act::Produce(partition, n)),
        3 => any::<[bool; 3]>().prop_map(Act::Apply),
        2 => Just(Act::Settle),
        1 => any::<bool>().prop_map(|dies| Act::Restart { dies }),
    ];
    proptest::collection::vec(act, 6..16)
}

/// Plays acts over one topic; in the end every view must have counted every event once.
async fn play(acts: Vec<Act>) {
    let cluster = Cluster::start(&["t"]);
    let streams = ["one", "two", "three"].map(|name| Stream::windowed(name, &cluster.servers(), "t"));
    let store = Arc::new(MemoryStore::default());
    let settings = || Settings { batch_size: 7, max_backoff: Duration::from_millis(200), ..quick() };
    let mut registered = vec![&streams[0]];
    let mut ingest = Ingest::start(&store, &registered, settings());
    let mut events = 0;
    let read_all = |registered: &[&Stream], events: i64| {
        let names: Vec<&'static str> = registered.iter().map(|stream| stream.name).collect();
        move |c: &crate::support::Content| names.iter().all(|name| stands(name)(c) == events)
    };
    for act in acts {
        match act {
            Act::Produce(partition, n) => {
                for i in 0..n {
                    cluster.event("t", partition, ["a", "b"][usize::from(i % 2)], 3).await;
                    events += 1;
                }
            }
            Act::Apply(which) => {
                registered = streams.iter().zip(which).filter(|(_, on)| *on).map(|(stream, _)| stream).collect();
                ingest.apply(&registered);
            }
            Act::Settle => store.until("what is registered has read all", read_all(&registered, events)).await,
            Act::Restart { dies } => {
                store.fail_writes.store(if dies { u32::MAX } else { 0 }, Ordering::SeqCst);
                ingest.stop().await;
                store.fail_writes.store(0, Ordering::SeqCst);
                ingest = Ingest::start(&store, &registered, settings());
            }
        }
    }
    let all: Vec<&Stream> = streams.iter().collect();
    ingest.apply(&all);
    store.until("all views have read all", read_all(&all, events)).await;
    ingest.stop().await;
    for stream in all {
        let found: i64 = ["a", "b"].iter().filter_map(|user| total(&store, stream, user)).map(|v| count(&v[1])).sum();
        assert_eq!(found, events, "{}", stream.name);
    }
}

fn count(value: &model::Value) -> i64 {
    match value.val {
        Some(model::value::proto_value::Val::Int64Val(n)) => n,
        _ => 0,
    }
}

proptest! {
    // each start of a reader waits some seconds for the mock cluster's group
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn views_that_join_leave_and_crash_count_every_event_once(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(play(acts));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_stops_the_view_and_nothing_else() {
    let cluster = Cluster::start(&["t"]);
    let old = Stream::windowed("v", &cluster.servers(), "t");
    let other = Stream::windowed("other", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    cluster.event("t", 0, "a", 1).await;
    let ingest = Ingest::start(&store, &[&old], quick());
    store.until("it is read", |c| c.positions.values().any(|p| p.offset == 1)).await;
    let mut new = Stream::windowed("v", &cluster.servers(), "t");
    new.features.push(("low", model::ValueType::Int64));
    new.aggregations.push(("low", "min", "amount"));
    ingest.apply(&[&new, &other]);
    cluster.event("t", 0, "a", 1).await;
    let at = |view: &'static str| {
        move |c: &crate::support::Content| {
            c.positions.iter().any(|((group, ..), p)| group.ends_with(view) && p.offset == 2)
        }
    };
    store.until("the other view reads all", at(".other")).await;
    assert_eq!(store.position("v", "t", 0), Some(1), "the changed view waits");
    assert_eq!(total(&store, &old, "a"), Some(vec![int(1), int(1)]));
    ingest.apply(&[&old, &other]);
    store.until("the old definition goes on", at(".v")).await;
    assert_eq!(total(&store, &old, "a"), Some(vec![int(2), int(2)]));
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_keeps_its_start_through_a_restart() {
    let cluster = Cluster::start(&["t"]);
    let stream = Stream::windowed("v", &cluster.servers(), "t");
    let store = Arc::new(MemoryStore::default());
    cluster.event("t", 0, "a", 1).await;
    let latest = || Settings { start: "latest".parse().expect("a start"), ..quick() };
    let ingest = Ingest::start(&store, &[&stream], latest());
    store.until("the end is stored", |c| c.positions.len() == 2).await;
    ingest.stop().await;
    assert_eq!(store.position("v", "t", 0), Some(1));
    // comes while nobody reads
    cluster.event("t", 0, "a", 2).await;
    let ingest = Ingest::start(&store, &[&stream], latest());
    store.until("it is read", |c| c.positions.values().any(|p| p.offset == 2)).await;
    assert_eq!(total(&store, &stream, "a"), Some(vec![int(2), int(1)]));
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_does_not_stop_the_others_nor_the_end() {
    let cluster = Cluster::start(&["t"]);
    let up = Stream::windowed("up", &cluster.servers(), "t");
    let down = Stream::windowed("down", "127.0.0.1:1", "t");
    let store = Arc::new(MemoryStore::default());
    cluster.event("t", 0, "a", 1).await;
    let ingest = Ingest::start(&store, &[&down, &up], quick());
    store.until("the other is read", |c| c.positions.values().any(|p| p.offset == 1)).await;
    ingest.stop().await;
    assert_eq!(total(&store, &down, "a"), None);
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_named() {
    let store = Arc::new(MemoryStore::default());
    let ingest = Ingest::start(&store, &[], Settings { batch_size: 0, ..quick() });
    let error = ingest.task.await.expect("no panic").expect_err("refused");
    assert!(error.to_string().contains("batch_size"));
    assert_eq!(error.kind(), model::Kind::InvalidArgument);
}
