//! A connection to one Redis or to a cluster: pipelines, the batch script, scans, and what their
//! errors mean. Knows no rows.

use std::time::Duration;

use bytes::Bytes;
use model::ports::FENCED;
use model::{Error, Kind, Result};
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{
    Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, Script,
    ServerErrorKind, TlsCertificates, Value,
};

use super::Settings;

/// How many commands go out before their answers are read.
const PIPELINE: usize = 10_000;
/// How many keys a step of `SCAN` looks at.
const SCAN: usize = 1000;

/// A run of a script: its keys and its arguments.
pub(crate) type Call<'a> = (Vec<&'a [u8]>, Vec<&'a [u8]>);

#[derive(Clone)]
enum Link {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

/// A shared connection: it multiplexes, and comes back by itself after it was lost.
#[derive(Clone)]
pub(crate) struct Connection {
    link: Link,
    address: String,
}

impl Connection {
    /// Connects.
    ///
    /// Errors: `Unavailable` with the address, never with the password.
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        let address = settings.address();
        let fail = |error| unavailable(&address, error);
        let root_cert = match &settings.ca_certs {
            None => None,
            Some(path) => Some(std::fs::read(path).map_err(|e| {
                Error::new(Kind::Unavailable, format!("cannot read ssl_ca_certs {}: {e}", path.display()))
            })?),
        };
        let certificates = || TlsCertificates { client_tls: None, root_cert: root_cert.clone() };
        let mut login = RedisConnectionInfo::default().set_db(settings.db);
        if let Some(username) = &settings.username {
            login = login.set_username(username);
        }
        if let Some(password) = &settings.password {
            login = login.set_password(password);
        }
        let node = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            let address = if settings.tls {
                ConnectionAddr::TcpTls { host, port, insecure: settings.insecure, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            };
            address.into_connection_info().map(|info| info.set_redis_settings(login.clone()))
        };
        let nodes = settings.nodes.iter().map(node).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        let link = if settings.cluster {
            let mut builder = ClusterClient::builder(nodes)
                .connection_timeout(settings.connect_timeout)
                .response_timeout(settings.response_timeout);
            if settings.tls {
                builder = builder.certs(certificates());
            }
            let client = builder.build().map_err(fail)?;
            let opened = tokio::time::timeout(settings.connect_timeout * 2, client.get_async_connection()).await;
            Link::Cluster(opened.map_err(|_| timed_out(&address))?.map_err(fail)?)
        } else {
            let info = nodes.into_iter().next().ok_or_else(|| timed_out(&address))?;
            let client = if settings.tls { Client::build_with_tls(info, certificates()) } else { Client::open(info) };
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(2)
                .set_max_delay(Duration::from_millis(500))
                .set_connection_timeout(Some(settings.connect_timeout))
                .set_response_timeout(Some(settings.response_timeout));
            let manager = ConnectionManager::new_with_config(client.map_err(fail)?, config);
            Link::One(manager.await.map_err(fail)?)
        };
        Ok(Self { link, address })
    }

    /// Whether keys live on several nodes, so that no script reaches two of them.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.link, Link::Cluster(_))
    }

    /// Sends commands, and gives their answers in order: one pipeline, or in a cluster, where a pipeline
    /// reaches one slot only, each on its own and all at once (they share each node's connection).
    pub(crate) async fn all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>> {
        let mut answers = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter().peekable();
        while commands.peek().is_some() {
            let some = commands.by_ref().take(PIPELINE);
            let some: Result<Vec<Value>, _> = match self.link.clone() {
                Link::One(mut link) => {
                    let mut pipeline = Pipeline::new();
                    for command in some {
                        pipeline.add_command(command);
                    }
                    pipeline.query_async(&mut link).await
                }
                Link::Cluster(link) => {
                    let sent = some.map(|command| {
                        let mut link = link.clone();
                        async move { command.query_async(&mut link).await }
                    });
                    futures::future::join_all(sent).await.into_iter().collect()
                }
            };
            answers.extend(some.map_err(|e| self.failed(e))?);
        }
        Ok(answers)
    }

    /// Runs a script once per call, each with its keys and arguments; it is loaded where it is missing.
    pub(crate) async fn eval(&self, script: &Script, calls: Vec<Call<'_>>) -> Result<Vec<Value>> {
        let commands: Vec<Cmd> = calls
            .iter()
            .map(|(keys, arguments)| {
                let mut command = redis::cmd("EVALSHA");
                command.arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
                command
            })
            .collect();
        match self.all(commands.clone()).await {
            Err(error) if is_missing_script(&error) => {
                let loaded = match self.link.clone() {
                    Link::One(mut link) => script.load_async(&mut link).await,
                    Link::Cluster(mut link) => script.load_async(&mut link).await,
                };
                loaded.map_err(|e| self.failed(e))?;
                // What a part of a pipeline did before is done again: a row of the same version is a correction.
                self.all(commands).await
            }
            answer => answer,
        }
    }

    /// Every primary that has keys: none means the one there is.
    async fn primaries(&self) -> Result<Vec<Option<(String, u16)>>> {
        if !self.is_cluster() {
            return Ok(vec![None]);
        }
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let answer = self.all(vec![command]).await?.pop();
        let mut nodes = Vec::new();
        for range in answer.into_iter().flat_map(items) {
            let primary = items(range).into_iter().nth(2).map(items).unwrap_or_default();
            if let [host, Value::Int(port), ..] = primary.as_slice()
                && let Some(host) = text(host)
            {
                nodes.push(Some((host, *port as u16)));
            }
        }
        nodes.sort();
        nodes.dedup();
        Ok(nodes)
    }

    /// Begins to look for all keys that match.
    pub(crate) async fn scan(&self, pattern: Vec<u8>) -> Result<Scan> {
        let nodes = self.primaries().await?;
        Ok(Scan { connection: self.clone(), pattern, nodes, cursor: b"0".to_vec() })
    }

    /// An answer that is not of the form that the command has.
    pub(crate) fn unexpected(&self, command: &str) -> Error {
        Error::new(Kind::Internal, format!("Redis at {} answered {command} with something else", self.address))
    }

    /// What an entity's hash holds is not what Feast or we write.
    pub(crate) fn damaged(&self, what: &str) -> Error {
        Error::new(Kind::Internal, format!("Redis at {} holds {what} that is damaged: write it again", self.address))
    }

    fn failed(&self, error: RedisError) -> Error {
        let (code, said) = server_said(&error);
        let other = "another process reads the stream, too: what was not written comes again";
        match code.as_str() {
            "FENCED" => return Error::of_class(Kind::Conflict, FENCED, format!("{said}: {other}")),
            "CONFLICT" => return Error::new(Kind::Conflict, format!("{said}: {other}")),
            _ => {}
        }
        let ours = matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
            || matches!(code.as_str(), "WRONGTYPE" | "ERR" | "DAMAGED");
        if ours {
            return Error::internal(format!("Redis at {} refused a command ({code} {said})", self.address), error);
        }
        unavailable(&self.address, error)
    }
}

/// What the server answered: its error's code and text; both empty where it said nothing.
fn server_said(error: &RedisError) -> (String, String) {
    let errors = error.clone().into_server_errors();
    let first = errors.as_ref().and_then(|errors| errors.first());
    first.map_or_else(Default::default, |(_, e)| (e.code().to_owned(), e.details().unwrap_or_default().to_owned()))
}

/// A walk over the keys of all nodes.
pub(crate) struct Scan {
    connection: Connection,
    pattern: Vec<u8>,
    nodes: Vec<Option<(String, u16)>>,
    cursor: Vec<u8>,
}

impl Scan {
    /// The next keys, some maybe again; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Bytes>>> {
        let Some(node) = self.nodes.last() else { return Ok(None) };
        let mut command = redis::cmd("SCAN");
        command.arg(&self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(SCAN);
        let answer = match (self.connection.link.clone(), node.clone()) {
            (Link::Cluster(mut link), Some((host, port))) => {
                let node = SingleNodeRoutingInfo::ByAddress { host, port };
                link.route_command(command, RoutingInfo::SingleNode(node)).await
            }
            (Link::Cluster(mut link), None) => link.req_packed_command(&command).await,
            (Link::One(mut link), _) => link.req_packed_command(&command).await,
        };
        let mut answer = items(answer.map_err(|e| self.connection.failed(e))?);
        let (Some(keys), Some(Value::BulkString(next))) = (answer.pop(), answer.pop()) else {
            return Err(self.connection.unexpected("SCAN"));
        };
        if next == b"0" {
            self.nodes.pop();
        }
        self.cursor = next;
        Ok(Some(items(keys).into_iter().filter_map(bytes).collect()))
    }
}

fn is_missing_script(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<RedisError>());
    cause.is_some_and(|e| e.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}

fn unavailable(address: &str, error: RedisError) -> Error {
    let (code, _) = server_said(&error);
    let login =
        error.kind() == ErrorKind::AuthenticationFailed || matches!(code.as_str(), "NOAUTH" | "WRONGPASS" | "NOPERM");
    let advice = if login { "check username and password in the connection_string" } else { "try again later" };
    let what = if error.is_timeout() { "timed out".to_owned() } else { error.to_string() };
    Error::new(Kind::Unavailable, format!("Redis at {address} is not available ({what}): {advice}")).with_cause(error)
}

fn timed_out(address: &str) -> Error {
    Error::new(Kind::Unavailable, format!("Redis at {address} is not available (timed out): try again later"))
}

/// An array's items; nothing of anything else.
pub(crate) fn items(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
        _ => Vec::new(),
    }
}

/// A string's bytes; nothing of nil.
pub(crate) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    bytes(value.clone()).and_then(|b| String::from_utf8(b.to_vec()).ok())
}
