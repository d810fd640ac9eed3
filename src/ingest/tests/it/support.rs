//! A store in memory that can fail, views made as the SDK registers them, and a clock to set. Knows
//! no Kafka.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use ingest::feed::Feed;
use ingest::formats::Formats;
use model::ports::{BoxFuture, Clock, Object, ObjectKind, OnlineStore, Position, Read, Table, WriteBatch, Written};
use model::registry::{Registry, View};
use model::row::{Row, merge};
use model::value::{ValueType, proto_value::Val};
use model::{EntityKey, Error, Kind, Result, Timestamp, Value};
use prost::Message;
use proto::feast::core;

pub(crate) const PROJECT: &str = "demo";
/// 2026-01-01T00:00:00Z in microseconds.
pub(crate) const T0: i64 = 1_767_225_600_000_000;
pub(crate) const SECOND: i64 = 1_000_000;

pub(crate) struct FakeClock(AtomicI64);

impl FakeClock {
    pub(crate) fn at(micros: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(micros)))
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) rows: BTreeMap<(Table, EntityKey), Row>,
    pub(crate) states: BTreeMap<(Table, EntityKey), Bytes>,
    pub(crate) positions: BTreeMap<(String, String, i32), Position>,
}

/// The store: atomic, in memory; refuses the next `fail_writes` writes, and those of states of the view `refused`.
#[derive(Default)]
pub(crate) struct MemoryStore {
    content: Mutex<Content>,
    pub(crate) fail_writes: AtomicU32,
    pub(crate) refused: Mutex<Option<&'static str>>,
    pub(crate) changed: tokio::sync::Notify,
}

impl MemoryStore {
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no writer panics")
    }

    /// Waits until `ready` holds of the content.
    pub(crate) async fn until(&self, what: &str, ready: impl Fn(&Content) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if ready(&self.content()) {
                    return;
                }
                changed.await;
            }
        };
        let limit = std::time::Duration::from_mins(1);
        assert!(tokio::time::timeout(limit, wait).await.is_ok(), "it did not come to pass: {what}");
    }

    /// The offset stored for a group's partition.
    pub(crate) fn position(&self, view: &str, topic: &str, partition: i32) -> Option<i64> {
        let group = format!("larder.{PROJECT}.{view}");
        self.content().positions.get(&(group, topic.to_owned(), partition)).map(|p| p.offset)
    }

    /// The features of a windowed view's entity at a time.
    pub(crate) fn answer(&self, view: &View, key: &str, at: i64) -> Option<Vec<Value>> {
        let spec = service::windows::spec_of(view).expect("a good definition");
        let key = entity("user", key);
        let state = self.content().states.get(&((*view.table).clone(), key.clone())).cloned()?;
        let answer = service::windows::answer(&key, &state, &spec, view, Timestamp(at)).expect("readable");
        answer.map(|(_, values)| values)
    }

    /// A feature of a plain view's entity.
    pub(crate) fn feature(&self, view: &View, key: &str, feature: &str) -> Option<Value> {
        let content = self.content();
        let row = content.rows.get(&((*view.table).clone(), entity("user", key)))?;
        let (bytes, _) = row.get(model::row::column_id(feature))?;
        Some(Value::decode(bytes).expect("a value"))
    }
}

impl OnlineStore for MemoryStore {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        Box::pin(async move {
            let content = self.content();
            let one =
                |r: &Read| r.keys.iter().map(|k| content.rows.get(&((*r.table).clone(), k.clone())).cloned()).collect();
            Ok(reads.iter().map(one).collect())
        })
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        Box::pin(async move {
            let content = self.content();
            let one = |r: &Read| {
                r.keys.iter().map(|k| content.states.get(&((*r.table).clone(), k.clone())).cloned()).collect()
            };
            Ok(reads.iter().map(one).collect())
        })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            if self.fail_writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(Error::new(Kind::Unavailable, "the store is away"));
            }
            let refused = *self.refused.lock().expect("no holder panics");
            if refused.is_some_and(|view| batch.states.iter().any(|state| state.table.view == view)) {
                return Err(Error::new(Kind::Unavailable, "the store takes nothing of this view"));
            }
            let mut written = Written::default();
            {
                let mut content = self.content();
                for (at, write) in (0..).zip(batch.rows) {
                    let key = ((*write.table).clone(), write.key);
                    match merge(content.rows.get(&key), &write.row) {
                        Some(row) => {
                            content.rows.insert(key, row);
                            written.applied += 1;
                        }
                        None => written.stale.push(at),
                    }
                }
                for write in batch.states {
                    let key = ((*write.table).clone(), write.key);
                    match write.state {
                        Some(state) => content.states.insert(key, state),
                        None => content.states.remove(&key),
                    };
                }
                for p in batch.positions {
                    content.positions.insert((p.group.clone(), p.topic.clone(), p.partition), p);
                }
            }
            self.changed.notify_waiters();
            Ok(written)
        })
    }

    fn positions<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        Box::pin(async move {
            let content = self.content();
            Ok(content.positions.values().filter(|p| p.group == group).cloned().collect())
        })
    }

    fn clear<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let mut content = self.content();
            let before = content.rows.len() + content.states.len();
            content.rows.retain(|(t, _), _| t != table);
            content.states.retain(|(t, _), _| t != table);
            let after = content.rows.len() + content.states.len();
            drop(content);
            self.changed.notify_waiters();
            Ok((before - after) as u64)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

pub(crate) fn entity(join_key: &str, value: &str) -> EntityKey {
    let value = Value { val: Some(Val::StringVal(value.to_owned())) };
    EntityKey::encode(&[(join_key, &value)]).expect("a key")
}

/// A stream view to register.
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    pub(crate) servers: String,
    pub(crate) topic: String,
    pub(crate) schema: &'static str,
    /// Instead of JSON with that schema.
    pub(crate) format: Option<core::stream_format::Format>,
    /// The names that the view has for columns of the message.
    pub(crate) mapping: Vec<(&'static str, &'static str)>,
    /// The source's event time column.
    pub(crate) time: &'static str,
    pub(crate) features: Vec<(&'static str, ValueType)>,
    /// The window of all aggregations.
    pub(crate) window_seconds: i64,
    /// Feature, function, column.
    pub(crate) aggregations: Vec<(&'static str, &'static str, &'static str)>,
    pub(crate) disabled: bool,
}

impl Stream {
    /// `amount` summed and counted over a minute.
    pub(crate) fn windowed(name: &'static str, servers: &str, topic: &str) -> Self {
        Self {
            name,
            servers: servers.to_owned(),
            topic: topic.to_owned(),
            schema: "user string, amount bigint, ts timestamp",
            format: None,
            mapping: Vec::new(),
            time: "ts",
            features: vec![("total", ValueType::Int64), ("n", ValueType::Int64)],
            window_seconds: 60,
            aggregations: vec![("n", "count", "amount"), ("total", "sum", "amount")],
            disabled: false,
        }
    }

    /// `amount` as it comes.
    pub(crate) fn plain(name: &'static str, servers: &str, topic: &str) -> Self {
        Self {
            features: vec![("amount", ValueType::Int64)],
            aggregations: Vec::new(),
            ..Self::windowed(name, servers, topic)
        }
    }

    fn message(&self) -> core::StreamFeatureView {
        let feature = |name: &str, value_type: ValueType| core::FeatureSpecV2 {
            name: name.to_owned(),
            value_type: value_type as i32,
            ..Default::default()
        };
        let options = core::data_source::KafkaOptions {
            kafka_bootstrap_servers: self.servers.clone(),
            topic: self.topic.clone(),
            message_format: Some(core::StreamFormat {
                format: Some(self.format.clone().unwrap_or_else(|| {
                    let schema_json = self.schema.to_owned();
                    core::stream_format::Format::JsonFormat(core::stream_format::JsonFormat { schema_json })
                })),
            }),
            watermark_delay_threshold: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        };
        let source = core::DataSource {
            name: "events".to_owned(),
            timestamp_field: self.time.to_owned(),
            field_mapping: self.mapping.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect(),
            options: Some(core::data_source::Options::KafkaOptions(options)),
            ..Default::default()
        };
        let aggregations = self.aggregations.iter().map(|(name, function, column)| core::Aggregation {
            name: (*name).to_owned(),
            function: (*function).to_owned(),
            column: (*column).to_owned(),
            time_window: Some(prost_types::Duration { seconds: self.window_seconds, nanos: 0 }),
            ..Default::default()
        });
        core::StreamFeatureView {
            spec: Some(core::StreamFeatureViewSpec {
                name: self.name.to_owned(),
                project: PROJECT.to_owned(),
                entities: vec!["user".to_owned()],
                entity_columns: vec![feature("user", ValueType::String)],
                features: self.features.iter().map(|(n, t)| feature(n, *t)).collect(),
                aggregations: aggregations.collect(),
                stream_source: Some(source),
                online: true,
                disabled: self.disabled,
                ..Default::default()
            }),
            meta: None,
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        let registry = registry(1, &[self]);
        Arc::clone(&registry.projects[PROJECT].views[self.name])
    }

    pub(crate) fn feed(&self) -> Feed {
        self.feed_with(&Formats::default())
    }

    pub(crate) fn feed_with(&self, formats: &Formats) -> Feed {
        Feed::of(&self.view(), "larder", formats).expect("a good feed").expect("a stream")
    }
}

/// A registry with these views and the entity `user`.
pub(crate) fn registry(revision: u64, streams: &[&Stream]) -> Arc<Registry> {
    let object = |kind, name: &str, bytes: Vec<u8>| Object {
        kind,
        project: PROJECT.to_owned(),
        name: name.to_owned(),
        bytes: bytes.into(),
    };
    let user = core::Entity {
        spec: Some(core::EntitySpecV2 {
            name: "user".to_owned(),
            join_key: "user".to_owned(),
            value_type: ValueType::String as i32,
            ..Default::default()
        }),
        meta: None,
    };
    let views = streams.iter().map(|s| object(ObjectKind::StreamFeatureView, s.name, s.message().encode_to_vec()));
    let objects = std::iter::once(object(ObjectKind::Entity, "user", user.encode_to_vec())).chain(views);
    Arc::new(Registry::resolve(revision, objects).expect("resolves"))
}

pub(crate) fn int(v: i64) -> Value {
    Value { val: Some(Val::Int64Val(v)) }
}
