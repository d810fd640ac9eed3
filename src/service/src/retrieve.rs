//! The verb "get online features": plan, read, decide each value's status, fan out to the rows.
//!
//! Knows no protocol: both faces of the server give the same answer because this is the one place
//! that makes it. Source: `_populate_response_from_feature_data` in `feast/utils.py`.

mod limits;
mod on_demand;
mod plans;
mod sink;

pub(crate) use on_demand::not_built_in;

use std::sync::{Arc, OnceLock};

use model::answer::{Answer, Buffers, Gather, ViewAnswer};
use model::plan::{Bound, Group, ViewPlan};
use model::ports::{Clock, OnlineStore, Read, Transformer};
use model::registry::FeatureRequest;
use model::{EntityKeys, Result, Timestamp, Value, value};

use crate::catalog::Catalog;
use crate::metrics::Reads;
use crate::windows::{self, Windowed, live::Live};
pub use limits::Limits;
pub use on_demand::{Given, evaluate};
use plans::{Planned, Plans};
use sink::{Gathers, Repeated};

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

/// Features that were asked for before, and how they are read.
pub struct Known(Arc<Planned>);

/// Answers [`Request`]s for one project.
pub struct Retriever {
    catalog: Arc<Catalog>,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    project: String,
    limits: Limits,
    plans: Plans,
    buffers: Arc<Buffers>,
    /// Made by the first answer: a project that does not exist has no series.
    reads: OnceLock<Reads>,
    transformer: Option<Arc<dyn Transformer>>,
    live: Arc<Live>,
}

impl Retriever {
    /// Reads `project` of the catalog from `store`, as much as `limits` allow.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<dyn OnlineStore>,
        clock: Arc<dyn Clock>,
        project: String,
        limits: Limits,
    ) -> Self {
        Self {
            catalog,
            store,
            clock,
            project,
            limits,
            plans: Plans::default(),
            buffers: Arc::default(),
            reads: OnceLock::new(),
            transformer: None,
            live: Arc::default(),
        }
    }

    /// The same for another project.
    #[must_use]
    pub fn of_project(&self, project: &str) -> Self {
        let (catalog, store, clock) = (self.catalog.clone(), self.store.clone(), self.clock.clone());
        Self::new(catalog, store, clock, project.to_owned(), self.limits)
            .with_transformer(self.transformer.clone())
            .with_live(self.live.clone())
    }

    /// The same at another clock's time.
    #[must_use]
    pub fn at(&self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self.of_project(&self.project) }
    }

    /// The project whose features are read.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Whether the registry has the project now.
    pub fn has_project(&self) -> bool {
        self.catalog.snapshot().project(&self.project).is_ok()
    }

    /// With what runs the functions of on-demand views.
    #[must_use]
    pub fn with_transformer(mut self, transformer: Option<Arc<dyn Transformer>>) -> Self {
        self.transformer = transformer;
        self
    }

    /// With the window states of the streams that this process reads.
    #[must_use]
    pub fn with_live(mut self, live: Arc<Live>) -> Self {
        self.live = live;
        self
    }

    /// Answers one request.
    ///
    /// Errors: see [`Plan::new`] and [`Plan::bind`]; too many rows; the store's own.
    pub async fn get_online_features(&self, request: Request) -> Result<Answer> {
        self.limits.check_features(&request.features)?;
        self.limits.check_entities(&request.entities)?;
        let registry = self.catalog.snapshot();
        let planned = self.plans.get(&registry, &self.project, request.features, request.full_feature_names)?;
        self.answer(&planned, request.entities, request.include_feature_view_version_metadata).await
    }

    /// What [`Retriever::learn`] was told of this spelling, while the registry is as it was.
    pub fn known(&self, spelling: &[u8], full_feature_names: bool) -> Option<Known> {
        self.plans.spelled(&self.catalog.snapshot(), spelling, full_feature_names).map(Known)
    }

    /// Answers a request for known features.
    ///
    /// Errors: as [`Retriever::get_online_features`].
    pub async fn get_known(
        &self,
        features: &Known,
        entities: Vec<(String, Vec<Value>)>,
        include_feature_view_version_metadata: bool,
    ) -> Result<Answer> {
        self.limits.check_entities(&entities)?;
        self.answer(&features.0, entities, include_feature_view_version_metadata).await
    }

    /// Remembers that a face's `spelling` means these features, so that it need not be read the next time. All
    /// spellings are one space: one must not mean two things.
    ///
    /// Errors: there are too many, or they cannot be planned.
    pub fn learn(&self, spelling: &[u8], features: FeatureRequest, full_feature_names: bool) -> Result<()> {
        self.limits.check_features(&features)?;
        let registry = self.catalog.snapshot();
        let planned = self.plans.get(&registry, &self.project, features, full_feature_names)?;
        self.plans.note(&registry, spelling, full_feature_names, planned);
        Ok(())
    }

    async fn answer(
        &self,
        planned: &Planned,
        entities: Vec<(String, Vec<Value>)>,
        with_versions: bool,
    ) -> Result<Answer> {
        let rows = entities.first().map_or(1, |(_, values)| values.len());
        self.limits.check_values(rows, planned.plan.views.iter().map(|v| v.names.len()).sum())?;
        match &planned.plan.on_demand {
            None => self.read_plan(planned, entities, with_versions).await,
            Some(part) => self.compute(planned, part, entities, with_versions).await,
        }
    }

    /// Reads all views of a plan.
    async fn read_plan(
        &self,
        planned: &Planned,
        entities: Vec<(String, Vec<Value>)>,
        with_versions: bool,
    ) -> Result<Answer> {
        let plan = &planned.plan;
        let bound = plan.bind(entities)?;
        let views = self.read(planned, &bound, self.clock.now()).await?;
        self.reads
            .get_or_init(|| Reads::of(&self.project))
            .retrieved(bound.rows, plan.views.iter().map(|v| v.names.len()).sum());
        Ok(Answer { columns: bound.columns, views, versions: if with_versions { plan.versions() } else { Vec::new() } })
    }

    /// Every view's part of the answer.
    async fn read(&self, planned: &Planned, bound: &Bound, now: Timestamp) -> Result<Vec<ViewAnswer>> {
        let groups = &planned.plan.groups;
        let mut answers = Vec::with_capacity(planned.plan.views.len());
        for (group, keys) in groups.iter().zip(&bound.keys) {
            let read = if group.windowed {
                self.read_windows(planned, group, keys, now).await?
            } else {
                self.read_rows(planned, group, keys, now).await?
            };
            let read = read
                .into_iter()
                .map(|view| if group.entityless { view.fanned_out(&vec![0; bound.rows]) } else { view });
            answers.extend(group.views.iter().copied().zip(read));
        }
        if groups.len() > 1 {
            answers.sort_unstable_by_key(|(view, _)| *view);
        }
        Ok(answers.into_iter().map(|(_, view)| view).collect())
    }

    async fn read_rows(
        &self,
        planned: &Planned,
        group: &Group,
        keys: &EntityKeys,
        now: Timestamp,
    ) -> Result<Vec<ViewAnswer>> {
        let views = group.views.iter().map(|at| &planned.plan.views[*at]);
        let begin =
            |v: &ViewPlan| Gather::within(&self.buffers, v.names.clone(), &v.wanted, v.view.ttl_us, now, keys.len());
        let gathers = views.map(begin);
        let mut gathers = Gathers(gathers.collect());
        match keys.repeats() {
            None => self.store.read_rows(&group.tables, keys, &mut gathers).await?,
            Some(first) => {
                let distinct = keys.firsts(&first);
                let mut repeated = Repeated::new(&mut gathers, first, group.tables.len());
                self.store.read_rows(&group.tables, &distinct, &mut repeated).await?;
            }
        }
        Ok(gathers.0.into_iter().map(Gather::finish).collect())
    }

    async fn read_windows(
        &self,
        planned: &Planned,
        group: &Group,
        keys: &EntityKeys,
        now: Timestamp,
    ) -> Result<Vec<ViewAnswer>> {
        let (keys, fan_out) = keys.distinct();
        let of_group = || group.views.iter().zip(&group.tables).zip(group.views.iter().map(|at| &planned.windows[*at]));
        let mut found = Vec::with_capacity(group.views.len());
        let (mut reads, mut missing) = (Vec::new(), Vec::new());
        for ((at, table), spec) in of_group() {
            let view = &planned.plan.views[*at].view;
            let live = spec.as_ref().and_then(|spec| Some((self.live.get(table, spec)?, spec)));
            let answer =
                |key: &model::EntityKey| live.as_ref().and_then(|(live, spec)| live.answer(key, spec, view, now));
            let answers: Vec<_> = keys.iter().map(|key| answer(key).transpose()).collect::<Result<_>>()?;
            let absent: Vec<usize> = (0..keys.len()).filter(|i| answers[*i].is_none()).collect();
            reads.push(Read { table: table.clone(), keys: absent.iter().map(|i| keys[*i].clone()).collect() });
            missing.push(absent);
            found.push(answers);
        }
        if missing.iter().any(|absent| !absent.is_empty()) {
            let stored = self.store.read_states(&reads).await?;
            for ((((at, _), spec), (absent, answers)), states) in
                of_group().zip(missing.into_iter().zip(&mut found)).zip(stored)
            {
                let Some(spec) = spec else { continue };
                for (i, state) in absent.into_iter().zip(states) {
                    let (view, key) = (&planned.plan.views[*at].view, &keys[i]);
                    let answer = state.map(|bytes| windows::answer(key, &bytes, spec, view, now)).transpose()?;
                    answers[i] = Some(answer.flatten());
                }
            }
        }
        let gather = |(at, answers): (&usize, Vec<Option<Windowed>>)| {
            let view = &planned.plan.views[*at];
            let mut gather = Gather::of_values(view.names.clone(), answers.len());
            for answer in answers {
                push_window(&mut gather, view, answer.flatten());
            }
            gather.finish().fanned_out(&fan_out)
        };
        Ok(group.views.iter().zip(found).map(gather).collect())
    }
}

/// A window's answer (WINDOWS.md, "Definition"): the view's ttl does not apply.
fn push_window(gather: &mut Gather, view: &ViewPlan, answer: Windowed) {
    let Some((time, values)) = answer else { return gather.push(None) };
    let of_feature = |name: &str| {
        let position = view.view.features.iter().position(|f| f.name == name);
        position.and_then(|i| values.get(i)).unwrap_or(&value::NULL)
    };
    gather.push_values(time, view.features.iter().map(|f| of_feature(&f.name)));
}
