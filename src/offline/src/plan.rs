//! What a historical request asks for, resolved against the registry: per view its features, their
//! names in the result, and the entity frame's columns that carry its join keys.
//!
//! Source: `feast/offline_server.py` (`get_feature_view_by_name`: aliases come from the projections of
//! feature services) and `feast/utils.py` (`_get_requested_feature_views_to_features_dict`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::feature_ref::FeatureRef;
use model::plan::OnDemandPlan;
use model::registry::object::version_name;
use model::registry::{Field, Project, Projection, Registry, View, ViewKind};
use model::{Error, Kind, Result};

use crate::computed::Computed;

/// `get_historical_features` as the SDK sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistoricalRequest {
    /// The project.
    pub(crate) project: String,
    /// The views.
    pub(crate) views: Vec<AskedView>,
    /// `view:feature` references, by alias where there is one.
    pub(crate) refs: Vec<String>,
    /// Whether results are called `view__feature`.
    pub(crate) full_feature_names: bool,
    /// Whether a row counts only from when it became known on (`filter_by_created_timestamp`); `None` leaves that to each
    /// view.
    pub(crate) known: Option<bool>,
}

impl HistoricalRequest {
    /// All features of a feature service.
    ///
    /// Errors: a project or feature service that does not exist.
    pub(crate) fn of_service(
        registry: &Registry,
        project: &str,
        service: &str,
        full_feature_names: bool,
    ) -> Result<Self> {
        let found = registry.project(project)?.feature_services.get(service);
        let found = found.ok_or_else(|| Error::feature_service_not_found(service, project))?;
        let mut request = Self { project: project.to_owned(), full_feature_names, ..Self::default() };
        for projection in found.spec.iter().flat_map(|s| &s.features) {
            let alias = Some(projection.feature_view_name_alias.clone()).filter(|alias| !alias.is_empty());
            let asked = AskedView {
                name: projection.feature_view_name.clone(),
                alias,
                join_key_map: Some(projection.join_key_map.clone()),
            };
            let used =
                projection.version_tag.map_or_else(|| asked.used().to_owned(), |v| version_name(asked.used(), v));
            request.refs.extend(projection.feature_columns.iter().map(|f| format!("{used}:{}", f.name)));
            request.views.push(asked);
        }
        Ok(request)
    }
}

/// A view that references may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AskedView {
    /// Its name.
    pub(crate) name: String,
    /// The alias that it has in this request, if any.
    pub(crate) alias: Option<String>,
    /// Join key to the entity frame's column, where they differ; `None` where a registered feature service says it.
    pub(crate) join_key_map: Option<BTreeMap<String, String>>,
}

impl AskedView {
    /// What references call it.
    fn used(&self) -> &str {
        self.alias.as_ref().unwrap_or(&self.name)
    }
}

/// One view of a request.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) view: Arc<View>,
    pub(crate) features: Vec<Field>,
    /// The features' names in the result.
    pub(crate) outputs: Vec<String>,
    /// Join key to the entity frame's column, where they differ.
    join_key_map: BTreeMap<String, String>,
}

impl Part {
    /// The join keys, each with the entity frame's column that carries it; none without entities.
    pub(crate) fn keys(&self) -> Vec<(&model::registry::JoinKey, &str)> {
        if self.view.is_entityless() {
            return Vec::new();
        }
        let column = |name: &'_ str| self.join_key_map.get(name).map(String::as_str);
        self.view.join_keys.iter().map(|k| (k, column(&k.name).unwrap_or(&k.name))).collect()
    }
}

/// A request, resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// What is joined: the views asked for, in the order in which the references first name them, then those that
    /// functions take features of.
    pub(crate) parts: Vec<Part>,
    /// What is computed from that, where an on-demand feature view is asked for.
    pub(crate) computed: Option<Computed>,
}

/// Resolves a request into its views.
///
/// Errors: a project, view, feature or version that does not exist; an alias that no feature service
/// has; two results of one name.
pub(crate) fn resolve(registry: &Registry, request: &HistoricalRequest) -> Result<Resolved> {
    let project = registry.project(&request.project)?;
    let mut known: Vec<(&str, &str, BTreeMap<String, String>)> = Vec::new();
    for asked in &request.views {
        project.view(&asked.name, &request.project)?;
        let join_key_map = match (&asked.join_key_map, &asked.alias) {
            (Some(map), _) => map.clone(),
            (None, Some(alias)) if *alias != asked.name => aliased(project, &asked.name, alias)?,
            _ => BTreeMap::new(),
        };
        known.push((asked.used(), &asked.name, join_key_map));
    }
    // Each version of a view is a part of its own, under the name that references give it.
    let mut named: Vec<(String, Part)> = Vec::new();
    let mut on_demand: Vec<Projection> = Vec::new();
    for text in &request.refs {
        let reference = FeatureRef::parse(text)?;
        // Not among the views sent along: the SDK sends no on-demand view along.
        let sent = known.iter().find(|(used, ..)| *used == reference.view).map(|(_, name, map)| (*name, Some(map)));
        let found = sent.or_else(|| on_demand_view(project, &reference.view).map(|view| (view.name.as_str(), None)));
        let Some((name, join_key_map)) = found else {
            project.view(&reference.view, &request.project)?;
            return Err(Error::invalid(format!("Could not find feature view from reference {text}")));
        };
        let view = project.view_at(name, reference.version, &request.project)?;
        let feature = feature_of(view, &reference, &request.project)?;
        let used = reference.version.map_or_else(|| reference.view.clone(), |v| version_name(&reference.view, v));
        let Some(join_key_map) = join_key_map.filter(|_| view.kind != ViewKind::OnDemand) else {
            project_on(&mut on_demand, view, &used, feature);
            continue;
        };
        let at = named.iter().position(|(name, _)| *name == used).unwrap_or_else(|| {
            let (view, join_key_map) = (view.clone(), join_key_map.clone());
            named.push((used.clone(), Part { view, features: Vec::new(), outputs: Vec::new(), join_key_map }));
            named.len() - 1
        });
        let part = &mut named[at].1;
        part.outputs.push(if request.full_feature_names {
            format!("{used}__{}", reference.feature)
        } else {
            reference.feature.clone()
        });
        part.features.push(feature);
    }
    let mut parts: Vec<Part> = named.into_iter().map(|(_, part)| part).collect();
    if parts.is_empty() && on_demand.is_empty() {
        return Err(Error::invalid("No features were asked for: name at least one as view:feature"));
    }
    let full = request.full_feature_names;
    let (sources, plan) = OnDemandPlan::of_history(project, &request.project, on_demand, full)?;
    let computed = plan.steps.iter().flat_map(|s| &s.answer).map(|(_, name)| name);
    let mut seen = BTreeSet::new();
    if parts.iter().flat_map(|p| &p.outputs).chain(computed).any(|o| !seen.insert(o)) {
        return Err(Error::feature_name_collision(&request.refs, full));
    }
    if plan.steps.is_empty() {
        return Ok(Resolved { parts, computed: None });
    }
    let columns = sources.into_iter().map(|source| taken(&mut parts, source)).collect();
    Ok(Resolved { parts, computed: Some(Computed::new(plan, columns)) })
}

/// The columns of the joined rows that hold a source's features: those of a part that is there already, else such
/// as are joined for the functions alone.
fn taken(parts: &mut Vec<Part>, source: Projection) -> Vec<String> {
    let view = |v: &View| (v.name.clone(), v.version);
    let same = |p: &Part| view(&p.view) == view(&source.view) && p.join_key_map == source.join_key_map;
    let at = parts.iter().position(same).unwrap_or_else(|| {
        let (view, join_key_map) = (source.view.clone(), source.join_key_map.clone());
        parts.push(Part { view, features: Vec::new(), outputs: Vec::new(), join_key_map });
        parts.len() - 1
    });
    let part = &mut parts[at];
    let column = |field: Field| {
        if let Some(there) = part.features.iter().position(|f| f.name == field.name) {
            return part.outputs[there].clone();
        }
        let name = Computed::hidden(at, &field.name);
        part.features.push(field);
        part.outputs.push(name.clone());
        name
    };
    source.features.into_iter().map(column).collect()
}

/// An on-demand view by its name, or by the alias that a feature service gives it.
fn on_demand_view<'a>(project: &'a Project, name: &str) -> Option<&'a Arc<View>> {
    let of_kind = |name: &str| project.views.get(name).filter(|v| v.kind == ViewKind::OnDemand);
    let projections = || project.feature_services.values().filter_map(|s| s.spec.as_ref()).flat_map(|s| &s.features);
    let aliased = || projections().filter(|p| p.feature_view_name_alias == name);
    of_kind(name).or_else(|| aliased().find_map(|p| of_kind(&p.feature_view_name)))
}

fn feature_of(view: &View, reference: &FeatureRef, project: &str) -> Result<Field> {
    view.feature(&reference.feature).cloned().ok_or_else(|| {
        Error::of_class(
            Kind::NotFound,
            "FeatureViewNotFoundException",
            format!("Feature {} does not exist in feature view {} of project {project}", reference.feature, view.name),
        )
    })
}

/// Adds a feature to the projection of an on-demand view under a name.
fn project_on(projections: &mut Vec<Projection>, view: &Arc<View>, used: &str, feature: Field) {
    match projections.iter_mut().find(|p| p.name == used) {
        Some(projection) => projection.features.push(feature),
        None => projections.push(Projection {
            view: view.clone(),
            name: used.to_owned(),
            plain_name: used.to_owned(),
            features: vec![feature],
            join_key_map: BTreeMap::new(),
        }),
    }
}

/// The join key map of the projection that has this alias.
fn aliased(project: &Project, view: &str, alias: &str) -> Result<BTreeMap<String, String>> {
    let projections = project
        .feature_services
        .values()
        .filter_map(|s| s.spec.as_ref())
        .flat_map(|s| &s.features)
        .filter(|p| p.feature_view_name == view && p.feature_view_name_alias == alias);
    let maps: BTreeSet<&BTreeMap<String, String>> = projections.map(|p| &p.join_key_map).collect();
    match (maps.first(), maps.len()) {
        (Some(map), 1) => Ok((*map).clone()),
        (None, _) => Err(Error::invalid(format!(
            "no registered feature service has feature view {view} under the name {alias}: apply the feature service first"
        ))),
        _ => Err(Error::new(
            Kind::Conflict,
            format!(
                "several feature services have feature view {view} under the name {alias} with different join keys: give \
                 them different names"
            ),
        )),
    }
}
