//! Arrow Flight: unpacks calls, calls the verbs, packs results and errors. Since Feast 0.66 a read is
//! one `do_exchange`; older clients do `do_put`, `get_flight_info`, `do_get`; writes are `do_put`.
//!
//! Source: `feast/infra/offline_stores/remote.py`, `feast/offline_server.py`. Knows no query.

mod claims;
mod receive;
mod uploads;

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc, SchemaResult, Ticket,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use model::{Error, Kind, Result};
use tonic::{Request, Response, Status, Streaming};

use crate::Offline;
use crate::history::Export;
use crate::metrics::{self, Call};
use crate::request::{Api, Command};
use uploads::Uploads;

/// A result message is at most this long, so that clients with gRPC's default limit (4 MiB) can
/// read it.
const MESSAGE_BYTES: usize = 2 << 20;

/// The Flight service, with its message limits set.
pub fn service(offline: Offline) -> FlightServiceServer<Service> {
    let limit = offline.settings.max_message_bytes;
    let uploads = Arc::new(Uploads::new(&offline.settings));
    FlightServiceServer::new(Service { offline, uploads })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(usize::MAX)
}

/// Feast's offline server.
#[derive(Clone, Debug)]
pub struct Service {
    offline: Offline,
    uploads: Arc<Uploads>,
}

type Answer<T> = std::result::Result<Response<T>, Status>;
type Messages<T> = BoxStream<'static, std::result::Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoExchangeStream = Messages<FlightData>;
    type DoActionStream = Messages<ActionResult>;
    type ListActionsStream = Messages<ActionType>;

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        let (descriptor, messages) = receive::split(request.into_inner()).await?;
        let command = match Command::parse(&descriptor.cmd) {
            Ok(command) => command,
            Err(error) => return refuse_after(messages, &error).await,
        };
        let mut call = Call::begin(command.api.as_str());
        // The client looks for an error only after it has sent everything: take it all first.
        let frame = receive::frame(&self.offline, messages, |schema| self.offline.frame(schema)).await;
        let result = match frame {
            Ok(frame) => self.offline.read(&command, Some(frame)).await,
            Err(error) => Err(error),
        };
        answer(result, &mut call).map(|export| Response::new(send(export, call)))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let (descriptor, messages) = receive::split(request.into_inner()).await?;
        let command = match Command::parse(&descriptor.cmd) {
            Ok(command) => command,
            Err(error) => return refuse_after(messages, &error).await,
        };
        let mut call = Call::begin(if command.api.is_read() { "do_put" } else { command.api.as_str() });
        // Entity rows may go to disk; rows that are written are in memory.
        let takes_entities = command.api.is_read() || command.api == Api::Persist;
        let begin = |schema| if takes_entities { self.offline.frame(schema) } else { self.offline.table(schema) };
        let result = match receive::frame(&self.offline, messages, begin).await {
            Ok(frame) if command.api.is_read() => self.uploads.store(&descriptor.cmd, frame).await,
            Ok(frame) => self.offline.write(&command, frame).await,
            Err(error) => Err(error),
        };
        answer(result, &mut call)?;
        call.ok();
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let descriptor = request.into_inner();
        let known = match Command::parse(&descriptor.cmd) {
            Ok(command) => self.uploads.contains(&descriptor.cmd) || command.api != Api::Historical,
            Err(error) => return Err(rpc::status::to_flight(&error)),
        };
        if !known {
            return Err(rpc::status::to_flight(&not_found()));
        }
        info(descriptor).map(Response::new).map_err(|e| rpc::status::to_flight(&e))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let ticket = request.into_inner().ticket;
        let command = Command::parse(&ticket).map_err(|e| rpc::status::to_flight(&e))?;
        let mut call = Call::begin(command.api.as_str());
        let result = match self.uploads.load(&ticket, &self.offline).await {
            Ok(None) if command.api == Api::Historical => Err(not_found()),
            Ok(frame) => self.offline.read(&command, frame).await,
            Err(error) => Err(error),
        };
        let messages = send(answer(result, &mut call)?, call);
        // Fetched in whole, an upload has served its turn; else it waits for another try.
        let uploads = self.uploads.clone();
        let messages = stream::unfold((messages, false), move |(mut messages, failed)| {
            let (uploads, ticket) = (uploads.clone(), ticket.clone());
            async move {
                let Some(message) = messages.next().await else {
                    if !failed {
                        uploads.forget(&ticket);
                    }
                    return None;
                };
                let failed = failed || message.is_err();
                Some((message, (messages, failed)))
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn list_flights(&self, _request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let commands = self.uploads.commands().map_err(|e| rpc::status::to_flight(&e))?;
        let infos = commands
            .into_iter()
            .map(|command| info(FlightDescriptor::new_cmd(command)).map_err(|e| rpc::status::to_flight(&e)));
        Ok(Response::new(stream::iter(infos.collect::<Vec<_>>()).boxed()))
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        let actions = [
            (Api::WriteBatch, "Appends the uploaded table to the batch source of a feature view."),
            (Api::WriteLogged, "Writes logged features where the feature service's logging config says."),
            (Api::Persist, "Runs a retrieval and writes its result to a registered file source."),
        ];
        let actions = actions.map(|(api, description)| {
            Ok(ActionType { r#type: api.as_str().to_owned(), description: description.to_owned() })
        });
        Ok(Response::new(stream::iter(actions).boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let action = request.into_inner().r#type;
        let error = Error::new(
            Kind::Unsupported,
            format!("the action '{action}' is not called as an action: Feast's client sends it as the api of a do_put"),
        );
        Err(rpc::status::to_flight(&error))
    }

    async fn handshake(&self, _request: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        Err(unsupported("Handshake"))
    }

    async fn poll_flight_info(&self, _request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        Err(unsupported("PollFlightInfo"))
    }

    async fn get_schema(&self, _request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        Err(unsupported("GetSchema"))
    }
}

fn unsupported(call: &str) -> Status {
    rpc::status::to_flight(&Error::new(Kind::Unsupported, format!("{call} is not part of Feast's offline server")))
}

fn not_found() -> Error {
    Error::new(Kind::NotFound, "Flight not found: upload the entity dataframe again, it may have expired")
}

/// Reads the client's upload to its end, then tells it what was wrong.
async fn refuse_after<T>(messages: receive::Messages, error: &Error) -> Answer<T> {
    receive::drain(messages).await;
    Err(rpc::status::to_flight(error))
}

/// A result, or its error counted and as a status.
fn answer<T>(result: Result<T>, call: &mut Call) -> std::result::Result<T, Status> {
    result.map_err(|error| {
        call.failed(&error);
        rpc::status::to_flight(&error)
    })
}

/// The result as Flight messages; the call ends with the last of them.
fn send(export: Export, call: Call) -> Messages<FlightData> {
    let batches = stream::unfold((export.batches, call), |(mut batches, mut call)| async move {
        match batches.next().await {
            Some(Ok(batch)) => {
                metrics::exported(batch.num_rows() as u64);
                Some((Ok(batch), (batches, call)))
            }
            Some(Err(error)) => {
                call.failed(&error);
                let status = rpc::status::to_flight(&error);
                Some((Err(FlightError::Tonic(Box::new(status))), (stream::empty().boxed(), call)))
            }
            None => {
                call.ok_unless_failed();
                None
            }
        }
    });
    FlightDataEncoderBuilder::new()
        .with_schema(export.schema)
        .with_max_flight_data_size(MESSAGE_BYTES)
        .with_dictionary_handling(arrow_flight::encode::DictionaryHandling::Resend)
        .build(batches)
        .map_err(|error| match error {
            FlightError::Tonic(status) => *status,
            other => rpc::status::to_flight(&Error::internal("the result could not be encoded", other)),
        })
        .boxed()
}

/// What `get_flight_info` says: the ticket is the command itself, so that any replica, or this one
/// after a restart, can serve it.
fn info(descriptor: FlightDescriptor) -> Result<FlightInfo> {
    let schema = Schema::empty();
    let schema: arrow_flight::IpcMessage = SchemaAsIpc::new(&schema, &IpcWriteOptions::default())
        .try_into()
        .map_err(|e: arrow::error::ArrowError| Error::internal("an empty schema could not be encoded", e))?;
    let mut info = FlightInfo::new()
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(descriptor.cmd.clone())))
        .with_descriptor(descriptor)
        .with_total_records(-1)
        .with_total_bytes(-1);
    info.schema = schema.0;
    Ok(info)
}
