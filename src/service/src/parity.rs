//! The verb "parity": what a windowed view answers online, at the server's clock, beside what a training set has for the
//! same entities and time, with the events that explain a difference. Zero differences is the only good number. Knows no
//! protocol and no file.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;

use model::ports::{Clock, OfflineLog, RawEvent};
use model::registry::{FeatureRequest, View};
use model::value::proto_value::Val;
use model::{EntityKey, Error, Kind, Result, Timestamp, Value};

use crate::catalog::Catalog;
use crate::retrieve::{Request, Retriever};
use crate::windows;

/// Floating values may differ by so much of the greater one: sums are compensated, so this is far more than rounding.
const RELATIVE: f64 = 1e-12;
/// The latest events that a difference is shown with.
const SHOWN: usize = 20;

/// Compares the two sides of one project's views.
#[derive(Clone)]
pub struct Parity {
    /// What is registered.
    pub catalog: Arc<Catalog>,
    /// The online side.
    pub retriever: Arc<Retriever>,
    /// The offline side.
    pub log: Arc<dyn OfflineLog>,
    /// The online side's clock.
    pub clock: Arc<dyn Clock>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The time that both sides were asked for.
    pub at: Timestamp,
    /// Entities that were compared.
    pub entities: usize,
    /// Values that were compared.
    pub values: usize,
    /// The columns that events have.
    pub columns: Vec<String>,
    /// What is not the same.
    pub differences: Vec<Difference>,
}

/// A feature of an entity that has two values.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The join keys.
    pub entity: Vec<(String, Value)>,
    /// The feature.
    pub feature: String,
    /// What is served.
    pub online: Value,
    /// What a training set has.
    pub offline: Value,
    /// The entity's latest events in the history that its windows span, the oldest first; `true` where the online side
    /// has seen none so late.
    pub events: Vec<(RawEvent, bool)>,
}

/// A clock that stands.
struct At(Timestamp);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}

impl Parity {
    /// Compares a view for so many entities of its history (all where there are fewer), chosen by `seed`.
    ///
    /// Errors: no such view, or one without windows or history; `NotFound` where the history has no entity at all; those
    /// of both sides.
    pub async fn check(&self, view: &str, most: usize, seed: u64) -> Result<Report> {
        let project = self.retriever.project();
        let registry = self.catalog.refreshed().await?;
        let view = registry.project(project)?.view(view, project)?.clone();
        if !view.is_windowed() || view.is_entityless() {
            let message = format!("feature view {} has no windows over entities, which parity compares", view.name);
            return Err(Error::new(Kind::Unsupported, message));
        }
        let spec = windows::spec_of(&view)?;
        let columns = windows::columns(&view);
        let begin = self.clock.now();
        let span = |t: Timestamp| Timestamp(spec.window_start(t.micros()))..Timestamp(t.micros().saturating_add(1));
        let keys = self.sample(&view, span(begin), most, seed).await?;
        if keys.is_empty() {
            let message =
                format!("the history of feature view {} has no event in its windows: nothing is compared", view.name);
            return Err(Error::new(Kind::NotFound, message));
        }
        let at = self.clock.now();
        let (online, times) = self.online(&view, &keys, at).await?;
        let offline = self.log.windows_at(&view, &keys, at).await?;
        let mut differences = Vec::new();
        for (row, key) in keys.iter().enumerate() {
            for (place, feature) in view.features.iter().enumerate() {
                let (online, offline) = (&online[place][row], &offline[place][row]);
                if !same(online, offline) {
                    let (online, offline) = (online.clone(), offline.clone());
                    let (entity, feature) = (key.decode()?, feature.name.clone());
                    differences.push((row, Difference { entity, feature, online, offline, events: Vec::new() }));
                }
            }
        }
        let wrong: BTreeSet<&EntityKey> = differences.iter().map(|(row, _)| &keys[*row]).collect();
        let events = self.events(&view, &columns, span(at), &wrong).await?;
        let explained = differences.into_iter().map(|(row, difference)| {
            let of_key = events.get(&keys[row]).cloned().unwrap_or_default();
            let events = of_key.into_iter().map(|event| {
                let unseen = event.time > times[row];
                (event, unseen)
            });
            Difference { events: events.collect(), ..difference }
        });
        let values = keys.len() * view.features.len();
        Ok(Report { at, entities: keys.len(), values, columns, differences: explained.collect() })
    }

    /// The entities of the history with the least hashes.
    async fn sample(&self, view: &Arc<View>, span: Range<Timestamp>, most: usize, seed: u64) -> Result<Vec<EntityKey>> {
        let mut least: BTreeMap<u64, EntityKey> = BTreeMap::new();
        let mut events = self.log.events(view, &[], span).await?;
        while let Some(batch) = events.next().await? {
            for event in batch {
                let mut hasher = DefaultHasher::new();
                (seed, event.key.as_bytes()).hash(&mut hasher);
                least.insert(hasher.finish(), event.key);
                if least.len() > most {
                    least.pop_last();
                }
            }
        }
        Ok(least.into_values().collect())
    }

    /// The online side: values by feature and entity, and the time of the latest event of each entity.
    async fn online(
        &self,
        view: &View,
        keys: &[EntityKey],
        at: Timestamp,
    ) -> Result<(Vec<Vec<Value>>, Vec<Timestamp>)> {
        let features = view.features.iter().map(|f| format!("{}:{}", view.name, f.name)).collect();
        let mut entities: Vec<(String, Vec<Value>)> = Vec::new();
        for key in keys {
            for (place, (name, value)) in key.decode()?.into_iter().enumerate() {
                if entities.len() == place {
                    entities.push((name, Vec::with_capacity(keys.len())));
                }
                entities[place].1.push(value);
            }
        }
        let request = Request {
            features: FeatureRequest::Refs(features),
            entities,
            full_feature_names: false,
            include_feature_view_version_metadata: false,
        };
        let answer = self.retriever.at(Arc::new(At(at))).get_online_features(request).await?;
        let [answer] = &answer.views[..] else {
            return Err(Error::new(Kind::Internal, "the answer of one view is not one view's"));
        };
        let place = |name: &str| answer.names().iter().position(|n| n == name);
        let columns = view.features.iter().map(|f| match place(&f.name) {
            Some(place) => answer.column(place),
            None => Err(Error::new(Kind::Internal, format!("the answer has no feature {}", f.name))),
        });
        let first = view.features.first().and_then(|f| place(&f.name));
        let times = first.map_or_else(|| vec![Timestamp::MIN; keys.len()], |place| answer.times(place).to_vec());
        Ok((columns.collect::<Result<_>>()?, times))
    }

    /// The latest events of these entities.
    async fn events(
        &self,
        view: &Arc<View>,
        columns: &[String],
        span: Range<Timestamp>,
        of: &BTreeSet<&EntityKey>,
    ) -> Result<BTreeMap<EntityKey, Vec<RawEvent>>> {
        let mut found: BTreeMap<EntityKey, Vec<RawEvent>> = BTreeMap::new();
        if of.is_empty() {
            return Ok(found);
        }
        let mut events = self.log.events(view, columns, span).await?;
        while let Some(batch) = events.next().await? {
            for event in batch.into_iter().filter(|event| of.contains(&event.key)) {
                let of_key = found.entry(event.key.clone()).or_default();
                of_key.push(event);
                if of_key.len() > SHOWN {
                    of_key.remove(0);
                }
            }
        }
        Ok(found)
    }
}

/// Integers, text and sketches exactly, floating values within [`RELATIVE`].
fn same(a: &Value, b: &Value) -> bool {
    let near = |a: f64, b: f64, within: f64| {
        a.to_bits() == b.to_bits() || (a - b).abs() <= within * a.abs().max(b.abs()) || (a.is_nan() && b.is_nan())
    };
    match (&a.val, &b.val) {
        (Some(Val::DoubleVal(a)), Some(Val::DoubleVal(b))) => near(*a, *b, RELATIVE),
        (Some(Val::FloatVal(a)), Some(Val::FloatVal(b))) => near(f64::from(*a), f64::from(*b), f64::from(f32::EPSILON)),
        _ => (model::value::is_null(a) && model::value::is_null(b)) || a == b,
    }
}
