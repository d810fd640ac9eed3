//! The online store: the [`model::ports::OnlineStore`] port on sled ([`sled`]) and in memory
//! ([`memory`]), and the one contract suite that both must pass (`contract`).
//!
//! Knows rows and window states as opaque bytes under keys. Must not know feature views, windows,
//! requests, status codes or configuration files.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod error;
pub mod memory;
mod metrics;
pub mod registry;
pub mod sled;

pub use error::Error;
