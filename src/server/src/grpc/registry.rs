//! `feast.registry.RegistryServer`: every call unpacks, calls one verb of the catalog, packs.
//!
//! A view may be asked for as `view@v2`, which is that version as it was kept; all kept versions are in
//! what `Proto` gives (Feast has no call of its own for them).
//!
//! Objects go in and come out as their bytes: a field that a newer SDK added is kept. Every write is
//! durable when its call returns; `commit: false` and `Commit` therefore make no difference
//! ([`service::catalog`]). Source: `feast/registry_server.py`. One difference: `ListAllFeatureViews`
//! gives label views too, as Feast's own registries do, for a client finds the target of a push in it.

mod asked;
mod datasets;
mod pack;

use std::sync::Arc;

use asked::all;
use model::ports::{Object, ObjectKind};
use pack::{listing, message, messages, position};
use proto::Raw;
use proto::registry as pb;
use rpc::status::to_grpc;
use rpc::stubs::feast::registry::registry_server_server::{RegistryServer, RegistryServerServer};
use service::catalog::{self, Catalog, whole};
use service::datasets::Datasets;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// The registry's gRPC service.
pub struct Service {
    catalog: Arc<Catalog>,
    datasets: Arc<Datasets>,
}

/// The service over a catalog; `limit` is the greatest request, bytes.
pub fn service(catalog: Arc<Catalog>, datasets: Arc<Datasets>, limit: usize) -> RegistryServerServer<Service> {
    RegistryServerServer::new(Service { catalog, datasets }).max_decoding_message_size(limit)
}

#[tonic::async_trait]
impl RegistryServer for Service {
    async fn apply_entity(&self, request: Request<pb::ApplyEntityRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::Entity, &r.project, r.entity).await
    }

    async fn get_entity(&self, request: Request<pb::GetEntityRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::Entity, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_entities(&self, request: Request<pb::ListEntitiesRequest>) -> Answer<pb::ListEntitiesResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::Entity], asked, all).await?;
        Ok(Response::new(pb::ListEntitiesResponse { entities: messages(&page), pagination: Some(position(&page)) }))
    }

    async fn delete_entity(&self, request: Request<pb::DeleteEntityRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::Entity, &r.project, &r.name).await
    }

    async fn apply_data_source(&self, request: Request<pb::ApplyDataSourceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::DataSource, &r.project, r.data_source).await
    }

    async fn get_data_source(&self, request: Request<pb::GetDataSourceRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::DataSource, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_data_sources(
        &self,
        request: Request<pb::ListDataSourcesRequest>,
    ) -> Answer<pb::ListDataSourcesResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::DataSource], asked, all).await?;
        Ok(Response::new(pb::ListDataSourcesResponse {
            data_sources: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn delete_data_source(&self, request: Request<pb::DeleteDataSourceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::DataSource, &r.project, &r.name).await
    }

    async fn apply_feature_view(&self, request: Request<pb::ApplyFeatureViewRequest>) -> Answer<()> {
        self.view_applied(request.into_inner()).await
    }

    async fn delete_feature_view(&self, request: Request<pb::DeleteFeatureViewRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.catalog.delete_view(&r.project, &r.name).await.map_err(|e| to_grpc(&e))?;
        Ok(Response::new(()))
    }

    async fn get_any_feature_view(
        &self,
        request: Request<pb::GetAnyFeatureViewRequest>,
    ) -> Answer<pb::GetAnyFeatureViewResponse> {
        let r = request.into_inner();
        let registry = self.registry(r.allow_cache).await?;
        let object = catalog::versions::any_object(&registry, &r.project, &r.name).map_err(|e| to_grpc(&e))?;
        let any_feature_view = Some(pack::any_view(&object));
        Ok(Response::new(pb::GetAnyFeatureViewResponse { any_feature_view }))
    }

    async fn list_all_feature_views(
        &self,
        request: Request<pb::ListAllFeatureViewsRequest>,
    ) -> Answer<pb::ListAllFeatureViewsResponse> {
        self.all_feature_views(request.into_inner()).await
    }

    async fn get_feature_view(&self, request: Request<pb::GetFeatureViewRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::FeatureView, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_feature_views(
        &self,
        request: Request<pb::ListFeatureViewsRequest>,
    ) -> Answer<pb::ListFeatureViewsResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::FeatureView], asked, all).await?;
        Ok(Response::new(pb::ListFeatureViewsResponse {
            feature_views: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn get_stream_feature_view(&self, request: Request<pb::GetStreamFeatureViewRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::StreamFeatureView, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_stream_feature_views(
        &self,
        request: Request<pb::ListStreamFeatureViewsRequest>,
    ) -> Answer<pb::ListStreamFeatureViewsResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::StreamFeatureView], asked, all).await?;
        Ok(Response::new(pb::ListStreamFeatureViewsResponse {
            stream_feature_views: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn get_on_demand_feature_view(&self, request: Request<pb::GetOnDemandFeatureViewRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::OnDemandFeatureView, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_on_demand_feature_views(
        &self,
        request: Request<pb::ListOnDemandFeatureViewsRequest>,
    ) -> Answer<pb::ListOnDemandFeatureViewsResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::OnDemandFeatureView], asked, all).await?;
        Ok(Response::new(pb::ListOnDemandFeatureViewsResponse {
            on_demand_feature_views: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn get_label_view(&self, request: Request<pb::GetLabelViewRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::LabelView, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_label_views(
        &self,
        request: Request<pb::ListLabelViewsRequest>,
    ) -> Answer<pb::ListLabelViewsResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::LabelView], asked, all).await?;
        Ok(Response::new(pb::ListLabelViewsResponse {
            label_views: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn apply_feature_service(&self, request: Request<pb::ApplyFeatureServiceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::FeatureService, &r.project, r.feature_service).await
    }

    async fn get_feature_service(&self, request: Request<pb::GetFeatureServiceRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::FeatureService, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_feature_services(
        &self,
        request: Request<pb::ListFeatureServicesRequest>,
    ) -> Answer<pb::ListFeatureServicesResponse> {
        self.feature_services(request.into_inner()).await
    }

    async fn delete_feature_service(&self, request: Request<pb::DeleteFeatureServiceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::FeatureService, &r.project, &r.name).await
    }

    async fn apply_saved_dataset(&self, request: Request<pb::ApplySavedDatasetRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::SavedDataset, &r.project, r.saved_dataset).await
    }

    async fn get_saved_dataset(&self, request: Request<pb::GetSavedDatasetRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::SavedDataset, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_saved_datasets(
        &self,
        request: Request<pb::ListSavedDatasetsRequest>,
    ) -> Answer<pb::ListSavedDatasetsResponse> {
        self.saved_datasets(request.into_inner()).await
    }

    async fn delete_saved_dataset(&self, request: Request<pb::DeleteSavedDatasetRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::SavedDataset, &r.project, &r.name).await
    }

    async fn create_dataset_from_retrieval(
        &self,
        request: Request<pb::CreateDatasetFromRetrievalRequest>,
    ) -> Answer<pb::CreateDatasetFromRetrievalResponse> {
        self.dataset_submitted(request.into_inner()).await
    }

    async fn get_dataset_data(
        &self,
        request: Request<pb::GetDatasetDataRequest>,
    ) -> Answer<pb::GetDatasetDataResponse> {
        self.dataset_rows(request.into_inner()).await
    }

    async fn get_dataset_job_status(
        &self,
        request: Request<pb::GetDatasetJobStatusRequest>,
    ) -> Answer<pb::GetDatasetJobStatusResponse> {
        self.dataset_job(&request.into_inner().job_id)
    }

    async fn list_dataset_jobs(
        &self,
        request: Request<pb::ListDatasetJobsRequest>,
    ) -> Answer<pb::ListDatasetJobsResponse> {
        self.dataset_jobs(&request.into_inner())
    }

    async fn apply_validation_reference(&self, request: Request<pb::ApplyValidationReferenceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::ValidationReference, &r.project, r.validation_reference).await
    }

    async fn get_validation_reference(&self, request: Request<pb::GetValidationReferenceRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::ValidationReference, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_validation_references(
        &self,
        request: Request<pb::ListValidationReferencesRequest>,
    ) -> Answer<pb::ListValidationReferencesResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::ValidationReference], asked, all).await?;
        Ok(Response::new(pb::ListValidationReferencesResponse {
            validation_references: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn delete_validation_reference(&self, request: Request<pb::DeleteValidationReferenceRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::ValidationReference, &r.project, &r.name).await
    }

    async fn apply_permission(&self, request: Request<pb::ApplyPermissionRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::Permission, &r.project, r.permission).await
    }

    async fn get_permission(&self, request: Request<pb::GetPermissionRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::Permission, &r.project, &r.name, r.allow_cache).await
    }

    async fn list_permissions(
        &self,
        request: Request<pb::ListPermissionsRequest>,
    ) -> Answer<pb::ListPermissionsResponse> {
        let r = request.into_inner();
        let asked = listing(r.project, r.allow_cache, r.tags, r.pagination, r.sorting);
        let page = self.list(&[ObjectKind::Permission], asked, all).await?;
        Ok(Response::new(pb::ListPermissionsResponse {
            permissions: messages(&page),
            pagination: Some(position(&page)),
        }))
    }

    async fn delete_permission(&self, request: Request<pb::DeletePermissionRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.delete(ObjectKind::Permission, &r.project, &r.name).await
    }

    async fn apply_project(&self, request: Request<pb::ApplyProjectRequest>) -> Answer<()> {
        let raw = asked::given(request.into_inner().project, ObjectKind::Project)?;
        let name = Object::read(ObjectKind::Project, raw.0.clone().into()).map_err(|e| to_grpc(&e))?.name;
        self.apply(ObjectKind::Project, &name, Some(raw)).await
    }

    async fn get_project(&self, request: Request<pb::GetProjectRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        self.get(ObjectKind::Project, &r.name, &r.name, r.allow_cache).await
    }

    async fn list_projects(&self, request: Request<pb::ListProjectsRequest>) -> Answer<pb::ListProjectsResponse> {
        self.projects(request.into_inner()).await
    }

    async fn delete_project(&self, request: Request<pb::DeleteProjectRequest>) -> Answer<()> {
        let name = request.into_inner().name;
        self.delete(ObjectKind::Project, &name, &name).await
    }

    async fn apply_materialization(&self, request: Request<pb::ApplyMaterializationRequest>) -> Answer<()> {
        self.materialization(request.into_inner()).await
    }

    async fn list_project_metadata(
        &self,
        request: Request<pb::ListProjectMetadataRequest>,
    ) -> Answer<pb::ListProjectMetadataResponse> {
        self.project_metadata(request.into_inner()).await
    }

    async fn update_infra(&self, request: Request<pb::UpdateInfraRequest>) -> Answer<()> {
        let r = request.into_inner();
        self.apply(ObjectKind::Infra, &r.project, r.infra).await
    }

    async fn get_infra(&self, request: Request<pb::GetInfraRequest>) -> Answer<Raw> {
        let r = request.into_inner();
        let registry = self.registry(r.allow_cache).await?;
        Ok(Response::new(message(&catalog::infra(&registry, &r.project))))
    }

    async fn commit(&self, _: Request<()>) -> Answer<()> {
        Ok(Response::new(()))
    }

    async fn refresh(&self, _: Request<pb::RefreshRequest>) -> Answer<()> {
        self.registry(false).await?;
        Ok(Response::new(()))
    }

    async fn proto(&self, _: Request<()>) -> Answer<Raw> {
        let registry = self.registry(false).await?;
        let bytes = whole::whole(&registry).map_err(|e| to_grpc(&e))?;
        Ok(Response::new(message(&bytes)))
    }

    async fn get_registry_lineage(
        &self,
        request: Request<pb::GetRegistryLineageRequest>,
    ) -> Answer<pb::GetRegistryLineageResponse> {
        self.registry_lineage(request.into_inner()).await
    }

    async fn get_object_relationships(
        &self,
        request: Request<pb::GetObjectRelationshipsRequest>,
    ) -> Answer<pb::GetObjectRelationshipsResponse> {
        self.object_relationships(request.into_inner()).await
    }

    async fn list_features(&self, request: Request<pb::ListFeaturesRequest>) -> Answer<pb::ListFeaturesResponse> {
        self.features(request.into_inner()).await
    }

    async fn get_feature(&self, request: Request<pb::GetFeatureRequest>) -> Answer<pb::Feature> {
        self.one_feature(request.into_inner()).await
    }
}
