//! How the messages of a source are read: its registered format, with what the configuration adds to it (Protobuf
//! types, a schema registry). Knows no message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::ports::StreamSql;
use model::registry::Field;
use model::schema::{self, Format as Registered};
use model::{Error, Result};
use prost_reflect::{DescriptorPool, MessageDescriptor};

use crate::decode::avro::{Writer, Writers};
use crate::decode::protobuf;
use crate::schema_registry::SchemaRegistry;
use crate::settings::Settings;

/// The source's tag that says how its messages are framed: `plain`, or `confluent`, which is what they are taken to be
/// where there is a schema registry.
const WIRE_FORMAT: &str = "larder.wire_format";

/// What the configuration adds to the registered formats.
#[derive(Clone, Default)]
pub struct Formats {
    messages: DescriptorPool,
    registry: Option<Arc<SchemaRegistry>>,
    sql: Option<Arc<dyn StreamSql>>,
}

/// How a feed's messages are read.
#[derive(Clone, Debug)]
pub enum Format {
    /// JSON objects.
    Json,
    /// Avro records.
    Avro {
        /// The source's schema, to which each message is resolved.
        schema: Arc<Writer>,
        /// Whether a message starts with the id of its writer's schema.
        framed: bool,
    },
    /// Protobuf messages.
    Protobuf {
        /// Their type.
        message: MessageDescriptor,
        /// Whether a message starts with the id of its schema.
        framed: bool,
    },
}

impl Formats {
    /// What the settings say.
    ///
    /// Errors: descriptors that are none, a schema registry that cannot be.
    pub fn new(settings: &Settings) -> Result<Self, crate::Error> {
        let mut messages = DescriptorPool::new();
        for (name, bytes) in &settings.descriptor_sets {
            messages.decode_file_descriptor_set(bytes.as_slice()).map_err(|e| crate::Error::Setting {
                name: "protobuf_descriptor_sets",
                reason: format!(
                    "{name} is no descriptor set (write it with protoc --include_imports --descriptor_set_out={name}): {e}"
                ),
            })?;
        }
        let registry = settings.schema_registry.clone().map(SchemaRegistry::new).transpose()?.map(Arc::new);
        Ok(Self { messages, registry, sql: None })
    }

    /// The same, with what runs the SQL of views.
    #[must_use]
    pub fn with_sql(mut self, sql: Option<Arc<dyn StreamSql>>) -> Self {
        self.sql = sql;
        self
    }

    /// What runs the SQL of views, if anything does.
    pub(crate) fn sql(&self) -> Option<&dyn StreamSql> {
        self.sql.as_deref()
    }

    /// The format of a source, and the columns of its messages.
    ///
    /// Errors: a schema that cannot be read, a Protobuf type that the configuration does not have.
    pub(crate) fn of(&self, registered: &Registered, tags: &BTreeMap<String, String>) -> Result<(Format, Vec<Field>)> {
        let framed = match tags.get(WIRE_FORMAT).map(String::as_str) {
            None => self.registry.is_some(),
            Some("plain") => false,
            Some("confluent") => true,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "the source's tag {WIRE_FORMAT} is {other:?}: write plain or confluent"
                )));
            }
        };
        match registered {
            Registered::Json(text) => Ok((Format::Json, schema::parse(text)?)),
            Registered::Avro(text) => {
                let columns = schema::avro::columns(text)?;
                let schema = Writer::parse(text, &[])
                    .map_err(|e| Error::invalid(format!("the Avro schema cannot be used: {e}")))?;
                if framed && self.registry.is_none() {
                    return Err(Error::invalid(
                        "its messages start with the ids of their writers' schemas, and no schema registry is \
                         configured: set ingest.schema_registry.url",
                    ));
                }
                Ok((Format::Avro { schema: Arc::new(schema), framed }, columns))
            }
            Registered::Protobuf(name) => {
                let message = self.message(name)?;
                let columns = protobuf::columns(&message);
                Ok((Format::Protobuf { message, framed }, columns))
            }
            Registered::Missing => Err(Error::invalid(
                "the Kafka source has no message_format: register JsonFormat, AvroFormat or ProtoFormat",
            )),
        }
    }

    /// A message type by its full name, or by a Java class path that ends in its name.
    fn message(&self, class_path: &str) -> Result<MessageDescriptor> {
        if let Some(message) = self.messages.get_message_by_name(class_path) {
            return Ok(message);
        }
        let name = class_path.rsplit(['.', '$', '/']).next().unwrap_or(class_path);
        let named: Vec<_> = self.messages.all_messages().filter(|message| message.name() == name).collect();
        match named.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Error::invalid(format!(
                "there is no Protobuf message type {class_path:?} in the configured descriptor sets \
                 (ingest.protobuf_descriptor_sets), which have {}",
                self.messages.all_messages().count()
            ))),
            several => Err(Error::invalid(format!(
                "the Protobuf message type {class_path:?} may be {}: write its full name as ProtoFormat's class_path",
                several.iter().map(MessageDescriptor::full_name).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    /// The schemas of writers with these ids, as far as the registry has them.
    ///
    /// Errors: a registry that does not answer.
    pub(crate) async fn writers(&self, ids: &BTreeSet<u32>) -> std::result::Result<Writers, String> {
        match &self.registry {
            Some(registry) if !ids.is_empty() => registry.schemas(ids).await,
            _ => Ok(Writers::new()),
        }
    }
}
