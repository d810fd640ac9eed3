//! Request bodies: JSON to typed requests, with errors that name the limit or the place.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use model::{Error, Kind};
use serde::de::DeserializeOwned;

use super::Failure;
use crate::limits::Interrupted;
use crate::projects::Projects;

/// A JSON body of a known shape, whatever its content type says (as Feast's own server).
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Projects> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, projects: &Projects) -> Result<Self, Failure> {
        let limits = projects.limits();
        let (head, body) = request.into_parts();
        let bytes = read(&head.headers, body, limits.max_body_bytes).await?;
        parse(&bytes, limits.max_json_depth.get()).map(Body).map_err(Failure)
    }
}

/// A whole body.
///
/// Errors: it is compressed; it has more than `limit` bytes; it was interrupted, by the client or by a limit.
pub(super) async fn read<B>(headers: &HeaderMap, mut body: B, limit: NonZeroUsize) -> model::Result<Bytes>
where
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Unpin,
{
    let encoding = headers.get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let what = format!("the request body is compressed ({encoding:?}): send it as it is");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let (mut whole, mut parts, mut size) = (Bytes::new(), BytesMut::new(), 0);
    // A body that says itself that it is too large is not waited for.
    let said = http_body::Body::size_hint(&body).lower();
    while size <= limit.get() && said <= limit.get() as u64 {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else {
            return Ok(if parts.is_empty() { whole } else { parts.freeze() });
        };
        let Ok(data) = frame.map_err(|error| unread(&error))?.into_data() else { continue };
        size += data.len();
        if whole.is_empty() && parts.is_empty() {
            // Mostly it is all of it.
            whole = data;
        } else {
            parts.extend_from_slice(&std::mem::take(&mut whole));
            parts.extend_from_slice(&data);
        }
    }
    let what = format!("the request body is larger than {limit} bytes");
    Err(Error::over_limit(Kind::TooLarge, "max_body_bytes", what, "send it in parts"))
}

/// Why a body could not be read.
fn unread(error: &axum::Error) -> Error {
    // the innermost, which says what is wrong with the chunks or the length
    let mut reason = String::new();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
            return interrupted.error.clone();
        }
        reason = error.to_string();
        cause = error.source();
    }
    Error::invalid(format!("the request body could not be read: {reason}"))
}

/// Reads a JSON body of a known shape, at most `max_depth` lists and objects deep.
///
/// Errors: what is wrong, and where in the text.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], max_depth: usize) -> model::Result<T> {
    if is_deeper(bytes, max_depth) {
        let what = format!("the request body has more than {max_depth} lists and objects in one another");
        return Err(Error::over_limit(Kind::InvalidArgument, "max_json_depth", what, "make it flatter"));
    }
    // A byte order mark is passed over, as Python's `json.loads` does.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // serde would also take a list, with the fields' values in their order here.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::invalid("the request body is not the JSON that this call takes: a list, not an object"));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let hint = if is_not_a_number(bytes, &e) {
            ": JSON has no NaN and no Infinity: write null, or the text \"NaN\", \"Infinity\" or \"-Infinity\""
        } else {
            ""
        };
        Error::invalid(format!("the request body is not the JSON that this call takes: {e}{hint}"))
    })
}

/// Whether lists and objects stand deeper in one another than `most`.
fn is_deeper(json: &[u8], most: usize) -> bool {
    // Both brackets are one byte but for one bit, and most bodies have few of them.
    if json.iter().filter(|byte| **byte | 0x20 == b'{').count() <= most {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > most {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Whether JSON ended where Python's `json.dumps` writes `NaN`, `Infinity` or `-Infinity`.
fn is_not_a_number(json: &[u8], error: &serde_json::Error) -> bool {
    let line = json.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let from = error.column().saturating_sub(2).min(line.len());
    ["NaN", "Infinity"].iter().any(|word| {
        let near = &line[from..line.len().min(from + word.len() + 2)];
        near.windows(word.len()).any(|part| part == word.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_of_brackets_outside_of_text() {
        for (text, depth) in [(r#"{"a": [1, [2]]}"#, 3), (r#"["[[[[\"[[", 1, [2], [3]]"#, 2), ("[]", 1), ("1", 0)] {
            assert!(!is_deeper(text.as_bytes(), depth), "{text}");
            assert!(depth == 0 || is_deeper(text.as_bytes(), depth - 1), "{text}");
        }
        let error = parse::<Vec<i64>>(b" [1]", 32).expect_err("a list");
        assert!(error.message().contains("a list, not an object"), "{error}");
        assert_eq!(parse::<serde_json::Value>(b"\xef\xbb\xbf{}", 32).expect("an object"), serde_json::json!({}));
        let endless = "[".repeat(1_000_000);
        let error = parse::<serde_json::Value>(endless.as_bytes(), 32).expect_err("too deep");
        assert_eq!((error.limit(), error.kind()), (Some("max_json_depth"), Kind::InvalidArgument));
    }

    #[test]
    fn a_number_that_json_lacks_is_named() {
        for (text, hint) in [
            (r#"{"a": [1, NaN]}"#, true),
            ("{\n\"a\": -Infinity}", true),
            (r#"{"a": [Infinity]}"#, true),
            (r#"{"a": [1, x]}"#, false),
        ] {
            let error = parse::<serde_json::Value>(text.as_bytes(), 32).expect_err(text);
            assert_eq!(error.message().contains("JSON has no NaN"), hint, "{text}: {}", error.message());
        }
    }
}
