//! Generates the gRPC stubs (tonic) for the services in `proto/`; the messages are the `proto` crate's.

use std::error::Error;
use std::path::PathBuf;

/// The messages that stand in no package.
const PACKAGELESS: [&str; 4] =
    ["PushRequest", "PushResponse", "WriteToOnlineStoreRequest", "WriteToOnlineStoreResponse"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let services = [
        "feast/serving/serving_service.proto",
        "feast/serving/grpc_server.proto",
        "feast/serving/transformation_service.proto",
        "feast/registry/registry_server.proto",
    ];
    let mut stubs = tonic_prost_build::configure()
        .extern_path(".feast.core", "::proto::raw")
        .extern_path(".feast.registry", "::proto::registry")
        .extern_path(".feast.serving", "::proto::feast::serving")
        // Answers are assembled as bytes (`model::answer`), never as a message.
        .extern_path(".feast.serving.GetOnlineFeaturesResponse", "crate::answer::OnlineFeatures")
        .codec_path("crate::codec::Codec")
        .extern_path(".feast.types", "::proto::feast::types")
        .build_transport(true);
    for name in PACKAGELESS {
        stubs = stubs.extern_path(format!(".{name}"), format!("::proto::{name}"));
    }
    stubs.include_file("stubs.rs").compile_fds(protox::compile(services, [&root])?)?;
    Ok(())
}
