//! What ingestion counts and says: one function per thing worth knowing emits its log line and its
//! metric together. Knows no exporter.
//!
//! Every series has the labels `project` and `view`; what a stopped view leaves behind is set to 0.

use std::collections::BTreeMap;

use ::metrics::{Label, counter, gauge, histogram};
use model::Timestamp;

use crate::feed::Feed;
use crate::pipeline::{Applied, Batch, DeadLetter, Failure};

/// What a view's consumer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It reads.
    Running,
    /// It failed and will start again, or waits for what fails.
    Retrying,
    /// It waits for the view or its state to be changed.
    Blocked,
    /// The view asks for something that is not offered.
    Refused,
    /// It is gone, or switched off.
    Stopped,
}

impl Status {
    const SHOWN: [(Self, &'static str); 4] = [
        (Self::Running, "running"),
        (Self::Retrying, "retrying"),
        (Self::Blocked, "blocked"),
        (Self::Refused, "refused"),
    ];
}

fn labels(project: &str, view: &str) -> Vec<Label> {
    vec![Label::new("project", project.to_owned()), Label::new("view", view.to_owned())]
}

fn of(feed: &Feed) -> Vec<Label> {
    labels(&feed.view.project, &feed.view.name)
}

fn of_partition(feed: &Feed, partition: i32) -> Vec<Label> {
    let mut labels = of(feed);
    labels.push(Label::new("topic", feed.topic.clone()));
    labels.push(Label::new("partition", partition.to_string()));
    labels
}

fn status(project: &str, view: &str, now: Status) {
    for (status, name) in Status::SHOWN {
        let mut labels = labels(project, view);
        labels.push(Label::new("state", name));
        gauge!("larder_ingest_view_state", labels).set(if status == now { 1.0 } else { 0.0 });
    }
}

pub(crate) fn started(feed: &Feed) {
    status(&feed.view.project, &feed.view.name, Status::Running);
    tracing::info!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        brokers = feed.bootstrap_servers,
        group = feed.group,
        "consuming"
    );
}

pub(crate) fn retrying(feed: &Feed, error: &str, pause: std::time::Duration) {
    status(&feed.view.project, &feed.view.name, Status::Retrying);
    counter!("larder_ingest_restarts_total", of(feed)).increment(1);
    tracing::warn!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        error,
        ?pause,
        "the consumer failed and starts again from its stored position"
    );
}

pub(crate) fn blocked(feed: &Feed, reason: &str) {
    status(&feed.view.project, &feed.view.name, Status::Blocked);
    tracing::error!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        reason,
        "the consumer stopped and waits for a change"
    );
}

pub(crate) fn refused(project: &str, view: &str, reason: &str) {
    status(project, view, Status::Refused);
    tracing::warn!(project, view, reason, "the view's stream is not consumed");
}

/// An entity of the view is not registered yet.
pub(crate) fn waiting(project: &str, view: &str, entity: &str) {
    status(project, view, Status::Stopped);
    tracing::info!(project, view, entity, "the view's stream is not consumed until its entity is applied");
}

pub(crate) fn stopped(project: &str, view: &str, why: &str) {
    status(project, view, Status::Stopped);
    tracing::info!(project, view, why, "stopped consuming");
}

/// A topic's client is still closing; nothing of ours waits for it any longer.
pub(crate) fn closing_late(group: &str, waited: std::time::Duration) {
    let seconds = waited.as_secs();
    tracing::warn!(group, seconds, "the Kafka client takes long to close: the broker does not answer");
}

pub(crate) fn gone(project: &str, view: &str) {
    status(project, view, Status::Stopped);
    tracing::info!(project, view, "the view is gone: its consumer has stopped");
}

/// A feature that the stream does not fill: in a windowed view nothing else does.
pub(crate) fn unfilled(feed: &Feed, feature: &str) {
    let (project, view) = (&feed.view.project, &feed.view.name);
    if feed.view.is_windowed() {
        tracing::warn!(project, view, feature, "no aggregation has this feature's name: it will be null");
    } else {
        tracing::info!(project, view, feature, "the stream has no such column: pushes and materializations fill it");
    }
}

pub(crate) fn assigned(feed: &Feed, partition: i32, offset: Option<i64>) {
    tracing::info!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        partition,
        stored_offset = offset,
        "partition assigned"
    );
    gauge!("larder_ingest_assigned", of_partition(feed, partition)).set(1.0);
}

/// A partition is no longer read here.
pub(crate) fn lost(feed: &Feed, partition: i32) {
    gauge!("larder_ingest_assigned", of_partition(feed, partition)).set(0.0);
    lag(feed, partition, 0);
}

/// The topic no longer has the stored position: its retention passed it, or it was made anew.
pub(crate) fn position_lost(feed: &Feed, partition: i32, stored: i64, found: i64) {
    counter!("larder_ingest_position_lost_total", of_partition(feed, partition)).increment(1);
    tracing::warn!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        partition,
        stored,
        found,
        "the topic goes on at another offset than the stored one: messages between were removed (by retention, or \
         by somebody), or the topic was made anew"
    );
}

/// Another process has claimed a partition that was read here.
pub(crate) fn fenced(feed: &Feed) {
    counter!("larder_ingest_fenced_total", of(feed)).increment(1);
    tracing::warn!(
        project = feed.view.project,
        view = feed.view.name,
        topic = feed.topic,
        "another worker has this one's partitions: what it had pending is not written, and comes again there"
    );
}

/// Another process wrote a state that was changed here.
pub(crate) fn contended(feed: &Feed) {
    counter!("larder_ingest_state_conflicts_total", of(feed)).increment(1);
    tracing::debug!(
        view = feed.view.name,
        "another process wrote an entity's state, too: the view goes back to its stored positions. Messages of an entity \
         belong in one partition: produce them with its key"
    );
}

pub(crate) fn broker_error(feed: &Feed, error: &rdkafka::error::KafkaError, repeated: bool) {
    counter!("larder_ingest_broker_errors_total", of(feed)).increment(1);
    if repeated {
        tracing::debug!(view = feed.view.name, %error, "Kafka");
    } else {
        tracing::warn!(
            project = feed.view.project,
            view = feed.view.name,
            topic = feed.topic,
            brokers = feed.bootstrap_servers,
            %error,
            "Kafka is not available to the consumer; it keeps trying"
        );
    }
}

/// The view's stream stands still until what fails does so no more.
pub(crate) fn waits(feed: &Feed) {
    status(&feed.view.project, &feed.view.name, Status::Retrying);
}

/// It does so no more.
pub(crate) fn goes_on(feed: &Feed) {
    status(&feed.view.project, &feed.view.name, Status::Running);
}

pub(crate) fn write_retry(feed: &Feed, what: &str, error: &str, attempt: u32) {
    counter!("larder_ingest_retries_total", of(feed)).increment(1);
    tracing::warn!(project = feed.view.project, view = feed.view.name, what, error, attempt, "trying again");
}

/// One batch that is in the store.
pub(crate) fn written(feed: &Feed, batch: &Batch, applied: &Applied, seconds: f64) {
    counted(feed, batch, applied, seconds);
    for (&partition, progress) in &batch.progress {
        gauge!("larder_ingest_position", of_partition(feed, partition)).set(progress.next as f64);
        if progress.max_event > Timestamp::MIN {
            let watermark = progress.max_event.micros().saturating_sub(feed.watermark_delay_us);
            gauge!("larder_ingest_watermark_seconds", of_partition(feed, partition)).set(watermark as f64 / 1e6);
        }
    }
}

/// What became of a batch that a state took which is not read yet.
pub(crate) fn counted(feed: &Feed, batch: &Batch, applied: &Applied, seconds: f64) {
    let messages = batch.messages;
    counter!("larder_ingest_messages_total", of(feed)).increment(messages as u64);
    counter!("larder_ingest_applied_total", of(feed)).increment(applied.applied as u64);
    if feed.sql.is_some() {
        counter!("larder_ingest_filtered_total", of(feed)).increment(batch.filtered as u64);
    }
    if feed.view.reading.cut_over_us.is_some() {
        counter!("larder_ingest_before_cut_over_total", of(feed)).increment(batch.before_cut_over as u64);
    }
    let name = if feed.view.is_windowed() { "larder_ingest_late_dropped_total" } else { "larder_ingest_stale_total" };
    let count_of = |counts: &BTreeMap<i32, usize>, partition| counts.get(&partition).map_or(0, |count| *count as u64);
    for &partition in batch.progress.keys() {
        counter!("larder_ingest_late_total", of_partition(feed, partition)).increment(count_of(&batch.late, partition));
        counter!(name, of_partition(feed, partition)).increment(count_of(&applied.dropped_of, partition));
    }
    let known: usize = applied.dropped_of.values().sum();
    let others = applied.dropped.saturating_sub(known) as u64;
    if others > 0 {
        // the clock was set back, or another worker's is ahead: their states know a later time
        counter!(name, of(feed)).increment(others);
    }
    histogram!("larder_ingest_batch_seconds", of(feed)).record(seconds);
    tracing::debug!(
        view = feed.view.name,
        messages,
        applied = applied.applied,
        dropped = applied.dropped,
        late = batch.late.values().sum::<usize>(),
        dead = batch.dead.len(),
        seconds,
        "batch written"
    );
}

/// Dead letters that the broker has: one log line per batch and reason, with the first as example.
pub(crate) fn dead_lettered(feed: &Feed, letters: &[DeadLetter]) {
    let mut by_reason: BTreeMap<&'static str, (u64, &DeadLetter)> = BTreeMap::new();
    for letter in letters {
        by_reason.entry(letter.reason.label()).or_insert((0, letter)).0 += 1;
        let mut labels = of_partition(feed, letter.message.partition);
        labels.push(Label::new("reason", letter.reason.label()));
        counter!("larder_ingest_dead_letters_total", labels).increment(1);
    }
    for (count, first) in by_reason.into_values() {
        tracing::warn!(
            project = feed.view.project,
            view = feed.view.name,
            topic = feed.topic,
            count,
            partition = first.message.partition,
            offset = first.message.offset,
            reason = %first.reason,
            "messages sent to the dead-letter topic"
        );
    }
}

/// Window states were written with their positions.
pub(crate) fn checkpointed(feed: &Feed, states: usize, seconds: f64) {
    counter!("larder_ingest_checkpoint_states_total", of(feed)).increment(states as u64);
    histogram!("larder_ingest_checkpoint_seconds", of(feed)).record(seconds);
}

/// A view's stream ended, and its last checkpoint was not written: it will be read again from the one before.
pub(crate) fn left_unwritten(feed: &Feed, failure: &Failure) {
    tracing::warn!(
        project = feed.view.project,
        view = feed.view.name,
        ?failure,
        "the last checkpoint was not written; what is behind the one before comes again from the stream"
    );
}

/// A view begins before the others that share its topic, and reads by itself what is between.
pub(crate) fn behind(feed: &Feed, partition: i32, at: i64, others: i64) {
    let (project, view) = (&feed.view.project, &feed.view.name);
    tracing::info!(project, view, partition, at, others, "it is behind the topic's other views: it catches up alone");
}

/// How many messages of a partition are not read yet.
pub(crate) fn lag(feed: &Feed, partition: i32, messages: i64) {
    gauge!("larder_ingest_consumer_lag", of_partition(feed, partition)).set(messages as f64);
}
