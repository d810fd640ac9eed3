//! What a historical request asks for, resolved against the registry: per view its features, their
//! names in the result, and the entity frame's columns that carry its join keys.
//!
//! Source: `feast/offline_server.py` (`get_feature_view_by_name`: aliases come from the projections of
//! feature services) and `feast/utils.py` (`_get_requested_feature_views_to_features_dict`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::feature_ref::FeatureRef;
use model::plan::OnDemandPlan;
use model::registry::{Field, Project, Projection, Registry, View, ViewKind};
use model::{Error, Kind, Result};

use crate::computed::Computed;

/// `get_historical_features` as the SDK sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistoricalRequest {
    /// The project.
    pub(crate) project: String,
    /// The views by name, each with the alias it has in this request, if any.
    pub(crate) views: Vec<(String, Option<String>)>,
    /// `view:feature` references, by alias where there is one.
    pub(crate) refs: Vec<String>,
    /// Whether results are called `view__feature`.
    pub(crate) full_feature_names: bool,
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
            let used = alias.as_ref().unwrap_or(&projection.feature_view_name);
            request.refs.extend(projection.feature_columns.iter().map(|f| format!("{used}:{}", f.name)));
            request.views.push((projection.feature_view_name.clone(), alias));
        }
        Ok(request)
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
    let mut known: Vec<(String, Part)> = Vec::new();
    for (name, alias) in &request.views {
        let view = project.view(name, &request.project)?.clone();
        let join_key_map = match alias {
            Some(alias) if alias != name => aliased(project, name, alias)?,
            _ => BTreeMap::new(),
        };
        let used = alias.clone().unwrap_or_else(|| name.clone());
        known.push((used, Part { view, features: Vec::new(), outputs: Vec::new(), join_key_map }));
    }
    let mut order: Vec<usize> = Vec::new();
    let mut on_demand: Vec<Projection> = Vec::new();
    for text in &request.refs {
        let reference = FeatureRef::parse(text)?;
        let Some(at) = known.iter().position(|(used, _)| *used == reference.view) else {
            // Not among the views sent along: the SDK sends no on-demand view along.
            let Some(view) = on_demand_view(project, &reference.view) else {
                project.view(&reference.view, &request.project)?;
                return Err(Error::invalid(format!("Could not find feature view from reference {text}")));
            };
            let feature = feature_of(view, &reference, &request.project)?;
            project_on(&mut on_demand, view, &reference.view, feature);
            continue;
        };
        let (used, part) = &mut known[at];
        if reference.version.is_some_and(|v| i64::from(v) != i64::from(part.view.version)) {
            return Err(Error::of_class(
                Kind::NotFound,
                "FeatureViewVersionNotFound",
                format!(
                    "the version in {text} of feature view {} does not exist in project {}",
                    part.view.name, request.project
                ),
            ));
        }
        let feature = feature_of(&part.view, &reference, &request.project)?;
        if part.view.kind == ViewKind::OnDemand {
            project_on(&mut on_demand, &part.view, used, feature);
            continue;
        }
        part.outputs.push(if request.full_feature_names {
            format!("{used}__{}", reference.feature)
        } else {
            reference.feature.clone()
        });
        part.features.push(feature);
        if !order.contains(&at) {
            order.push(at);
        }
    }
    let mut parts: Vec<Part> = order.into_iter().map(|at| known[at].1.clone()).collect();
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
    let same = |p: &Part| p.view.name == source.view.name && p.join_key_map == source.join_key_map;
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
