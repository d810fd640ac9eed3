//! Tests of the public API: the state and the sweep against the naive oracle, the codec against
//! hostile bytes, and the rules of the definition one by one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod codec;
mod definition;
mod functions;
mod joint;
mod parity;
mod support;
