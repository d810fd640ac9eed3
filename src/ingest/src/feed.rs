//! What one view takes from its topic: which columns make its key, time and values, checked against
//! the stream's schema once, before any message. Knows no Kafka client and no store.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use model::entity_key::DUMMY_ENTITY_ID;
use model::ports::{RowQuery, StreamSql};
use model::registry::{Field, View, ViewKind};
use model::row::column_id;
use model::schema::{self, Kafka, beside};
use model::{Error, Result, ValueType};
use service::windows;
use window::Spec;

pub use crate::formats::Format;
use crate::formats::Formats;

/// A column of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in the message.
    pub name: String,
    /// The type that the schema gives it.
    pub value_type: ValueType,
}

/// A part of the entity key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The join key.
    pub name: String,
    /// Where its value stands; `None` for the key of a view without entities.
    pub source: Option<Source>,
    /// The registered type.
    pub value_type: ValueType,
}

/// A feature of a plain view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Where its value stands.
    pub source: Source,
    /// Its id in the row.
    pub id: u32,
    /// The registered type.
    pub value_type: ValueType,
}

/// What the view makes of an event.
#[derive(Clone, Debug)]
pub enum Content {
    /// A row: the features as they stand in the message.
    Rows(Vec<Feature>),
    /// Windows over the columns, in the order of [`Spec::columns`].
    Windows {
        /// The windows.
        spec: Box<Spec>,
        /// The columns that they read.
        columns: Vec<Source>,
    },
}

/// A view's SQL.
#[derive(Clone, Debug)]
pub struct Sql {
    /// The text.
    pub text: Arc<str>,
    /// The query that it is.
    pub query: Arc<dyn RowQuery>,
    /// The columns of the message that it reads, in the order of [`RowQuery::reads`].
    pub reads: Vec<Source>,
}

/// What one view takes from its topic.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The view.
    pub view: Arc<View>,
    /// The group under which its positions are stored, which no other view has.
    pub group: String,
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// The topic.
    pub topic: String,
    /// How its messages are read.
    pub format: Format,
    /// How long after the latest event an earlier one is in time, µs.
    pub watermark_delay_us: i64,
    /// The event time's column.
    pub time: Source,
    /// The created time's column, if the stream has one.
    pub created: Option<Source>,
    /// The entity key's parts.
    pub keys: Vec<Key>,
    /// Rows or windows.
    pub content: Content,
    /// The SQL that messages go through first: time, keys and content are then columns of its result.
    pub sql: Option<Sql>,
    /// Feeds with the same share take the same messages, which are fetched and decoded once for all of them: it is the
    /// name of the group whose members divide the topic's partitions among them.
    pub share: String,
    /// Two feeds with the same identity do the same: no need to start the consumer again.
    pub identity: String,
    /// Whether events have the values that windows read as they came, too: what is logged has.
    pub is_logged: bool,
}

impl Feed {
    /// The feed of a view; `None` where it has none: no Kafka source, disabled, not served online,
    /// or of a kind that takes no stream.
    ///
    /// Errors: a format or schema that cannot be read, or lacks a join key or the event time, windows that
    /// are refused, a transformation (it would have to run before the values are used, and Python does not
    /// run in this process).
    pub fn of(view: &Arc<View>, group_prefix: &str, formats: &Formats) -> Result<Option<Self>> {
        let streams = matches!(view.kind, ViewKind::Feature | ViewKind::Stream);
        let Some(source) = view.stream_source.as_ref().filter(|_| streams && view.online && !view.disabled) else {
            return Ok(None);
        };
        let Some(Kafka { bootstrap_servers, topic, format, watermark_delay_us }) = schema::kafka(source) else {
            return Ok(None);
        };
        if view.has_transformation {
            return Err(Error::invalid(
                "it has a transformation that does not run on a stream: write it as one SELECT (mode=\"sql\" and the tag \
                 larder.sql, or mode=\"spark_sql\" and the SELECT as udf_string), or remove it and let the producer send \
                 the columns as the features have them",
            ));
        }
        if topic.is_empty() || bootstrap_servers.is_empty() {
            return Err(Error::invalid(format!(
                "the Kafka source '{}' names no topic or no kafka_bootstrap_servers",
                source.name
            )));
        }
        let tags = source.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let (message_format, fields) = formats.of(&format, &tags)?;
        let mut columns = Columns::new(&fields, &source.field_mapping);
        let sql = columns.through_sql(view, formats.sql())?;
        let content = if view.is_windowed() {
            let spec = windows::spec_of(view)?;
            let wanted = spec.columns().iter().map(|name| columns.get(name)).collect::<Result<_>>()?;
            Content::Windows { spec: Box::new(spec), columns: wanted }
        } else {
            Content::Rows(columns.features(view)?)
        };
        let mut feed = Self {
            view: Arc::clone(view),
            group: group(group_prefix, &view.project, &view.reading.group(&view.table)),
            time: columns.time(&[&view.timestamp_field, &source.timestamp_field, view.event_time_column()])?,
            created: columns.find(&source.created_timestamp_column).cloned(),
            keys: view.join_keys.iter().map(|k| columns.key(k)).collect::<Result<_>>()?,
            bootstrap_servers,
            topic,
            format: message_format,
            watermark_delay_us,
            content,
            sql,
            share: String::new(),
            identity: String::new(),
            is_logged: true,
        };
        feed.share = feed.shared_by(group_prefix, &format);
        feed.identity = format!("{format:?} {tags:?} {}", feed.describe());
        Ok(Some(feed))
    }

    /// The windows' definition with all else that decides what state holds; `None` for plain views.
    /// State under one definition must not be continued under another.
    pub fn definition(&self) -> Option<String> {
        let Content::Windows { spec, .. } = &self.content else { return None };
        let sql = self.sql.as_ref().map(|sql| format!(" sql={:?}", sql.text)).unwrap_or_default();
        let keys: Vec<_> = self.keys.iter().map(|k| (&k.name, k.source.as_ref().map(|s| &s.name))).collect();
        Some(format!(
            "1 windows={:016x} topic={:?} time={:?} keys={keys:?}{sql}",
            spec.fingerprint(),
            self.topic,
            self.time.name
        ))
    }

    /// `<prefix>.<project>@<topic>/<hash>`: views of other projects may be for other servers, of other brokers are other
    /// topics, and those of other formats are read otherwise. (A JSON message says itself what it has.)
    fn shared_by(&self, group_prefix: &str, registered: &schema::Format) -> String {
        let read_as = match &self.format {
            Format::Json => String::new(),
            Format::Avro { framed, .. } | Format::Protobuf { framed, .. } => format!("{framed} {registered:?}"),
        };
        let hash = column_id(&format!("{} {read_as}", self.bootstrap_servers));
        format!("{group_prefix}.{}@{}/{hash:08x}", self.view.project, self.topic)
    }

    /// All columns of the message that are read.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        let (of_sql, of_view) = match &self.sql {
            Some(sql) => (Some(sql.reads.iter()), None),
            None => (None, Some(self.columns())),
        };
        of_sql.into_iter().flatten().chain(of_view.into_iter().flatten())
    }

    /// All columns that the view takes, of the message or of what SQL makes of it.
    fn columns(&self) -> impl Iterator<Item = &Source> {
        let (rows, windows): (&[Feature], &[Source]) = match &self.content {
            Content::Rows(features) => (features, &[]),
            Content::Windows { columns, .. } => (&[], columns),
        };
        let keys = self.keys.iter().filter_map(|key| key.source.as_ref());
        let content = rows.iter().map(|feature| &feature.source).chain(windows);
        keys.chain(std::iter::once(&self.time)).chain(&self.created).chain(content)
    }

    fn describe(&self) -> String {
        let mut text = format!(
            "{:?}",
            (
                &self.group,
                &self.bootstrap_servers,
                &self.topic,
                &self.time,
                &self.created,
                &self.keys,
                self.watermark_delay_us,
                self.sql.as_ref().map(|sql| (&sql.text, &sql.reads))
            )
        );
        let _ = match &self.content {
            Content::Rows(features) => write!(text, "{features:?}"),
            Content::Windows { columns, .. } => {
                write!(text, "{columns:?} {:?} {}", self.view.aggregations, self.view.tiling_hop_us)
            }
        };
        text
    }
}

/// The consumer group of a view: `<prefix>.<project>.<view>`, with `_v2` behind it for a version that has a
/// table of its own.
pub fn group(prefix: &str, project: &str, view: &str) -> String {
    format!("{prefix}.{project}.{view}")
}

/// The stream's columns by the names that the view uses (`field_mapping` applied).
struct Columns(BTreeMap<String, Source>);

impl Columns {
    fn new(fields: &[Field], mapping: &BTreeMap<String, String>) -> Self {
        let in_value = |name: &str| fields.iter().any(|field| field.name == name);
        // what stands beside the value needs no place in the schema
        let beside = mapping
            .keys()
            .filter(|name| !in_value(name))
            .filter_map(|name| Some(Field { name: name.clone(), value_type: beside::type_of(name)? }));
        let columns = fields.iter().cloned().chain(beside).map(|field| {
            let name = mapping.get(&field.name).unwrap_or(&field.name).clone();
            (name, Source { name: field.name, value_type: field.value_type })
        });
        Self(columns.collect())
    }

    /// Puts the columns of a view's SQL in the place of the message's.
    fn through_sql(&mut self, view: &View, engine: Option<&dyn StreamSql>) -> Result<Option<Sql>> {
        let Some(text) = &view.sql else { return Ok(None) };
        let field = |(name, source): (&String, &Source)| Field { name: name.clone(), value_type: source.value_type };
        let fields = windows::sql::with_metadata(self.0.iter().map(field).collect());
        let Some(query) = windows::sql::compile(engine, view, &fields)? else { return Ok(None) };
        let reads = query.reads().iter().map(|&at| self.get(&fields[at].name)).collect::<Result<_>>()?;
        let column =
            |field: &Field| (field.name.clone(), Source { name: field.name.clone(), value_type: field.value_type });
        self.0 = query.gives().iter().map(column).collect();
        Ok(Some(Sql { text: Arc::clone(text), query, reads }))
    }

    /// A column by the view's name for it, or by the message's.
    fn find(&self, name: &str) -> Option<&Source> {
        self.0.get(name).or_else(|| self.0.values().find(|c| c.name == name))
    }

    fn get(&self, name: &str) -> Result<Source> {
        let of_message = || beside::type_of(name).map(|value_type| Source { name: name.to_owned(), value_type });
        self.find(name).cloned().or_else(of_message).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().map(String::as_str).collect();
            Error::invalid(format!(
                "the stream's schema has no column '{name}': add it to the message format's schema, which has {}",
                known.join(", ")
            ))
        })
    }

    fn time(&self, names: &[&str]) -> Result<Source> {
        let mut named = names.iter().filter(|n| !n.is_empty());
        match names.iter().find_map(|name| self.find(name)) {
            Some(found) => Ok(found.clone()),
            None => self.get(named.next().copied().unwrap_or("event_timestamp")),
        }
    }

    fn key(&self, key: &model::registry::JoinKey) -> Result<Key> {
        if key.name == DUMMY_ENTITY_ID {
            return Ok(Key { name: key.name.clone(), source: None, value_type: ValueType::String });
        }
        let source = self.get(&key.name)?;
        let value_type = if key.value_type == ValueType::Invalid { source.value_type } else { key.value_type };
        Ok(Key { name: key.name.clone(), source: Some(source), value_type })
    }

    fn features(&self, view: &View) -> Result<Vec<Feature>> {
        let found: Vec<Feature> = view
            .features
            .iter()
            .filter_map(|field| {
                let source = self.find(&field.name)?.clone();
                Some(Feature { source, id: column_id(&field.name), value_type: field.value_type })
            })
            .collect();
        match view.features.first() {
            Some(first) if found.is_empty() => Err(self
                .get(&first.name)
                .err()
                .unwrap_or_else(|| Error::invalid("the stream's schema has none of the view's features"))),
            _ => Ok(found),
        }
    }
}
