//! The binary `larder`: reads the command line and the configuration, picks concrete types, runs.

#[cfg(feature = "offline")]
mod admin;
mod check;
mod cli;
mod clock;
mod config;
#[cfg(feature = "offline")]
mod export;
mod observe;
mod open;
#[cfg(feature = "offline")]
mod parity;
mod run;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;
use config::Config;

/// sled and the memory tier make many small allocations, which cost less here than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Serve(options) => run(config::load(&options), run::serve),
        cli::Command::Check(options) => run(config::read(&options.dir), check::run),
        #[cfg(feature = "offline")]
        cli::Command::Export(options) => run(config::read(&options.dir), |config| export::run(config, options)),
        #[cfg(feature = "offline")]
        cli::Command::Backfill(options) => {
            run(config::read(&options.server.dir), |config| admin::backfill(config, options))
        }
        #[cfg(feature = "offline")]
        cli::Command::Streams(options) => {
            run(config::read(&options.server.dir), |config| admin::streams(config, options))
        }
        #[cfg(feature = "offline")]
        cli::Command::Parity(options) => run(config::read(&options.server.dir), |config| parity::run(config, options)),
    }
}

/// Runs a command with its configuration; says on stderr why it failed.
fn run<E: std::fmt::Display, F: Future<Output = Result<(), E>>>(
    config: Result<Config, config::Error>,
    command: impl FnOnce(Config) -> F,
) -> ExitCode {
    let failed = |error: &dyn std::fmt::Display, code: ExitCode| {
        eprintln!("larder: {error}");
        code
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => return failed(&error, ExitCode::from(BAD_CONFIGURATION)),
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Err(error) => failed(&format_args!("the runtime could not be started: {error}"), ExitCode::FAILURE),
        Ok(runtime) => match runtime.block_on(command(config)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, ExitCode::FAILURE),
        },
    }
}
