//! The verb "get online features": plan, read, decide each value's status, fan out to the rows.
//!
//! Knows no protocol: both faces of the server give the same answer because this is the one place
//! that makes it. Source: `_populate_response_from_feature_data` in `feast/utils.py`.

mod plans;

use std::sync::Arc;

use model::plan::{Bound, Plan, ViewPlan};
use model::ports::{Clock, OnlineStore, Read};
use model::registry::FeatureRequest;
use model::{Error, Result, Row, Timestamp, Value, value};
use prost::Message;
use proto::feast::serving::get_online_features_response::FeatureVector;
use proto::feast::serving::{
    FeatureList, FeatureViewMetadata, FieldStatus, GetOnlineFeaturesResponse, GetOnlineFeaturesResponseMetadata,
};

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

/// One entity's answer for one view: a value, a status and a time per feature.
struct Cells {
    values: Vec<Value>,
    statuses: Vec<FieldStatus>,
    times: Vec<Timestamp>,
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
    pub async fn get_online_features(&self, request: Request) -> Result<GetOnlineFeaturesResponse> {
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
        Ok(respond(plan, bound, &cells, request.include_feature_view_version_metadata))
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
        let mut states = if state_reads.is_empty() { Vec::new() } else { self.store.read_states(&state_reads).await? }
            .into_iter();
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
                rows.into_iter().map(|row| row_cells(view, row.as_ref(), now)).collect::<Result<Vec<_>>>()?
            });
        }
        Ok(out)
    }
}

/// The status rules of a stored row (FEAST_CONTRACT.md, "Reading online").
fn row_cells(view: &ViewPlan, row: Option<&Row>, now: Timestamp) -> Result<Cells> {
    let Some(row) = row else { return Ok(Cells::not_found(view.names.len())) };
    let mut cells = Cells::with_capacity(view.names.len());
    for (id, feature) in view.column_ids.iter().zip(&view.features) {
        let (bytes, version) = row.get(*id).unwrap_or_else(|| (bytes::Bytes::new(), row.newest()));
        let ttl = view.view.ttl_us;
        if ttl > 0 && now.micros().saturating_sub(version.event.micros()) > ttl {
            cells.push(value::NULL, FieldStatus::OutsideMaxAge, version.event);
            continue;
        }
        let stored = Value::decode(bytes).map_err(|e| {
            Error::internal(
                format!("the stored value of {}:{} is damaged: write the row again", view.view.name, feature.name),
                e,
            )
        })?;
        let status = if value::is_null(&stored) { FieldStatus::NullValue } else { FieldStatus::Present };
        cells.push(stored, status, version.event);
    }
    Ok(cells)
}

/// The status rules of a window (WINDOWS.md, "Definition"): the view's ttl does not apply.
fn window_cells(view: &ViewPlan, answer: Option<(Timestamp, Vec<Value>)>) -> Cells {
    let Some((time, values)) = answer else { return Cells::not_found(view.names.len()) };
    let mut cells = Cells::with_capacity(view.names.len());
    for feature in &view.features {
        let position = view.view.features.iter().position(|f| f.name == feature.name);
        let answered = position.and_then(|i| values.get(i)).cloned().unwrap_or(value::NULL);
        let status = if value::is_null(&answered) { FieldStatus::NullValue } else { FieldStatus::Present };
        cells.push(answered, status, time);
    }
    cells
}

impl Cells {
    fn with_capacity(n: usize) -> Self {
        Self { values: Vec::with_capacity(n), statuses: Vec::with_capacity(n), times: Vec::with_capacity(n) }
    }

    fn not_found(n: usize) -> Self {
        Self {
            values: vec![value::NULL; n],
            statuses: vec![FieldStatus::NotFound; n],
            times: vec![Timestamp::default(); n],
        }
    }

    fn push(&mut self, value: Value, status: FieldStatus, time: Timestamp) {
        self.values.push(value);
        self.statuses.push(status);
        self.times.push(time);
    }
}

/// The response: the entity columns first, then each view's features, one vector each.
fn respond(plan: &Plan, bound: Bound, cells: &[Vec<Cells>], versions: bool) -> GetOnlineFeaturesResponse {
    let mut names = Vec::new();
    let mut results = Vec::new();
    for (name, values) in bound.columns {
        names.push(name);
        results.push(FeatureVector {
            statuses: vec![FieldStatus::Present.into(); values.len()],
            event_timestamps: vec![prost_types::Timestamp::default(); values.len()],
            values,
        });
    }
    let mut feature_view_metadata = Vec::new();
    for ((view, fan_out), cells) in plan.views.iter().zip(&bound.fan_out).zip(cells) {
        for (index, name) in view.names.iter().enumerate() {
            names.push(name.clone());
            let rows = || fan_out.iter().map(|key| &cells[*key]);
            results.push(FeatureVector {
                values: rows().map(|c| c.values[index].clone()).collect(),
                statuses: rows().map(|c| c.statuses[index].into()).collect(),
                event_timestamps: rows().map(|c| c.times[index].to_proto()).collect(),
            });
        }
        if versions {
            feature_view_metadata
                .push(FeatureViewMetadata { name: view.view.name.clone(), version: view.view.version });
        }
    }
    GetOnlineFeaturesResponse {
        metadata: Some(GetOnlineFeaturesResponseMetadata {
            feature_names: Some(FeatureList { val: names }),
            feature_view_metadata,
        }),
        results,
        status: true,
    }
}
