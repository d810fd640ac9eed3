//! The map from [`model::Error`] to what each protocol says. A 5xx is our fault and is logged here,
//! with its cause; nothing that is the caller's fault may become one, for Feast's client retries it.
//!
//! Sources: `feast/errors.py` (`grpc_status_code`, `http_status_code`), `feast/rest_error_handler.py`,
//! `feast/grpc_error_interceptor.py`, `feast/arrow_error_handler.py`.

use std::error::Error as _;

use http::{HeaderMap, HeaderValue, StatusCode};
use model::{Error, Kind};
use tonic::{Code, Status};

/// For gRPC: the error detail is the message.
pub fn to_grpc(error: &Error) -> Status {
    log(error);
    Status::new(code(error.kind()), error.detail())
}

/// For Arrow Flight: the client searches the text for `Flight error: ` and the detail behind it.
pub fn to_flight(error: &Error) -> Status {
    log(error);
    Status::new(code(error.kind()), format!("Flight error: {}", error.detail()))
}

/// From Arrow Flight: what a server of Feast's kind says, its error's class aside.
pub fn of_flight(status: &Status) -> Error {
    let kind = match status.code() {
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::NotFound => Kind::NotFound,
        Code::FailedPrecondition => Kind::Conflict,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::PermissionDenied => Kind::PermissionDenied,
        Code::ResourceExhausted => Kind::TooLarge,
        Code::DeadlineExceeded => Kind::TooSlow,
        Code::Unimplemented => Kind::Unsupported,
        Code::Internal => Kind::Internal,
        _ => Kind::Unavailable,
    };
    let detail = status.message().split_once("Flight error: ").map(|(_, detail)| detail);
    let detail: Option<serde_json::Value> = detail.and_then(|detail| serde_json::from_str(detail).ok());
    let message = detail.as_ref().and_then(|detail| detail["message"].as_str());
    Error::new(kind, message.unwrap_or(status.message()))
}

/// For HTTP: the status, and a body that is the error detail as a JSON string (encoded twice).
pub fn to_http(error: &Error) -> (StatusCode, String) {
    log(error);
    let status = match error.kind() {
        Kind::InvalidArgument => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PermissionDenied => StatusCode::FORBIDDEN,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
        Kind::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Kind::Unsupported => StatusCode::BAD_REQUEST,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, serde_json::Value::String(error.detail()).to_string())
}

/// How tonic's words begin where a caller's message is broken (`codec/decode.rs`, `server/grpc.rs`; not its words
/// for what it writes itself).
const BROKEN: [&str; 5] = [
    "failed to decode Protobuf message",
    "protocol error: received message with invalid compression flag",
    "protocol error: received message with compressed-flag but no grpc-encoding",
    "Unexpected EOF decoding stream",
    "Missing request message",
];

/// Mends the head of a gRPC answer: tonic says INTERNAL where the caller's message is no protobuf,
/// which is the caller's fault, and OUT_OF_RANGE with no limit's name where it is too large.
pub fn blame_caller(headers: &mut HeaderMap) {
    if headers.get("grpc-status").is_some_and(|status| status == "11")
        && let Some(status) = Status::from_header_map(headers)
        && status.message().starts_with("Error, decoded message length too large")
    {
        let what = status.message();
        let named = to_grpc(&Error::over_limit(Kind::TooLarge, "max_body_bytes", what, "send it in parts"));
        headers.remove("grpc-message");
        if let Err(error) = named.add_header(headers) {
            tracing::warn!(%error, "a refusal could not be written");
        }
    }
    let is = |name: &str, wanted: fn(&str) -> bool| headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(wanted);
    let broken = |message: &str| {
        let message = message.replace("%20", " ");
        BROKEN.iter().any(|beginning| message.starts_with(beginning))
    };
    if is("grpc-status", |status| status == "13") && is("grpc-message", broken) {
        headers.insert("grpc-status", HeaderValue::from_static("3"));
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::FailedPrecondition,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::TooLarge | Kind::TooMany => Code::ResourceExhausted,
        Kind::TooSlow => Code::DeadlineExceeded,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

/// Counts what a limit of the configuration has refused, by the limit's name.
pub fn refused(limit: &'static str) {
    metrics::counter!("larder_refusals_total", "limit" => limit).increment(1);
}

/// Logs what is our fault, with the chain of causes; counts what a limit refuses.
fn log(error: &Error) {
    if let Some(limit) = error.limit() {
        refused(limit);
    }
    if matches!(error.kind(), Kind::Internal | Kind::Unavailable) {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        tracing::error!(kind = error.kind().as_str(), causes = causes.join(": "), "{}", error.message());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feast_client_can_rebuild_the_exception() {
        let error = Error::feature_view_not_found("x", "demo");
        let detail = r#"{"module":"feast.errors","class":"FeatureViewNotFoundException","message":"Feature view x does not exist in project demo"}"#;
        assert_eq!(to_grpc(&error).code(), Code::NotFound);
        assert_eq!(to_grpc(&error).message(), detail);
        assert_eq!(to_flight(&error).message(), format!("Flight error: {detail}"));
        let heard = of_flight(&to_flight(&error));
        assert_eq!((heard.kind(), heard.message()), (error.kind(), error.message()));
        let (status, body) = to_http(&error);
        assert_eq!(status, StatusCode::NOT_FOUND);
        let twice: String = serde_json::from_str(&body).expect("a JSON string");
        assert_eq!(twice, detail);
    }

    #[test]
    fn a_message_that_is_no_protobuf_is_the_callers_fault() {
        let broken = <() as prost::Message>::decode(&b"\xff"[..]).expect_err("no tag").to_string();
        let cut = "Unexpected EOF decoding stream.";
        for (message, wanted) in [(broken.as_str(), "3"), (cut, "3"), ("the disk is full", "13")] {
            let mut headers = Status::internal(message).into_http::<()>().into_parts().0.headers;
            blame_caller(&mut headers);
            assert_eq!(headers["grpc-status"], wanted, "{message}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_told_the_limits_name() {
        let status =
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes");
        let mut headers = status.into_http::<()>().into_parts().0.headers;
        blame_caller(&mut headers);
        let status = Status::from_header_map(&headers).expect("a status");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(
            status.message().contains("9 bytes") && status.message().contains("limits.max_body_bytes"),
            "{status:?}"
        );
    }

    #[test]
    fn only_our_own_faults_are_5xx() {
        for kind in [
            Kind::InvalidArgument,
            Kind::NotFound,
            Kind::Conflict,
            Kind::Unauthenticated,
            Kind::PermissionDenied,
            Kind::TooLarge,
            Kind::TooMany,
            Kind::TooSlow,
            Kind::Unsupported,
        ] {
            assert!(to_http(&Error::new(kind, "x")).0.is_client_error(), "{kind:?}");
        }
        assert!(to_http(&Error::new(Kind::Internal, "x")).0.is_server_error());
    }
}
