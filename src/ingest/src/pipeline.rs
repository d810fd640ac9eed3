//! From messages to events, and from events to rows and the positions behind them.
//!
//! Knows no Kafka client: it is given messages and a store. A batch is prepared from values alone;
//! writing its rows twice leaves what writing them once leaves, so a write may be tried until it succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use model::Timestamp;
use model::ports::{FENCED, Fence, OnlineStore, Position, RowWrite, WriteBatch};
use model::row::{Column, Row};
use model::value::is_null;
use prost::Message as _;
use service::windows::live::Together;

use crate::decode::avro::Writers;
use crate::decode::sql::{Outcome, Selecting};
use crate::decode::{Decoder, Event, Reason};
use crate::error::Stop;
use crate::feed::{Content, Feed};
use crate::message::Message;

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
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The events, in the order of the messages; views that take the same share them.
    pub events: Arc<Vec<Event>>,
    /// Partition and offset of each.
    pub origins: Arc<Vec<(i32, i64)>>,
    /// Who else takes them, where somebody does.
    pub shared: Option<Arc<Shared>>,
    /// The messages that are none.
    pub dead: Vec<DeadLetter>,
    /// Where the partitions stand behind the batch.
    pub progress: BTreeMap<i32, Progress>,
    /// How many of the events were older than their partition's watermark, by partition.
    pub late: BTreeMap<i32, usize>,
    /// How many messages the view's SQL left out.
    pub filtered: usize,
    /// How many messages it is made of.
    pub messages: usize,
    /// Events from before the cut-over: a backfill had them, or should have.
    pub before_cut_over: usize,
}

/// The events of windowed views that take the same ones of some messages.
#[derive(Debug)]
pub struct Shared {
    /// Whose they are.
    pub together: Arc<Together>,
    /// Its lists: the same events, each with other columns.
    pub lists: Vec<Arc<Vec<Event>>>,
}

/// What a write did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Events that are in the store now.
    pub applied: usize,
    /// Events that were too old for every window, or rows older than what is stored.
    pub dropped: usize,
    /// How many of those came from each partition, as far as it is known.
    pub dropped_of: BTreeMap<i32, usize>,
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum Failure {
    /// The store may take it later.
    Unavailable(model::Error),
    /// Another process wrote a state that was changed here: what was applied since the stored positions comes again.
    Contended(model::Error),
    /// Another process has the partitions now.
    Fenced(model::Error),
    /// The state was built for another definition, or cannot be read: to go on would be wrong.
    State(model::Error),
    /// Anything else.
    Other(model::Error),
}

impl Failure {
    pub(crate) fn of_store(error: model::Error) -> Self {
        match error.kind() {
            model::Kind::Unavailable => Self::Unavailable(error),
            model::Kind::Conflict if error.class() == FENCED => Self::Fenced(error),
            model::Kind::Conflict => Self::Contended(error),
            _ => Self::Other(error),
        }
    }

    /// Of the event log: what is there cannot be continued, or it may take more later (a full disk).
    pub(crate) fn of_log(error: model::Error) -> Self {
        if error.kind() == model::Kind::Conflict { Self::State(error) } else { Self::of_store(error) }
    }

    pub(crate) fn into_stop(self) -> Stop {
        let tell = |e: &model::Error| {
            let cause = std::error::Error::source(e).map(|c| format!(": {c}")).unwrap_or_default();
            format!("{e}{cause}")
        };
        match self {
            Self::Unavailable(e) | Self::Contended(e) | Self::Fenced(e) | Self::Other(e) => Stop::Restart(tell(&e)),
            Self::State(e) => Stop::Blocked(tell(&e)),
        }
    }
}

/// Who takes messages: a feed, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Taker<'a> {
    /// What it takes of them.
    pub feed: &'a Feed,
    /// Where its partitions stand: messages before that are not for it. Of a partition that is not here it takes all.
    pub progress: &'a BTreeMap<i32, Progress>,
    /// The partitions of which it takes nothing.
    pub elsewhere: &'a BTreeSet<i32>,
}

/// Decodes messages, each once, for feeds that share their topic ([`Feed::share`]); gives a batch for each of them.
/// `writers` are the schemas that [`Decoder::wanted`] named, `skew_us` is how far after `now` an event may lie.
pub fn prepare(
    takers: &[Taker<'_>],
    writers: &Writers,
    messages: &[Message],
    now: Timestamp,
    skew_us: i64,
) -> Vec<Batch> {
    let feeds: Vec<&Feed> = takers.iter().map(|taker| taker.feed).collect();
    let decoder = Decoder::new(&feeds, writers);
    // of those that take the same, the first one's batch is made, and is that of the others, too
    let same =
        |at: usize| (0..at).find(|before| decoder.is_same(*before, at) && takers[*before].stands_as(&takers[at]));
    let likes: Vec<Option<usize>> = (0..takers.len()).map(same).collect();
    let mut batches: Vec<Making> = takers.iter().map(|_| Making::default()).collect();
    let mut selecting: Vec<Option<Selecting<'_>>> = feeds.iter().map(|feed| Selecting::new(feed)).collect();
    let own = |like: &&Option<usize>| like.is_none();
    batches.iter_mut().zip(&likes).filter(|(_, like)| own(like)).for_each(|(batch, _)| batch.room(messages.len()));
    for (place, message) in messages.iter().enumerate() {
        let mut reading = None;
        for (at, ((taker, batch), _)) in
            takers.iter().zip(&mut batches).zip(&likes).enumerate().filter(|(_, (_, like))| own(like))
        {
            let before = taker.progress.get(&message.partition);
            if taker.elsewhere.contains(&message.partition) || before.is_some_and(|p| message.offset < p.next) {
                continue;
            }
            let reading = reading.get_or_insert_with(|| decoder.read(message, now, skew_us));
            match &mut selecting[at] {
                Some(selecting) => selecting.take(place, reading.row(at)),
                None => batch.take(taker, message, reading.event(at).map(Some)),
            }
        }
    }
    for ((taker, batch), selecting) in takers.iter().zip(&mut batches).zip(selecting) {
        for (place, outcome) in selecting.into_iter().flat_map(|selecting| selecting.run(now, skew_us)) {
            batch.take(taker, &messages[place], outcome);
        }
    }
    let mut batches = like_others(&likes, batches);
    share(takers, &decoder, &mut batches);
    batches
}

/// The batches, those that were not made as those that they are like.
fn like_others(likes: &[Option<usize>], made: Vec<Making>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::with_capacity(made.len());
    for (making, like) in made.into_iter().zip(likes) {
        let Making { events, origins, batch } = making;
        batches.push(match like {
            Some(like) => batches[*like].clone(),
            None => Batch { events: Arc::new(events), origins: Arc::new(origins), ..batch },
        });
    }
    batches
}

/// Tells windowed views whose batches are of the same events that they are.
fn share(takers: &[Taker<'_>], decoder: &Decoder<'_>, batches: &mut [Batch]) {
    let windowed = |at: &usize| matches!(takers[*at].feed.content, Content::Windows { .. });
    for at in (0..batches.len()).filter(windowed) {
        let Batch { shared: None, origins, .. } = &batches[at] else { continue };
        let same = |other: &usize| decoder.is_alike(at, *other) && batches[*other].origins == *origins;
        let all: Vec<usize> = (at..batches.len()).filter(windowed).filter(same).collect();
        if all.len() < 2 {
            continue;
        }
        let (mut lists, mut tables): (Vec<Arc<Vec<Event>>>, Vec<_>) = (Vec::new(), Vec::new());
        for at in &all {
            let events = &batches[*at].events;
            let known = lists.iter().position(|known| Arc::ptr_eq(known, events));
            if known.is_none() {
                lists.push(Arc::clone(events));
            }
            tables.push((Arc::clone(&takers[*at].feed.view.table), known.unwrap_or(lists.len() - 1)));
        }
        let shared = Arc::new(Shared { together: Arc::new(Together { tables }), lists });
        for at in all {
            batches[at].shared = Some(Arc::clone(&shared));
        }
    }
}

impl Taker<'_> {
    /// Whether the other makes the same of what it takes of messages, and stands where this one does.
    fn stands_as(&self, other: &Taker<'_>) -> bool {
        self.progress == other.progress
            && self.elsewhere == other.elsewhere
            && self.feed.watermark_delay_us == other.feed.watermark_delay_us
            && self.feed.view.reading.cut_over() == other.feed.view.reading.cut_over()
    }
}

/// A batch in the making.
#[derive(Default)]
struct Making {
    events: Vec<Event>,
    origins: Vec<(i32, i64)>,
    batch: Batch,
}

impl Making {
    fn room(&mut self, messages: usize) {
        self.events.reserve_exact(messages);
        self.origins.reserve_exact(messages);
    }

    /// Takes a message and what became of it.
    fn take(&mut self, taker: &Taker<'_>, message: &Message, outcome: Outcome) {
        let Self { events, origins, batch } = self;
        batch.messages += 1;
        let feed = taker.feed;
        let before = taker.progress.get(&message.partition).map_or(Timestamp::MIN, |p| p.max_event);
        let behind = batch.progress.entry(message.partition).or_insert(Progress { next: 0, max_event: before });
        behind.next = message.offset + 1;
        match outcome {
            Ok(None) => batch.filtered += 1,
            Ok(Some(event)) => {
                let time = event.version.event;
                let watermark = behind.max_event.micros().saturating_sub(feed.watermark_delay_us);
                if time.micros() < watermark {
                    *batch.late.entry(message.partition).or_default() += 1;
                }
                behind.max_event = behind.max_event.max(time);
                if feed.view.reading.cut_over().is_some_and(|cut_over| time < cut_over) {
                    batch.before_cut_over += 1;
                } else {
                    events.push(event);
                    origins.push((message.partition, message.offset));
                }
            }
            Err(reason) => batch.dead.push(DeadLetter { message: message.clone(), reason }),
        }
    }
}

impl Batch {
    /// How many of the events are from before this time, by partition.
    pub(crate) fn before(&self, time: Timestamp) -> BTreeMap<i32, usize> {
        let events = self.events.iter().zip(&*self.origins);
        by_partition(events.filter(|(event, _)| event.version.event < time).map(|(_, origin)| origin))
    }
}

fn by_partition<'a>(origins: impl Iterator<Item = &'a (i32, i64)>) -> BTreeMap<i32, usize> {
    let mut found = BTreeMap::new();
    for (partition, _) in origins {
        *found.entry(*partition).or_default() += 1;
    }
    found
}

/// Writes the rows of a batch, and its positions, behind these fences, where they are not stored later: all of it, or
/// nothing.
pub(crate) async fn write_rows(
    feed: &Feed,
    store: &dyn OnlineStore,
    batch: &Batch,
    with_positions: Option<Vec<Fence>>,
) -> Result<Applied, Failure> {
    let Content::Rows(features) = &feed.content else { return Ok(Applied::default()) };
    let rows = batch.events.iter().map(|event| {
        let columns = features.iter().zip(&*event.values).map(|(feature, value)| Column {
            id: feature.id,
            value: if is_null(value) { Bytes::new() } else { value.encode_to_vec().into() },
            version: event.version,
        });
        RowWrite { table: Arc::clone(&feed.view.table), key: event.key.clone(), row: Row::pack(columns.collect()) }
    });
    let rows = rows.collect();
    let (positions, fences) = match with_positions {
        Some(fences) => (positions(feed, &batch.progress), fences),
        None => (Vec::new(), Vec::new()),
    };
    let written = store.write(WriteBatch { rows, positions, fences, ..WriteBatch::default() }).await;
    let written = written.map_err(Failure::of_store)?;
    let dropped_of = by_partition(written.stale.iter().filter_map(|at| batch.origins.get(*at as usize)));
    Ok(Applied { applied: written.applied, dropped: written.stale.len(), dropped_of })
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
