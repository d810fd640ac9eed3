//! A view's part of the event log: what was applied since the last checkpoint waits here, and is in the log before the
//! positions behind it are stored. Knows no file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::ports::{EventAppender, EventLog, LogOf, LoggedEvent, OnlineStore};
use model::{Result, Timestamp, ValueType};

use crate::feed::{Content, Feed, Source};
use crate::pipeline::{self, Batch};

/// The log of one feed.
pub(crate) struct Logging {
    log: Arc<dyn EventLog>,
    columns: Vec<(String, ValueType)>,
    /// Open from the first append on, until the partitions change hands.
    open: Option<Box<dyn EventAppender>>,
    waiting: Arc<Vec<LoggedEvent>>,
    /// Partitions whose offsets mean other events from here on.
    anew: BTreeSet<i32>,
}

impl Logging {
    pub(crate) fn new(log: Arc<dyn EventLog>, feed: &Feed) -> Self {
        let column = |source: &Source| (source.name.clone(), source.value_type);
        let columns = match &feed.content {
            Content::Rows(features) => features.iter().map(|f| (f.source.name.clone(), f.value_type)).collect(),
            Content::Windows { columns, .. } => columns.iter().map(column).collect(),
        };
        Self { log, columns, open: None, waiting: Arc::default(), anew: BTreeSet::new() }
    }

    /// Takes the events of a batch that was applied.
    pub(crate) fn take(&mut self, batch: &Batch, now: Timestamp) {
        let events = batch.events.iter().zip(&*batch.origins).map(|(event, &(partition, offset))| LoggedEvent {
            partition,
            offset,
            arrived: now,
            key: event.key.clone(),
            version: event.version,
            values: Arc::clone(&event.values),
        });
        Arc::make_mut(&mut self.waiting).extend(events);
    }

    /// How many events wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Appends what waits; what fails may be tried again.
    pub(crate) async fn append(&mut self, feed: &Feed, store: &dyn OnlineStore) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let open = if let Some(open) = &mut self.open {
            open
        } else {
            let stored = pipeline::stored_progress(feed, store).await?;
            let next: BTreeMap<i32, i64> = stored.iter().map(|(partition, at)| (*partition, at.next)).collect();
            let of = LogOf { view: &feed.view, topic: &feed.topic, columns: &self.columns };
            self.open.insert(self.log.open(of, next).await?)
        };
        for partition in std::mem::take(&mut self.anew) {
            open.begin_anew(partition);
        }
        open.append(Arc::clone(&self.waiting)).await.map(drop)
    }

    /// The positions behind what was appended are stored.
    pub(crate) fn counted(&mut self) {
        self.waiting = Arc::default();
        if let Some(open) = &mut self.open {
            open.counted();
        }
    }

    /// A partition's topic was made anew.
    pub(crate) fn begin_anew(&mut self, partition: i32) {
        self.anew.insert(partition);
    }

    /// Nothing waits any more: it comes again.
    pub(crate) fn forget(&mut self) {
        self.waiting = Arc::default();
        self.anew.clear();
        self.open = None;
    }
}
