//! The command line. Knows nothing of what the flags do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A Feast-compatible feature-store backend in one binary.
#[derive(Debug, Parser)]
#[command(name = "larder", version = env!("LARDER_VERSION"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the features of a repository.
    Serve(Serve),
    /// Verify every checksum of the embedded online store, with the server stopped; fails unless all is whole
    Check(Check),
    /// Write a training set to Parquet
    #[cfg(feature = "offline")]
    Export(Export),
    /// Build a windowed view's state from its batch source, in a running server
    #[cfg(feature = "offline")]
    Backfill(Backfill),
    /// The streams of a running server: how far they are read; pause, resume or seek one
    #[cfg(feature = "offline")]
    Streams(Streams),
    /// Compare what a running server serves of a windowed view with what a training set has; fails unless all is the same
    #[cfg(feature = "offline")]
    Parity(Parity),
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The directory with larder.yaml or a Feast feature_store.yaml
    #[arg(short = 'c', long = "config", value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Flags of `parity`.
#[cfg(feature = "offline")]
#[derive(Debug, Args)]
pub(crate) struct Parity {
    /// The view
    pub(crate) view: String,
    #[command(flatten)]
    pub(crate) server: Server,
    /// Entities of its history that are compared at a time
    #[arg(long, default_value_t = 100)]
    pub(crate) entities: usize,
    /// Go on at other times and with other entities for so many seconds; 0 is once
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 0)]
    pub(crate) seconds: u64,
}

/// Which running server is asked.
#[cfg(feature = "offline")]
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// The directory with larder.yaml or a Feast feature_store.yaml
    #[arg(short = 'c', long = "config", value_name = "DIR", default_value = ".", global = true)]
    pub(crate) dir: PathBuf,
    /// The online port of the server (http://host:port) [default: the configuration's]
    #[arg(long = "server", value_name = "URL", global = true)]
    pub(crate) address: Option<String>,
    /// The project [default: the configuration's]
    #[arg(long, global = true)]
    pub(crate) project: Option<String>,
}

/// Flags of `backfill`.
#[cfg(feature = "offline")]
#[derive(Debug, Args)]
pub(crate) struct Backfill {
    /// The view
    pub(crate) view: String,
    #[command(flatten)]
    pub(crate) server: Server,
    /// The first event (RFC 3339): as far back as the widest window reaches, or further
    #[arg(long, value_name = "TIME", default_value = "1970-01-01T00:00:00Z")]
    pub(crate) from: String,
    /// Events before this time come from the batch source, which must have all of them; all others from the stream
    #[arg(long, value_name = "TIME")]
    pub(crate) cutover: String,
}

/// Flags of `streams`.
#[cfg(feature = "offline")]
#[derive(Debug, Args)]
pub(crate) struct Streams {
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(subcommand)]
    pub(crate) verb: Option<Steer>,
}

/// What to do with a stream.
#[cfg(feature = "offline")]
#[derive(Debug, Subcommand)]
pub(crate) enum Steer {
    /// Read it no more, also after a restart
    Pause {
        /// The view
        view: String,
    },
    /// Read it again from where it was
    Resume {
        /// The view
        view: String,
    },
    /// Read it from another place; a windowed view's state is built anew from there
    Seek {
        /// The view
        view: String,
        /// earliest, latest, committed (what Kafka has for the view's group) or a time (RFC 3339)
        #[arg(long, value_name = "PLACE")]
        to: String,
    },
}

/// Flags of `export`.
#[cfg(feature = "offline")]
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false, args = ["service", "features"])]
#[group(id = "whom", required = true, multiple = true, args = ["entities", "from", "to"])]
pub(crate) struct Export {
    /// The directory with larder.yaml or a Feast feature_store.yaml
    #[arg(short = 'c', long = "config", value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Ask this running offline server (http://host:port) instead of doing the work here
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The project [default: the configuration's]
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// A feature service: all its features
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Features, as view:feature,view:feature
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) features: Option<Vec<String>>,
    /// The entity rows: a Parquet file with the join keys and event_timestamp, or a SELECT over the data sources
    #[arg(long, value_name = "FILE|SQL", conflicts_with_all = ["from", "to"])]
    pub(crate) entities: Option<String>,
    /// Instead of entity rows: every entity with a row since this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Every entity with a row up to this time, at this time [default with --from: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Where to write: a file x.parquet, or a directory; here, or at s3:// or gs://
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) out: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Call the columns view__feature
    #[arg(long)]
    pub(crate) full_feature_names: bool,
    /// Leave out what was not yet known: rows created, and events that arrived, later than the entity row's time
    /// [default: as each view's tag larder.known_at says]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) known_at: Option<bool>,
}

/// Flags of `serve`; each wins over the configuration.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The directory with larder.yaml or a Feast feature_store.yaml
    #[arg(short = 'c', long = "config", value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Which services to run
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) services: Option<Vec<Service>>,
    /// The address to listen on
    #[arg(long, env = "LARDER_HOST")]
    pub(crate) host: Option<String>,
    /// gRPC and HTTP feature server [default: 6566; 0 takes a free port, here and below]
    #[arg(long)]
    pub(crate) online_port: Option<u16>,
    /// gRPC registry server [default: 6570]
    #[arg(long)]
    pub(crate) registry_port: Option<u16>,
    /// Arrow Flight offline server [default: 8815]
    #[arg(long)]
    pub(crate) offline_port: Option<u16>,
    /// Prometheus metrics [default: 8000]
    #[arg(long)]
    pub(crate) metrics_port: Option<u16>,
    /// Certificate chain in PEM, for TLS on every port but the metrics'
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// A part of Larder that can run on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// Feature server (HTTP and gRPC).
    Online,
    /// Registry server (gRPC).
    Registry,
    /// Offline server (Arrow Flight).
    Offline,
    /// Kafka consumers.
    Ingest,
}
