//! The tests of `ingest` from outside: decoding, the pipeline with crashes, the consumer against
//! librdkafka's mock cluster.

mod decode;
mod formats;
mod kafka;
mod live;
mod pipeline;
mod support;
