//! The calls of the registry that are more than one line: applying and listing in general, and the lists
//! that can be narrowed. Knows no rule of the registry.

use std::sync::Arc;

use model::ports::{Object, ObjectKind};
use model::registry::Registry;
use model::{Error, Timestamp};
use proto::Raw;
use proto::registry as pb;
use rpc::status::to_grpc;
use service::catalog::list::Page;
use service::catalog::{features, lineage, list, versions};
use tonic::{Response, Status};

use super::pack::{self, Listing, listing, message, messages, paging, position};
use super::{Answer, Service};

/// The object that a request must carry.
pub(super) fn given(object: Option<Raw>, kind: ObjectKind) -> Result<Raw, Status> {
    object.ok_or_else(|| to_grpc(&Error::invalid(format!("the request carries no {}", kind.class()))))
}

/// Everything passes.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn all(_: &Registry, _: &Object) -> model::Result<bool> {
    Ok(true)
}

impl Service {
    pub(super) async fn registry(&self, allow_cache: bool) -> Result<Arc<Registry>, Status> {
        self.catalog.registry(allow_cache).await.map_err(|e| to_grpc(&e))
    }

    pub(super) async fn apply(&self, kind: ObjectKind, project: &str, object: Option<Raw>) -> Answer<()> {
        let bytes = given(object, kind)?.0.into();
        self.catalog.apply(kind, project, bytes).await.map_err(|e| to_grpc(&e))?;
        Ok(Response::new(()))
    }

    pub(super) async fn delete(&self, kind: ObjectKind, project: &str, name: &str) -> Answer<()> {
        self.catalog.delete(kind, project, name).await.map_err(|e| to_grpc(&e))?;
        Ok(Response::new(()))
    }

    pub(super) async fn get(&self, kind: ObjectKind, project: &str, name: &str, allow_cache: bool) -> Answer<Raw> {
        let registry = self.registry(allow_cache).await?;
        if kind.is_view() && name.contains('@') {
            let version = versions::version_object(&registry, project, name).map_err(|e| to_grpc(&e))?;
            let found = if version.kind == kind { Ok(version) } else { Err(kind.not_found(name, project)) };
            return Ok(Response::new(message(&found.map_err(|e| to_grpc(&e))?.bytes)));
        }
        let object = registry.object(kind, project, name).map_err(|e| to_grpc(&e))?;
        Ok(Response::new(message(&object.bytes)))
    }

    /// The objects of these kinds that also pass `keep`, in order, of them one page.
    pub(super) async fn list(
        &self,
        kinds: &[ObjectKind],
        asked: Listing,
        keep: impl Fn(&Registry, &Object) -> model::Result<bool>,
    ) -> Result<Page<Object>, Status> {
        let registry = self.registry(asked.allow_cache).await?;
        let page = || {
            let mut kept = Vec::new();
            for object in list::objects(&registry, asked.project.as_deref(), kinds, &asked.tags)? {
                if keep(&registry, &object)? {
                    kept.push(object);
                }
            }
            asked.paging.apply(kept)
        };
        page().map_err(|e| to_grpc(&e))
    }

    pub(super) async fn all_feature_views(
        &self,
        r: pb::ListAllFeatureViewsRequest,
    ) -> Answer<pb::ListAllFeatureViewsResponse> {
        let parts = lineage::Parts {
            entity: r.entity,
            feature: r.feature,
            data_source: r.data_source,
            feature_service: r.feature_service,
        };
        let since = r.updated_since.as_ref().map(Timestamp::from_proto);
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let keep = |registry: &Registry, view: &Object| {
            let recent = since.is_none_or(|since| view.updated().ok().flatten().is_some_and(|at| at >= since));
            Ok(recent && parts.are_of(registry, view)?)
        };
        let page = self.list(&ObjectKind::VIEWS, asked, keep).await?;
        Ok(Response::new(pb::ListAllFeatureViewsResponse {
            feature_views: page.items.iter().map(pack::any_view).collect(),
            pagination: Some(position(&page)),
        }))
    }

    pub(super) async fn feature_services(
        &self,
        r: pb::ListFeatureServicesRequest,
    ) -> Answer<pb::ListFeatureServicesResponse> {
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let keep = |registry: &Registry, service: &Object| {
            let services = registry.projects.get(&service.project).map(|p| &p.feature_services);
            let spec = services.and_then(|s| s.get(&service.name)).and_then(|s| s.spec.as_ref());
            let mut views = spec.iter().flat_map(|s| &s.features).map(|p| &p.feature_view_name);
            Ok(r.feature_view.is_empty() || views.any(|name| *name == r.feature_view))
        };
        let page = self.list(&[ObjectKind::FeatureService], asked, keep).await?;
        Ok(Response::new(pb::ListFeatureServicesResponse {
            feature_services: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    pub(super) async fn saved_datasets(
        &self,
        r: pb::ListSavedDatasetsRequest,
    ) -> Answer<pb::ListSavedDatasetsResponse> {
        const NAMESPACE: u32 = 9;
        const COLLECTION: u32 = 10;
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let keep = |_: &Registry, dataset: &Object| {
            let is = |asked: &str, number| Ok::<_, Error>(asked.is_empty() || dataset.text(number)? == asked);
            Ok(is(&r.namespace, NAMESPACE)? && is(&r.collection, COLLECTION)?)
        };
        let page = self.list(&[ObjectKind::SavedDataset], asked, keep).await?;
        Ok(Response::new(pb::ListSavedDatasetsResponse {
            saved_datasets: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    pub(super) async fn materialization(&self, r: pb::ApplyMaterializationRequest) -> Answer<()> {
        let view = given(r.feature_view, ObjectKind::FeatureView)?.0.into();
        let view = Object::read(ObjectKind::FeatureView, view).map_err(|e| to_grpc(&e))?.name;
        let (Some(start), Some(end)) = (&r.start_date, &r.end_date) else {
            let missing = Error::invalid(format!("the materialization of '{view}' needs start_date and end_date"));
            return Err(to_grpc(&missing));
        };
        let (start, end) = (Timestamp::from_proto(start), Timestamp::from_proto(end));
        self.catalog.materialized(&r.project, &view, start, end).await.map_err(|e| to_grpc(&e))?;
        Ok(Response::new(()))
    }

    pub(super) async fn registry_lineage(
        &self,
        r: pb::GetRegistryLineageRequest,
    ) -> Answer<pb::GetRegistryLineageResponse> {
        let registry = self.registry(r.allow_cache).await?;
        let paging = paging(r.pagination, r.sorting);
        let pages = || {
            let mut lineage = lineage::lineage(&registry, &r.project)?;
            if !r.filter_object_type.is_empty() && !r.filter_object_name.is_empty() {
                lineage = lineage.of(&r.filter_object_type, &r.filter_object_name)?;
            }
            Ok((paging.apply(lineage.direct)?, paging.apply(lineage.indirect)?))
        };
        let (direct, indirect) = pages().map_err(|e| to_grpc(&e))?;
        Ok(Response::new(pb::GetRegistryLineageResponse {
            relationships: pack::relations(&direct),
            indirect_relationships: pack::relations(&indirect),
            relationships_pagination: Some(position(&direct)),
            indirect_relationships_pagination: Some(position(&indirect)),
        }))
    }

    pub(super) async fn object_relationships(
        &self,
        r: pb::GetObjectRelationshipsRequest,
    ) -> Answer<pb::GetObjectRelationshipsResponse> {
        let registry = self.registry(r.allow_cache).await?;
        let paging = paging(r.pagination, r.sorting);
        let page = || {
            let lineage = lineage::lineage(&registry, &r.project)?.of(&r.object_type, &r.object_name)?;
            let mut relations = lineage.direct;
            if r.include_indirect {
                relations.extend(lineage.indirect);
            }
            paging.apply(relations)
        };
        let page = page().map_err(|e| to_grpc(&e))?;
        Ok(Response::new(pb::GetObjectRelationshipsResponse {
            relationships: pack::relations(&page),
            pagination: Some(position(&page)),
        }))
    }

    pub(super) async fn features(&self, r: pb::ListFeaturesRequest) -> Answer<pb::ListFeaturesResponse> {
        let registry = self.registry(r.allow_cache).await?;
        let filter = features::Filter { view: &r.feature_view, name: &r.name, kind: &r.kind };
        let paging = paging(r.pagination, r.sorting);
        let page = features::features(&registry, &r.project, filter)
            .and_then(|features| paging.apply(features))
            .map_err(|e| to_grpc(&e))?;
        let pagination = Some(position(&page));
        let features = page.items.into_iter().map(pack::feature).collect();
        Ok(Response::new(pb::ListFeaturesResponse { features, pagination }))
    }

    pub(super) async fn one_feature(&self, r: pb::GetFeatureRequest) -> Answer<pb::Feature> {
        let registry = self.registry(r.allow_cache).await?;
        let feature = features::feature(&registry, &r.project, &r.feature_view, &r.name);
        Ok(Response::new(pack::feature(feature.map_err(|e| to_grpc(&e))?)))
    }

    pub(super) async fn view_applied(&self, r: pb::ApplyFeatureViewRequest) -> Answer<()> {
        use pb::apply_feature_view_request::BaseFeatureView as View;
        let (kind, view) = match r.base_feature_view {
            Some(View::FeatureView(view)) => (ObjectKind::FeatureView, Some(view)),
            Some(View::StreamFeatureView(view)) => (ObjectKind::StreamFeatureView, Some(view)),
            Some(View::OnDemandFeatureView(view)) => (ObjectKind::OnDemandFeatureView, Some(view)),
            Some(View::LabelView(view)) => (ObjectKind::LabelView, Some(view)),
            None => (ObjectKind::FeatureView, None),
        };
        self.apply(kind, &r.project, view).await
    }

    pub(super) async fn project_metadata(
        &self,
        r: pb::ListProjectMetadataRequest,
    ) -> Answer<pb::ListProjectMetadataResponse> {
        let asked = Listing { project: Some(r.project), allow_cache: r.allow_cache, ..Listing::default() };
        let page = self.list(&[ObjectKind::ProjectMetadata], asked, all).await?;
        Ok(Response::new(pb::ListProjectMetadataResponse { project_metadata: messages(&page) }))
    }

    pub(super) async fn projects(&self, r: pb::ListProjectsRequest) -> Answer<pb::ListProjectsResponse> {
        let asked = Listing {
            project: None,
            allow_cache: r.allow_cache,
            tags: r.tags,
            paging: paging(r.pagination, r.sorting),
        };
        let page = self.list(&[ObjectKind::Project], asked, all).await?;
        Ok(Response::new(pb::ListProjectsResponse { projects: messages(&page), pagination: Some(position(&page)) }))
    }
}
