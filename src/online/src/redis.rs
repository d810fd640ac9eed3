//! The online store in Redis, in Feast's layout ([`layout`]): Larder serves what Feast wrote, and Feast
//! what Larder wrote. Knows no feature views and no configuration files.
//!
//! A read is one round trip: one `HMGET` per entity key, with the fields of all its views, in one
//! pipeline. A write is one run of a script (`write.lua`) that compares times and writes column by
//! column, so that it is atomic: rows, window states and positions together. In a Redis Cluster it is
//! atomic per key only, claims before rows and states before positions: after a crash or a worker's loss of
//! its partitions in between, a stream's last batch is counted again.
//!
//! What the layout cannot hold: two features of one entity whose names have one 32-bit hash
//! (1 in 4·10⁹ per pair). Where Feast writes over a row of ours, its time is the time of the whole row.

mod connection;
mod layout;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use model::ports::{BoxFuture, Fence, OnlineStore, Position, Read, Table, WriteBatch, Written};
use model::{Result, Row};
use redis::{Cmd, Script, Value};

pub use settings::Settings;

use crate::metrics::Traffic;
use connection::{Connection, bytes, items};
use layout::Fields;

/// An online store in Redis.
pub struct Store {
    connection: Connection,
    write: Script,
    clear: Script,
    /// Seconds; 0 is for ever.
    ttl: u64,
    fields: papaya::HashMap<Table, (Arc<Table>, Arc<Fields>)>,
    traffic: Traffic,
}

/// A key, and what is done to it (see `write.lua`).
type Operation = (Vec<u8>, Vec<u8>);

/// Where a read finds one row: which command, and from which of its fields on.
struct Place {
    command: usize,
    first: usize,
}

/// One `HMGET`: an entity with the fields of some tables.
struct Fetch {
    tables: Vec<(usize, usize)>,
    fields: usize,
    command: Cmd,
}

impl Fetch {
    /// Where the table's fields begin; they are asked for once.
    fn place(&mut self, table: usize, fields: &Fields) -> usize {
        if let Some((_, first)) = self.tables.iter().find(|(t, _)| *t == table) {
            return *first;
        }
        let first = self.fields;
        self.tables.push((table, first));
        self.fields += fields.len();
        for field in fields.all() {
            self.command.arg(field);
        }
        first
    }
}

impl Store {
    /// Connects.
    ///
    /// Errors: `Unavailable` with the address, where Redis is not there or refuses the login.
    pub async fn open(settings: &Settings) -> Result<Self> {
        Ok(Self {
            connection: Connection::open(settings).await?,
            write: Script::new(include_str!("redis/write.lua")),
            clear: Script::new(include_str!("redis/clear.lua")),
            ttl: settings.key_ttl.map_or(0, |ttl| ttl.as_secs()),
            fields: papaya::HashMap::new(),
            traffic: Traffic::new("redis"),
        })
    }

    /// The table's fields; worked out again when its features change.
    fn fields(&self, table: &Arc<Table>) -> Arc<Fields> {
        if let Some(whole) = table.whole() {
            return Arc::new(self.fields(whole).part(table));
        }
        let known = self.fields.pin();
        if let Some((of, fields)) = known.get(&**table)
            && (Arc::ptr_eq(of, table) || of.features() == table.features())
        {
            return Arc::clone(fields);
        }
        let fields = Arc::new(Fields::of(table));
        known.insert((**table).clone(), (Arc::clone(table), Arc::clone(&fields)));
        fields
    }

    async fn read_rows(&self, reads: &[Read]) -> Result<Vec<Vec<Option<Row>>>> {
        let fields: Vec<_> = reads.iter().map(|read| self.fields(&read.table)).collect();
        // Two reads of one table share its fields, and so its place in a command.
        let table_of: Vec<usize> =
            fields.iter().map(|f| fields.iter().position(|g| Arc::ptr_eq(f, g)).unwrap_or_default()).collect();
        let mut by_key: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut fetches: Vec<Fetch> = Vec::new();
        let mut places = Vec::with_capacity(reads.len());
        for ((read, fields), table) in reads.iter().zip(&fields).zip(&table_of) {
            let place = |key| {
                let key = layout::entity(&read.table.project, key);
                let command = *by_key.entry(key).or_insert_with_key(|key| {
                    let mut command = redis::cmd("HMGET");
                    command.arg(key);
                    fetches.push(Fetch { tables: Vec::new(), fields: 0, command });
                    fetches.len() - 1
                });
                let first = fetches[command].place(*table, fields);
                Place { command, first }
            };
            places.push(read.keys.iter().map(place).collect::<Vec<_>>());
        }
        let answers = self.connection.all(fetches.into_iter().map(|f| f.command).collect()).await?;
        let answers: Vec<Vec<Option<Bytes>>> =
            answers.into_iter().map(|a| items(a).into_iter().map(bytes).collect()).collect();
        let row = |read: &Read, fields: &Fields, place: &Place| {
            let values = answers.get(place.command).and_then(|a| a.get(place.first..place.first + fields.len()));
            let values = values.ok_or_else(|| self.connection.unexpected("HMGET"))?;
            let what = || format!("a row of view '{}' in project '{}'", read.table.view, read.table.project);
            fields.row(values.to_vec()).map_err(|_| self.connection.damaged(&what()))
        };
        let all = reads.iter().zip(&fields).zip(&places);
        all.map(|((read, fields), places)| places.iter().map(|place| row(read, fields, place)).collect()).collect()
    }

    async fn apply(&self, batch: WriteBatch) -> Result<Written> {
        let states = batch.states.len();
        let mut operations: Vec<Operation> = Vec::with_capacity(batch.rows.len() + states);
        for write in &batch.rows {
            let operation = self.fields(&write.table).merge(&write.table, &write.row)?;
            operations.push((layout::entity(&write.table.project, &write.key), operation));
        }
        for fence in &batch.fences {
            operations.push((layout::positions(&fence.group), layout::expect_claim(fence)));
        }
        for (at, write) in batch.states.iter().enumerate() {
            let key = layout::state(&write.table, &write.key);
            let expected = batch.before.get(at).copied().and_then(layout::expect_state);
            operations.extend(expected.map(|expected| (key.clone(), expected)));
            operations.push((key, layout::set_state(write)));
        }
        for position in &batch.positions {
            operations.push((layout::positions(&position.group), layout::set_position(position)));
        }
        if operations.is_empty() {
            return Ok(Written::default());
        }
        let ttl = self.ttl.to_string();
        let mut written = Written::default();
        for part in self.parts(&operations) {
            let mut calls = Vec::with_capacity(part.len());
            for places in &part {
                let keys: Vec<&[u8]> = places.iter().map(|at| operations[*at].0.as_slice()).collect();
                let operations = places.iter().map(|at| operations[*at].1.as_slice());
                calls.push((keys, std::iter::once(ttl.as_bytes()).chain(operations).collect()));
            }
            for (places, answer) in part.iter().zip(self.connection.eval(&self.write, calls).await?) {
                let unexpected = || self.connection.unexpected("EVALSHA");
                let [Value::Int(applied), Value::Array(stale)] = &items(answer)[..] else { return Err(unexpected()) };
                written.applied += *applied as usize;
                for at in stale {
                    // rows come before all else
                    let at = if let Value::Int(at) = at { places.get(*at as usize) } else { None };
                    written.stale.push(*at.ok_or_else(unexpected)? as u32);
                }
            }
        }
        written.stale.sort_unstable();
        self.traffic.written(&written, states);
        Ok(written)
    }

    /// What runs one after the other, and in each what one run of the script does, by the operations' places: all at
    /// once, or in a cluster key by key, with the positions last.
    fn parts(&self, operations: &[Operation]) -> Vec<Vec<Vec<usize>>> {
        let all = 0..operations.len();
        if !self.connection.is_cluster() {
            return vec![vec![all.collect()]];
        }
        let is = |at: usize, kind: u8| operations[at].1.first() == Some(&kind);
        let fences: Vec<usize> = all.clone().filter(|at| is(*at, b'F')).collect();
        let (positions, rest) = all.partition(|at| is(*at, b'P') || is(*at, b'F'));
        let by_key = |places: Vec<usize>| {
            let mut calls: Vec<Vec<usize>> = Vec::new();
            let mut known: HashMap<&[u8], usize> = HashMap::new();
            for at in places {
                let call = *known.entry(&operations[at].0).or_insert_with(|| {
                    calls.push(Vec::new());
                    calls.len() - 1
                });
                calls[call].push(at);
            }
            calls
        };
        [fences, rest, positions].into_iter().map(by_key).filter(|calls| !calls.is_empty()).collect()
    }

    async fn clear_table(&self, table: &Table) -> Result<u64> {
        let fields = Fields::of(table);
        let arguments: Vec<&[u8]> = fields.all().collect();
        let mut removed = 0;
        let mut entities = self.connection.scan(layout::entity_pattern(&table.project)).await?;
        while let Some(keys) = entities.next().await? {
            let keys: Vec<&[u8]> =
                keys.iter().map(|k| &**k).filter(|k| layout::is_of_project(k, &table.project)).collect();
            let calls = if self.connection.is_cluster() {
                keys.into_iter().map(|key| (vec![key], arguments.clone())).collect()
            } else if keys.is_empty() {
                Vec::new()
            } else {
                vec![(keys, arguments.clone())]
            };
            removed += self.connection.eval(&self.clear, calls).await?.iter().map(count).sum::<u64>();
        }
        let mut states = self.connection.scan(layout::state_pattern(table)).await?;
        while let Some(keys) = states.next().await? {
            let unlink = |key: &Bytes| {
                let mut command = redis::cmd("UNLINK");
                command.arg(&**key);
                command
            };
            let answers = self.connection.all(keys.iter().map(unlink).collect()).await?;
            removed += answers.iter().map(count).sum::<u64>();
        }
        Ok(removed)
    }
}

fn count(answer: &Value) -> u64 {
    if let Value::Int(n) = answer { *n as u64 } else { 0 }
}

impl OnlineStore for Store {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        Box::pin(async move {
            let answer = self.read_rows(reads).await?;
            self.traffic.rows(&answer);
            Ok(answer)
        })
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        Box::pin(async move {
            let get = |table: &Arc<Table>, key| {
                let mut command = redis::cmd("GET");
                command.arg(layout::state(table, key));
                command
            };
            let commands = reads.iter().flat_map(|r| r.keys.iter().map(|key| get(&r.table, key))).collect();
            let mut answers = self.connection.all(commands).await?.into_iter().map(bytes);
            let answer: Vec<Vec<_>> = reads.iter().map(|r| answers.by_ref().take(r.keys.len()).collect()).collect();
            self.traffic.states(&answer);
            Ok(answer)
        })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(self.apply(batch))
    }

    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        Box::pin(async move {
            let mut command = redis::cmd("HGETALL");
            command.arg(layout::positions(group));
            let answer = self.connection.all(vec![command]).await?.pop();
            let fields: Vec<Bytes> = answer.into_iter().flat_map(items).filter_map(bytes).collect();
            let position = |pair: &[Bytes]| match pair {
                [field, value] => layout::position(group, field, value),
                _ => None,
            };
            let damaged = || self.connection.damaged(&format!("a position of consumer group '{group}'"));
            let pairs = fields.chunks(2).filter(|pair| !pair.first().is_some_and(|field| layout::is_claim(field)));
            pairs.map(|pair| position(pair).ok_or_else(damaged)).collect()
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// In a cluster a batch is no unit: a conflict over one state would leave the others written.
    fn tag(&self, state: &[u8]) -> Option<u64> {
        (!self.connection.is_cluster()).then(|| layout::tag(state))
    }

    fn claim<'a>(&'a self, group: &'a str, topic: &'a str, partitions: &'a [i32]) -> BoxFuture<'a, Result<Vec<Fence>>> {
        Box::pin(async move {
            let count = |partition: &i32| {
                let mut command = redis::cmd("HINCRBY");
                command.arg(layout::positions(group)).arg(layout::claim(topic, *partition)).arg(1);
                command
            };
            let answers = self.connection.all(partitions.iter().map(count).collect()).await?;
            let fence = |(partition, answer): (&i32, Value)| match answer {
                Value::Int(epoch) => Ok(Fence {
                    group: group.to_owned(),
                    topic: topic.to_owned(),
                    partition: *partition,
                    epoch: epoch as u64,
                }),
                _ => Err(self.connection.unexpected("HINCRBY")),
            };
            partitions.iter().zip(answers).map(fence).collect()
        })
    }

    /// Scans the whole database in steps, while others read and write: what is written meanwhile may
    /// stay. After a failure in the middle a second call removes the rest.
    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.clear_table(table))
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests;
