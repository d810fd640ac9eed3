//! The package-less `GrpcFeatureServer`: one row per call. Unpack, call, pack.
//! Source: `feast/infra/contrib/grpc_server.py`.

use std::collections::BTreeMap;

use model::{Error, Value};
use proto::feast::serving::GetOnlineFeaturesRequest;
use proto::{PushRequest, PushResponse, WriteToOnlineStoreRequest, WriteToOnlineStoreResponse};
use rpc::answer::OnlineFeatures;
use rpc::status::to_grpc;
use rpc::stubs::grpc_feature_server_server::GrpcFeatureServer;
use service::push::{Cell, Destination, Frame, How};
use tonic::{Request, Response, Status};

use super::serving::answer;
use crate::projects::Projects;

/// The service over the verbs of each project.
pub(crate) struct FeatureServer {
    projects: Projects,
}

impl FeatureServer {
    pub(crate) fn new(projects: Projects) -> Self {
        Self { projects }
    }
}

/// Feast's messages do not say whether to compute: its server does.
fn how(allow_registry_cache: bool) -> How {
    How { allow_registry_cache, transform_on_write: true }
}

#[tonic::async_trait]
impl GrpcFeatureServer for FeatureServer {
    async fn push(&self, request: Request<PushRequest>) -> Result<Response<PushResponse>, Status> {
        let online = self.projects.of(request.metadata().as_ref()).map_err(|e| to_grpc(&e))?;
        let request = request.into_inner();
        let pushed = async {
            let frame = one_row(request.features, request.typed_features)?;
            let to = Destination::parse(&request.to)?;
            online.pusher.push(&request.stream_feature_view, &frame, to, how(request.allow_registry_cache)).await
        };
        pushed.await.map(|()| Response::new(PushResponse { status: true })).map_err(|e| to_grpc(&e))
    }

    async fn write_to_online_store(
        &self,
        request: Request<WriteToOnlineStoreRequest>,
    ) -> Result<Response<WriteToOnlineStoreResponse>, Status> {
        let online = self.projects.of(request.metadata().as_ref()).map_err(|e| to_grpc(&e))?;
        let request = request.into_inner();
        let written = async {
            let frame = one_row(request.features, request.typed_features)?;
            let view = &request.feature_view_name;
            online.pusher.write_to_online_store(view, &frame, how(request.allow_registry_cache)).await
        };
        written.await.map(|()| Response::new(WriteToOnlineStoreResponse { status: true })).map_err(|e| to_grpc(&e))
    }

    async fn get_online_features(
        &self,
        request: Request<GetOnlineFeaturesRequest>,
    ) -> Result<Response<OnlineFeatures>, Status> {
        answer(&self.projects, request).await.map(Response::new)
    }
}

/// The one row of a call, from its texts or its typed values.
fn one_row(texts: BTreeMap<String, String>, typed: BTreeMap<String, Value>) -> model::Result<Frame> {
    if !texts.is_empty() && !typed.is_empty() {
        return Err(Error::invalid("Only one of features or typed_features may be set, not both"));
    }
    let texts = texts.into_iter().map(|(name, text)| (name, Cell::Text(text).into()));
    let typed = typed.into_iter().map(|(name, value)| (name, Cell::Typed(value).into()));
    Ok(Frame { rows: 1, columns: texts.chain(typed).collect() })
}
