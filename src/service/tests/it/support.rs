//! A registry, an online store, a clock and functions in memory. Knows no file and no Python.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use model::ports::{
    BoxFuture, Change, Clock, NamedColumn, Object, ObjectKind, OnlineStore, Position, Read, RegistryStore, Table,
    Transformation, Transformer, WriteBatch, Written,
};
use model::row::{Row, merge};
use model::value::proto_value::Val;
use model::value::{NULL, ValueType};
use model::{EntityKey, Kind, Result, Timestamp, Value};
use prost::Message;
use proto::feast::core;
use proto::feast::core::on_demand_source::Source;
use service::catalog::{Catalog, CatalogSettings};
use service::push::{Cell, Cells, Frame, Pusher};
use service::retrieve::{Limits, Retriever};

pub(crate) const PROJECT: &str = "p";
/// The clock's time: 2026-01-01T00:00:00Z.
pub(crate) const NOW: i64 = 1_767_225_600;

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(NOW)
    }
}

struct Fixed(Vec<Object>);

impl RegistryStore for Fixed {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn commit(&self, _: Vec<Change>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(model::Error::new(Kind::Unsupported, "nothing is applied here")) })
    }

    fn stamp(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Ok(1) })
    }
}

/// Rows in memory, and how often they were written.
#[derive(Default)]
pub(crate) struct Store {
    rows: Mutex<BTreeMap<(Table, EntityKey), Row>>,
    pub(crate) writes: Mutex<usize>,
}

impl OnlineStore for Store {
    fn read<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Row>>>>> {
        Box::pin(async move {
            let rows = self.rows.lock().expect("no writer panics");
            let one = |r: &Read| r.keys.iter().map(|k| rows.get(&((*r.table).clone(), k.clone())).cloned()).collect();
            Ok(reads.iter().map(one).collect())
        })
    }

    fn read_states<'a>(&'a self, reads: &'a [Read]) -> BoxFuture<'a, Result<Vec<Vec<Option<Bytes>>>>> {
        Box::pin(async move { Ok(reads.iter().map(|r| vec![None; r.keys.len()]).collect()) })
    }

    fn write(&self, batch: WriteBatch) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let mut rows = self.rows.lock().expect("no writer panics");
            *self.writes.lock().expect("no writer panics") += 1;
            for write in batch.rows {
                let key = ((*write.table).clone(), write.key);
                if let Some(row) = merge(rows.get(&key), &write.row) {
                    rows.insert(key, row);
                }
            }
            Ok(Written::default())
        })
    }

    fn positions<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Position>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn clear<'a>(&'a self, _: &'a Table) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async { Ok(0) })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

type Function = Box<dyn Fn(&Transformation) -> Result<Vec<NamedColumn>> + Send + Sync>;

/// Functions by view, and the calls they had.
#[derive(Default)]
pub(crate) struct Functions {
    functions: BTreeMap<String, Function>,
    pub(crate) calls: Mutex<Vec<Transformation>>,
}

impl Functions {
    pub(crate) fn with(
        mut self,
        view: &str,
        function: impl Fn(&Transformation) -> Result<Vec<NamedColumn>> + Send + Sync + 'static,
    ) -> Self {
        self.functions.insert(view.into(), Box::new(function));
        self
    }

    /// The views whose functions ran, in order.
    pub(crate) fn ran(&self) -> Vec<String> {
        self.calls.lock().expect("no caller panics").iter().map(|c| c.view.name.clone()).collect()
    }
}

impl Transformer for Functions {
    fn transform(&self, call: Transformation) -> BoxFuture<'_, Result<Vec<NamedColumn>>> {
        let given = self.functions[&call.view.name](&call);
        self.calls.lock().expect("no caller panics").push(call);
        Box::pin(async { given })
    }
}

/// The verbs over one registry and one store.
pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) functions: Arc<Functions>,
    pub(crate) pusher: Pusher,
    pub(crate) retriever: Retriever,
}

pub(crate) async fn world(mut objects: Vec<Object>, functions: Option<Functions>) -> World {
    let spec = core::EntitySpecV2 { name: "driver".into(), join_key: "driver_id".into(), ..Default::default() };
    objects.push(object(ObjectKind::Entity, "driver", &core::Entity { spec: Some(spec), meta: None }));
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let settings = CatalogSettings {
        cache_ttl: Duration::ZERO,
        online_versions: false,
        clear_online_rows: false,
        ..CatalogSettings::default()
    };
    let catalog = Catalog::open(Arc::new(Fixed(objects)), clock.clone(), settings).await.expect("opens");
    let (store, catalog) = (Arc::new(Store::default()), Arc::new(catalog));
    let transformer = functions.map(Arc::new);
    let functions = transformer.clone().unwrap_or_default();
    let transformer = transformer.map(|t| -> Arc<dyn Transformer> { t });
    let pusher = Pusher::new(catalog.clone(), store.clone(), None, clock.clone(), PROJECT.into());
    let retriever = Retriever::new(catalog, store.clone(), clock, PROJECT.into(), Limits::default());
    World {
        store,
        functions,
        pusher: pusher.with_transformer(transformer.clone()),
        retriever: retriever.with_transformer(transformer),
    }
}

pub(crate) fn object(kind: ObjectKind, name: &str, message: &impl Message) -> Object {
    Object { kind, project: PROJECT.into(), name: name.into(), bytes: message.encode_to_vec().into() }
}

fn columns(names: &[&str]) -> Vec<core::FeatureSpecV2> {
    let of = |name: &&str| core::FeatureSpecV2 {
        name: (*name).into(),
        value_type: ValueType::Int64.into(),
        ..Default::default()
    };
    names.iter().map(of).collect()
}

/// A view on `driver_id`, fed by the push source `rides`.
pub(crate) fn plain(name: &str, features: &[&str]) -> Object {
    let source = core::DataSource {
        name: "rides".into(),
        r#type: core::data_source::SourceType::PushSource.into(),
        timestamp_field: "event_timestamp".into(),
        ..Default::default()
    };
    let spec = core::FeatureViewSpec {
        name: name.into(),
        entities: vec!["driver".into()],
        entity_columns: columns(&["driver_id"]),
        features: columns(features),
        stream_source: Some(source),
        ..Default::default()
    };
    object(ObjectKind::FeatureView, name, &core::FeatureView { spec: Some(spec), meta: None })
}

pub(crate) fn of_view(view: &str, features: &[&str]) -> Source {
    Source::FeatureViewProjection(core::FeatureViewProjection {
        feature_view_name: view.into(),
        feature_columns: columns(features),
        ..Default::default()
    })
}

pub(crate) fn of_request(name: &str, value_type: ValueType) -> Source {
    let field = core::FeatureSpecV2 { name: name.into(), value_type: value_type.into(), ..Default::default() };
    let options = core::data_source::RequestDataOptions { schema: vec![field], ..Default::default() };
    let options = core::data_source::Options::RequestDataOptions(options);
    Source::RequestDataSource(core::DataSource { options: Some(options), ..Default::default() })
}

/// A view that is computed from these sources; where `written`, on `driver_id` when rows are written.
pub(crate) fn computed(name: &str, features: &[&str], sources: Vec<Source>, written: bool) -> Object {
    let sources = sources.into_iter().enumerate();
    let spec = core::OnDemandFeatureViewSpec {
        name: name.into(),
        entities: if written { vec!["driver".into()] } else { Vec::new() },
        entity_columns: if written { columns(&["driver_id"]) } else { Vec::new() },
        features: columns(features),
        sources: sources.map(|(at, s)| (format!("s{at}"), core::OnDemandSource { source: Some(s) })).collect(),
        write_to_online_store: written,
        ..Default::default()
    };
    let view = core::OnDemandFeatureView { spec: Some(spec), meta: None };
    object(ObjectKind::OnDemandFeatureView, name, &view)
}

pub(crate) fn integers(values: &[i64]) -> Vec<Value> {
    values.iter().map(|n| Value { val: Some(Val::Int64Val(*n)) }).collect()
}

/// A column of integers, `None` is null.
pub(crate) fn some(values: &[Option<i64>]) -> Vec<Value> {
    values.iter().map(|n| n.map_or(NULL, |n| Value { val: Some(Val::Int64Val(n)) })).collect()
}

pub(crate) fn named(name: &str, values: &[i64]) -> NamedColumn {
    NamedColumn { name: name.into(), values: integers(values) }
}

/// A column of a call, as integers; null is -1.
pub(crate) fn taken(call: &Transformation, name: &str) -> Vec<i64> {
    let column = call.columns.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{name} is not there"));
    column.values.iter().map(|v| if let Some(Val::Int64Val(n)) = v.val { n } else { -1 }).collect()
}

pub(crate) fn frame(columns: &[(&str, &[i64])]) -> Frame {
    let rows = columns.first().map_or(0, |(_, cells)| cells.len());
    let cell = |n: &i64| Cell::Typed(Value { val: Some(Val::Int64Val(*n)) });
    let columns =
        columns.iter().map(|(name, cells)| ((*name).to_owned(), Cells::Mixed(cells.iter().map(cell).collect())));
    Frame { rows, columns: columns.collect() }
}
