//! From messages to one atomic write: rows or window states, and the positions behind them.
//!
//! Knows no Kafka client: it is given messages and a store. A batch is prepared from values alone;
//! writing it twice leaves what writing it once leaves, so a write may be tried until it succeeds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use model::ports::{OnlineStore, Position, Read, RowWrite, StateWrite, WriteBatch};
use model::row::{Column, Row};
use model::value::is_null;
use model::{EntityKey, Timestamp};
use prost::Message as _;
use service::windows;
use window::{Outcome, Scalar, Spec, State};

use crate::decode::{self, Event, Reason};
use crate::error::Stop;
use crate::feed::{Content, Feed};

/// A message as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The partition.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub payload: Option<Vec<u8>>,
    /// The headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A message that is no event of the view, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message.
    pub message: Message,
    /// Why.
    pub reason: Reason,
}

/// How far a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The next offset to apply; negative where none was ever stored.
    pub next: i64,
    /// The latest event time seen.
    pub max_event: Timestamp,
}

/// Messages made ready to write.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, in the order of the messages.
    pub events: Vec<Event>,
    /// The messages that are none.
    pub dead: Vec<DeadLetter>,
    /// Where the partitions stand behind the batch.
    pub progress: BTreeMap<i32, Progress>,
    /// How many of the events were older than their partition's watermark.
    pub late: usize,
}

/// What a write did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Events that are in the store now.
    pub applied: usize,
    /// Events that were too old for every window, or rows older than what is stored.
    pub dropped: usize,
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum Failure {
    /// The store may take it later.
    Unavailable(model::Error),
    /// The state was built for another definition, or cannot be read: to go on would be wrong.
    State(model::Error),
    /// Anything else.
    Other(model::Error),
}

impl Failure {
    fn of_store(error: model::Error) -> Self {
        if error.kind() == model::Kind::Unavailable { Self::Unavailable(error) } else { Self::Other(error) }
    }

    pub(crate) fn into_stop(self) -> Stop {
        let tell = |e: &model::Error| {
            let cause = std::error::Error::source(e).map(|c| format!(": {c}")).unwrap_or_default();
            format!("{e}{cause}")
        };
        match self {
            Self::Unavailable(e) | Self::Other(e) => Stop::Restart(tell(&e)),
            Self::State(e) => Stop::Blocked(tell(&e)),
        }
    }
}

/// Decodes messages. `progress` is where the partitions stand before them, `skew_us` how far after
/// `now` an event may lie.
pub fn prepare(
    feed: &Feed,
    messages: Vec<Message>,
    progress: &BTreeMap<i32, Progress>,
    now: Timestamp,
    skew_us: i64,
) -> Batch {
    let mut batch = Batch { events: Vec::with_capacity(messages.len()), ..Batch::default() };
    for message in messages {
        let before = progress.get(&message.partition).map_or(Timestamp::MIN, |p| p.max_event);
        let behind = batch.progress.entry(message.partition).or_insert(Progress { next: 0, max_event: before });
        behind.next = message.offset + 1;
        match decode::event(feed, message.payload.as_deref(), now, skew_us) {
            Ok(event) => {
                let time = event.version.event;
                let watermark = behind.max_event.micros().saturating_sub(feed.watermark_delay_us);
                batch.late += usize::from(time.micros() < watermark);
                behind.max_event = behind.max_event.max(time);
                batch.events.push(event);
            }
            Err(reason) => batch.dead.push(DeadLetter { message, reason }),
        }
    }
    batch
}

/// Writes a batch: all of it, or nothing.
pub async fn write(feed: &Feed, store: &dyn OnlineStore, batch: &Batch, now: Timestamp) -> Result<Applied, Failure> {
    let mut out = WriteBatch { positions: positions(feed, &batch.progress), ..WriteBatch::default() };
    match &feed.content {
        Content::Rows(features) => {
            out.rows = batch
                .events
                .iter()
                .map(|event| {
                    let columns = features.iter().zip(&event.values).map(|(feature, value)| Column {
                        id: feature.id,
                        value: if is_null(value) { Bytes::new() } else { value.encode_to_vec().into() },
                        version: event.version,
                    });
                    RowWrite {
                        table: Arc::clone(&feed.view.table),
                        key: event.key.clone(),
                        row: Row::pack(columns.collect()),
                    }
                })
                .collect();
            let written = store.write(out).await.map_err(Failure::of_store)?;
            Ok(Applied { applied: written.applied, dropped: written.stale })
        }
        Content::Windows { spec, .. } => {
            let (states, applied) = apply(feed, spec, store, &batch.events, now).await?;
            out.states = states;
            store.write(out).await.map_err(Failure::of_store)?;
            Ok(applied)
        }
    }
}

/// The states of the events' entities after the events.
async fn apply(
    feed: &Feed,
    spec: &Spec,
    store: &dyn OnlineStore,
    events: &[Event],
    now: Timestamp,
) -> Result<(Vec<StateWrite>, Applied), Failure> {
    let mut place: HashMap<&EntityKey, usize> = HashMap::new();
    let mut keys: Vec<EntityKey> = Vec::new();
    let whose: Vec<usize> = events
        .iter()
        .map(|event| {
            *place.entry(&event.key).or_insert_with(|| {
                keys.push(event.key.clone());
                keys.len() - 1
            })
        })
        .collect();
    if keys.is_empty() {
        return Ok((Vec::new(), Applied::default()));
    }
    let reads = [Read { table: Arc::clone(&feed.view.table), keys }];
    let stored = store.read_states(&reads).await.map_err(Failure::of_store)?;
    let mut states = Vec::with_capacity(reads[0].keys.len());
    for bytes in stored.into_iter().next().unwrap_or_default() {
        states.push(match bytes {
            Some(bytes) => {
                State::decode(spec, &bytes).map_err(|e| Failure::State(windows::state_error(&feed.view, e)))?
            }
            None => State::new(spec),
        });
    }
    states.resize_with(reads[0].keys.len(), || State::new(spec));
    let mut counts = Applied::default();
    for (event, at) in events.iter().zip(whose) {
        let columns: Vec<Scalar> = event.values.iter().map(windows::to_scalar).collect();
        let taken = window::Event { ts_us: event.version.event.micros(), columns: &columns };
        // decoding gave every column the schema's type, so a refusal is a defect of ours
        match states[at].apply(spec, taken, now.micros()) {
            Ok(Outcome::Applied) => counts.applied += 1,
            Ok(Outcome::LateDropped) => counts.dropped += 1,
            Err(e) => return Err(Failure::State(windows::state_error(&feed.view, e))),
        }
    }
    let [read] = reads;
    let writes = read.keys.into_iter().zip(states).map(|(key, mut state)| {
        state.evict(spec, now.micros());
        StateWrite { table: Arc::clone(&feed.view.table), key, state: windows::encode(&state, spec) }
    });
    Ok((writes.collect(), counts))
}

/// Progress as the store keeps it.
pub fn positions(feed: &Feed, progress: &BTreeMap<i32, Progress>) -> Vec<Position> {
    let position = |(&partition, at): (&i32, &Progress)| Position {
        group: feed.group.clone(),
        topic: feed.topic.clone(),
        partition,
        offset: at.next,
        max_event: at.max_event,
    };
    progress.iter().map(position).collect()
}

/// Where the feed's partitions stand, as the store has it.
pub async fn stored_progress(feed: &Feed, store: &dyn OnlineStore) -> model::Result<BTreeMap<i32, Progress>> {
    let positions = store.positions(&feed.group).await?;
    let ours = positions.into_iter().filter(|p| p.topic == feed.topic && p.offset >= 0);
    Ok(ours.map(|p| (p.partition, Progress { next: p.offset, max_event: p.max_event })).collect())
}
