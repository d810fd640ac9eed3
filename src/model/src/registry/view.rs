//! A view with what serving needs worked out once: join keys with types, features, ttl, sources,
//! aggregations. Knows nothing of where it is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::feast::core;

use super::object::version_name;
use super::{OnDemand, Project, Reading, SourceView, stream_sql};
use crate::entity_key::{DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME};
use crate::error::{Error, Kind, Result};
use crate::feature_ref::FeatureRef;
use crate::ports::Table;
use crate::time::duration_us;
use crate::value::ValueType;

/// Which kind of view it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// `FeatureView` (batch, with or without a push or Kafka source).
    Feature,
    /// `StreamFeatureView`.
    Stream,
    /// `LabelView`.
    Label,
    /// `OnDemandFeatureView`.
    OnDemand,
}

/// A feature's name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, unique in its view.
    pub name: String,
    /// The registered type.
    pub value_type: ValueType,
}

/// One part of a view's entity key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinKey {
    /// The column's name.
    pub name: String,
    /// The entity it belongs to.
    pub entity: String,
    /// The registered type; `Invalid` where nothing says it.
    pub value_type: ValueType,
}

/// An aggregation as it is registered (WINDOWS.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregation {
    /// The feature that it makes.
    pub feature: String,
    /// The stream's column; empty for `count` of events.
    pub column: String,
    /// The function with its parameters in parentheses.
    pub function: String,
    /// The window's length in µs; 0 is a lifetime window.
    pub window_us: i64,
    /// The slide interval in µs; 0 or the window itself is "not given".
    pub slide_us: i64,
}

/// What a training set has of the time before an entity row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// What had happened by then.
    Happened,
    /// What of that was known by then.
    Known,
}

/// The tag by which a view says whether its training sets are [`AsOf::Known`]: `true` or `false`.
pub const KNOWN_AT: &str = "larder.known_at";

fn as_of(tags: &BTreeMap<String, String>) -> AsOf {
    let is_known = tags.get(KNOWN_AT).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if is_known { AsOf::Known } else { AsOf::Happened }
}

/// A view of any kind.
#[derive(Clone, Debug)]
pub struct View {
    /// The project.
    pub project: String,
    /// The name.
    pub name: String,
    /// Which kind.
    pub kind: ViewKind,
    /// The entity key's parts, in the order of the view's entities.
    pub join_keys: Vec<JoinKey>,
    /// The features, without the join keys.
    pub features: Vec<Field>,
    /// How old a row may be, µs; 0 is for ever.
    pub ttl_us: i64,
    /// Whether it is served online.
    pub online: bool,
    /// Whether the user switched it off.
    pub disabled: bool,
    /// Where its history is; for a push or Kafka source without one of the view's own, that source's.
    pub batch_source: Option<Arc<core::DataSource>>,
    /// The push or Kafka source.
    pub stream_source: Option<Arc<core::DataSource>>,
    /// The aggregations of a windowed stream view; empty for every other.
    pub aggregations: Vec<Aggregation>,
    /// The tiles' length in µs where `enable_tiling` is set; else 0.
    pub tiling_hop_us: i64,
    /// The event time column of a stream view; empty means the source's.
    pub timestamp_field: String,
    /// The transformation mode of a stream view (`python`, `sql`, …).
    pub mode: String,
    /// The SQL that messages go through before they are events of a stream view (mode `sql` or `spark_sql`).
    pub sql: Option<Arc<str>>,
    /// Whether a stream view has another transformation of its own (a Python function or Substrait).
    pub has_transformation: bool,
    /// The version number that the registry counts.
    pub version: i32,
    /// Where its rows are in the online store.
    pub table: Arc<Table>,
    /// How its stream is read.
    pub reading: Arc<Reading>,
    /// The materialization intervals so far, µs, oldest first.
    pub materialized: Vec<(i64, i64)>,
    /// What an on-demand view computes; `None` for every other kind.
    pub on_demand: Option<Arc<OnDemand>>,
    /// What a training set has of it, where the request does not say it.
    pub as_of: AsOf,
}

impl View {
    /// From a `FeatureView`.
    pub fn of_feature_view(
        project: &str,
        view: core::FeatureView,
        entities: &BTreeMap<String, Arc<core::Entity>>,
    ) -> Self {
        let spec = view.spec.unwrap_or_default();
        let mut out = Self::empty(project, &spec.name, ViewKind::Feature);
        out.keys_and_features(&spec.entities, &spec.entity_columns, &spec.features, entities);
        out.ttl_us = duration_us(spec.ttl.as_ref());
        out.online = spec.online;
        out.disabled = spec.disabled;
        out.sources(spec.batch_source, spec.stream_source);
        out.mode = spec.mode;
        out.as_of = as_of(&spec.tags);
        out.meta(view.meta);
        out
    }

    /// From a `StreamFeatureView`.
    pub fn of_stream(
        project: &str,
        view: core::StreamFeatureView,
        entities: &BTreeMap<String, Arc<core::Entity>>,
    ) -> Self {
        let spec = view.spec.unwrap_or_default();
        let (sql, has_transformation) = stream_sql::of(&spec);
        let mut out = Self::empty(project, &spec.name, ViewKind::Stream);
        out.keys_and_features(&spec.entities, &spec.entity_columns, &spec.features, entities);
        out.ttl_us = duration_us(spec.ttl.as_ref());
        out.online = spec.online;
        out.disabled = spec.disabled;
        out.sources(spec.batch_source, spec.stream_source);
        (out.sql, out.has_transformation) = (sql, has_transformation);
        out.timestamp_field = spec.timestamp_field;
        out.mode = spec.mode;
        out.as_of = as_of(&spec.tags);
        out.tiling_hop_us = if spec.enable_tiling { duration_us(spec.tiling_hop_size.as_ref()) } else { 0 };
        out.aggregations = spec
            .aggregations
            .iter()
            .map(|a| {
                let window_us = duration_us(a.time_window.as_ref());
                Aggregation {
                    feature: aggregated_name(a, window_us, &out.features),
                    column: a.column.clone(),
                    function: a.function.clone(),
                    window_us,
                    slide_us: duration_us(a.slide_interval.as_ref()),
                }
            })
            .collect();
        out.meta(view.meta);
        out
    }

    /// From a `LabelView`.
    pub fn of_label(project: &str, view: core::LabelView, entities: &BTreeMap<String, Arc<core::Entity>>) -> Self {
        let spec = view.spec.unwrap_or_default();
        let mut out = Self::empty(project, &spec.name, ViewKind::Label);
        out.keys_and_features(&spec.entities, &spec.entity_columns, &spec.features, entities);
        out.ttl_us = duration_us(spec.ttl.as_ref());
        out.online = spec.online;
        out.sources(None, spec.source);
        out.as_of = as_of(&spec.tags);
        out
    }

    /// From an `OnDemandFeatureView`, decoded and as it is stored.
    pub fn of_on_demand(
        project: &str,
        view: core::OnDemandFeatureView,
        message: Bytes,
        entities: &BTreeMap<String, Arc<core::Entity>>,
    ) -> Self {
        let spec = view.spec.unwrap_or_default();
        let mut out = Self::empty(project, &spec.name, ViewKind::OnDemand);
        out.keys_and_features(&spec.entities, &spec.entity_columns, &spec.features, entities);
        out.disabled = spec.disabled;
        out.version = view.meta.unwrap_or_default().current_version_number;
        out.on_demand = Some(Arc::new(OnDemand::new(&spec, message)));
        out
    }

    fn empty(project: &str, name: &str, kind: ViewKind) -> Self {
        Self {
            project: project.to_owned(),
            name: name.to_owned(),
            kind,
            join_keys: Vec::new(),
            features: Vec::new(),
            ttl_us: 0,
            online: true,
            disabled: false,
            batch_source: None,
            stream_source: None,
            aggregations: Vec::new(),
            tiling_hop_us: 0,
            timestamp_field: String::new(),
            mode: String::new(),
            sql: None,
            has_transformation: false,
            version: 0,
            table: Arc::new(Table::new(project, name)),
            reading: Arc::default(),
            materialized: Vec::new(),
            on_demand: None,
            as_of: AsOf::Happened,
        }
    }

    /// The entity key from the view's entities; a column that is a join key is no feature.
    fn keys_and_features(
        &mut self,
        names: &[String],
        columns: &[core::FeatureSpecV2],
        features: &[core::FeatureSpecV2],
        entities: &BTreeMap<String, Arc<core::Entity>>,
    ) {
        for name in names {
            let entity = entities.get(name).and_then(|e| e.spec.as_ref());
            let join_key = match entity.map(|e| e.join_key.as_str()) {
                Some(key) if !key.is_empty() => key.to_owned(),
                _ if name == DUMMY_ENTITY_NAME => DUMMY_ENTITY_ID.to_owned(),
                _ => name.clone(),
            };
            let column =
                columns.iter().chain(features).find(|c| c.name == join_key).map(core::FeatureSpecV2::value_type);
            let registered = entity.map(core::EntitySpecV2::value_type).filter(|t| *t != ValueType::Invalid);
            let value_type = match join_key.as_str() {
                DUMMY_ENTITY_ID => ValueType::String,
                _ => column.filter(|t| *t != ValueType::Invalid).or(registered).unwrap_or(ValueType::Invalid),
            };
            self.join_keys.push(JoinKey { name: join_key, entity: name.clone(), value_type });
        }
        let is_key = |name: &str| self.join_keys.iter().any(|k| k.name == name);
        self.features = features.iter().filter(|f| !is_key(&f.name)).map(field).collect();
        let names = self.features.iter().map(|f| f.name.as_str());
        self.table = Arc::new(Table::with_features(&self.project, &self.name, names));
    }

    fn sources(&mut self, batch: Option<core::DataSource>, stream: Option<core::DataSource>) {
        let nested = stream.as_ref().and_then(|s| s.batch_source.as_deref().cloned());
        self.batch_source = batch.or(nested).map(Arc::new);
        self.stream_source = stream.map(Arc::new);
    }

    fn meta(&mut self, meta: Option<core::FeatureViewMeta>) {
        let meta = meta.unwrap_or_default();
        self.version = meta.current_version_number;
        let micros = |t: &Option<prost_types::Timestamp>| {
            t.as_ref().map_or(0, |t| crate::time::Timestamp::from_proto(t).micros())
        };
        self.materialized =
            meta.materialization_intervals.iter().map(|i| (micros(&i.start_time), micros(&i.end_time))).collect();
    }

    /// The view in the table of its version: `view_v2`, as Feast names it (`compute_versioned_name`);
    /// version 0 has the plain name.
    pub(super) fn in_table_of_version(mut self) -> Self {
        if self.version > 0 {
            let name = format!("{}_v{}", self.name, self.version);
            let features = self.features.iter().map(|f| f.name.as_str());
            self.table = Arc::new(Table::with_features(&self.project, name, features));
        }
        self
    }

    /// Whether its features are windows over a stream.
    pub fn is_windowed(&self) -> bool {
        !self.aggregations.is_empty()
    }

    /// Whether its features are computed when they are asked for, and stand in no store.
    pub fn is_computed(&self) -> bool {
        self.on_demand.as_ref().is_some_and(|o| !o.write_to_online_store)
    }

    /// Whether it has no entities.
    pub fn is_entityless(&self) -> bool {
        self.join_keys.iter().all(|k| k.name == DUMMY_ENTITY_ID)
    }

    /// A feature by name.
    pub fn feature(&self, name: &str) -> Option<&Field> {
        self.features.iter().find(|f| f.name == name)
    }

    /// The event time column of its rows: the view's own, else the batch source's, else the
    /// stream source's; `event_timestamp` where none says.
    pub fn event_time_column(&self) -> &str {
        [
            self.timestamp_field.as_str(),
            self.batch_source.as_ref().map_or("", |s| s.timestamp_field.as_str()),
            self.stream_source.as_ref().map_or("", |s| s.timestamp_field.as_str()),
        ]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or("event_timestamp")
    }

    /// The created time column, where a source names one.
    pub fn created_time_column(&self) -> Option<&str> {
        [&self.batch_source, &self.stream_source]
            .into_iter()
            .flatten()
            .map(|s| s.created_timestamp_column.as_str())
            .find(|name| !name.is_empty())
    }
}

pub(super) fn field(spec: &core::FeatureSpecV2) -> Field {
    Field { name: spec.name.clone(), value_type: spec.value_type() }
}

/// `name` if set, else Feast's `resolved_name`: `{function}_{column}`, or that with `_{seconds}s`
/// behind it where the schema has it so (`feast/aggregation/__init__.py`).
fn aggregated_name(a: &core::Aggregation, window_us: i64, features: &[Field]) -> String {
    if !a.name.is_empty() {
        return a.name.clone();
    }
    let short = format!("{}_{}", a.function, a.column);
    let long = format!("{short}_{}s", window_us / 1_000_000);
    if features.iter().any(|f| f.name == long) { long } else { short }
}

/// A view as one request sees it.
#[derive(Clone, Debug)]
pub struct Projection {
    /// The view.
    pub view: Arc<View>,
    /// The name before `__` in full feature names: the alias if there is one, with `@v2` behind it
    /// where a version is asked for.
    pub name: String,
    /// The alias, else the view's name: under it the view's version is told.
    pub plain_name: String,
    /// The features asked for, in order.
    pub features: Vec<Field>,
    /// Join key → the request's column that carries it, where they differ.
    pub join_key_map: BTreeMap<String, String>,
}

impl Projection {
    /// A source of an on-demand view.
    ///
    /// Errors: a view or feature that does not exist.
    pub fn of_source(project: &Project, project_name: &str, source: &SourceView) -> Result<Self> {
        let view = project.view(&source.view, project_name)?;
        let features = source.features.iter().map(|name| feature_of(view, name)).collect::<Result<_>>()?;
        let (name, join_key_map) = (view.name.clone(), source.join_key_map.clone());
        Ok(Self { view: view.clone(), plain_name: name.clone(), name, features, join_key_map })
    }

    pub(super) fn of_service(
        project: &Project,
        project_name: &str,
        projection: &core::FeatureViewProjection,
    ) -> Result<Self> {
        let view = project.view_at(&projection.feature_view_name, projection.version_tag, project_name)?;
        let plain_name = match projection.feature_view_name_alias.as_str() {
            "" => view.name.clone(),
            alias => alias.to_owned(),
        };
        let name = projection.version_tag.map_or_else(|| plain_name.clone(), |v| version_name(&plain_name, v));
        let features = projection
            .feature_columns
            .iter()
            .filter(|c| !view.join_keys.iter().any(|k| k.name == c.name))
            .map(|c| feature_of(view, &c.name))
            .collect::<Result<_>>()?;
        Ok(Self { view: view.clone(), name, plain_name, features, join_key_map: projection.join_key_map.clone() })
    }

    pub(super) fn of_refs(project: &Project, project_name: &str, refs: &[String]) -> Result<Vec<Self>> {
        let mut out: Vec<Self> = Vec::new();
        for text in refs {
            let reference = FeatureRef::parse(text)?;
            let view = project.view_at(&reference.view, reference.version, project_name)?;
            let feature = feature_of(view, &reference.feature)?;
            let name = reference.version.map_or_else(|| view.name.clone(), |v| version_name(&view.name, v));
            match out.iter_mut().find(|p| p.name == name) {
                Some(projection) => projection.features.push(feature),
                None => out.push(Self {
                    view: view.clone(),
                    name,
                    plain_name: view.name.clone(),
                    features: vec![feature],
                    join_key_map: BTreeMap::new(),
                }),
            }
        }
        Ok(out)
    }
}

fn feature_of(view: &View, name: &str) -> Result<Field> {
    view.feature(name).cloned().ok_or_else(|| {
        Error::of_class(
            Kind::NotFound,
            "FeatureViewNotFoundException",
            format!("Feature {name} does not exist in feature view {} of project {}", view.name, view.project),
        )
    })
}
