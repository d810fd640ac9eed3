//! The verb "get online features": plan, read, decide each value's status, fan out to the rows.
//!
//! Knows no protocol: both faces of the server give the same answer because this is the one place
//! that makes it. Source: `_populate_response_from_feature_data` in `feast/utils.py`.

mod plans;

use std::sync::Arc;

use model::answer::{Answer, Cells, ViewAnswer};
use model::plan::{Bound, ViewPlan};
use model::ports::{Clock, OnlineStore, Read};
use model::registry::FeatureRequest;
use model::{Error, Result, Row, Timestamp, Value, value};

use crate::catalog::Catalog;
use crate::{metrics, windows};
use plans::{Planned, Plans};

/// What a client asks.
#[derive(Debug)]
pub struct Request {
    /// A feature service or references.
    pub features: FeatureRequest,
    /// Entity columns (and request data), each with one value per row.
    pub entities: Vec<(String, Vec<Value>)>,
    /// Whether features are named `view__feature`.
    pub full_feature_names: bool,
    /// Whether the answer names each view's version.
    pub include_feature_view_version_metadata: bool,
}

/// Answers [`Request`]s for one project.
pub struct Retriever {
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    project: String,
    max_entities: usize,
    plans: Plans,
}

impl Retriever {
    /// Reads `project` of the catalog from `store`; a request may have `max_entities` rows.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<dyn OnlineStore>,
        clock: Arc<dyn Clock>,
        project: String,
        max_entities: usize,
    ) -> Self {
        Self { catalog, store, clock, project, max_entities, plans: Plans::default() }
    }

    /// Answers one request.
    ///
    /// Errors: see [`Plan::new`] and [`Plan::bind`]; too many rows; the store's own.
    pub async fn get_online_features(&self, request: Request) -> Result<Answer> {
        let registry = self.catalog.snapshot();
        let planned = self.plans.get(&registry, &self.project, request.features, request.full_feature_names)?;
        let plan = &planned.plan;
        let rows = request.entities.first().map_or(0, |(_, values)| values.len());
        if rows > self.max_entities {
            return Err(Error::new(
                model::Kind::TooLarge,
                format!(
                    "{rows} entity rows in one request, the limit is {} (limits.max_entities): ask in several requests",
                    self.max_entities
                ),
            ));
        }
        let mut bound = plan.bind(request.entities)?;
        let now = self.clock.now();
        let cells = self.read(&planned, &mut bound, now).await?;
        metrics::retrieved(bound.rows, plan.views.iter().map(|v| v.names.len()).sum());
        let views = plan.views.iter().zip(bound.fan_out).zip(cells);
        let versions = plan.views.iter().map(|v| (v.view.name.clone(), v.view.version));
        Ok(Answer {
            columns: bound.columns,
            views: views
                .map(|((view, fan_out), cells)| ViewAnswer { names: view.names.clone(), cells, fan_out })
                .collect(),
            versions: if request.include_feature_view_version_metadata { versions.collect() } else { Vec::new() },
        })
    }

    /// The cells of every distinct key of every view.
    async fn read(&self, planned: &Planned, bound: &mut Bound, now: Timestamp) -> Result<Vec<Vec<Cells>>> {
        let plan = &planned.plan;
        let (mut reads, mut state_reads) = (Vec::new(), Vec::new());
        for (view, keys) in plan.views.iter().zip(std::mem::take(&mut bound.keys)) {
            let read = Read { table: view.table.clone(), keys };
            if view.view.is_windowed() { &mut state_reads } else { &mut reads }.push(read);
        }
        let mut rows = self.store.read(&reads).await?.into_iter();
        let mut states =
            if state_reads.is_empty() { Vec::new() } else { self.store.read_states(&state_reads).await? }.into_iter();
        let mut out = Vec::with_capacity(plan.views.len());
        for (view, spec) in plan.views.iter().zip(&planned.windows) {
            out.push(if let Some(spec) = spec {
                let states = states.next().unwrap_or_default();
                states
                    .into_iter()
                    .map(|state| {
                        let answer = match state {
                            Some(bytes) => windows::answer(&bytes, spec, &view.view, now)?,
                            None => None,
                        };
                        Ok(window_cells(view, answer))
                    })
                    .collect::<Result<Vec<_>>>()?
            } else {
                let rows = rows.next().unwrap_or_default();
                rows.into_iter().map(|row| row_cells(view, row.as_ref(), now)).collect()
            });
        }
        Ok(out)
    }
}

/// A stored row's cells.
fn row_cells(view: &ViewPlan, row: Option<&Row>, now: Timestamp) -> Cells {
    match row {
        Some(row) => Cells::of_row(row, &view.columns, view.view.ttl_us, now),
        None => Cells::not_found(view.names.len()),
    }
}

/// A window's cells (WINDOWS.md, "Definition"): the view's ttl does not apply.
fn window_cells(view: &ViewPlan, answer: Option<(Timestamp, Vec<Value>)>) -> Cells {
    let Some((time, values)) = answer else { return Cells::not_found(view.names.len()) };
    let of_feature = |name: &str| {
        let position = view.view.features.iter().position(|f| f.name == name);
        position.and_then(|i| values.get(i)).cloned().unwrap_or(value::NULL)
    };
    let asked: Vec<Value> = view.features.iter().map(|f| of_feature(&f.name)).collect();
    Cells::of_values(&asked, time)
}
