//! The port for what a server must not forget of its long work: one opaque record for each job. Knows no job.

use bytes::Bytes;

use super::BoxFuture;
use crate::error::Result;

/// Where the records of jobs are kept, so that they outlive the server. Every error is `Unavailable` (try again).
pub trait JobStore: Send + Sync {
    /// All records: id and content, in no order.
    fn load(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>>>;

    /// Sets a job's record; durable on return, and never there in part.
    fn put<'a>(&'a self, id: &'a str, record: Bytes) -> BoxFuture<'a, Result<()>>;

    /// Removes a job's record, if there is one.
    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
}
