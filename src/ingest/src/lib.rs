//! Kafka to the online store: every view whose stream source is a `KafkaSource` has a consumer group of its own, from message to row or window state, with the offsets in the same
//! atomic write. Knows no server and no configuration file; only this crate names Kafka.
//!
//! # Delivery
//! - One consumer per view, with the group `<prefix>.<project>.<view>`: a view added to a topic that
//!   others read has a position of its own. (Reading a topic once for several views is for later.)
//! - Positions are written with what they stand for, in one [`model::ports::WriteBatch`]. After a
//!   crash a partition goes on behind the last write: nothing is lost, nothing applied twice.
//! - Window states live in memory ([`writer`]): an event can be read the moment it is applied, and is durable
//!   at the next checkpoint. A partition is handed over after one.
//! - Nothing is polled while a batch is written, so a slow store slows the reading down.
//! - Events are applied in the order of their partition. What cannot be applied goes to
//!   `<topic>.dlq` ([`decode::Reason`]), before the position behind it is stored: a crash may send a
//!   dead letter twice, never lose it.
//! - A windowed view whose definition changed is not continued on the old state: its consumer stops
//!   and says what to do.
//! - A deleted view's positions are removed with its rows and window states ([`gate`]), so that the view
//!   applied again is built again from the stream.

pub mod decode;
pub mod feed;
pub mod formats;
pub mod gate;
pub mod pipeline;

mod consumer;
mod dead_letter;
mod error;
mod marker;
mod metrics;
pub mod schema_registry;
mod settings;
mod supervisor;
pub mod writer;

pub use error::Error;
pub use marker::TABLE as MARKER_TABLE;
pub use settings::{OffsetReset, Settings};
pub use supervisor::{Deps, run};
