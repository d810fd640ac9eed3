//! The words of Larder: values, entity keys, rows, feature references, the resolved registry, the
//! ports and the errors. It decides from values alone.
//!
//! Knows no tokio, tonic, Arrow, I/O, environment or wall clock: time comes in as a value, through
//! the [`ports::Clock`] port.

pub mod answer;
pub mod entity_key;
pub mod error;
pub mod feature_ref;
pub mod plan;
pub mod ports;
pub mod registry;
pub mod row;
pub mod schema;
pub mod time;
pub mod value;

pub use entity_key::{EntityKey, EntityKeys};
pub use error::{Error, Kind, Result};
pub use row::Row;
pub use time::Timestamp;
pub use value::{Value, ValueType};
