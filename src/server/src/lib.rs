//! The faces of Larder: gRPC and HTTP. Every handler unpacks, calls one verb of `service`, packs.
//!
//! Knows no store, no file and no flag; status codes come from `rpc`.

pub mod grpc;
pub mod http;
pub mod limits;
pub mod listen;
pub mod past;
mod projects;

use std::collections::BTreeSet;
use std::sync::Arc;

use service::catalog::Catalog;
use service::datasets::Datasets;
use service::materialize::Materializer;
use service::parity::Parity;
use service::push::Pusher;
use service::retrieve::Retriever;
use service::streams::Streams;

use limits::{Guard, Limits};
use past::Reads;
use projects::Projects;

/// What the online face serves, for one project.
#[derive(Clone)]
pub struct Online {
    /// Reads.
    pub retriever: Arc<Retriever>,
    /// Writes.
    pub pusher: Arc<Pusher>,
    /// Materializations; absent where the server runs without its offline side.
    pub materializer: Option<Arc<Materializer>>,
    /// Dataset jobs, of all projects, which the registry port runs; absent where there is no offline side.
    pub datasets: Option<Arc<Datasets>>,
    /// The streams of views; absent where the server was built without Kafka.
    pub streams: Option<Streams>,
    /// Online beside offline; absent where there is no offline side.
    pub parity: Option<Parity>,
    /// What a request may be at most.
    pub limits: Limits,
}

impl Online {
    /// The same for another project.
    fn of_project(&self, project: &str) -> Self {
        let retriever = Arc::new(self.retriever.of_project(project));
        Self {
            parity: self.parity.as_ref().map(|p| Parity { retriever: retriever.clone(), ..p.clone() }),
            retriever,
            pusher: Arc::new(self.pusher.of_project(project)),
            materializer: self.materializer.as_ref().map(|m| Arc::new(m.of_project(project))),
            datasets: self.datasets.clone(),
            streams: self.streams.as_ref().map(|s| s.of_project(project)),
            limits: self.limits,
        }
    }
}

/// The router of the online port: JSON over HTTP, and gRPC with health and reflection; and the way of reads
/// past it. A request that names
/// a project is answered for that one, if it is in `projects` (all are where that is `None`); others are for
/// the project of `online`.
///
/// Errors: the descriptors cannot be read (a broken build).
pub async fn online_router(
    online: Online,
    projects: Option<BTreeSet<String>>,
) -> Result<(axum::Router, Reads), tonic_reflection::server::Error> {
    let guard = Guard::new(online.limits);
    let projects = Projects::new(online, projects);
    let grpc = grpc::online_routes(projects.clone()).await?;
    // tonic's fallback answers every path as gRPC; ours tells the two protocols apart.
    let reads = Reads { projects: projects.clone(), guard: guard.clone() };
    Ok((grpc.into_axum_router().reset_fallback().merge(http::router(projects)).layer(guard), reads))
}

/// The router of the registry port: gRPC with health and reflection; within `limits`.
///
/// Errors: the descriptors cannot be read (a broken build).
pub async fn registry_router(
    catalog: Arc<Catalog>,
    datasets: Arc<Datasets>,
    limits: Limits,
) -> Result<axum::Router, tonic_reflection::server::Error> {
    let routes = grpc::registry_routes(catalog, datasets, limits.max_body_bytes.get()).await?;
    Ok(routes.into_axum_router().layer(Guard::new(limits)))
}
