//! The Flight service alone, over a registry file: `flight PORT REPO_DIR REGISTRY_DB`. To try the SDK's
//! `offline_store: remote` against it without the rest of Larder.

use std::sync::Arc;

use model::ports::{Clock, Object, ObjectKind};
use model::registry::Registry;
use model::{Error, Timestamp};
use prost::Message;
use proto::feast::core;

struct Wall;

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros() as i64)
    }
}

fn objects(registry: core::Registry) -> Vec<Object> {
    let mut out = Vec::new();
    macro_rules! each {
        ($list:expr, $kind:ident) => {
            for message in $list {
                let spec = message.spec.clone().unwrap_or_default();
                let bytes = message.encode_to_vec().into();
                out.push(Object { kind: ObjectKind::$kind, project: spec.project, name: spec.name, bytes });
            }
        };
    }
    each!(registry.entities, Entity);
    each!(registry.feature_views, FeatureView);
    each!(registry.stream_feature_views, StreamFeatureView);
    each!(registry.on_demand_feature_views, OnDemandFeatureView);
    each!(registry.feature_services, FeatureService);
    for source in registry.data_sources {
        let bytes = source.encode_to_vec().into();
        out.push(Object { kind: ObjectKind::DataSource, project: source.project, name: source.name, bytes });
    }
    out
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().collect();
    let [_, port, repo, path] = args.as_slice() else {
        return Err(Error::invalid("usage: flight PORT REPO_DIR REGISTRY_DB"));
    };
    let bytes = std::fs::read(path).map_err(|e| Error::internal("the registry cannot be read", e))?;
    let file = core::Registry::decode(bytes.as_slice()).map_err(|e| Error::internal("no registry", e))?;
    let registry = Arc::new(Registry::resolve(1, objects(file))?);
    let data = std::env::temp_dir().join(format!("larder-flight-{port}"));
    let settings = offline::Settings {
        repo_dir: repo.into(),
        spill_dir: data.join("spill"),
        upload_dir: data.join("uploads"),
        ..offline::Settings::default()
    };
    let service = offline::Offline::new(settings, Arc::new(move || registry.clone()), Arc::new(Wall))?;
    let address = format!("127.0.0.1:{port}").parse().map_err(|e| Error::internal("no port", e))?;
    tonic::transport::Server::builder()
        .add_service(offline::flight::service(service))
        .serve(address)
        .await
        .map_err(|e| Error::internal("the server stopped", e))
}
