//! How a request that names on-demand features is answered: what is read for them, which functions
//! run in which order, and where each column of their input comes from. Worked out from the registry
//! and the feature list alone; knows no store, no rows and nothing that runs a function.
//!
//! Source: `_group_feature_refs` and `_augment_response_with_on_demand_transforms` in `feast/utils.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Plan;
use crate::entity_key::DUMMY_ENTITY_ID;
use crate::error::{Error, Kind, Result};
use crate::registry::{Field, Project, Projection, SourceView, View};
use crate::value::{Value, ValueType, coerce};

/// The part of a [`Plan`] that is computed. The plan's views are first those asked for, then what the
/// functions take.
#[derive(Debug)]
pub struct OnDemandPlan {
    /// How many of the plan's views are asked for themselves.
    pub asked: usize,
    /// The functions, each behind those whose features it takes.
    pub steps: Vec<Step>,
    /// The steps whose features are asked for, in the order of the request.
    pub mentioned: Vec<usize>,
    /// The request data that the functions take, in every type that one of them takes it in.
    request: BTreeMap<String, BTreeSet<ValueType>>,
}

/// One function's part of the plan.
#[derive(Debug)]
pub struct Step {
    /// The on-demand view.
    pub view: Arc<View>,
    /// What the function takes besides the entity columns: name, type, and where it comes from.
    pub inputs: Vec<(Field, From)>,
    /// The features asked for with their names in the answer; empty where only other functions take them.
    pub answer: Vec<(Field, String)>,
}

/// Where a column of a function's input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A feature of a view that is read.
    View {
        /// Its place in the base plan.
        view: usize,
        /// The feature's place in the view's plan.
        feature: usize,
    },
    /// A feature that an earlier step computes.
    Step {
        /// The step's place in the plan.
        step: usize,
        /// The feature's name there.
        feature: String,
    },
    /// The request, by its name.
    Request,
}

/// A request's columns, told apart.
#[derive(Debug)]
pub struct Told {
    /// The entity columns.
    pub entities: Vec<(String, Vec<Value>)>,
    /// The request data, once in each type that a function takes it in.
    pub request: BTreeMap<(String, ValueType), Vec<Value>>,
}

impl OnDemandPlan {
    /// The plan of a request of which at least one view is computed.
    ///
    /// Errors: what does not exist, a view that is switched off, functions that take one another's
    /// features in a circle.
    pub(super) fn plan(
        project: &Project,
        project_name: &str,
        projections: Vec<Projection>,
        full_feature_names: bool,
    ) -> Result<Plan> {
        let (computed, asked): (Vec<_>, Vec<_>) = projections.into_iter().partition(|p| p.view.is_computed());
        let building = Building::new(project, project_name, asked.len(), false);
        let (sources, part) = building.finish(computed, full_feature_names)?;
        let mut plan = Plan::of(project, asked.into_iter().chain(sources).collect(), full_feature_names)?;
        plan.on_demand = Some(Box::new(part));
        Ok(plan)
    }

    /// What is computed of history, and what is read for it: there every on-demand view is computed, those too
    /// that are written online. The places of [`From::View`] are those of the sources.
    ///
    /// Errors: what does not exist, a view that is switched off, functions that take one another's
    /// features in a circle.
    pub fn of_history(
        project: &Project,
        project_name: &str,
        computed: Vec<Projection>,
        full_feature_names: bool,
    ) -> Result<(Vec<Projection>, Self)> {
        Building::new(project, project_name, 0, true).finish(computed, full_feature_names)
    }

    /// The request data, each with the types that functions take it in and one of the views that take it.
    pub fn request(&self) -> impl Iterator<Item = (&str, &BTreeSet<ValueType>, &str)> {
        self.request.iter().map(|(name, types)| {
            let takes = |s: &&Step| s.inputs.iter().any(|(f, from)| *from == From::Request && f.name == *name);
            (name.as_str(), types, self.steps.iter().find(takes).map_or("", |s| &s.view.name))
        })
    }

    /// The features that are read for the functions: their places and types.
    pub fn taken(&self) -> impl Iterator<Item = ((usize, usize), ValueType)> {
        let inputs = self.steps.iter().flat_map(|s| &s.inputs);
        inputs.filter_map(|(field, from)| match *from {
            From::View { view, feature } => Some(((view, feature), field.value_type)),
            From::Step { .. } | From::Request => None,
        })
    }

    /// Tells a request's columns apart.
    ///
    /// Errors: columns of unequal length; `RequestDataNotFoundInEntityRowsException`; request data that
    /// is not of its type.
    pub fn tell_apart(&self, columns: Vec<(String, Vec<Value>)>) -> Result<Told> {
        let rows = super::check_lengths(&columns)?;
        let mut told = Told { entities: Vec::with_capacity(columns.len()), request: BTreeMap::new() };
        for (name, values) in columns {
            match self.request.get(&name) {
                Some(value_types) => {
                    for value_type in value_types {
                        let typed = values.iter().map(|v| coerce(v.clone(), *value_type)).collect::<Result<_>>();
                        let misfit = |e: Error| Error::invalid(format!("the request data '{name}': {}", e.message()));
                        told.request.insert((name.clone(), *value_type), typed.map_err(misfit)?);
                    }
                }
                None => told.entities.push((name, values)),
            }
        }
        let given = |name: &String| told.request.keys().any(|(n, _)| n == name);
        let missing: Vec<_> = self.request.keys().filter(|n| !given(n)).collect();
        if !missing.is_empty() {
            let names = missing.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
            return Err(Error::of_class(
                Kind::NotFound,
                "RequestDataNotFoundInEntityRowsException",
                format!(
                    "Required request data source features [{names}] not found in the entity rows, but required by \
                     feature views"
                ),
            ));
        }
        if told.entities.is_empty() {
            // rows without entities: the views read, if any, are everybody's
            told.entities.push((DUMMY_ENTITY_ID.to_owned(), vec![crate::value::NULL; rows]));
        }
        Ok(told)
    }
}

/// What an on-demand view's function takes when rows are written: the features of its sources and the
/// request data, by name.
///
/// Errors: a source or a feature that does not exist.
pub fn written_inputs(project: &Project, project_name: &str, view: &View) -> Result<Vec<Field>> {
    let Some(on_demand) = &view.on_demand else { return Ok(Vec::new()) };
    let mut fields = on_demand.request.clone();
    for source in &on_demand.sources {
        for field in Projection::of_source(project, project_name, source)?.features {
            if !fields.iter().any(|f| f.name == field.name) {
                fields.push(field);
            }
        }
    }
    Ok(fields)
}

/// A plan that is being made.
struct Building<'a> {
    project: &'a Project,
    project_name: &'a str,
    asked: usize,
    sources: Vec<Projection>,
    steps: Vec<Step>,
    request: BTreeMap<String, BTreeSet<ValueType>>,
    /// The views whose steps are not finished yet.
    open: BTreeSet<String>,
    /// Whether views are computed, too, that are written online.
    history: bool,
}

impl<'a> Building<'a> {
    fn new(project: &'a Project, project_name: &'a str, asked: usize, history: bool) -> Self {
        Self {
            project,
            project_name,
            asked,
            sources: Vec::new(),
            steps: Vec::new(),
            request: BTreeMap::new(),
            open: BTreeSet::new(),
            history,
        }
    }

    /// The sources, and the plan of what is computed from them.
    fn finish(
        mut self,
        computed: Vec<Projection>,
        full_feature_names: bool,
    ) -> Result<(Vec<Projection>, OnDemandPlan)> {
        let mut mentioned = Vec::with_capacity(computed.len());
        for projection in computed {
            let step = self.step(&projection.view)?;
            let name = |f: &Field| {
                if full_feature_names { format!("{}__{}", projection.name, f.name) } else { f.name.clone() }
            };
            let answer = projection.features.iter().map(|f| (f.clone(), name(f)));
            self.steps[step].answer.extend(answer);
            if !mentioned.contains(&step) {
                mentioned.push(step);
            }
        }
        let Self { asked, sources, steps, request, .. } = self;
        Ok((sources, OnDemandPlan { asked, steps, mentioned, request }))
    }

    /// The step of a view, made where there is none yet, behind the steps that it needs.
    fn step(&mut self, view: &Arc<View>) -> Result<usize> {
        if let Some(known) = self.steps.iter().position(|s| s.view.name == view.name) {
            return Ok(known);
        }
        if view.disabled {
            return Err(Error::feature_view_disabled(&view.name));
        }
        if !self.open.insert(view.name.clone()) {
            return Err(Error::invalid(format!(
                "On demand feature view {} takes its own features, through its sources: remove it from them",
                view.name
            )));
        }
        let Some(on_demand) = &view.on_demand else {
            return Err(Error::invalid(format!("Feature view {} is not computed on demand", view.name)));
        };
        let mut inputs: Vec<(Field, From)> = Vec::new();
        for field in &on_demand.request {
            self.request.entry(field.name.clone()).or_default().insert(field.value_type);
            inputs.push((field.clone(), From::Request));
        }
        for source in &on_demand.sources {
            self.source(source, &mut inputs)?;
        }
        self.open.remove(&view.name);
        self.steps.push(Step { view: view.clone(), inputs, answer: Vec::new() });
        Ok(self.steps.len() - 1)
    }

    fn source(&mut self, source: &SourceView, inputs: &mut Vec<(Field, From)>) -> Result<()> {
        let projection = Projection::of_source(self.project, self.project_name, source)?;
        let mut found: Vec<(Field, From)> = Vec::new();
        if projection.view.is_computed() || self.history && projection.view.on_demand.is_some() {
            let step = self.step(&projection.view)?;
            let from = |f: &Field| From::Step { step, feature: f.name.clone() };
            found.extend(projection.features.into_iter().map(|f| (f.clone(), from(&f))));
        } else {
            let same = |p: &Projection| p.view.name == source.view && p.join_key_map == source.join_key_map;
            let place = self.sources.iter().position(same).unwrap_or_else(|| {
                self.sources.push(Projection { features: Vec::new(), ..projection.clone() });
                self.sources.len() - 1
            });
            let read = &mut self.sources[place].features;
            for field in projection.features {
                let feature = read.iter().position(|f| f.name == field.name).unwrap_or_else(|| {
                    read.push(field.clone());
                    read.len() - 1
                });
                found.push((field, From::View { view: self.asked + place, feature }));
            }
        }
        for (mut field, from) in found {
            // two sources with a feature of one name: the second goes by its full name only
            if inputs.iter().any(|(f, _)| f.name == field.name) {
                field.name = format!("{}__{}", source.view, field.name);
            }
            inputs.push((field, from));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
