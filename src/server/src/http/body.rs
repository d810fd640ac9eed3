//! Request bodies: JSON to typed requests, with errors that name the limit or the place.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use model::{Error, Kind};
use serde::de::DeserializeOwned;

use super::Failure;
use crate::Online;

/// A JSON body of a known shape, whatever its content type says (as Feast's own server).
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Online> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, online: &Online) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, online).await.map_err(|rejection: BytesRejection| {
            Failure(if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Error::new(
                    Kind::TooLarge,
                    format!(
                        "the request body is larger than {} bytes (limits.max_body_bytes): send it in parts",
                        online.max_body_bytes
                    ),
                )
            } else {
                Error::invalid(format!("the request body could not be read: {}", rejection.body_text()))
            })
        })?;
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|e| Failure(Error::invalid(format!("the request body is not the JSON that this call takes: {e}"))))
    }
}
