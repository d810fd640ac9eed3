//! gRPC: the services of the online port, and the registry's.

mod feature_server;
pub mod registry;
mod serving;
pub(crate) mod short;
mod usual;

use std::sync::Arc;

use rpc::stubs::feast::registry::registry_server_server::{self, RegistryServerServer};
use rpc::stubs::feast::serving::serving_service_server::{self, ServingServiceServer};
use rpc::stubs::grpc_feature_server_server::{self, GrpcFeatureServerServer};
use service::catalog::Catalog;
use service::datasets::Datasets;
use tonic::service::Routes;
use tonic_health::pb::health_server;
use tonic_reflection::server::Builder;

use crate::projects::Projects;

/// ServingService, GrpcFeatureServer, health and reflection.
pub(crate) async fn online_routes(projects: Projects) -> Result<Routes, tonic_reflection::server::Error> {
    let limit = projects.limits().max_body_bytes.get();
    let serving = serving::Serving::new(projects.clone());
    let feature_server = feature_server::FeatureServer::new(projects);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ServingServiceServer<serving::Serving>>().await;
    reporter.set_serving::<GrpcFeatureServerServer<feature_server::FeatureServer>>().await;
    let described = || described(&[serving_service_server::SERVICE_NAME, grpc_feature_server_server::SERVICE_NAME]);
    Ok(Routes::new(ServingServiceServer::new(serving).max_decoding_message_size(limit))
        .add_service(GrpcFeatureServerServer::new(feature_server).max_decoding_message_size(limit))
        .add_service(health)
        .add_service(described().build_v1()?)
        // the older protocol, which most tools still speak
        .add_service(described().build_v1alpha()?))
}

/// RegistryServer, health and reflection.
pub(crate) async fn registry_routes(
    catalog: Arc<Catalog>,
    datasets: Arc<Datasets>,
    limit: usize,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<RegistryServerServer<registry::Service>>().await;
    let described = || described(&[registry_server_server::SERVICE_NAME]);
    Ok(Routes::new(registry::service(catalog, datasets, limit))
        .add_service(health)
        .add_service(described().build_v1()?)
        .add_service(described().build_v1alpha()?))
}

/// What reflection tells: the services of this port, and all of `proto/`. Health is one of them.
fn described(services: &[&'static str]) -> Builder<'static> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(health_server::SERVICE_NAME);
    services.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}
