//! The command line. Knows nothing of what the flags do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The load generator of Larder, and its comparison with what others do.
#[derive(Debug, Parser)]
#[command(name = "larder-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure online serving beside its peers and write the table
    Online(Online),
    /// Measure training sets and materialization beside their peers and write the table
    Offline(Offline),
    /// Measure windows over a stream's events, without a broker
    Streams(Streams),
    /// Serve prebuilt answers through the same stack (`online` starts it)
    Null {
        /// The directory of the answers
        #[arg(long)]
        answers: PathBuf,
        /// The port on loopback
        #[arg(long)]
        port: u16,
    },
    /// Read and assemble rows without a network (`online` starts it)
    InProcess {
        /// Feast's registry file
        #[arg(long)]
        registry: PathBuf,
        /// An empty directory for the store
        #[arg(long)]
        data: PathBuf,
        /// Users with rows
        #[arg(long)]
        keys: u64,
        /// Seconds of each run
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// How many runs
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
}

/// Flags of `online`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Online {
    /// The binary `larder`, built for release
    #[arg(long, default_value = "target/release/larder")]
    pub(crate) server: PathBuf,
    /// Only these: grpc-100x50, http-1x50, … and latency, million, in-process, push
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) only: Vec<String>,
    /// Whom to compare: null, feast-sqlite, feast-redis, redis [default: all, or null with --only]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) peers: Option<Vec<String>>,
    /// Seconds of each run
    #[arg(long, default_value_t = 4.0)]
    pub(crate) seconds: f64,
    /// How many runs; the table has their median and spread
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    /// Users of the large data set
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) many: u64,
    /// Where data and logs go; used again by the next run
    #[arg(long, default_value = "target/bench-online")]
    pub(crate) work: PathBuf,
    /// The Python environment with Feast
    #[arg(long, default_value = ".venv")]
    pub(crate) venv: PathBuf,
    /// The core for servers; the generator takes the next one
    #[arg(long, default_value_t = 0)]
    pub(crate) core: usize,
    /// Where to write the report
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// Flags of `offline`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Offline {
    /// The binary `larder`, built for release
    #[arg(long, default_value = "target/release/larder")]
    pub(crate) server: PathBuf,
    /// Only these works: A, B, C, D, E, F
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) only: Vec<String>,
    /// Whom to compare: duckdb, polars, feast-dask, feast-duckdb [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) peers: Option<Vec<String>>,
    /// How many runs; the table has their median and spread
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    /// The part of the rows to work on, from 0 to 1: to try things out, for the bars are for 1
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// Seconds that a peer may take for one join
    #[arg(long, default_value_t = 300)]
    pub(crate) patience: u64,
    /// Address space that a peer may take, GB (10^9 bytes)
    #[arg(long, default_value_t = 16)]
    pub(crate) space: u64,
    /// Where the shared inputs are: `asof_data.py`
    #[arg(long, default_value = "../shared/bench")]
    pub(crate) shared: PathBuf,
    /// Where data and logs go; used again by the next run
    #[arg(long, default_value = "target/bench-offline")]
    pub(crate) work: PathBuf,
    /// The Python environment with Feast
    #[arg(long, default_value = ".venv")]
    pub(crate) venv: PathBuf,
    /// Where to write the report
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// Flags of `streams`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Streams {
    /// The events, as `../shared/bench/events.py` writes them
    #[arg(long)]
    pub(crate) events: PathBuf,
    /// Where the store is made, anew for each run
    #[arg(long, default_value = "target/bench-streams")]
    pub(crate) work: PathBuf,
    /// How many messages are written together
    #[arg(long, default_value_t = 1000)]
    pub(crate) batch: usize,
    /// The longest that a change waits for its checkpoint, ms
    #[arg(long, default_value_t = 1000)]
    pub(crate) checkpoint_ms: u64,
    /// How many views, of how many aggregations each
    #[arg(long, value_delimiter = ',', default_value = "1x3,1x5,10x5")]
    pub(crate) views: Vec<String>,
    /// How many entities have an event each, beside ten thousand that have many; 0 leaves it out
    #[arg(long, default_value_t = 10_000_000)]
    pub(crate) entities: u64,
    /// How many entities have states while memory is measured; 0 leaves it out
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) resident: u64,
    /// How many runs; medians are printed
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    /// The binary `larder`, built for release: measured behind a real broker, beside PyFlink and PySpark
    #[arg(long)]
    pub(crate) server: Option<PathBuf>,
    /// The Python environment with Feast
    #[arg(long, default_value = ".venv")]
    pub(crate) venv: PathBuf,
    /// Where the shared inputs are: `flink_hop.py`
    #[arg(long, default_value = "../shared/bench")]
    pub(crate) shared: PathBuf,
    /// Where to write the report
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}
