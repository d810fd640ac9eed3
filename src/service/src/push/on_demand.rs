//! On-demand views that are computed when rows are written: the frame goes through the function, and
//! what comes out is written as the view's rows. Knows nothing that runs a function.
//!
//! Source: `_transform_on_demand_feature_view_df` in `feast/feature_store.py`. Feast gives such rows the
//! time of the write; here they have the event time of the row they were made of, where it has one.

use std::collections::HashMap;
use std::sync::Arc;

use model::plan::written_inputs;
use model::ports::{Clock, NamedColumn, Transformation, Transformer, TypedColumn};
use model::registry::{Project, View};
use model::value::proto_value::Val;
use model::{EntityKey, Error, Result, Value};

use super::{Cell, Cells, Frame, column, misfit, read_keys};
use crate::retrieve::not_built_in;

/// The column with a row's event time.
const EVENT_TIMESTAMP: &str = "event_timestamp";

/// Computes what is written.
#[derive(Clone)]
pub(super) struct Computer {
    pub(super) transformer: Option<Arc<dyn Transformer>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) project: String,
}

impl Computer {
    /// The frame to write for `view` instead of `frame`; `None` where it is written as it is: the view is
    /// not computed on writes, or the frame has its features already (the SDK computes them before it
    /// writes) and not all that the function takes. Where `transform` is off, the frame is taken to have
    /// the features, and only gets an event time where it has none.
    ///
    /// Errors: those of the function; columns that are not of their types; a column that is missing.
    pub(super) async fn written(
        &self,
        project: &Project,
        view: &Arc<View>,
        frame: &Frame,
        transform: bool,
    ) -> Result<Option<Frame>> {
        let Some(on_demand) = &view.on_demand else { return Ok(None) };
        if !on_demand.write_to_online_store {
            return Err(Error::invalid(format!(
                "On demand feature view {} is computed when it is read: nothing can be written to it \
                 (write_to_online_store is not set)",
                view.name
            )));
        }
        if !transform {
            return Ok(Some(self.timed(frame.clone())));
        }
        let inputs = written_inputs(project, &self.project, view)?;
        let missing = inputs.iter().find(|f| column(view, frame, &f.name).is_none());
        if let Some(missing) = missing {
            if view.features.iter().any(|f| column(view, frame, &f.name).is_some()) {
                return Ok(Some(self.timed(frame.clone())));
            }
            return Err(Error::invalid(format!(
                "Missing the column '{}', which the function of on demand feature view {} takes",
                missing.name, view.name
            )));
        }
        let mut columns = Vec::new();
        let keys = view.join_keys.iter().map(|k| (k.name.clone(), k.value_type));
        for (name, value_type) in keys.chain(inputs.into_iter().map(|f| (f.name, f.value_type))) {
            let known = |c: &TypedColumn| c.name == name;
            if let Some((_, cells)) = column(view, frame, &name).filter(|_| !columns.iter().any(known)) {
                let values = cells.values(value_type).map_err(|e| misfit(view, &name, e))?;
                columns.push(TypedColumn { name, value_type, values });
            }
        }
        let call = Transformation { view: view.clone(), rows: frame.rows, columns, writing: true };
        let transformer = self.transformer.as_ref().ok_or_else(|| not_built_in(&view.name))?;
        let given = transformer.transform(call).await?;
        self.frame(view, frame, given).map(Some)
    }

    /// What the function gave as a frame, with the keys and times of the rows it was made of.
    fn frame(&self, view: &View, sent: &Frame, given: Vec<NamedColumn>) -> Result<Frame> {
        let rows = given.first().map_or(0, |c| c.values.len());
        let mut out = Frame { rows, columns: Vec::new() };
        for column in given {
            out.columns.push((column.name, typed(column.values)));
        }
        let sent_keys = view.join_keys.iter().filter_map(|k| column(view, sent, &k.name));
        for (name, cells) in sent_keys {
            if rows == sent.rows && !out.columns.iter().any(|(n, _)| n == name) {
                out.columns.push((name.clone(), cells.clone()));
            }
        }
        let times = sent.columns.iter().filter(|(name, _)| [EVENT_TIMESTAMP, "created"].contains(&name.as_str()));
        if rows == sent.rows {
            out.columns.extend(times.cloned());
        } else {
            // the function made more or fewer rows: each has the times of the last row with its key
            let (_, from) = read_keys(view, sent)?;
            let from: HashMap<EntityKey, usize> = from.into_iter().enumerate().map(|(row, key)| (key, row)).collect();
            let (_, keys) = read_keys(view, &out)?;
            for (name, cells) in times {
                let found = keys.iter().map(|key| from.get(key).map(|row| cells.at(*row).into_owned()));
                let found = found.collect::<Option<Vec<_>>>().ok_or_else(|| {
                    Error::invalid(format!(
                        "the function of on demand feature view {} gave a row with a key that was not sent",
                        view.name
                    ))
                })?;
                out.columns.push((name.clone(), Cells::Mixed(found)));
            }
        }
        Ok(self.timed(out))
    }

    /// A frame whose rows have an event time: now, where none was sent.
    fn timed(&self, mut frame: Frame) -> Frame {
        if !frame.columns.iter().any(|(name, _)| name == EVENT_TIMESTAMP) {
            let now = Value { val: Some(Val::Int64Val(self.clock.now().micros())) };
            frame.columns.push((EVENT_TIMESTAMP.to_owned(), typed(vec![now; frame.rows])));
        }
        frame
    }

    /// The on-demand views that a push to these views can compute: all they take is in the frame.
    pub(super) fn computable(&self, project: &Project, pushed: &[Arc<View>], frame: &Frame) -> Result<Vec<Arc<View>>> {
        let mut out = Vec::new();
        for view in project.views.values() {
            let Some(on_demand) = view.on_demand.as_ref().filter(|o| o.write_to_online_store) else { continue };
            let from_pushed = on_demand.sources.iter().any(|s| pushed.iter().any(|v| v.name == s.view));
            if !from_pushed {
                continue;
            }
            let inputs = written_inputs(project, &self.project, view)?;
            let keys = view.join_keys.iter().map(|k| &k.name);
            if inputs.iter().map(|f| &f.name).chain(keys).all(|name| column(view, frame, name).is_some()) {
                out.push(view.clone());
            }
        }
        Ok(out)
    }
}

fn typed(values: Vec<Value>) -> Cells {
    Cells::Mixed(values.into_iter().map(Cell::Typed).collect())
}
