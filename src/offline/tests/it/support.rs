//! A repo with sources, a registry made by hand, the service on a socket, and a Flight client.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use futures::{StreamExt, TryStreamExt, stream};
use model::ports::{Clock, Object, ObjectKind};
use model::registry::{Registry, View};
use model::{Timestamp, ValueType};
use offline::{Offline, Settings};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use prost::Message;
use proto::feast::core;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) const PROJECT: &str = "p";

/// A clock that stands.
pub(crate) struct Still(pub(crate) i64);

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(self.0)
    }
}

/// A temporary repo with a registry.
pub(crate) struct Repo {
    pub(crate) dir: TempDir,
    objects: Vec<Object>,
}

impl Repo {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), objects: Vec::new() }
    }

    pub(crate) fn put(&mut self, kind: ObjectKind, name: &str, message: &impl Message) {
        let bytes = message.encode_to_vec().into();
        self.objects.push(Object { kind, project: PROJECT.into(), name: name.into(), bytes });
    }

    /// An entity whose join key has its name.
    pub(crate) fn entity(&mut self, name: &str, value_type: ValueType) {
        let spec = core::EntitySpecV2 {
            name: name.into(),
            project: PROJECT.into(),
            join_key: name.into(),
            value_type: value_type.into(),
            ..Default::default()
        };
        self.put(ObjectKind::Entity, name, &core::Entity { spec: Some(spec), meta: None });
    }

    /// A feature view over its own file source `<name>_source` at `uri`, with times `t` and `c`.
    pub(crate) fn view(&mut self, name: &str, keys: &[&str], features: &[(&str, ValueType)], ttl_us: i64, uri: &str) {
        let source = source(&format!("{name}_source"), uri);
        self.put(ObjectKind::DataSource, &source.name, &source);
        let spec = core::FeatureViewSpec {
            name: name.into(),
            project: PROJECT.into(),
            entities: keys.iter().map(|k| (*k).to_owned()).collect(),
            features: features.iter().map(|(n, t)| field(n, *t)).collect(),
            ttl: Some(prost_types::Duration { seconds: ttl_us / 1_000_000, nanos: (ttl_us % 1_000_000) as i32 * 1000 }),
            batch_source: Some(source),
            online: true,
            ..Default::default()
        };
        self.put(ObjectKind::FeatureView, name, &core::FeatureView { spec: Some(spec), meta: None });
    }

    pub(crate) fn write(&self, path: &str, batch: &RecordBatch) {
        write(&self.dir.path().join(path), batch);
    }

    /// Writes a file with so many rows in each row group.
    pub(crate) fn write_in_groups(&self, path: &str, batch: &RecordBatch, rows: usize) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows)).build();
        let file = std::fs::File::create(path).expect("create");
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("writer");
        writer.write(batch).expect("write");
        writer.close().expect("close");
    }

    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::new(Registry::resolve(1, self.objects.clone()).expect("a registry"))
    }

    pub(crate) fn registered(&self, view: &str) -> Arc<View> {
        self.registry().projects[PROJECT].views[view].clone()
    }

    pub(crate) fn offline(&self, memory: usize) -> Offline {
        self.offline_by(memory, 64)
    }

    /// With so many rows in a batch; pieces that are read on their own have four batches and more.
    pub(crate) fn offline_by(&self, memory: usize, batch_rows: usize) -> Offline {
        self.offline_with(memory, batch_rows, None)
    }

    /// With the logs of streams in a directory of the repo.
    pub(crate) fn offline_with(&self, memory: usize, batch_rows: usize, event_log: Option<&str>) -> Offline {
        let data = self.dir.path().join("larder");
        let settings = Settings {
            repo_dir: self.dir.path().to_path_buf(),
            spill_dir: data.join("spill"),
            upload_dir: data.join("uploads"),
            memory_limit_bytes: memory,
            batch_rows,
            event_log: event_log.map(|dir| self.dir.path().join(dir)),
            ..Settings::default()
        };
        let registry = self.registry();
        Offline::new(settings, Arc::new(move || registry.clone()), Arc::new(Still(0))).expect("set up")
    }

    pub(crate) async fn serve(&self) -> Server {
        Server::start(self.offline(256 << 20)).await
    }
}

pub(crate) fn source(name: &str, uri: &str) -> core::DataSource {
    let options = core::data_source::FileOptions { uri: uri.into(), ..Default::default() };
    core::DataSource {
        name: name.into(),
        project: PROJECT.into(),
        r#type: core::data_source::SourceType::BatchFile.into(),
        timestamp_field: "t".into(),
        created_timestamp_column: "c".into(),
        options: Some(core::data_source::Options::FileOptions(options)),
        ..Default::default()
    }
}

pub(crate) fn field(name: &str, value_type: ValueType) -> core::FeatureSpecV2 {
    core::FeatureSpecV2 { name: name.into(), value_type: value_type.into(), ..Default::default() }
}

pub(crate) fn write(path: &Path, batch: &RecordBatch) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    let file = std::fs::File::create(path).expect("create");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("writer");
    writer.write(batch).expect("write");
    writer.close().expect("close");
}

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).expect("a batch")
}

pub(crate) fn ints(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values))
}

pub(crate) fn texts(values: impl IntoIterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

pub(crate) fn times(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter(values).with_timezone("UTC"))
}

/// The service on a socket of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(offline: Offline) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = stream::unfold(listener, |listener| async move {
            let socket = listener.accept().await.map(|(socket, _)| socket);
            Some((socket, listener))
        });
        let service = offline::flight::service(offline);
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let task = tokio::spawn(async move { server.await.expect("serves") });
        Self { address, task }
    }

    pub(crate) async fn client(&self) -> FlightServiceClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).expect("an address").connect().await;
        FlightServiceClient::new(channel.expect("connects")).max_decoding_message_size(4 << 20)
    }

    /// A read as the SDK makes it.
    pub(crate) async fn exchange(
        &self,
        command: &serde_json::Value,
        frame: &RecordBatch,
    ) -> Result<RecordBatch, Status> {
        let messages = upload(command.to_string().as_bytes(), frame);
        let answer = self.client().await.do_exchange(messages).await?.into_inner();
        collect(answer).await
    }

    /// A write as the SDK makes it, or the first step of an old read.
    pub(crate) async fn put(&self, command: &serde_json::Value, frame: &RecordBatch) -> Result<(), Status> {
        let messages = upload(command.to_string().as_bytes(), frame);
        let answer = self.client().await.do_put(messages).await?.into_inner();
        answer.try_collect::<Vec<_>>().await.map(|_| ())
    }

    /// The second and third step of an old read.
    pub(crate) async fn get(&self, command: &serde_json::Value) -> Result<RecordBatch, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.to_string());
        let info = self.client().await.get_flight_info(descriptor).await?.into_inner();
        let ticket: Ticket = info.endpoint[0].ticket.clone().expect("a ticket");
        collect(self.client().await.do_get(ticket).await?.into_inner()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn upload(command: &[u8], frame: &RecordBatch) -> impl futures::Stream<Item = FlightData> + Send + 'static {
    FlightDataEncoderBuilder::new()
        .with_schema(frame.schema())
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command.to_vec())))
        .with_max_flight_data_size(64 << 20)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .build(stream::iter([Ok(frame.clone())]))
        .map(|message| message.expect("encodes"))
}

pub(crate) async fn collect(answer: tonic::Streaming<FlightData>) -> Result<RecordBatch, Status> {
    let data = answer.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut all = Vec::new();
    while let Some(batch) = batches.next().await {
        match batch {
            Ok(batch) => all.push(batch),
            Err(FlightError::Tonic(status)) => return Err(*status),
            Err(other) => panic!("{other}"),
        }
    }
    let schema = batches.schema().cloned().expect("a schema");
    Ok(arrow::compute::concat_batches(&schema, &all).expect("one schema"))
}

/// `get_historical_features` of views with features, as the SDK sends it.
pub(crate) fn historical(views: &[(&str, &[&str])]) -> serde_json::Value {
    let refs: Vec<String> = views.iter().flat_map(|(v, fs)| fs.iter().map(move |f| format!("{v}:{f}"))).collect();
    let names: Vec<&str> = views.iter().map(|(v, _)| *v).collect();
    let aliases = vec![serde_json::Value::Null; views.len()];
    serde_json::json!({"command_id": "1", "api": "get_historical_features", "feature_view_names": names,
        "feature_refs": refs, "project": PROJECT, "full_feature_names": true, "name_aliases": aliases})
}

/// The error detail that a Feast client finds in a status: class and message.
pub(crate) fn detail(status: &Status) -> (String, String) {
    let text = status.message().strip_prefix("Flight error: ").expect("the client looks for this");
    let parsed: BTreeMap<String, String> = serde_json::from_str(text).expect("JSON behind it");
    assert_eq!(parsed["module"], "feast.errors");
    (parsed["class"].clone(), parsed["message"].clone())
}
