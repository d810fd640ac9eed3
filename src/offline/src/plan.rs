//! What a historical request asks for, resolved against the registry: per view its features, their
//! names in the result, and the entity frame's columns that carry its join keys.
//!
//! Source: `feast/offline_server.py` (`get_feature_view_by_name`: aliases come from the projections of
//! feature services) and `feast/utils.py` (`_get_requested_feature_views_to_features_dict`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::feature_ref::FeatureRef;
use model::registry::{Field, Project, Registry, View, ViewKind};
use model::{Error, Kind, Result};

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

/// Resolves a request into its views, in the order in which the references first name them.
///
/// Errors: a project, view, feature or version that does not exist; an alias that no feature service
/// has; an on-demand feature view; two results of one name.
pub(crate) fn resolve(registry: &Registry, request: &HistoricalRequest) -> Result<Vec<Part>> {
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
    for text in &request.refs {
        let reference = FeatureRef::parse(text)?;
        let Some(at) = known.iter().position(|(used, _)| *used == reference.view) else {
            // Not among the views sent along: say whether it exists at all.
            let view = project.view(&reference.view, &request.project)?;
            return Err(match view.kind {
                ViewKind::OnDemand => on_demand(&reference.view),
                _ => Error::invalid(format!("Could not find feature view from reference {text}")),
            });
        };
        let (used, part) = &mut known[at];
        if part.view.kind == ViewKind::OnDemand {
            return Err(on_demand(&reference.view));
        }
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
        let Some(feature) = part.view.feature(&reference.feature) else {
            return Err(Error::of_class(
                Kind::NotFound,
                "FeatureViewNotFoundException",
                format!(
                    "Feature {} does not exist in feature view {} of project {}",
                    reference.feature, part.view.name, request.project
                ),
            ));
        };
        part.outputs.push(if request.full_feature_names {
            format!("{used}__{}", reference.feature)
        } else {
            reference.feature.clone()
        });
        part.features.push(feature.clone());
        if !order.contains(&at) {
            order.push(at);
        }
    }
    let parts: Vec<Part> = order.into_iter().map(|at| known[at].1.clone()).collect();
    let mut seen = BTreeSet::new();
    if parts.iter().flat_map(|p| &p.outputs).any(|o| !seen.insert(o)) {
        return Err(Error::feature_name_collision(&request.refs, request.full_feature_names));
    }
    if parts.is_empty() {
        return Err(Error::invalid("No features were asked for: name at least one as view:feature"));
    }
    Ok(parts)
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

fn on_demand(view: &str) -> Error {
    Error::new(
        Kind::Unsupported,
        format!(
            "{view} is an on demand feature view: the offline server does not transform yet, ask for its sources' features"
        ),
    )
}
