//! The event log: what streams brought, written down as it was accepted. Knows no stream's client and no file.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BoxFuture;
use crate::registry::View;
use crate::row::Version;
use crate::{EntityKey, Result, Timestamp, Value, ValueType};

/// An event as it was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedEvent {
    /// The partition that it came from.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// When it was accepted.
    pub arrived: Timestamp,
    /// Whose.
    pub key: EntityKey,
    /// When it happened, and when it was recorded.
    pub version: Version,
    /// A value for each of the log's columns.
    pub values: Arc<[Value]>,
}

/// A view's stream, as far as its log is concerned.
#[derive(Clone, Copy, Debug)]
pub struct LogOf<'a> {
    /// The view.
    pub view: &'a View,
    /// The topic: another one's offsets mean other events.
    pub topic: &'a str,
    /// The columns beside key and times: their names and types.
    pub columns: &'a [(String, ValueType)],
}

/// Where events are kept.
pub trait EventLog: Send + Sync {
    /// The log of a view, to append to. `next` is where its partitions stand as the store has it: what the log has from
    /// there on was appended before a crash, is not counted yet, and goes, for it comes again.
    ///
    /// Errors: `Conflict` where the log has other columns.
    fn open<'a>(&'a self, of: LogOf<'a>, next: BTreeMap<i32, i64>) -> BoxFuture<'a, Result<Box<dyn EventAppender>>>;
}

/// Appends to the log of a view.
pub trait EventAppender: Send + Sync {
    /// Appends events, those of a partition in the order of their offsets; durable on return. Gives how many were new:
    /// what the log has of a partition is not taken again.
    fn append(&mut self, events: Arc<Vec<LoggedEvent>>) -> BoxFuture<'_, Result<u64>>;

    /// The positions behind all that was appended are stored: it will not come again.
    fn counted(&mut self);

    /// A partition's offsets mean other events from now on: its topic was made anew.
    fn begin_anew(&mut self, partition: i32);
}
