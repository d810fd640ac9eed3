//! `limits:` of the configuration: what clients may ask at most. The README says what each is for.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Every limit; none can be zero, and none can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) max_body_bytes: NonZeroUsize,
    pub(crate) max_buffered_bytes: NonZeroUsize,
    #[serde(deserialize_with = "depth")]
    pub(crate) max_json_depth: NonZeroUsize,
    pub(crate) max_header_bytes: NonZeroU32,
    pub(crate) max_entities: NonZeroUsize,
    pub(crate) max_features: NonZeroUsize,
    pub(crate) max_values: NonZeroUsize,
    pub(crate) max_value_bytes: NonZeroUsize,
    pub(crate) max_connections: NonZeroUsize,
    pub(crate) max_concurrent_streams: NonZeroU32,
    pub(crate) header_timeout_seconds: NonZeroU64,
    pub(crate) body_timeout_seconds: NonZeroU64,
    pub(crate) idle_timeout_seconds: NonZeroU64,
    pub(crate) write_timeout_seconds: NonZeroU64,
    pub(crate) ping_interval_seconds: NonZeroU64,
    pub(crate) ping_timeout_seconds: NonZeroU64,
}

impl Default for Limits {
    fn default() -> Self {
        let read = service::retrieve::Limits::default();
        let port = server::limits::Limits::default();
        let size = |size| NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        let seconds = |time: Duration| NonZeroU64::new(time.as_secs()).unwrap_or(NonZeroU64::MIN);
        Self {
            max_body_bytes: port.max_body_bytes,
            max_buffered_bytes: port.max_buffered_bytes,
            max_json_depth: port.max_json_depth,
            max_header_bytes: port.max_header_bytes,
            max_entities: size(read.max_entities),
            max_features: size(read.max_features),
            max_values: size(read.max_values),
            max_value_bytes: size(read.max_value_bytes),
            max_connections: port.max_connections,
            max_concurrent_streams: port.max_concurrent_streams,
            header_timeout_seconds: seconds(port.header_timeout),
            body_timeout_seconds: seconds(port.body_timeout),
            idle_timeout_seconds: seconds(port.idle_timeout),
            write_timeout_seconds: seconds(port.write_timeout),
            ping_interval_seconds: seconds(port.ping_interval),
            ping_timeout_seconds: seconds(port.ping_timeout),
        }
    }
}

/// The JSON reader stops at 128 by itself.
fn depth<'de, D: Deserializer<'de>>(yaml: D) -> Result<NonZeroUsize, D::Error> {
    let depth = NonZeroUsize::deserialize(yaml)?;
    if depth.get() <= 128 { Ok(depth) } else { Err(serde::de::Error::custom(format!("{depth} is more than 128"))) }
}

impl Limits {
    /// What one read may ask for.
    pub(crate) fn of_reads(&self) -> service::retrieve::Limits {
        service::retrieve::Limits {
            max_entities: self.max_entities.get(),
            max_features: self.max_features.get(),
            max_values: self.max_values.get(),
            max_value_bytes: self.max_value_bytes.get(),
        }
    }

    /// What a port's listener and its requests must keep.
    pub(crate) fn of_port(&self) -> server::limits::Limits {
        let seconds = |seconds: NonZeroU64| Duration::from_secs(seconds.get());
        server::limits::Limits {
            max_body_bytes: self.max_body_bytes,
            max_buffered_bytes: self.max_buffered_bytes,
            max_json_depth: self.max_json_depth,
            max_header_bytes: self.max_header_bytes,
            max_connections: self.max_connections,
            max_concurrent_streams: self.max_concurrent_streams,
            header_timeout: seconds(self.header_timeout_seconds),
            body_timeout: seconds(self.body_timeout_seconds),
            idle_timeout: seconds(self.idle_timeout_seconds),
            write_timeout: seconds(self.write_timeout_seconds),
            ping_interval: seconds(self.ping_interval_seconds),
            ping_timeout: seconds(self.ping_timeout_seconds),
        }
    }
}
