//! Request bodies: JSON to typed requests, with errors that name the limit or the place.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use model::{Error, Kind};
use serde::de::DeserializeOwned;
use service::push::{Cell, Frame};

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

/// A data frame as `pandas.DataFrame(df)` reads it from JSON: `{column: [..]}`, or
/// `{column: {index: value}}` with the rows in the order of the first column's index.
///
/// Errors: a column that is neither, columns of unequal length.
pub(super) fn frame(df: serde_json::Map<String, serde_json::Value>) -> model::Result<Frame> {
    use serde_json::Value as Json;
    let index: Option<Vec<String>> = df.values().find_map(|column| match column {
        Json::Object(cells) => Some(cells.keys().cloned().collect()),
        _ => None,
    });
    let mut frame = Frame::default();
    for (position, (name, column)) in df.into_iter().enumerate() {
        let cells: Vec<Cell> = match (column, &index) {
            (Json::Array(cells), _) => cells.into_iter().map(Cell::Json).collect(),
            (Json::Object(mut cells), Some(index)) => {
                let row = index.iter().map(|key| Cell::Json(cells.shift_remove(key).unwrap_or(Json::Null))).collect();
                if let Some(extra) = cells.keys().next() {
                    return Err(Error::invalid(format!(
                        "df: column '{name}' has the index '{extra}', which the first column has not"
                    )));
                }
                row
            }
            _ => {
                return Err(Error::invalid(format!(
                    "df: column '{name}' is neither a list nor an object: send {{\"{name}\": [..]}}"
                )));
            }
        };
        if position > 0 && cells.len() != frame.rows {
            return Err(Error::invalid(format!(
                "df: All arrays must be of the same length: column '{name}' has {} values, the first column {}",
                cells.len(),
                frame.rows
            )));
        }
        frame.rows = cells.len();
        frame.columns.push((name, cells));
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(df: &serde_json::Value) -> model::Result<Frame> {
        frame(df.as_object().expect("an object").clone())
    }

    #[test]
    fn both_shapes_of_a_frame_are_the_same_rows() {
        let lists = read(&json!({"a": [1, 2], "b": ["x", null]})).expect("lists");
        let dicts = read(&json!({"a": {"7": 1, "3": 2}, "b": {"3": null, "7": "x"}})).expect("dicts");
        assert_eq!(format!("{lists:?}"), format!("{dicts:?}"));
        assert_eq!(lists.rows, 2);
    }

    #[test]
    fn a_frame_that_pandas_would_refuse_is_refused_by_name() {
        for (df, word) in [
            (json!({"a": [1], "b": [1, 2]}), "'b'"),
            (json!({"a": 1}), "'a'"),
            (json!({"a": {"0": 1}, "b": {"1": 1}}), "'b'"),
        ] {
            let error = read(&df).expect_err(word);
            assert!(error.message().contains(word), "{}", error.message());
        }
    }
}
