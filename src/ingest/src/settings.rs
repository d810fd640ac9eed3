//! What can be set about ingestion. Knows no file and no environment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::registry::{From, Start};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::error::Error;
use crate::formats::Formats;
use crate::schema_registry;
use crate::writer::Checkpoints;

/// What can be set about ingestion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The projects whose streams are consumed; `None` is every one of the registry.
    pub projects: Option<BTreeSet<String>>,
    /// A view's consumer group is `<group_prefix>.<project>.<view>`.
    pub group_prefix: String,
    /// This process as a static member of its groups (Kafka's `group.instance.id`, with the topic behind
    /// it): a restart, even after a kill, gets its partitions back at once and not after the session
    /// timeout, which a view waits out that moves to another topic. Of two processes with one id the older
    /// is fenced off. `None`: a dynamic member.
    pub group_instance_id: Option<String>,
    /// Where a view starts to read a partition of which no position is stored.
    pub start: Start,
    /// The most messages that are written together.
    pub batch_size: usize,
    /// How long a batch waits for more messages after its first.
    pub linger: Duration,
    /// When window states are written down, and what may stay in memory.
    pub checkpoints: Checkpoints,
    /// How far after the server's clock an event may lie; beyond it is a dead letter.
    pub future_skew: Duration,
    /// The longest pause between two attempts at something that fails.
    pub max_backoff: Duration,
    /// librdkafka properties for the consumers and the dead-letter producer (`security.protocol`, …).
    pub properties: BTreeMap<String, String>,
    /// librdkafka properties for the consumers only. The group, the servers and what keeps positions
    /// in our store cannot be set.
    pub consumer_properties: BTreeMap<String, String>,
    /// librdkafka properties for the dead-letter producer only.
    pub producer_properties: BTreeMap<String, String>,
    /// The types of Protobuf messages: the bytes of descriptor sets, by the names that errors give them.
    pub descriptor_sets: BTreeMap<String, Vec<u8>>,
    /// Where the schemas of Avro's writers are; with it, messages start with the ids of their schemas.
    pub schema_registry: Option<schema_registry::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            projects: None,
            group_prefix: "larder".to_owned(),
            group_instance_id: Some("larder".to_owned()),
            start: Start::EARLIEST,
            batch_size: 1000,
            linger: Duration::from_millis(5),
            checkpoints: Checkpoints { interval: Duration::from_secs(1), entities: 100_000, memory: 512 << 20 },
            future_skew: Duration::from_secs(5),
            max_backoff: Duration::from_secs(5),
            properties: BTreeMap::new(),
            consumer_properties: BTreeMap::new(),
            producer_properties: BTreeMap::new(),
            descriptor_sets: BTreeMap::new(),
            schema_registry: None,
        }
    }
}

impl Settings {
    /// Whether they can be; gives what they say of formats.
    ///
    /// Errors: the first that cannot, with the reason.
    pub fn check(&self) -> Result<Formats, Error> {
        let refuse = |name, reason: &str| Err(Error::Setting { name, reason: reason.to_owned() });
        if self.batch_size == 0 {
            return refuse("batch_size", "it is 0; set 1 or more");
        }
        if self.group_prefix.is_empty() {
            return refuse("group_prefix", "it is empty; set a name, such as \"larder\"");
        }
        if let Some(reason) = self.refused_by_the_client() {
            return refuse("kafka", &reason);
        }
        Formats::new(self)
    }

    /// The first property that librdkafka does not know, or whose value cannot be. (Not the value: it may be secret.)
    fn refused_by_the_client(&self) -> Option<String> {
        let all = self.properties.iter().chain(&self.consumer_properties).chain(&self.producer_properties);
        all.into_iter().find_map(|(name, value)| {
            let refused = ClientConfig::new().set(name, value).create_native_config().err()?;
            Some(match refused {
                KafkaError::ClientConfig(_, why, ..) => format!("the property {name}: {why}"),
                other => format!("the property {name}: {other}"),
            })
        })
    }

    /// Kafka's `auto.offset.reset`: where a partition is read on whose topic no longer has the stored position.
    pub(crate) fn offset_reset(&self) -> &'static str {
        if self.start.from == From::Latest { "latest" } else { "earliest" }
    }

    /// Everything that the dead-letter producer is given.
    pub(crate) fn producer_properties(&self) -> BTreeMap<String, String> {
        let both = self.properties.iter().chain(&self.producer_properties);
        both.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}
