//! The part of "get online features" that is computed: reads what the functions take, runs them in
//! order, and puts what they give behind what was read. Knows nothing that runs a function.
//!
//! Source: `_augment_response_with_on_demand_transforms` in `feast/utils.py`.

use std::collections::BTreeMap;

use model::answer::{Answer, ViewAnswer};
use model::plan::OnDemandPlan;
use model::plan::on_demand::{From, Step};
use model::ports::{NamedColumn, Transformation, Transformer, TypedColumn};
use model::registry::Field;
use model::value::{is_null, type_of};
use model::{Error, Kind, Result, Value, ValueType};

use super::Retriever;
use super::plans::Planned;
use crate::metrics;

impl Retriever {
    /// Answers a request with features that are computed when they are asked for.
    ///
    /// Errors: those of [`OnDemandPlan::tell_apart`], of the plain read and of the functions.
    pub(super) async fn compute(
        &self,
        planned: &Planned,
        part: &OnDemandPlan,
        columns: Vec<(String, Vec<Value>)>,
        with_versions: bool,
    ) -> Result<Answer> {
        let mut told = part.tell_apart(columns)?;
        let entities = std::mem::take(&mut told.entities);
        let rows = entities.first().map_or(0, |(_, values)| values.len());
        let mut answer = self.read_plan(planned, entities, with_versions).await?;
        let sources = answer.views.split_off(part.asked);
        let given = Given { rows, entities: &answer.columns, request: &told.request };
        let read = |view: usize, feature: usize| sources[view - part.asked].column(feature);
        for columns in evaluate(part, self.transformer.as_deref(), given, read).await? {
            answer.views.push(ViewAnswer::computed(columns, rows));
        }
        Ok(answer)
    }
}

/// The rows that functions run over, without what is read for them.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The number of rows.
    pub rows: usize,
    /// The entity columns.
    pub entities: &'a [(String, Vec<Value>)],
    /// The request data, in every type that a function takes it in.
    pub request: &'a BTreeMap<(String, ValueType), Vec<Value>>,
}

/// Runs a plan's functions in their order: the features that are asked for with their names in the answer, view
/// by view. `read` gives the column of a view's feature, by their places in [`From::View`].
///
/// Errors: those of `read` and of the functions.
pub async fn evaluate(
    part: &OnDemandPlan,
    transformer: Option<&dyn Transformer>,
    given: Given<'_>,
    read: impl Fn(usize, usize) -> Result<Vec<Value>>,
) -> Result<Vec<Vec<(String, Vec<Value>)>>> {
    let mut done: Vec<Vec<NamedColumn>> = Vec::with_capacity(part.steps.len());
    for step in &part.steps {
        let columns = inputs(step, given, &read, &done)?;
        let call = Transformation { view: step.view.clone(), rows: given.rows, columns, writing: false };
        let answer = match transformer {
            Some(transformer) => transformer.transform(call).await?,
            None => return Err(not_built_in(&step.view.name)),
        };
        done.push(checked(step, answer, given.rows)?);
    }
    metrics::computed(given.rows, part.steps.len());
    let columns = |&at: &usize| {
        let step = &part.steps[at];
        let column = |(field, name): &(Field, String)| {
            let column = done[at].iter().find(|c| c.name == field.name);
            let column = column.ok_or_else(|| missing(step, &field.name, &done[at]))?;
            Ok((name.clone(), column.values.clone()))
        };
        step.answer.iter().map(column).collect()
    };
    part.mentioned.iter().map(columns).collect()
}

/// What a server without any transformer says.
pub(crate) fn not_built_in(view: &str) -> Error {
    Error::new(
        Kind::Unsupported,
        format!(
            "On demand feature view {view} cannot be computed: this larder is built without transformations (the cargo \
             feature 'offline')"
        ),
    )
}

/// The columns of a function's input: the entity columns, then what it declares.
fn inputs(
    step: &Step,
    given: Given<'_>,
    read: &impl Fn(usize, usize) -> Result<Vec<Value>>,
    done: &[Vec<NamedColumn>],
) -> Result<Vec<TypedColumn>> {
    let Given { entities, request, .. } = given;
    let mut columns: Vec<TypedColumn> = Vec::with_capacity(entities.len() + step.inputs.len());
    for (name, values) in entities {
        if !step.inputs.iter().any(|(field, _)| &field.name == name) {
            let value_type = values.iter().find(|v| !is_null(v)).map_or(ValueType::Invalid, type_of);
            columns.push(TypedColumn { name: name.clone(), value_type, values: values.clone() });
        }
    }
    for (field, from) in &step.inputs {
        let values = match *from {
            From::Request => request.get(&(field.name.clone(), field.value_type)).cloned().unwrap_or_default(),
            From::View { view, feature } => read(view, feature)?,
            From::Step { step: earlier, ref feature } => {
                let column = done[earlier].iter().find(|c| &c.name == feature);
                column.map(|c| c.values.clone()).ok_or_else(|| {
                    let name = &step.view.name;
                    Error::invalid(format!(
                        "On demand feature view {name} takes {feature}, which its source did not give"
                    ))
                })?
            }
        };
        columns.push(TypedColumn { name: field.name.clone(), value_type: field.value_type, values });
    }
    Ok(columns)
}

/// A function's columns, each with one value per row.
fn checked(step: &Step, given: Vec<NamedColumn>, rows: usize) -> Result<Vec<NamedColumn>> {
    match given.iter().find(|c| c.values.len() != rows) {
        None => Ok(given),
        Some(column) => Err(Error::invalid(format!(
            "On demand feature view {}: its function gave {} values of {} for {rows} rows: it must give one per row",
            step.view.name,
            column.values.len(),
            column.name
        ))),
    }
}

fn missing(step: &Step, feature: &str, given: &[NamedColumn]) -> Error {
    let given: Vec<_> = given.iter().map(|c| c.name.as_str()).collect();
    Error::invalid(format!(
        "On demand feature view {}: its function did not give the feature {feature}, but [{}]",
        step.view.name,
        given.join(", ")
    ))
}
