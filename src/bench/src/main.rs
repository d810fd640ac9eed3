//! The binary `larder-bench`: measures Larder beside what it is compared with, on this machine, in one run.
//! May know everything; nothing knows it.

mod answers;
mod cli;
mod error;
mod figures;
mod in_process;
mod load;
mod machine;
mod null;
mod offline;
mod online;
mod page;
mod peers;
mod process;
mod redis;
mod streams;
mod wire;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

use crate::error::{Result, tried};

/// The allocator of `larder`: the null server and the in-process measures are to differ from it in nothing else.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match cli::Cli::parse().command {
        cli::Command::Online(options) => online::run(&options),
        cli::Command::Offline(options) => offline::run(&options),
        cli::Command::Streams(options) => streams::run(&options),
        cli::Command::InProcess { registry, data, keys, seconds, runs } => {
            in_process::run(&registry, &data, keys, seconds, runs)
        }
        cli::Command::Null { answers, port } => serve(|| null::run(&answers, port)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a server on the runtime that `larder` runs on.
fn serve<F: Future<Output = Result<()>>>(work: impl FnOnce() -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(tried("the runtime"))?;
    runtime.block_on(work())
}
