//! The gRPC stubs and the ONE map from an error's kind to a status, for gRPC, HTTP and Flight alike.
//!
//! Knows no verb and no store: it is what all faces of the server share.

pub mod answer;
pub mod codec;
pub mod ending;
pub mod outcome;
pub mod status;

/// Generated clients and servers, by package (`feast.serving` is [`feast::serving`]); the package-less
/// `GrpcFeatureServer` stands at the root.
pub mod stubs {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}
