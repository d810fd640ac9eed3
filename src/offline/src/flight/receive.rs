//! The upload side of a call: its descriptor, and the table behind it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use model::{Error, Kind, Result};
use tonic::{Status, Streaming};

use super::claims;
use crate::Offline;
use crate::error::engine as engine_error;
use crate::frame::Frame;

/// Messages with a table's parts.
pub(super) type Messages = BoxStream<'static, std::result::Result<FlightData, Status>>;

/// The descriptor that the first message carries, and all messages with data.
pub(super) async fn split(
    mut messages: Streaming<FlightData>,
) -> std::result::Result<(FlightDescriptor, Messages), Status> {
    let Some(first) = messages.message().await? else {
        return Err(rpc::status::to_flight(&Error::invalid("the call ended before its first message")));
    };
    let descriptor = first.flight_descriptor.clone().unwrap_or_default();
    let rest = stream::iter([Ok(first)]).chain(messages);
    // A message may carry nothing but the descriptor or metadata.
    let data = rest.try_filter(|m| std::future::ready(!m.data_header.is_empty()));
    Ok((descriptor, data.boxed()))
}

/// The uploaded table, begun by `begin`. Messages are read to the end even when it is over a limit: the client looks
/// for errors only then.
pub(super) async fn frame(offline: &Offline, messages: Messages, begin: impl Fn(SchemaRef) -> Frame) -> Result<Frame> {
    let room = offline.engine.reservation("an upload's compressed message");
    let checked = messages.map(move |message| {
        let message = message.map_err(|status| FlightError::Tonic(Box::new(status)))?;
        let own = |error: Error| FlightError::ExternalError(Box::new(error));
        let bytes = claims::check(&message).map_err(own)?;
        room.try_resize(bytes).map_err(|e| own(engine_error(e)))?;
        Ok(message)
    });
    let mut batches = FlightRecordBatchStream::new_from_flight_data(checked);
    let mut frame: Option<Frame> = None;
    let mut refused = None;
    // What slips through the checks and makes Arrow panic is the caller's error all the same.
    while let Some(batch) = AssertUnwindSafe(batches.next()).catch_unwind().await.map_err(|_| malformed())? {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Err(unreadable(error)),
        };
        if refused.is_some() {
            continue;
        }
        let frame = frame.get_or_insert_with(|| begin(batch.schema()));
        refused = frame.push(batch).await.err();
    }
    if let Some(error) = refused {
        return Err(error);
    }
    Ok(frame.unwrap_or_else(|| {
        let schema = batches.schema().cloned();
        begin(schema.unwrap_or_else(|| Arc::new(Schema::empty())))
    }))
}

fn malformed() -> Error {
    Error::invalid("the uploaded table cannot be read: a message of it is not what its schema says: send it again")
}

/// Reads to the end, keeping nothing.
pub(super) async fn drain(mut messages: Messages) {
    while let Some(Ok(_)) = messages.next().await {}
}

fn unreadable(error: FlightError) -> Error {
    match error {
        FlightError::ExternalError(inner) => inner.downcast::<Error>().map_or_else(|_| malformed(), |own| *own),
        FlightError::Tonic(status) if status.code() == tonic::Code::OutOfRange => Error::new(
            Kind::TooLarge,
            format!("an uploaded batch is too large, send smaller ones: {}", status.message()),
        ),
        FlightError::Tonic(status) if status.code() == tonic::Code::Cancelled => Error::invalid("the upload broke off"),
        other => {
            Error::invalid(format!("the uploaded table cannot be read: {}", crate::error::short(&other.to_string())))
                .with_cause(other)
        }
    }
}
