//! Where the consumer of a view begins in a partition of which no position is stored: as the view's reading says
//! ([`model::registry::Reading`]), else the configuration. Knows no store.

use std::time::Duration;

use model::Timestamp;
use model::registry::{From, Reading, Start};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::client;
use crate::feed::{self, Feed};
use crate::settings::Settings;

const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// The offset; negative is the beginning, whatever that is. Asks the broker. Errors: it does not answer.
pub(crate) fn offset<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    feed: &Feed,
    partition: i32,
    settings: &Settings,
) -> Result<i64, String> {
    let reading = &feed.view.reading;
    let begin = match reading.from() {
        From::Configured => settings.start,
        from => Start { from, time: Timestamp(reading.from_us) },
    };
    let found = match begin.from {
        From::Configured | From::Earliest => return Ok(-1),
        From::Latest => end(consumer, &feed.topic, partition),
        From::Committed => committed(feed, partition, settings),
        From::Time => {
            // an event may have come before its time, by so much
            let skew = i64::try_from(settings.future_skew.as_millis()).unwrap_or(i64::MAX);
            let skew = if reading.cut_over_us.is_some() { skew } else { 0 };
            let time = begin.time.micros().div_euclid(1000).saturating_sub(skew).max(0);
            of_time(consumer, &feed.topic, partition, time)
        }
    };
    found.map_err(|e| format!("the start of partition {partition} cannot be found: {e}"))
}

/// The oldest offset that the topic has; `None` where the broker does not say.
pub(crate) fn oldest<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32) -> Option<i64> {
    consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT).ok().map(|(oldest, _)| oldest)
}

/// Whether the topic no longer has what stands at the position `next`, where what was found first is at `found`. (Behind a
/// gap that compaction left, or the marks of transactions, nothing is lost.) Where nobody knows its oldest offset, yes.
pub(crate) fn is_lost(next: i64, found: i64, oldest: impl FnOnce() -> Option<i64>) -> bool {
    next >= 0 && (found < next || found > next && oldest().is_none_or(|oldest| oldest > next))
}

fn end<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32) -> KafkaResult<i64> {
    Ok(consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)?.1)
}

/// What Kafka has of the group that a view has before any seek or backfill, whoever committed it; negative for nothing.
fn committed(feed: &Feed, partition: i32, settings: &Settings) -> KafkaResult<i64> {
    let view = &feed.view;
    let group = feed::group(&settings.group_prefix, &view.project, &Reading::first(view).group(&view.table));
    let client: BaseConsumer = client::of_view(feed, settings).set("group.id", group).create()?;
    let mut wanted = TopicPartitionList::with_capacity(1);
    wanted.add_partition(&feed.topic, partition);
    let found = client.committed_offsets(wanted, BROKER_TIMEOUT)?;
    let offset = found.find_partition(&feed.topic, partition).map(|element| element.error().map(|()| element.offset()));
    Ok(offset.transpose()?.and_then(Offset::to_raw).filter(|offset| *offset >= 0).unwrap_or(-1))
}

/// The first offset of a time (ms since the epoch) or later, by the broker's index; the end where there is none.
fn of_time<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32, time: i64) -> KafkaResult<i64> {
    // before the broker is asked: what comes between the two answers must not be left out
    let end = end(consumer, topic, partition)?;
    let mut wanted = TopicPartitionList::with_capacity(1);
    wanted.add_partition_offset(topic, partition, Offset::Offset(time))?;
    let found = consumer.offsets_for_times(wanted, BROKER_TIMEOUT)?;
    let offset = found.find_partition(topic, partition).map(|element| element.error().map(|()| element.offset()));
    Ok(offset.transpose()?.and_then(Offset::to_raw).filter(|offset| *offset >= 0).unwrap_or(end))
}
