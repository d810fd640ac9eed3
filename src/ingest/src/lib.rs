//! Kafka to the online store: every view whose stream source is a `KafkaSource` is read from message to row or window
//! state, with its offsets in the same atomic write. Knows no server and no configuration file; only this crate names Kafka.
//!
//! # Delivery
//! - Views of one project that have the brokers, the topic and the format in common share a reader ([`feed::Feed::share`]):
//!   each message is fetched and decoded once. Positions are each view's own, so a view may be behind the others: by much,
//!   it catches up with a client of its own and then joins them ([`member`]); by little, all wait for it.
//! - What a view alone cannot write stops that view alone: it starts again from its positions, and the others go on. While
//!   the store takes nothing from anybody, all wait in place.
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

pub mod ahead;
pub mod decode;
pub mod feed;
pub mod formats;
pub mod gate;
pub mod message;
pub mod pipeline;

mod client;
mod context;
mod dead_letter;
mod error;
mod logging;
mod marker;
mod member;
mod metrics;
mod reader;
mod readers;
pub mod schema_registry;
mod settings;
pub mod shadow;
mod start;
mod supervisor;
mod waiting;
pub mod writer;

pub use error::Error;
pub use marker::TABLE as MARKER_TABLE;
pub use settings::Settings;
pub use supervisor::{Deps, run};
