//! The tests of `ingest` from outside: decoding, the pipeline with crashes, the consumer against
//! librdkafka's mock cluster.

mod ahead;
mod decode;
mod formats;
mod fuzz;
mod joined;
mod kafka;
mod live;
mod pipeline;
#[path = "../../../../fuzz/stream_checks.rs"]
mod stream_checks;
mod support;
