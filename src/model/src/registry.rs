//! The resolved registry: one immutable picture of all registered objects, as typed messages with
//! what serving needs worked out once. Knows no store: it is built from [`Object`]s.

mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::feast::core;
use prost::Message;

pub use view::{Aggregation, Field, JoinKey, Projection, View, ViewKind};

use crate::error::{Error, Result};
use crate::ports::{Object, ObjectKind};

/// All projects at one moment.
#[derive(Debug, Default)]
pub struct Registry {
    /// Grows with every change; plans made under another revision are stale.
    pub revision: u64,
    /// Projects by name.
    pub projects: BTreeMap<String, Project>,
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
    /// Feature services.
    pub feature_services: BTreeMap<String, Arc<core::FeatureService>>,
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
        let mut projects: BTreeMap<String, Project> = BTreeMap::new();
        for object in objects {
            let project = projects.entry(object.project.clone()).or_default();
            project.objects.insert((object.kind, object.name.clone()), object);
        }
        for (name, project) in &mut projects {
            project.index(name)?;
        }
        Ok(Self { revision, projects })
    }

    /// A project by name.
    pub fn project(&self, name: &str) -> Result<&Project> {
        self.projects.get(name).ok_or_else(|| Error::project_not_found(name))
    }
}

impl Project {
    /// Works out the typed maps from `objects`.
    fn index(&mut self, project: &str) -> Result<()> {
        for ((kind, name), object) in &self.objects {
            let name = name.clone();
            match kind {
                ObjectKind::Project => self.project = Some(Arc::new(decode(object)?)),
                ObjectKind::Entity => {
                    self.entities.insert(name, Arc::new(decode(object)?));
                }
                ObjectKind::DataSource => {
                    self.data_sources.insert(name, Arc::new(decode(object)?));
                }
                ObjectKind::FeatureService => {
                    self.feature_services.insert(name, Arc::new(decode(object)?));
                }
                _ => {}
            }
        }
        for ((kind, name), object) in &self.objects {
            let view = match kind {
                ObjectKind::FeatureView => View::of_feature_view(project, decode(object)?, &self.entities),
                ObjectKind::StreamFeatureView => View::of_stream(project, decode(object)?, &self.entities),
                ObjectKind::OnDemandFeatureView => View::of_on_demand(project, &decode(object)?, &self.entities),
                ObjectKind::LabelView => View::of_label(project, decode(object)?, &self.entities),
                _ => continue,
            };
            self.views.insert(name.clone(), Arc::new(view));
        }
        Ok(())
    }

    /// A view by name. `project` is for the error.
    pub fn view(&self, name: &str, project: &str) -> Result<&Arc<View>> {
        self.views.get(name).ok_or_else(|| Error::feature_view_not_found(name, project))
    }

    /// The projections of a request: each view once, in the order of first mention, with the
    /// features asked for and the alias and join key map that a service gives.
    ///
    /// Errors: a service, view or feature that does not exist; a malformed reference.
    pub fn projections(&self, project: &str, request: &FeatureRequest) -> Result<Vec<Projection>> {
        match request {
            FeatureRequest::Service(name) => {
                let service = self
                    .feature_services
                    .get(name)
                    .ok_or_else(|| Error::feature_service_not_found(name, project))?;
                let projections = service.spec.iter().flat_map(|s| &s.features);
                projections.map(|p| Projection::of_service(self, project, p)).collect()
            }
            FeatureRequest::Refs(refs) => Projection::of_refs(self, project, refs),
        }
    }
}

fn decode<M: Message + Default>(object: &Object) -> Result<M> {
    M::decode(object.bytes.clone()).map_err(|e| {
        Error::internal(
            format!("the stored {:?} '{}' of project '{}' is damaged", object.kind, object.name, object.project),
            e,
        )
    })
}
