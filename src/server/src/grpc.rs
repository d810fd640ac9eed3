//! gRPC: the services of the online port, and the registry's.

mod feature_server;
pub mod registry;
mod serving;

use std::sync::Arc;

use rpc::stubs::feast::registry::registry_server_server::RegistryServerServer;
use rpc::stubs::feast::serving::serving_service_server::ServingServiceServer;
use rpc::stubs::grpc_feature_server_server::GrpcFeatureServerServer;
use service::catalog::Catalog;
use tonic::service::Routes;

use crate::Online;

/// ServingService, GrpcFeatureServer, health and reflection.
pub(crate) async fn online_routes(online: Online) -> Result<Routes, tonic_reflection::server::Error> {
    let limit = online.max_body_bytes;
    let serving = serving::Serving::new(online.retriever.clone());
    let feature_server = feature_server::FeatureServer::new(online);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ServingServiceServer<serving::Serving>>().await;
    reporter.set_serving::<GrpcFeatureServerServer<feature_server::FeatureServer>>().await;
    Ok(Routes::new(ServingServiceServer::new(serving).max_decoding_message_size(limit))
        .add_service(GrpcFeatureServerServer::new(feature_server).max_decoding_message_size(limit))
        .add_service(health)
        .add_service(reflection()?)
        .add_service(reflection_v1alpha()?))
}

/// RegistryServer, health and reflection.
pub(crate) async fn registry_routes(
    catalog: Arc<Catalog>,
    limit: usize,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<RegistryServerServer<registry::Service>>().await;
    Ok(Routes::new(registry::service(catalog, limit))
        .add_service(health)
        .add_service(reflection()?)
        .add_service(reflection_v1alpha()?))
}

/// Server reflection, over all of `proto/`.
fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
    tonic_reflection::server::Error,
> {
    tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTORS).build_v1()
}

/// The older reflection protocol, which most tools still speak.
fn reflection_v1alpha() -> Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
    tonic_reflection::server::Error,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1alpha()
}
