//! The upload side of a call: its descriptor, and the table behind it.

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use model::{Error, Kind, Result};
use tonic::{Status, Streaming};

use crate::Offline;
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

/// The uploaded table; its memory counts against the limit. Messages are read to the end even
/// when it is over the limit: the client looks for errors only then.
pub(super) async fn frame(offline: &Offline, messages: Messages) -> Result<Frame> {
    let data = messages.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut frame: Option<Frame> = None;
    let mut refused = None;
    while let Some(batch) = batches.next().await {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Err(unreadable(error)),
        };
        if refused.is_some() {
            continue;
        }
        let frame = frame.get_or_insert_with(|| offline.frame(batch.schema()));
        refused = frame.push(batch).err();
    }
    if let Some(error) = refused {
        return Err(error);
    }
    Ok(frame.unwrap_or_else(|| {
        let schema = batches.schema().cloned();
        offline.frame(schema.unwrap_or_else(|| Arc::new(Schema::empty())))
    }))
}

/// Reads to the end, keeping nothing.
pub(super) async fn drain(mut messages: Messages) {
    while let Some(Ok(_)) = messages.next().await {}
}

fn unreadable(error: FlightError) -> Error {
    match error {
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
