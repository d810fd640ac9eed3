//! The contract on a real `redis-server`, and what is Redis' own: Feast's bytes, time to live, clusters,
//! a server that goes away.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use model::ports::{Before, FENCED, StateWrite};
use model::row::{Column, Version, column_id};
use model::{Kind, Timestamp};
use prost::Message;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::contract::{Subject, get, key, row, rows, run_all, table, value};

/// `mmh3.hash("users:f", signed=False).to_bytes(4, "little")` in Python; `users:g` alike.
const USERS_F: [u8; 4] = [226, 243, 111, 19];
const USERS_G: [u8; 4] = [228, 207, 233, 159];

/// A `redis-server` of our own on a free loopback port; it ends with the value.
struct Server {
    child: Child,
    port: u16,
    dir: TempDir,
    /// Drives the connections: the suite has runtimes that come and go.
    runtime: Runtime,
}

fn start(port: u16, dir: &TempDir, extra: &[&str]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(dir.path()).args(extra).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().expect("redis-server is not installed: run scripts/setup.sh")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address").port()
}

impl Server {
    fn new(extra: &[&str]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let port = free_port();
        let child = start(port, &dir, extra);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let server = Self { child, port, dir, runtime: runtime.expect("a runtime") };
        server.wait();
        server
    }

    fn wait(&self) {
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20)); // awaits the port: redis-server tells nobody
        }
        panic!("redis-server does not listen on port {}", self.port);
    }

    fn stop(&mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("ends");
    }

    fn settings(&self) -> Settings {
        Settings::parse(&format!("127.0.0.1:{}", self.port)).expect("parses").0
    }

    /// Runs on the server's own runtime, from wherever.
    fn run<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(future)).join()).expect("does not panic")
    }

    fn open(&self) -> Store {
        self.run(async { Store::open(&self.settings()).await.expect("opens") })
    }

    fn command<T: redis::FromRedisValue + Send>(&self, command: &Cmd) -> T {
        self.run(async {
            let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("a client");
            let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
            command.query_async(&mut connection).await.expect("is answered")
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// A store in a server that was emptied.
struct Opened<'a>(&'a Server, Store);

impl<'a> Opened<'a> {
    fn new(server: &'a Server) -> Self {
        server.command::<()>(&redis::cmd("FLUSHALL"));
        Self(server, server.open())
    }
}

impl Subject for Opened<'_> {
    fn store(&self) -> &dyn OnlineStore {
        &self.1
    }

    async fn reopen(self) -> Self {
        Self(self.0, self.0.open())
    }
}

fn command(name: &str, arguments: &[&[u8]]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A hash's fields with their values.
fn hash(server: &Server, key: &[u8]) -> HashMap<Vec<u8>, Vec<u8>> {
    server.command(&command("HGETALL", &[key]))
}

fn seconds(seconds: i64) -> Vec<u8> {
    prost_types::Timestamp { seconds, nanos: 0 }.encode_to_vec()
}

/// What a store has of a window state, and where its group stands.
fn kept(store: &Store, table: &Arc<Table>) -> (Option<Bytes>, Vec<i64>) {
    block_on(async {
        let read = Read { table: Arc::clone(table), keys: vec![key("anna")] };
        let state = store.read_states(std::slice::from_ref(&read)).await.expect("reads").remove(0).remove(0);
        let positions = store.positions("g").await.expect("reads");
        (state, positions.iter().map(|position| position.offset).collect())
    })
}

fn batch(table: &Arc<Table>, state: &'static str, before: Before, offset: i64, fences: &[Fence]) -> WriteBatch {
    let state = StateWrite { table: Arc::clone(table), key: key("anna"), state: Some(Bytes::from(state)) };
    let position =
        Position { group: "g".into(), topic: "t".into(), partition: 3, offset, max_event: Timestamp(offset) };
    WriteBatch {
        states: vec![state],
        before: vec![before],
        positions: vec![position],
        fences: fences.to_vec(),
        ..WriteBatch::default()
    }
}

#[test]
fn who_claims_a_partition_later_fences_the_others_off() {
    let server = Server::new(&[]);
    let (one, two) = (server.open(), server.open());
    let views = table("shop", "users");
    let claim = |store: &Store| block_on(store.claim("g", "t", &[3])).expect("claims");
    let write = |store: &Store, state, offset, fences: &[Fence]| {
        block_on(store.write(batch(&views, state, Before::Any, offset, fences)))
    };
    let first = claim(&one);
    assert!(kept(&one, &views).1.is_empty(), "a claim is no position");
    write(&one, "a", 1, &first).expect("it is the only one");
    let second = claim(&two);
    assert!(second[0].epoch > first[0].epoch);
    let error = write(&one, "b", 2, &first).expect_err("it was passed");
    assert_eq!((error.kind(), error.class()), (Kind::Conflict, FENCED));
    assert_eq!(kept(&one, &views), (Some(Bytes::from("a")), vec![1]), "nothing of it is written");
    write(&two, "c", 5, &second).expect("it is the latest");
    let third = claim(&one);
    write(&two, "d", 6, &second).expect_err("and back");
    write(&one, "e", 7, &third).expect("the latest again");
    assert_eq!(kept(&two, &views), (Some(Bytes::from("e")), vec![7]));
}

#[test]
fn a_state_that_another_wrote_is_not_written_over() {
    let server = Server::new(&[]);
    let (one, two) = (server.open(), server.open());
    let views = table("shop", "users");
    let write = |store: &Store, state, before, offset| block_on(store.write(batch(&views, state, before, offset, &[])));
    let tag = |state: &[u8]| Before::Tagged(one.tag(state).expect("one server"));
    write(&one, "a", Before::Absent, 1).expect("there is none");
    let error = write(&two, "b", Before::Absent, 2).expect_err("there is one");
    assert_eq!(error.kind(), Kind::Conflict);
    assert_ne!(error.class(), FENCED);
    assert_eq!(kept(&two, &views), (Some(Bytes::from("a")), vec![1]), "nothing of it is written");
    write(&two, "b", tag(b"a"), 2).expect("it is what was read");
    write(&one, "c", tag(b"a"), 3).expect_err("it was");
    write(&one, "c", tag(b"b"), 3).expect("it is");
    write(&two, "d", Before::Any, 4).expect("whatever it is");
    assert_eq!(kept(&one, &views), (Some(Bytes::from("d")), vec![4]));
}

#[test]
fn keeps_the_contract() {
    let server = Server::new(&[]);
    block_on(run_all(|| Opened::new(&server)));
}

#[test]
fn only_what_is_asked_for_is_read() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("p", "v"));
    let whole = row(10, 1, &[("f", b"f"), ("g", b"g"), ("h", b"h")]);
    block_on(store.write(rows(&[(&t, "a", whole)]))).expect("writes");
    let found = block_on(get(&store, &t.part(&[column_id("g")]), &["a"]));
    assert_eq!(found, [Some(row(10, 1, &[("g", b"g")]))]);
}

/// Three nodes, each with a third of the slots.
fn cluster() -> Vec<Server> {
    let buses: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
    let servers: Vec<Server> =
        buses.iter().map(|bus| Server::new(&["--cluster-enabled", "yes", "--cluster-port", bus])).collect();
    for (node, range) in servers.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
        let mut slots = command("CLUSTER", &[b"ADDSLOTSRANGE"]);
        node.command::<()>(slots.arg(range.split(' ').collect::<Vec<_>>()));
        for (other, bus) in servers.iter().zip(&buses) {
            let mut meet = command("CLUSTER", &[b"MEET", b"127.0.0.1"]);
            node.command::<()>(meet.arg(other.port).arg(bus));
        }
    }
    let whole = |node: &Server| {
        let info: String = node.command(&command("CLUSTER", &[b"INFO"]));
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
    };
    for _ in 0..1000 {
        if servers.iter().all(whole) {
            return servers;
        }
        std::thread::sleep(Duration::from_millis(20)); // awaits the nodes' agreement: they tell nobody
    }
    panic!("the nodes do not become a cluster");
}

/// A store in a cluster that was emptied.
struct InCluster<'a>(&'a [Server], Store);

impl<'a> InCluster<'a> {
    fn open(nodes: &'a [Server]) -> Self {
        let settings = Settings { cluster: true, ..nodes[1].settings() };
        Self(nodes, nodes[0].run(async { Store::open(&settings).await.expect("opens") }))
    }
}

impl Subject for InCluster<'_> {
    fn store(&self) -> &dyn OnlineStore {
        &self.1
    }

    async fn reopen(self) -> Self {
        Self::open(self.0)
    }
}

#[test]
fn keeps_the_contract_in_a_cluster() {
    let nodes = cluster();
    let make = || {
        for node in &nodes {
            node.command::<()>(&command("FLUSHALL", &[]));
        }
        InCluster::open(&nodes)
    };
    block_on(run_all(make));
    let (subject, t) = (make(), table("shop", "users"));
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let one = row(5, 0, &[("f", b"x")]);
    let writes: Vec<_> = names.iter().map(|name| (&t, name.as_str(), one.clone())).collect();
    assert_eq!(block_on(subject.store().write(rows(&writes))).expect("writes").applied, 100);
    for node in &nodes {
        assert!(node.command::<usize>(&command("DBSIZE", &[])) > 10, "every node has its part");
    }
}

#[test]
fn a_row_of_one_time_is_feasts_byte_for_byte() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    let entity = [key("anna").as_bytes(), b"shop"].concat();
    block_on(store.write(rows(&[(&t, "anna", row(5_000_000, 0, &[("f", b"x"), ("g", b"")]))]))).expect("writes");
    let feasts =
        [(USERS_F.to_vec(), value(b"x").to_vec()), (USERS_G.to_vec(), Vec::new()), (b"_ts:users".to_vec(), seconds(5))];
    assert_eq!(hash(&server, &entity), HashMap::from(feasts));

    block_on(store.write(rows(&[(&t, "anna", row(7_000_000, 0, &[("f", b"y")]))]))).expect("writes");
    assert!(hash(&server, &entity).contains_key(&b"_larder:users"[..]), "g has a time of its own");
    block_on(store.write(rows(&[(&t, "anna", row(8_000_000, 0, &[("f", b"z"), ("g", b"z")]))]))).expect("writes");
    assert!(!hash(&server, &entity).contains_key(&b"_larder:users"[..]), "one time again");
}

#[test]
fn where_feast_has_written_since_its_time_counts() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    let entity = [key("anna").as_bytes(), b"shop"].concat();
    let write = |event, created, columns: &[(&str, &[u8])]| {
        block_on(store.write(rows(&[(&t, "anna", row(event, created, columns))]))).expect("writes")
    };
    write(5_000_000, 9, &[("f", b"x"), ("g", b"x")]);
    write(6_000_000, 9, &[("f", b"y")]);
    let now = seconds(20);
    server.command::<()>(&command("HSET", &[&entity, &USERS_F, &value(b"feast"), b"_ts:users", &now]));
    let stored = block_on(get(&store, &t, &["anna"])).remove(0).expect("is there");
    let version = Version { event: Timestamp(20_000_000), created: Timestamp(0) };
    assert_eq!(stored.get(column_id("f")), Some((value(b"feast"), version)));
    assert_eq!(stored.get(column_id("g")), Some((value(b"x"), version)));
    assert_eq!(write(19_999_999, 9, &[("g", b"z")]).stale, [0], "and it is compared with");
    assert_eq!(write(20_000_000, 0, &[("g", b"z")]).applied, 1);
}

#[test]
fn entities_live_as_long_as_they_are_told_to() {
    let server = Server::new(&[]);
    let settings = Settings { key_ttl: Some(Duration::from_secs(100)), ..server.settings() };
    let store = server.run(async { Store::open(&settings).await.expect("opens") });
    let t = table("shop", "users");
    let mut batch = rows(&[(&t, "anna", row(5, 0, &[("f", b"x")]))]);
    batch.states = crate::contract::states(&[(&t, "anna", Some(b"state"))]).states;
    block_on(store.write(batch)).expect("writes");
    let ttl = |key: &[u8]| server.command::<i64>(&command("TTL", &[key]));
    assert!((90..=100).contains(&ttl(&[key("anna").as_bytes(), b"shop"].concat())));
    assert_eq!(ttl(&layout::state(&t, &key("anna"))), -1, "window states stay");
}

#[test]
fn a_batch_that_cannot_be_written_whole_is_not_written() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    server.command::<()>(&command("SET", &[&[key("berta").as_bytes(), b"shop"].concat(), b"a string"]));
    let one = row(5, 0, &[("f", b"x")]);
    let mut batch = rows(&[(&t, "anna", one.clone()), (&t, "berta", one.clone())]);
    batch.states = crate::contract::states(&[(&t, "anna", Some(b"state"))]).states;
    let error = block_on(store.write(batch)).expect_err("one key is no hash");
    assert_eq!(error.kind(), model::Kind::Internal, "{error}");
    assert_eq!(block_on(get(&store, &t, &["anna"])), [None]);
    assert_eq!(block_on(crate::contract::get_states(&store, &t, &["anna"])), [None]);

    let other = Column { id: column_id("unknown"), value: value(b"x"), version: Version::default() };
    let batch = rows(&[(&t, "anna", one), (&t, "carla", Row::pack(vec![other]))]);
    let error = block_on(store.write(batch)).expect_err("no feature of the view has this column id");
    assert!(error.message().contains(&format!("{:#010x}", column_id("unknown"))), "{error}");
    assert_eq!(block_on(get(&store, &t, &["anna"])), [None]);
}

#[test]
fn a_value_that_is_no_time_is_damage() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    server.command::<()>(&command("HSET", &[&[key("anna").as_bytes(), b"shop"].concat(), b"_ts:users", b"\xff"]));
    let read = Read { table: t.clone(), keys: vec![key("anna")] };
    let error = block_on(store.read(&[read])).expect_err("is damaged");
    assert!(error.kind() == model::Kind::Internal && error.message().contains("'users'"), "{error}");
    let error = block_on(store.write(rows(&[(&t, "anna", row(5, 0, &[("f", b"x")]))]))).expect_err("is damaged");
    assert_eq!(error.kind(), model::Kind::Internal, "{error}");
}

#[test]
fn scripts_that_the_server_forgot_are_sent_again() {
    let server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    for n in 0..3 {
        server.command::<()>(&command("SCRIPT", &[b"FLUSH"]));
        let written = block_on(store.write(rows(&[(&t, "anna", row(n, 0, &[("f", b"x")]))])));
        assert_eq!(written.expect("writes").applied, 1);
    }
    server.command::<()>(&command("SCRIPT", &[b"FLUSH"]));
    assert_eq!(block_on(store.clear(&t)).expect("clears"), 1);
}

#[test]
fn a_server_that_is_gone_is_waited_for() {
    let mut server = Server::new(&[]);
    let (store, t) = (server.open(), table("shop", "users"));
    server.stop();
    let read = [Read { table: t.clone(), keys: vec![key("anna")] }];
    let error = block_on(store.read(&read)).expect_err("nobody answers");
    assert_eq!(error.kind(), model::Kind::Unavailable);
    let said = error.message();
    assert!(said.contains(&server.port.to_string()) && said.contains("try again later"), "{said}");
    server.child = start(server.port, &server.dir, &[]);
    server.wait();
    let answer = (0..200).find_map(|_| {
        let answer = block_on(store.read(&read)).ok();
        if answer.is_none() {
            std::thread::sleep(Duration::from_millis(50)); // awaits the connection: it comes back by itself
        }
        answer
    });
    assert_eq!(answer, Some(vec![vec![None]]));
}

#[test]
fn errors_do_not_tell_the_password() {
    let server = Server::new(&["--requirepass", "right"]);
    let open = |connection_string: String| {
        let (settings, _) = Settings::parse(&connection_string).expect("parses");
        server.run(async move { Store::open(&settings).await.map(drop) })
    };
    let error = open(format!("127.0.0.1:{},password=wrong_secret", server.port)).expect_err("is refused");
    let said = format!("{error} {:?}", std::error::Error::source(&error));
    assert_eq!(error.kind(), model::Kind::Unavailable);
    assert!(said.contains("password") && !said.contains("wrong_secret"), "{said}");
    open(format!("127.0.0.1:{},password=right", server.port)).expect("is let in");
    let nobody = free_port();
    let error = open(format!("127.0.0.1:{nobody},password=wrong_secret")).expect_err("nobody listens");
    assert!(error.message().contains(&nobody.to_string()) && !format!("{error:?}").contains("secret"), "{error:?}");
}
