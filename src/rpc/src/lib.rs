//! rpc
/// Stubs.
pub mod stubs {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}
