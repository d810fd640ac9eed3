//! The online store: the [`model::ports::OnlineStore`] port on sled ([`sled`]), in memory ([`memory`]),
//! and in Feast's layouts in Redis (`redis`) and SQLite (`sqlite`), and the one contract suite that all
//! must pass (`contract`).
//!
//! Knows rows and window states as opaque bytes under keys. Must not know feature views, windows,
//! requests, status codes or configuration files.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod error;
pub mod jobs;
pub mod memory;
mod metrics;
#[cfg(feature = "redis")]
pub mod redis;
pub mod registry;
pub mod sled;
mod space;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use error::Error;
