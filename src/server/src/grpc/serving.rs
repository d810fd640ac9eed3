//! `feast.serving.ServingService`: unpack, call, pack.

use model::Error;
use model::registry::FeatureRequest;
use proto::feast::serving::get_online_features_request::Kind as Asked;
use proto::feast::serving::{GetFeastServingInfoRequest, GetFeastServingInfoResponse, GetOnlineFeaturesRequest};
use rpc::answer::OnlineFeatures;
use rpc::status::to_grpc;
use rpc::stubs::feast::serving::serving_service_server::ServingService;
use service::retrieve;
use tonic::{Request, Response, Status};

use crate::projects::Projects;

/// The service over the retriever of each project.
pub(crate) struct Serving {
    projects: Projects,
}

impl Serving {
    pub(crate) fn new(projects: Projects) -> Self {
        Self { projects }
    }
}

#[tonic::async_trait]
impl ServingService for Serving {
    async fn get_feast_serving_info(
        &self,
        _: Request<GetFeastServingInfoRequest>,
    ) -> Result<Response<GetFeastServingInfoResponse>, Status> {
        Ok(Response::new(GetFeastServingInfoResponse { version: env!("CARGO_PKG_VERSION").into() }))
    }

    async fn get_online_features(
        &self,
        request: Request<GetOnlineFeaturesRequest>,
    ) -> Result<Response<OnlineFeatures>, Status> {
        answer(&self.projects, request).await.map(Response::new)
    }
}

/// Answers the request; `GrpcFeatureServer` has the same method.
pub(super) async fn answer(
    projects: &Projects,
    request: Request<GetOnlineFeaturesRequest>,
) -> Result<OnlineFeatures, Status> {
    let online = projects.of(request.metadata().as_ref()).map_err(|e| to_grpc(&e))?;
    let request = request.into_inner();
    let features = match request.kind {
        Some(Asked::FeatureService(name)) => FeatureRequest::Service(name),
        Some(Asked::Features(list)) => FeatureRequest::Refs(list.val),
        None => return Err(to_grpc(&Error::invalid("name a feature_service or features"))),
    };
    let columns = request.entities.into_iter().chain(request.request_context);
    let request = retrieve::Request {
        features,
        entities: columns.map(|(name, column)| (name, column.val)).collect(),
        full_feature_names: request.full_feature_names,
        include_feature_view_version_metadata: request.include_feature_view_version_metadata,
    };
    online.retriever.get_online_features(request).await.map(OnlineFeatures::from).map_err(|e| to_grpc(&e))
}
