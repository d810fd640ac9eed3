//! The binary `larder`: reads the command line and the configuration, picks concrete types, runs.

mod cli;
mod config;
mod observe;
mod run;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

/// sled and the memory tier make many small allocations, which cost less here than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli::Command::Serve(options) = cli::Cli::parse().command;
    let config = match config::load(&options) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("larder: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("larder: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder: {error}");
            ExitCode::FAILURE
        }
    }
}
