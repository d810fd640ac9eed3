//! One file per user verb: retrieve, push, catalog, materialize, datasets. Each orders port calls; none knows
//! a protocol, a store or a file format.

pub mod catalog;
pub mod clear;
pub mod datasets;
pub mod materialize;
mod metrics;
pub mod parity;
pub mod push;
pub mod retrieve;
pub mod streams;
pub mod windows;
