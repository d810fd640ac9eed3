//! Dead letters: a message that is no event of the view is produced, as it came, to `<topic>.dlq`.
//! Knows no store.
//!
//! Headers added: `larder-reason`, `larder-topic`, `larder-partition`, `larder-offset` and
//! `larder-view` (`project.view`). Key, value and headers of the message are kept. The caller waits
//! for the broker before it stores the position: a crash between can send a letter twice, never
//! lose one. Two views on one topic each send their own.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::feed::Feed;
use crate::pipeline::DeadLetter;

/// The producer of one view's dead letters.
pub(crate) struct Producer(FutureProducer);

impl Producer {
    pub(crate) fn new(feed: &Feed, properties: &BTreeMap<String, String>) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("message.timeout.ms", "30000").set("client.id", "larder-dlq");
        for (name, value) in properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &feed.bootstrap_servers).set("enable.idempotence", "true");
        config.create().map(Self)
    }

    /// Sends all letters and waits until the broker has them.
    pub(crate) async fn send(&self, feed: &Feed, letters: &[DeadLetter]) -> Result<(), KafkaError> {
        let topic = format!("{}.dlq", feed.topic);
        // each chunk is in flight together; the client keeps the order of what it is given
        for chunk in letters.chunks(500) {
            let mut sent = Vec::with_capacity(chunk.len());
            for letter in chunk {
                sent.push(self.enqueue(&topic, feed, letter, true).await);
            }
            for (letter, delivery) in chunk.iter().zip(sent) {
                let outcome = match delivery {
                    Ok(delivery) => settled(delivery).await,
                    Err(e) => Err(e),
                };
                match outcome {
                    Err(e) if too_large(&e) => {
                        settled(self.enqueue(&topic, feed, letter, false).await?).await?;
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Queues a letter; without its value (`whole` is false) where it does not fit with the headers
    /// added: where it came from says enough.
    async fn enqueue(
        &self,
        topic: &str,
        feed: &Feed,
        letter: &DeadLetter,
        whole: bool,
    ) -> Result<DeliveryFuture, KafkaError> {
        loop {
            let mut record = FutureRecord::<[u8], [u8]>::to(topic).headers(headers(feed, letter, whole));
            if let Some(key) = letter.message.key() {
                record = record.key(key);
            }
            if let Some(payload) = letter.message.payload().filter(|_| whole) {
                record = record.payload(payload);
            }
            match self.0.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    // librdkafka does not tell when there is room again
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err((e, _)) => return Err(e),
            }
        }
    }
}

/// Waits for the broker's answer.
async fn settled(delivery: DeliveryFuture) -> Result<(), KafkaError> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((e, _))) => Err(e),
        Err(_) => Err(KafkaError::Canceled),
    }
}

fn too_large(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
    )
}

fn headers(feed: &Feed, letter: &DeadLetter, whole: bool) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(letter.message.headers.len() + 6);
    for (name, value) in &letter.message.headers {
        headers = headers.insert(Header { key: name, value: value.as_ref() });
    }
    let added = [
        ("larder-reason", letter.reason.to_string()),
        ("larder-topic", feed.topic.clone()),
        ("larder-partition", letter.message.partition.to_string()),
        ("larder-offset", letter.message.offset.to_string()),
        ("larder-view", format!("{}.{}", feed.view.project, feed.view.name)),
    ];
    for (name, value) in &added {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    if !whole {
        headers = headers.insert(Header { key: "larder-value-omitted", value: Some("too large") });
    }
    headers
}
