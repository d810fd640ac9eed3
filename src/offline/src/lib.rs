//! The offline side: history in Parquet files, the point-in-time join, windows over history, Flight.
//! The only crate that knows Arrow and DataFusion.
#![allow(missing_docs)]

mod asof;
mod convert;
mod engine;
mod error;
mod keys;
mod metrics;
mod scan;
mod source;

pub struct Settings { pub repo_dir: std::path::PathBuf, pub spill_dir: std::path::PathBuf, pub memory_limit_bytes: usize, pub batch_rows: usize }
