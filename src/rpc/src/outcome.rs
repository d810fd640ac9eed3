//! How a request ended, in the words of its protocol: HTTP's number, or the name of gRPC's code. What is
//! counted of requests, and whose fault an error was.

use std::borrow::Cow;

use http::{Response, StatusCode, header};
use tonic::Code;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer's status.
    Http(StatusCode),
    /// The code of a gRPC answer.
    Grpc(Code),
}

impl Outcome {
    /// Reads the head of an answer. A gRPC answer without a code in its head has one behind its messages,
    /// which is OK for every call with one answer; how a stream ended [`crate::ending`] tells.
    pub fn of<B>(answer: &Response<B>) -> Self {
        let headers = answer.headers();
        if let Some(code) = headers.get("grpc-status") {
            return Self::Grpc(Code::from_bytes(code.as_bytes()));
        }
        let is_grpc = |kind: &http::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
        if headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
            return Self::Grpc(Code::Ok);
        }
        Self::Http(answer.status())
    }

    /// As a label: `200`, `OK`, `NOT_FOUND`.
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Self::Http(status) => Cow::Owned(status.as_u16().to_string()),
            Self::Grpc(code) => Cow::Borrowed(name(code)),
        }
    }

    /// Whether the request failed, whoever's fault it was.
    pub fn is_error(self) -> bool {
        match self {
            Self::Http(status) => !status.is_success(),
            Self::Grpc(code) => code != Code::Ok,
        }
    }

    /// Whether it failed by our fault.
    pub fn is_our_fault(self) -> bool {
        match self {
            Self::Http(status) => status.is_server_error(),
            Self::Grpc(code) => matches!(code, Code::Unknown | Code::Internal | Code::DataLoss),
        }
    }

    /// Whether the messages of the answer may yet end in another code.
    pub fn may_change(self) -> bool {
        self == Self::Grpc(Code::Ok)
    }

    /// Whether a service was asked for a method that it does not have.
    pub fn is_unknown_method(self) -> bool {
        self == Self::Grpc(Code::Unimplemented)
    }
}

/// The name of a code in gRPC's specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn an_answer_is_told_in_its_own_protocol() {
        let http = |status: u16| Response::builder().status(status).body(()).expect("an answer");
        let mut answered = http(200);
        answered.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        for (answer, label, error, ours) in [
            (http(200), "200", false, false),
            (http(404), "404", true, false),
            (http(503), "503", true, true),
            (answered, "OK", false, false),
            (Status::not_found("x").into_http(), "NOT_FOUND", true, false),
            (Status::internal("x").into_http(), "INTERNAL", true, true),
        ] {
            let outcome = Outcome::of(&answer);
            assert_eq!((&*outcome.label(), outcome.is_error(), outcome.is_our_fault()), (label, error, ours));
        }
    }
}
