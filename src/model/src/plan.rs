//! How one feature request is answered: which tables are read with which key, and where each output
//! comes from. Worked out from the registry and the feature list alone; knows no store and no rows.
//!
//! Source: `_get_online_request_context` and `_prepare_entities_to_read_from_online_store` in
//! `feast/utils.py`.

pub mod on_demand;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use on_demand::{OnDemandPlan, written_inputs};

use crate::answer::{Names, Wanted};
use crate::entity_key::{DUMMY_ENTITY_ID, EntityKey, EntityKeys};
use crate::error::{Error, Result};
use crate::ports::Table;
use crate::registry::{FeatureRequest, Field, JoinKey, Project, Projection, View};
use crate::row::column_id;
use crate::value::{Value, ValueType, coerce, type_of};

/// The answer's shape for one (registry revision, feature list, naming).
#[derive(Debug)]
pub struct Plan {
    /// The views, in the order of the answer.
    pub views: Vec<ViewPlan>,
    /// The views again, by the keys that they are read with.
    pub groups: Vec<Group>,
    /// Request columns that are recognised as keys: name in the request → name in the answer.
    columns: BTreeMap<String, String>,
    /// Types to coerce key columns to, by name in the answer.
    types: BTreeMap<String, ValueType>,
    /// What is computed from what is read; `None` where nothing is.
    pub on_demand: Option<Box<OnDemandPlan>>,
}

/// One view's part of a plan.
#[derive(Debug)]
pub struct ViewPlan {
    /// The view.
    pub view: Arc<View>,
    /// The alias, else the view's name, under which its version is told.
    pub plain_name: String,
    /// The features asked for.
    pub features: Vec<Field>,
    /// What to take of a row for them, in the order of a row's columns.
    pub wanted: Vec<Wanted>,
    /// Their names in the answer.
    pub names: Arc<Names>,
}

/// Views that are read with the same keys, all with or all without windows.
#[derive(Debug)]
pub struct Group {
    /// Positions in [`Plan::views`].
    pub views: Vec<usize>,
    /// Where to read, one per view.
    pub tables: Vec<Arc<Table>>,
    /// Whether states are read, not rows.
    pub windowed: bool,
    /// There is one key for every row of the request.
    pub entityless: bool,
    /// The key's parts, each with the request column that carries it.
    keys: Vec<(JoinKey, String)>,
    /// The first view's name.
    view: String,
}

/// A request's entity columns, checked against a plan.
#[derive(Debug)]
pub struct Bound {
    /// The number of entity rows.
    pub rows: usize,
    /// The entity columns as the answer repeats them, in the order of the request.
    pub columns: Vec<(String, Vec<Value>)>,
    /// Per group: each row's key, or the one key of all rows where the group is entity-less.
    pub keys: Vec<EntityKeys>,
}

impl Plan {
    /// Plans a request.
    ///
    /// Errors: what does not exist, output names that collide, views that are switched off.
    pub fn new(
        project: &Project,
        project_name: &str,
        request: &FeatureRequest,
        full_feature_names: bool,
    ) -> Result<Self> {
        let projections = project.projections(project_name, request)?;
        if projections.is_empty() {
            return Err(Error::invalid("No features specified for retrieval: name a feature_service or features"));
        }
        check_collisions(&projections, full_feature_names)?;
        if projections.iter().any(|p| p.view.is_computed()) {
            return OnDemandPlan::plan(project, project_name, projections, full_feature_names);
        }
        Self::of(project, projections, full_feature_names)
    }

    /// The plan of projections whose names were checked, or do not matter.
    fn of(project: &Project, projections: Vec<Projection>, full_feature_names: bool) -> Result<Self> {
        let mut plan = Self {
            views: Vec::new(),
            groups: Vec::new(),
            columns: BTreeMap::new(),
            types: BTreeMap::new(),
            on_demand: None,
        };
        for projection in projections {
            plan.add(projection, full_feature_names)?;
        }
        // Join keys of the project that no view here needs are repeated in the answer, as in Feast: a
        // client may send the same entity rows whatever it asks for.
        for (name, entity) in &project.entities {
            let Some(spec) = entity.spec.as_ref().filter(|s| s.join_key != DUMMY_ENTITY_ID) else { continue };
            plan.columns.entry(spec.join_key.clone()).or_insert_with(|| spec.join_key.clone());
            plan.columns.entry(name.clone()).or_insert_with(|| spec.join_key.clone());
        }
        Ok(plan)
    }

    fn add(&mut self, projection: Projection, full_feature_names: bool) -> Result<()> {
        let view = projection.view;
        if view.disabled {
            return Err(Error::feature_view_disabled(&view.name));
        }
        let mut keys = Vec::new();
        for key in &view.join_keys {
            let column = projection.join_key_map.get(&key.name).unwrap_or(&key.name).clone();
            if key.name != DUMMY_ENTITY_ID {
                self.columns.insert(column.clone(), column.clone());
                // An entity's name in the place of its join key is deprecated in Feast, but answered.
                if !projection.join_key_map.contains_key(&key.name) {
                    self.columns.entry(key.entity.clone()).or_insert_with(|| column.clone());
                }
                self.types.entry(column.clone()).or_insert(key.value_type);
            }
            keys.push((key.clone(), column));
        }
        let names = projection
            .features
            .iter()
            .map(|f| if full_feature_names { format!("{}__{}", projection.name, f.name) } else { f.name.clone() })
            .collect();
        let asked: Vec<u32> = projection.features.iter().map(|f| column_id(&f.name)).collect();
        self.join_group(&view, view.table.part(&asked), keys);
        // A whole row has all features of its view, sorted by id.
        let mut ids: Vec<u32> = view.features.iter().map(|f| column_id(&f.name)).collect();
        ids.sort_unstable();
        let wanted = projection.features.iter().enumerate().map(|(feature, f)| {
            let id = column_id(&f.name);
            Wanted::new(feature, id, f.value_type, ids.binary_search(&id).unwrap_or_default())
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(Wanted::id);
        self.views.push(ViewPlan {
            plain_name: projection.plain_name,
            view,
            wanted,
            features: projection.features,
            names: Arc::new(Names::new(names)),
        });
        Ok(())
    }

    /// Adds the view that is planned next to the group that has its keys.
    fn join_group(&mut self, view: &View, table: Arc<Table>, keys: Vec<(JoinKey, String)>) {
        let next = self.views.len();
        let same = |group: &&mut Group| {
            let alike = |((a, x), (b, y)): (&(JoinKey, String), &(JoinKey, String))| {
                a.name == b.name && a.value_type == b.value_type && x == y
            };
            group.windowed == view.is_windowed()
                && group.entityless == view.is_entityless()
                && group.keys.len() == keys.len()
                && group.keys.iter().zip(&keys).all(alike)
        };
        if let Some(group) = self.groups.iter_mut().find(same) {
            group.views.push(next);
            group.tables.push(table);
        } else {
            self.groups.push(Group {
                views: vec![next],
                tables: vec![table],
                windowed: view.is_windowed(),
                entityless: view.is_entityless(),
                keys,
                view: view.name.clone(),
            });
        }
    }

    /// Each view's version once, under its plain name (`feature_view_metadata`).
    pub fn versions(&self) -> Vec<(String, i32)> {
        let mut seen = std::collections::BTreeSet::new();
        let first = self.views.iter().filter(|v| seen.insert(&v.plain_name));
        first.map(|v| (v.plain_name.clone(), v.view.version)).collect()
    }

    /// Checks a request's columns and works out the keys to read.
    ///
    /// A request for entity-less views alone needs no columns: it has one row.
    ///
    /// Errors: columns of unequal length, a column that is no join key of the project, a missing join
    /// key, a key value that is null or not of its type.
    pub fn bind(&self, entities: Vec<(String, Vec<Value>)>) -> Result<Bound> {
        let everybodys = !self.views.is_empty() && self.views.iter().all(|v| v.view.is_entityless());
        let rows = if entities.is_empty() && everybodys { 1 } else { check_lengths(&entities)? };
        let mut columns = Vec::with_capacity(entities.len());
        for (name, values) in entities {
            // The SDK's way to ask for entity-less views alone; the answer does not repeat it.
            if name == DUMMY_ENTITY_ID {
                continue;
            }
            let Some(target) = self.columns.get(&name) else {
                return Err(self.unknown_column(&name));
            };
            let value_type = self.types.get(target).copied().unwrap_or(ValueType::Invalid);
            let values = values
                .into_iter()
                .map(|v| coerce(v, value_type))
                .collect::<Result<Vec<_>>>()
                .map_err(|e| Error::invalid(format!("the join key '{target}': {}", e.message())))?;
            if columns.iter().any(|(seen, _)| seen == target) {
                return Err(Error::invalid(format!(
                    "the join key '{target}' is given twice: once by its name and once by its entity's name"
                )));
            }
            columns.push((target.clone(), values));
        }
        let keys = self.groups.iter().map(|group| group.keys_of(&columns, rows)).collect::<Result<_>>()?;
        Ok(Bound { rows, columns, keys })
    }

    fn unknown_column(&self, name: &str) -> Error {
        let known: Vec<_> = self.types.keys().map(String::as_str).collect();
        Error::invalid(format!(
            "Unknown entity column '{name}': the features asked for have the join keys [{}]",
            known.join(", ")
        ))
    }
}

impl Group {
    fn keys_of(&self, columns: &[(String, Vec<Value>)], rows: usize) -> Result<EntityKeys> {
        if self.entityless {
            return Ok(EntityKey::dummy().into());
        }
        let mut parts = Vec::with_capacity(self.keys.len());
        for (key, column) in &self.keys {
            let Some((_, values)) = columns.iter().find(|(name, _)| name == column) else {
                return Err(Error::invalid(format!(
                    "Missing join key '{column}' in the entity rows: feature view {} needs it",
                    self.view
                )));
            };
            // Another view of the request may have this key in another type: each is read by its own.
            let typed = if values.iter().all(|v| type_of(v) == key.value_type) {
                Cow::Borrowed(values.as_slice())
            } else {
                let typed = values.iter().map(|v| coerce(v.clone(), key.value_type)).collect::<Result<_>>();
                Cow::Owned(typed.map_err(|e| Error::invalid(format!("the join key '{column}': {}", e.message())))?)
            };
            parts.push((key.name.as_str(), typed));
        }
        let parts: Vec<_> = parts.iter().map(|(name, values)| (*name, &**values)).collect();
        EntityKeys::encode(&parts, rows)
    }
}

fn check_lengths(entities: &[(String, Vec<Value>)]) -> Result<usize> {
    let Some((first, values)) = entities.first() else {
        return Err(Error::invalid("no entity rows: send at least one entity column"));
    };
    match entities.iter().find(|(_, other)| other.len() != values.len()) {
        None => Ok(values.len()),
        Some((name, other)) => Err(Error::invalid(format!(
            "All entity rows must have the same columns: '{first}' has {} values and '{name}' has {}",
            values.len(),
            other.len()
        ))),
    }
}

/// Feast's collision error: an output name that would stand twice.
fn check_collisions(projections: &[Projection], full_feature_names: bool) -> Result<()> {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for projection in projections {
        for feature in &projection.features {
            let reference = format!("{}:{}", projection.name, feature.name);
            let output = if full_feature_names { reference.clone() } else { feature.name.clone() };
            by_name.entry(output).or_default().push(reference);
        }
    }
    let collided: Vec<String> = by_name.into_values().filter(|refs| refs.len() > 1).flatten().collect();
    if collided.is_empty() { Ok(()) } else { Err(Error::feature_name_collision(&collided, full_feature_names)) }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
