//! The command `check`: reads all that the embedded online store has, with the server stopped, and says what is damaged.

use crate::config::{Config, OnlineStore};

/// Why a store is not found whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the online store of {0} is not the embedded one: there are no files of Larder's to check")]
    NotEmbedded(String),
    #[error(transparent)]
    Store(#[from] online::Error),
    #[error("the check broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
    #[error(
        "{damaged} values are damaged: clear the views that are named and materialize them again (windows: larder \
         backfill), or restore a copy of {path}"
    )]
    Damaged { damaged: u64, path: String },
    #[error("{path} was not read to its end ({why}): restore a copy")]
    Unreadable { path: String, why: String },
}

/// Reads everything, and prints what is there.
pub(crate) async fn run(config: Config) -> Result<(), Error> {
    if !matches!(config.online, OnlineStore::Sled { .. }) {
        return Err(Error::NotEmbedded(config.dir.display().to_string()));
    }
    let path = config.data.join("online");
    let (directory, named) = (path.clone(), path.display().to_string());
    let report = tokio::task::spawn_blocking(move || online::sled::check(&directory)).await??;
    println!(
        "{named}: {} rows, {} window states, {} positions, {} bytes; {} groups of writes wait in the write-ahead log",
        report.rows, report.states, report.positions, report.bytes, report.log_records
    );
    for damaged in &report.named {
        println!("damaged: {damaged}");
    }
    match report.unreadable {
        Some(why) => Err(Error::Unreadable { path: named, why }),
        None if report.damaged > 0 => Err(Error::Damaged { damaged: report.damaged, path: named }),
        None => Ok(()),
    }
}
