//! The Kafka clients: how they are set up, what they give, and what their errors mean. Knows no store.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::error::Stop;
use crate::feed::Feed;
use crate::message::{Copies, Message};
use crate::pipeline::Progress;
use crate::settings::Settings;

/// How often a waiting consumer looks whether it should stop.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The member of a share's group.
pub(crate) fn of_share(feed: &Feed, settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("statistics.interval.ms", "5000").set("topic.metadata.refresh.interval.ms", "2000");
    config.set("queued.min.messages", "20000");
    // who comes or goes moves the fewest partitions, and the others are read meanwhile
    config.set("partition.assignment.strategy", "cooperative-sticky");
    if let Some(id) = &settings.group_instance_id {
        // A static member that comes back is given its partitions without a look at what it subscribes to.
        config.set("group.instance.id", format!("{id}.{}", feed.topic));
    }
    common(&mut config, feed, settings);
    config.set("group.id", &feed.share);
    config
}

/// A view's own client, which joins no group: it reads what it is told to, and tells Kafka how far the view is.
pub(crate) fn of_view(feed: &Feed, settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    // many views may catch up at once: each holds little of what it is ahead
    config.set("queued.max.messages.kbytes", "8192");
    common(&mut config, feed, settings);
    config.remove("group.instance.id");
    config.set("group.id", &feed.group);
    config
}

/// The client of a state that catches up: as a view's own, and told where a partition ends.
pub(crate) fn of_shadow(feed: &Feed, settings: &Settings) -> ClientConfig {
    let mut config = of_view(feed, settings);
    config.set("queued.max.messages.kbytes", "65536").set("enable.partition.eof", "true");
    // the broker answers one request of a connection after the other: how far the topic goes must not wait for messages
    config.set("fetch.wait.max.ms", "20");
    config
}

fn common(config: &mut ClientConfig, feed: &Feed, settings: &Settings) {
    config.set("client.id", "larder").set("reconnect.backoff.max.ms", "5000");
    // what the client tells the broker of itself (KIP-714) is counted under a lock with each message; ours are on /metrics
    config.set("enable.metrics.push", "false");
    // a partition whose queue was full is fetched again after so long: by default a second, which a reader that catches
    // up would spend waiting, its queue empty
    config.set("fetch.queue.backoff.ms", "5");
    for (name, value) in settings.properties.iter().chain(&settings.consumer_properties) {
        config.set(name, value);
    }
    config
        .set("bootstrap.servers", &feed.bootstrap_servers)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("auto.offset.reset", settings.offset_reset());
}

/// What stands at these positions, to be read from there.
pub(crate) fn at<'a>(
    topic: &str,
    positions: impl Iterator<Item = (i32, &'a Progress)>,
) -> Result<TopicPartitionList, Stop> {
    let mut list = TopicPartitionList::new();
    for (partition, progress) in positions {
        list.add_partition_offset(topic, partition, offset(progress.next))
            .map_err(|e| Stop::kafka("a position cannot be read from", &e))?;
    }
    Ok(list)
}

/// The offset behind a position; the oldest that the topic has where none is stored.
pub(crate) fn offset(next: i64) -> Offset {
    if next < 0 { Offset::Beginning } else { Offset::Offset(next) }
}

/// Tells Kafka, for lag tools.
pub(crate) fn commit(client: &BaseConsumer, feed: &Feed, positions: &BTreeMap<i32, Progress>) {
    let known = positions.iter().filter(|(_, progress)| progress.next >= 0).map(|(p, progress)| (*p, progress));
    let committed = at(&feed.topic, known).map(|offsets| client.commit(&offsets, CommitMode::Async));
    if let Ok(Err(error)) = committed {
        tracing::debug!(view = feed.view.name, %error, "Kafka did not take the offsets; ours count");
    }
}

/// A message that outlives its client's buffer.
pub(crate) fn own(message: &BorrowedMessage<'_>, copies: &mut Copies) -> Message {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect());
    Message {
        timestamp_ms: message.timestamp().to_millis(),
        partition: message.partition(),
        offset: message.offset(),
        body: copies.of(message.key(), message.payload()),
        headers: headers.unwrap_or_default(),
    }
}
