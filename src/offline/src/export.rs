//! A training set into Parquet, for the command line: the retrieval of the Flight server, done in this process or
//! asked of a running server, and written row group by row group. Knows no flag and no terminal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightClient, FlightDescriptor};
use futures::future::{BoxFuture, Either, select};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use model::{Error, Kind, Result};
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use serde_json::json;
use tonic::transport::Endpoint;

use crate::error::{arrow as arrow_error, parquet as parquet_error};
use crate::history;
use crate::request::Command;
use crate::source::Location;
use crate::store::Stores;
use crate::{ObjectStoreOptions, Offline, append};

/// What to export.
#[derive(Clone, Debug)]
pub struct Job {
    /// The project.
    pub project: String,
    /// The features.
    pub features: Features,
    /// The entity rows.
    pub entities: Entities,
    /// Whether columns are called `view__feature`.
    pub full_feature_names: bool,
    /// Whether a row counts only from when it became known on; `None` leaves that to each view.
    pub known_at: Option<bool>,
}

/// Which features.
#[derive(Clone, Debug)]
pub enum Features {
    /// Those of a registered feature service.
    Service(String),
    /// `view:feature` references.
    Refs(Vec<String>),
}

/// For which entities, and when.
#[derive(Clone, Debug)]
pub enum Entities {
    /// The rows of a Parquet file.
    File(PathBuf),
    /// The rows of a SELECT over the project's data sources by name.
    Sql(String),
    /// Every entity with a row between two times (RFC 3339), at the second one; `None` is as far back as
    /// the views' ttl, and now.
    Span(Option<String>, Option<String>),
}

/// Who does the work.
pub enum Place {
    /// This process.
    Here(Box<Offline>),
    /// A running offline server, at `http://host:port`.
    Server(String),
}

/// A training set on its way.
pub struct Export {
    inner: history::Export,
    /// How many rows there will be, where that is known.
    pub rows: Option<u64>,
}

/// Rows of entities on their way.
struct Upload {
    schema: SchemaRef,
    rows: Option<u64>,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl Job {
    /// Begins the retrieval.
    ///
    /// Errors: those of the retrieval; `InvalidArgument` for entities that cannot be read; `Unavailable` for a
    /// server that does not answer.
    pub async fn begin(&self, place: &Place) -> Result<Export> {
        let upload = match &self.entities {
            Entities::File(path) => read(path).await?,
            Entities::Sql(_) | Entities::Span(..) => placeholder()?,
        };
        let rows = upload.rows;
        let command = self.command();
        let inner = match place {
            Place::Here(offline) => {
                let mut frame = offline.frame(upload.schema);
                let mut batches = upload.batches;
                while let Some(batch) = batches.next().await {
                    frame.push(batch?).await?;
                }
                offline.read(&Command::parse(command.as_bytes())?, Some(frame)).await?
            }
            Place::Server(address) => ask(address, command, upload).await?,
        };
        Ok(Export { inner, rows })
    }

    /// The command as the SDK would send it; the server resolves a service by itself.
    fn command(&self) -> String {
        let mut command = json!({
            "command_id": uuid::Uuid::new_v4().to_string(),
            "api": "get_historical_features",
            "project": self.project,
            "full_feature_names": self.full_feature_names,
        });
        if let Some(known) = self.known_at {
            command["filter_by_created_timestamp"] = json!(known);
        }
        match &self.features {
            Features::Service(name) => command["feature_service_name"] = json!(name),
            Features::Refs(refs) => {
                let mut views: Vec<&str> = Vec::new();
                for view in refs.iter().map(|r| r.split_once(':').map_or(r.as_str(), |(view, _)| view)) {
                    let name = view.split_once('@').map_or(view, |(name, _)| name);
                    if !views.contains(&name) {
                        views.push(name);
                    }
                }
                command["feature_view_names"] = json!(views);
                command["feature_refs"] = json!(refs);
            }
        }
        match &self.entities {
            Entities::File(_) => {}
            Entities::Sql(text) => command["entity_df_sql"] = json!(text),
            Entities::Span(from, to) => {
                command["start_date"] = json!(from);
                command["end_date"] = json!(to);
            }
        }
        command.to_string()
    }
}

impl Export {
    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.inner.schema.fields().len()
    }

    /// Writes it to a file (`x.parquet`), or as the one file of a directory, here or in an object store; whole or
    /// not at all: it ends when `stop` does. `progress` is told the rows of each batch. Gives the number of rows.
    ///
    /// Errors: `Conflict` where something is there and `overwrite` is not set; `Unsupported` for a store that is not
    /// offered; `Unavailable` where it was stopped; those of the retrieval, the disk and the store.
    pub async fn write(
        self,
        out: &str,
        object_store: ObjectStoreOptions,
        overwrite: bool,
        progress: impl Fn(u64) + Send + 'static,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<u64> {
        let history::Export { schema, batches } = self.inner;
        let batches = batches.inspect_ok(move |batch| progress(batch.num_rows() as u64)).boxed();
        let batches = until(batches, stop.boxed());
        let location = Location::of_uri(out, "", Path::new(""), &Stores::new(object_store)?)?;
        let locks = append::Locks::default();
        append::export(&locks, &location, out, overwrite, history::Export { schema, batches }).await
    }
}

/// Rows that end with an error once `stop` ends.
fn until(
    rows: BoxStream<'static, Result<RecordBatch>>,
    stop: BoxFuture<'static, ()>,
) -> BoxStream<'static, Result<RecordBatch>> {
    let next = |state: Option<(BoxStream<'static, _>, BoxFuture<'static, ()>)>| async move {
        let (mut rows, stop) = state?;
        match select(stop, rows.next()).await {
            Either::Left(((), _)) => Some((Err(stopped()), None)),
            Either::Right((next, stop)) => Some((next?, Some((rows, stop)))),
        }
    };
    stream::unfold(Some((rows, stop)), next).boxed()
}

/// Of an export that was stopped.
pub fn stopped() -> Error {
    Error::new(Kind::Unavailable, "interrupted: nothing was written")
}

/// A Parquet file as a stream of batches.
async fn read(path: &Path) -> Result<Upload> {
    let unusable = |e: &dyn std::fmt::Display| {
        Error::invalid(format!("the entity rows in {} cannot be read: {e}; give a Parquet file", path.display()))
    };
    let file = tokio::fs::File::open(path).await.map_err(|e| unusable(&e))?;
    let builder = ParquetRecordBatchStreamBuilder::new(file).await.map_err(|e| unusable(&e))?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).ok();
    let schema = builder.schema().clone();
    let batches = builder.build().map_err(|e| unusable(&e))?;
    let path = path.to_owned();
    let batches = batches.map_err(move |e| parquet_error("reading", &path, e)).boxed();
    Ok(Upload { schema, rows, batches })
}

/// What stands in the place of entity rows, as the SDK sends it.
fn placeholder() -> Result<Upload> {
    let key = Arc::new(StringArray::from(Vec::<String>::new()));
    let batch = RecordBatch::try_from_iter([("key", key as _)]).map_err(arrow_error)?;
    Ok(Upload { schema: batch.schema(), rows: None, batches: stream::iter([Ok(batch)]).boxed() })
}

/// The same of a running server.
async fn ask(address: &str, command: String, upload: Upload) -> Result<history::Export> {
    let unreachable = |e: tonic::transport::Error| {
        Error::new(Kind::Unavailable, format!("no offline server answers at {address}: start one, or name another"))
            .with_cause(e)
    };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|e| Error::invalid(format!("{address} is no address of a server (http://host:port): {e}")))?;
    let channel = endpoint.connect().await.map_err(unreachable)?;
    let inner = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(upload.schema)
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command)))
        .build(upload.batches.map_err(|e| FlightError::ExternalError(Box::new(e))));
    let mut batches = FlightClient::new_from_inner(inner).do_exchange(messages).await.map_err(of_flight)?;
    // The schema comes before the first row.
    let first = batches.next().await.transpose().map_err(of_flight)?;
    let schema = batches.schema().cloned().ok_or_else(|| {
        Error::new(Kind::Unavailable, format!("{address} answered without a table: is it an offline server?"))
    })?;
    let batches = stream::iter(first.map(Ok)).chain(batches.map_err(of_flight)).boxed();
    Ok(history::Export { schema, batches })
}

/// A server's error detail, or what else went wrong.
fn of_flight(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => rpc::status::of_flight(&status),
        FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::internal("the entity rows could not be sent", std::io::Error::other(other)),
        },
        other => Error::new(Kind::Unavailable, format!("the answer broke off: {other}")),
    }
}
