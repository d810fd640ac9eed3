//! The command `export`: picks where the work is done, and shows how far it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use model::ports::Clock;
use offline::export::{Entities, Features, Job, Place, stopped};
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::clock::SystemClock;
use crate::config::{Config, Registry};
use crate::open;
use crate::run::{self, Signals};

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{0} holds no registry: run `feast apply` against a server of this configuration first, or name a running one \
         with --server"
    )]
    NoRegistry(PathBuf),
    #[error("{0} is there already: replace it with --overwrite")]
    Exists(PathBuf),
    #[error("{0}; ask a server that runs on this configuration with --server http://HOST:PORT")]
    Own(#[from] run::Error),
    #[error("signals cannot be waited for: {0}")]
    Signal(std::io::Error),
    #[error("{0}")]
    Export(#[from] model::Error),
}

/// Writes a training set.
pub(crate) async fn run(config: Config, options: cli::Export) -> Result<(), Error> {
    if options.out.exists() && !options.overwrite {
        return Err(Error::Exists(options.out));
    }
    let job = Job {
        project: options.project.unwrap_or_else(|| config.project.clone()),
        features: match options.service {
            Some(service) => Features::Service(service),
            None => Features::Refs(options.features.unwrap_or_default()),
        },
        entities: match options.entities {
            Some(text) if is_sql(&text) => Entities::Sql(text),
            Some(path) => Entities::File(path.into()),
            None => Entities::Span(options.from, options.to),
        },
        full_feature_names: options.full_feature_names,
        known_at: options.known_at,
    };
    let place = match options.server {
        Some(address) if address.contains("://") => Place::Server(address),
        Some(address) => Place::Server(format!("http://{address}")),
        None => here(&config).await?,
    };
    let start = Instant::now();
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.set_message("joining");
    let stop = interrupted()?;
    let export = tokio::select! {
        begun = job.begin(&place) => begun?,
        () = stop.cancelled() => return Err(stopped().into()),
    };
    let style = match export.rows {
        Some(rows) => {
            bar.set_length(rows);
            "{elapsed} {wide_bar} {human_pos}/{human_len} rows, {eta} left"
        }
        None => "{elapsed} {spinner} {human_pos} rows",
    };
    // the templates are ours
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (columns, shown) = (export.columns(), bar.clone());
    let out = options.out.to_string_lossy();
    let progress = move |rows| shown.inc(rows);
    let store = open::object_store(&config);
    let rows = export.write(&out, store, options.overwrite, progress, stop.cancelled_owned()).await?;
    bar.finish_and_clear();
    let took = HumanDuration(start.elapsed());
    println!("{out}: {} rows of {columns} columns in {took}", HumanCount(rows));
    Ok(())
}

/// Cancelled when somebody interrupts this process: what it has on disk must go first.
fn interrupted() -> Result<CancellationToken, Error> {
    let mut signals = Signals::install().map_err(Error::Signal)?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        signals.wait().await;
        token.cancel();
    });
    Ok(stop)
}

/// SQL where it reads like it and is no file.
fn is_sql(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    ["select", "with"].iter().any(|word| first.eq_ignore_ascii_case(word)) && !std::path::Path::new(text).exists()
}

/// This process, on the configuration's registry.
async fn here(config: &Config) -> Result<Place, Error> {
    let registry = match &config.registry {
        Registry::Embedded => config.data.join("registry"),
        Registry::File { path, .. } => path.clone(),
    };
    if !registry.exists() {
        return Err(Error::NoRegistry(registry));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let catalog = Arc::new(open::open_catalog(config, clock.clone()).await?);
    let offline = open::open_offline(config, &catalog, clock)?;
    Ok(Place::Here(Box::new(offline.with_transformer(open::transformer_when_needed(config)))))
}
