//! The offline side as its callers see it: Flight over a socket, and the `OfflineLog` port, over
//! Parquet files in a temporary repo.

mod flight;
mod hostile;
mod joins;
mod known;
mod log;
mod parts;
mod served;
mod sparse;
mod support;
