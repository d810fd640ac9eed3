//! The resolved registry: one immutable picture of all registered objects, as typed messages with
//! what serving needs worked out once. Knows no store: it is built from [`Object`]s.

pub mod object;
mod on_demand;
mod reading;
mod stream_sql;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use proto::feast::core;

pub use on_demand::{Function, OnDemand, SourceView};
pub use reading::{From, Reading, Start};
pub use view::{Aggregation, AsOf, Field, JoinKey, KNOWN_AT, Projection, View, ViewKind};

use crate::error::{Error, Result};
use crate::ports::{Change, Object, ObjectKind};

/// All projects at one moment.
#[derive(Debug, Default)]
pub struct Registry {
    /// Grows with every change; plans made under another revision are stale.
    pub revision: u64,
    /// Projects by name.
    pub projects: BTreeMap<String, Project>,
    /// Whether every version of a view has a table of its own and can be asked for as `view@v2`
    /// (Feast's `enable_online_feature_view_versioning`).
    pub online_versions: bool,
}

/// The objects of one project, each by name.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// The project's own message; absent where objects were applied before it.
    pub project: Option<Arc<core::Project>>,
    /// Entities.
    pub entities: BTreeMap<String, Arc<core::Entity>>,
    /// Data sources.
    pub data_sources: BTreeMap<String, Arc<core::DataSource>>,
    /// Feature views, stream feature views, label views and on-demand feature views: one namespace.
    pub views: BTreeMap<String, Arc<View>>,
    /// Every kept version of a view, by name and number; only with online versions.
    pub versions: BTreeMap<(String, i32), Arc<View>>,
    /// Feature services.
    pub feature_services: BTreeMap<String, Arc<core::FeatureService>>,
    /// Whether versions of views can be asked for.
    pub online_versions: bool,
    /// Every object as it was stored.
    pub objects: BTreeMap<(ObjectKind, String), Object>,
}

/// The features asked for: a service by name, or references.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FeatureRequest {
    /// A registered feature service.
    Service(String),
    /// `view:feature` references.
    Refs(Vec<String>),
}

impl Registry {
    /// Resolves objects, as a store loaded them.
    ///
    /// Errors: an object whose bytes are not the message of its kind.
    pub fn resolve(revision: u64, objects: impl IntoIterator<Item = Object>) -> Result<Self> {
        Self::default().with(revision, objects.into_iter().map(Change::Put))
    }

    /// [`resolve`](Self::resolve), with a table for every version of a view where `online_versions`.
    ///
    /// Errors: as there.
    pub fn resolve_versions(
        revision: u64,
        online_versions: bool,
        objects: impl IntoIterator<Item = Object>,
    ) -> Result<Self> {
        let empty = Self { online_versions, ..Self::default() };
        empty.with(revision, objects.into_iter().map(Change::Put))
    }

    /// This registry after `changes`, with the next revision. Only what the changes touch is worked
    /// out again: their objects, and all views of a project whose entities changed.
    ///
    /// Errors: an object whose bytes are not the message of its kind.
    pub fn changed(&self, changes: impl IntoIterator<Item = Change>) -> Result<Self> {
        self.with(self.revision + 1, changes)
    }

    fn with(&self, revision: u64, changes: impl IntoIterator<Item = Change>) -> Result<Self> {
        let mut projects = self.projects.clone();
        let mut touched: BTreeMap<String, BTreeSet<(ObjectKind, String)>> = BTreeMap::new();
        for change in changes {
            let (kind, project, name) = match change {
                Change::Put(object) => {
                    let key = (object.kind, object.project.clone(), object.name.clone());
                    let project = projects.entry(object.project.clone()).or_default();
                    project.objects.insert((object.kind, object.name.clone()), object);
                    key
                }
                Change::Delete { kind, project, name } => {
                    let key = (kind, name);
                    if let Some(project) = projects.get_mut(&project) {
                        project.objects.remove(&key);
                    }
                    (key.0, project, key.1)
                }
            };
            touched.entry(project).or_default().insert((kind, name));
        }
        for (name, touched) in touched {
            if let Some(project) = projects.get_mut(&name) {
                project.index(&name, touched, self.online_versions)?;
            }
        }
        projects.retain(|_, project| !project.objects.is_empty());
        Ok(Self { revision, projects, online_versions: self.online_versions })
    }

    /// A project by name.
    pub fn project(&self, name: &str) -> Result<&Project> {
        self.projects.get(name).ok_or_else(|| Error::project_not_found(name))
    }

    /// An object as it was stored.
    ///
    /// Errors: the kind's own "does not exist", also where there is no such project.
    pub fn object(&self, kind: ObjectKind, project: &str, name: &str) -> Result<&Object> {
        self.projects
            .get(project)
            .and_then(|p| p.objects.get(&(kind, name.to_owned())))
            .ok_or_else(|| kind.not_found(name, project))
    }
}

impl Project {
    /// Works out the typed maps again for what was touched.
    fn index(&mut self, project: &str, touched: BTreeSet<(ObjectKind, String)>, online_versions: bool) -> Result<()> {
        let mut views = BTreeSet::new();
        let mut versions = BTreeSet::new();
        self.online_versions = online_versions;
        for key in touched {
            let object = self.objects.get(&key);
            let (kind, name) = key;
            match kind {
                ObjectKind::Project => self.project = object.map(decode).transpose()?.map(Arc::new),
                ObjectKind::Entity => {
                    set(&mut self.entities, &name, object)?;
                    views.extend(self.views.keys().cloned());
                    versions.extend(self.versions.keys().map(|(view, number)| object::version_name(view, *number)));
                }
                ObjectKind::DataSource => set(&mut self.data_sources, &name, object)?,
                ObjectKind::FeatureService => set(&mut self.feature_services, &name, object)?,
                ObjectKind::FeatureViewVersion if online_versions => {
                    versions.insert(name);
                }
                kind if kind.is_view() || kind == ObjectKind::StreamReading => {
                    views.insert(name);
                }
                _ => {}
            }
        }
        for name in views {
            let stored = ObjectKind::VIEWS.into_iter().find_map(|kind| self.objects.get(&(kind, name.clone())));
            let Some(object) = stored else {
                self.views.remove(&name);
                continue;
            };
            let mut view = resolve_view(project, object, &self.entities)?;
            if online_versions {
                view = view.in_table_of_version();
            }
            if let Some(reading) = self.objects.get(&(ObjectKind::StreamReading, name.clone())) {
                view = view.read_as(Reading::read(reading)?);
            }
            self.views.insert(name, Arc::new(view));
        }
        for name in versions {
            let Some(object) = self.objects.get(&(ObjectKind::FeatureViewVersion, name.clone())) else {
                self.versions.retain(|(view, number), _| object::version_name(view, *number) != name);
                continue;
            };
            let record: core::FeatureViewVersionRecord = decode(object)?;
            let (view, number) = (record.feature_view_name.clone(), record.version_number);
            let mut version = resolve_view(project, &object::of_version(record)?, &self.entities)?;
            version.version = number;
            self.versions.insert((view, number), Arc::new(version.in_table_of_version()));
        }
        Ok(())
    }

    /// A version of a view. `project` is for the error.
    ///
    /// Errors: `FeatureViewVersionNotFound`.
    pub fn version(&self, view: &str, number: i32, project: &str) -> Result<&Arc<View>> {
        self.versions.get(&(view.to_owned(), number)).ok_or_else(|| {
            let name = object::version_name(view, number);
            ObjectKind::FeatureViewVersion.not_found(&name, project)
        })
    }

    /// A view by name. `project` is for the error.
    pub fn view(&self, name: &str, project: &str) -> Result<&Arc<View>> {
        self.views.get(name).ok_or_else(|| Error::feature_view_not_found(name, project))
    }

    /// A view as it is now, or one of its versions. `project` is for the error.
    ///
    /// Errors: no such view, `FeatureViewVersionNotFound`, versions that are not switched on.
    pub fn view_at(&self, name: &str, version: Option<i32>, project: &str) -> Result<&Arc<View>> {
        let Some(version) = version else { return self.view(name, project) };
        if !self.online_versions {
            return Err(Error::invalid(format!(
                "Version-qualified ref '{name}@v{version}' not supported: online versioning is disabled. Set \
                 'enable_online_feature_view_versioning: true' under 'registry' in feature_store.yaml."
            )));
        }
        self.version(name, version, project)
    }

    /// The projections of a request: each view once, in the order of first mention, with the
    /// features asked for and the alias and join key map that a service gives.
    ///
    /// Errors: a service, view or feature that does not exist; a malformed reference.
    pub fn projections(&self, project: &str, request: &FeatureRequest) -> Result<Vec<Projection>> {
        match request {
            FeatureRequest::Service(name) => {
                let service =
                    self.feature_services.get(name).ok_or_else(|| Error::feature_service_not_found(name, project))?;
                let projections = service.spec.iter().flat_map(|s| &s.features);
                projections.map(|p| Projection::of_service(self, project, p)).collect()
            }
            FeatureRequest::Refs(refs) => Projection::of_refs(self, project, refs),
        }
    }
}

fn resolve_view(project: &str, object: &Object, entities: &BTreeMap<String, Arc<core::Entity>>) -> Result<View> {
    Ok(match object.kind {
        ObjectKind::StreamFeatureView => View::of_stream(project, decode(object)?, entities),
        ObjectKind::OnDemandFeatureView => View::of_on_demand(project, decode(object)?, object.bytes.clone(), entities),
        ObjectKind::LabelView => View::of_label(project, decode(object)?, entities),
        _ => View::of_feature_view(project, decode(object)?, entities),
    })
}

/// Puts the decoded object into `map`, or takes it out where there is none any more.
fn set<M: Message + Default>(map: &mut BTreeMap<String, Arc<M>>, name: &str, object: Option<&Object>) -> Result<()> {
    match object {
        Some(object) => {
            map.insert(name.to_owned(), Arc::new(decode(object)?));
        }
        None => {
            map.remove(name);
        }
    }
    Ok(())
}

fn decode<M: Message + Default>(object: &Object) -> Result<M> {
    M::decode(object.bytes.clone()).map_err(|e| {
        Error::internal(
            format!("the stored {:?} '{}' of project '{}' is damaged", object.kind, object.name, object.project),
            e,
        )
    })
}
