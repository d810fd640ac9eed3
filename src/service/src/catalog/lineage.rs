//! Who is made of whom: entities, sources and features make views, views make services and datasets.
//! Decides from values alone.
//!
//! Source: `feast/lineage/registry_lineage.py`, whose words for the types of objects these are. Unlike
//! there, a stream feature view's entities and features are told like those of any other view, and saved
//! datasets are told at all (Feast's registry leaves them out when it asks itself).

use std::collections::{BTreeMap, BTreeSet};

use model::ports::{Object, ObjectKind};
use model::registry::{Project, Registry, View, ViewKind};
use model::{Error, Result};
use prost::Message;
use proto::feast::core;

use super::list::Sortable;

/// The types of objects, as lineage calls them.
pub const TYPES: [&str; 7] =
    ["dataSource", "entity", "featureView", "labelView", "featureService", "feature", "savedDataset"];

/// An object by type and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// One of [`TYPES`].
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

/// `target` is made of `source`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    /// What it is made of.
    pub source: Reference,
    /// What is made.
    pub target: Reference,
}

/// What a view may be asked to be made of, or to be part of; empty is whatever.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// An entity of the view.
    pub entity: String,
    /// A feature of the view.
    pub feature: String,
    /// A source of the view.
    pub data_source: String,
    /// A service that uses the view; one that does not exist uses none.
    pub feature_service: String,
}

impl Parts {
    /// Whether the view has these parts.
    ///
    /// Errors: a stored view that is damaged.
    pub fn are_of(&self, registry: &Registry, object: &Object) -> Result<bool> {
        let Some(project) = registry.projects.get(&object.project) else { return Ok(false) };
        let Some(view) = project.views.get(&object.name) else { return Ok(false) };
        let mut parts = parts(view);
        if view.kind == ViewKind::OnDemand && !self.data_source.is_empty() {
            parts.extend(on_demand_sources(project, &view.name)?.into_iter().map(|r| r.source));
        }
        let has = |kind, name: &str| name.is_empty() || parts.contains(&reference(kind, name));
        let service = project.feature_services.get(&self.feature_service).and_then(|s| s.spec.as_ref());
        let used = self.feature_service.is_empty()
            || service.is_some_and(|s| s.features.iter().any(|p| p.feature_view_name == view.name));
        Ok(used && has("entity", &self.entity) && has("feature", &self.feature) && has("dataSource", &self.data_source))
    }
}

/// All relations of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Between neighbours.
    pub direct: Vec<Relation>,
    /// From a view's parts to the services with that view, and from its entities to its sources.
    pub indirect: Vec<Relation>,
}

/// The lineage of a project; empty where there is no such project.
///
/// Errors: a stored dataset that is damaged.
pub fn lineage(registry: &Registry, project: &str) -> Result<Lineage> {
    let Some(project) = registry.projects.get(project) else { return Ok(Lineage::default()) };
    let mut direct = Vec::new();
    for service in project.feature_services.values() {
        for projection in service.spec.iter().flat_map(|s| &s.features) {
            let view = view_reference(project, &projection.feature_view_name);
            direct.push(relation(view, reference("featureService", name_of(service))));
        }
    }
    for view in project.views.values() {
        direct.extend(parts(view).into_iter().map(|part| relation(part, of_view(view))));
        if view.kind == ViewKind::OnDemand {
            direct.extend(on_demand_sources(project, &view.name)?);
        }
    }
    direct.extend(datasets(project)?);
    let mut seen = BTreeSet::new();
    direct.retain(|r| seen.insert(r.clone()));
    let indirect = indirect(&direct);
    Ok(Lineage { direct, indirect })
}

impl Lineage {
    /// Only the relations that an object is part of.
    ///
    /// Errors: an unknown type.
    pub fn of(mut self, kind: &str, name: &str) -> Result<Self> {
        if !TYPES.contains(&kind) {
            let known = TYPES.join(", ");
            return Err(Error::invalid(format!("'{kind}' is no type of object: choose one of {known}")));
        }
        let is = |r: &Reference| r.kind == kind && r.name == name;
        self.direct.retain(|r| is(&r.source) || is(&r.target));
        self.indirect.retain(|r| is(&r.source) || is(&r.target));
        Ok(self)
    }
}

/// The entities, features and sources of a view.
fn parts(view: &View) -> Vec<Reference> {
    let mut out: Vec<_> = view.join_keys.iter().map(|k| reference("entity", &k.entity)).collect();
    out.extend(view.features.iter().map(|f| reference("feature", &f.name)));
    let mut next: Vec<&core::DataSource> =
        [&view.stream_source, &view.batch_source].into_iter().flatten().map(|s| &**s).collect();
    while let Some(source) = next.pop() {
        if !source.name.is_empty() {
            out.push(reference("dataSource", &source.name));
        }
        next.extend(source.batch_source.as_deref());
    }
    out
}

/// An on-demand view's request sources and the views whose features it takes.
fn on_demand_sources(project: &Project, name: &str) -> Result<Vec<Relation>> {
    use core::on_demand_source::Source;
    let Some(object) = project.objects.get(&(ObjectKind::OnDemandFeatureView, name.to_owned())) else {
        return Ok(Vec::new());
    };
    let view = core::OnDemandFeatureView::decode(object.bytes.clone())
        .map_err(|e| Error::internal(format!("the stored view '{name}' is damaged"), e))?;
    let sources = view.spec.map(|s| s.sources).unwrap_or_default();
    let named = sources.into_values().filter_map(|s| match s.source? {
        Source::RequestDataSource(request) => Some(reference("dataSource", &request.name)),
        Source::FeatureViewProjection(from) => Some(view_reference(project, &from.feature_view_name)),
        Source::FeatureView(from) => Some(view_reference(project, &from.spec?.name)),
    });
    Ok(named.filter(|r| !r.name.is_empty()).map(|source| relation(source, reference("featureView", name))).collect())
}

/// What saved datasets are made of: a service, views, and the source at the same place.
fn datasets(project: &Project) -> Result<Vec<Relation>> {
    let places: BTreeMap<String, &str> = project
        .data_sources
        .values()
        .flat_map(|s| source_places(s).into_iter().map(|place| (place, s.name.as_str())))
        .collect();
    let mut out = Vec::new();
    for ((_, name), object) in project.objects.iter().filter(|((k, _), _)| *k == ObjectKind::SavedDataset) {
        let dataset = core::SavedDataset::decode(object.bytes.clone())
            .map_err(|e| Error::internal(format!("the saved dataset '{name}' is damaged"), e))?;
        let spec = dataset.spec.unwrap_or_default();
        let mut add = |source| out.push(relation(source, reference("savedDataset", name)));
        if !spec.feature_service_name.is_empty() {
            add(reference("featureService", &spec.feature_service_name));
        }
        for text in &spec.features {
            if let Ok(feature) = model::feature_ref::FeatureRef::parse(text) {
                add(view_reference(project, &feature.view));
            }
        }
        for place in storage_places(spec.storage) {
            if let Some(source) = places.get(&place) {
                add(reference("dataSource", source));
            }
        }
    }
    Ok(out)
}

fn indirect(direct: &[Relation]) -> Vec<Relation> {
    let is_view = |r: &Reference| r.kind == "featureView" || r.kind == "labelView";
    let into = |view: &Reference| -> Vec<&Reference> {
        direct.iter().filter(|r| r.target == *view).map(|r| &r.source).collect()
    };
    let mut out = Vec::new();
    for r in direct {
        if is_view(&r.source) && r.target.kind == "featureService" {
            out.extend(into(&r.source).into_iter().map(|part| relation(part.clone(), r.target.clone())));
        }
        if r.source.kind == "entity" && is_view(&r.target) {
            let sources = into(&r.target).into_iter().filter(|part| part.kind == "dataSource");
            out.extend(sources.map(|source| relation(r.source.clone(), source.clone())));
        }
    }
    let mut seen = BTreeSet::new();
    out.retain(|r| seen.insert(r.clone()));
    out
}

fn source_places(source: &core::DataSource) -> Vec<String> {
    use core::data_source::Options;
    let mut places = match source.options.clone() {
        Some(Options::FileOptions(o)) => vec![o.uri],
        Some(Options::BigqueryOptions(o)) => vec![o.table],
        Some(Options::RedshiftOptions(o)) => vec![o.table],
        Some(Options::SnowflakeOptions(o)) => vec![o.table],
        Some(Options::SparkOptions(o)) => vec![o.path, o.table],
        Some(Options::TrinoOptions(o)) => vec![o.table],
        Some(Options::AthenaOptions(o)) => vec![o.table],
        _ => Vec::new(),
    };
    places.extend(source.batch_source.iter().flat_map(|s| source_places(s)));
    places.retain(|place| !place.is_empty());
    places
}

fn storage_places(storage: Option<core::SavedDatasetStorage>) -> Vec<String> {
    use core::saved_dataset_storage::Kind;
    let mut places = match storage.and_then(|s| s.kind) {
        Some(Kind::FileStorage(o)) => vec![o.uri],
        Some(Kind::BigqueryStorage(o)) => vec![o.table],
        Some(Kind::RedshiftStorage(o)) => vec![o.table],
        Some(Kind::SnowflakeStorage(o)) => vec![o.table],
        Some(Kind::SparkStorage(o)) => vec![o.path, o.table],
        Some(Kind::TrinoStorage(o)) => vec![o.table],
        Some(Kind::AthenaStorage(o)) => vec![o.table],
        Some(Kind::CustomStorage(_)) | None => Vec::new(),
    };
    places.retain(|place| !place.is_empty());
    places
}

fn name_of(service: &core::FeatureService) -> &str {
    service.spec.as_ref().map_or("", |s| &s.name)
}

fn view_reference(project: &Project, name: &str) -> Reference {
    project.views.get(name).map_or_else(|| reference("featureView", name), |view| of_view(view))
}

fn of_view(view: &View) -> Reference {
    reference(if view.kind == ViewKind::Label { "labelView" } else { "featureView" }, &view.name)
}

fn reference(kind: &'static str, name: &str) -> Reference {
    Reference { kind, name: name.to_owned() }
}

fn relation(source: Reference, target: Reference) -> Relation {
    Relation { source, target }
}

impl Sortable for Relation {
    const ATTRIBUTES: &'static [&'static str] = &["source.type", "source.name", "target.type", "target.name"];

    fn attribute(&self, name: &str) -> Result<Option<String>> {
        Ok(match name {
            "source.type" => Some(self.source.kind.to_owned()),
            "source.name" => Some(self.source.name.clone()),
            "target.type" => Some(self.target.kind.to_owned()),
            "target.name" => Some(self.target.name.clone()),
            _ => None,
        })
    }
}
