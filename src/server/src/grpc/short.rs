//! "Get online features" over gRPC without its stack: one message comes, one goes. Requests in the usual form
//! whose features are spelled as before are read without a text or a message made of them. What is not so, or
//! is wrong before it can be planned, is left to the stubs.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use rpc::status::to_grpc;
use tonic::Status;

use super::usual;
use crate::projects::Projects;

/// The method's paths.
pub(crate) const PATHS: [&str; 2] =
    ["/feast.serving.ServingService/GetOnlineFeatures", "/GrpcFeatureServer/GetOnlineFeatures"];

/// Answers a request's whole body; `None` where the stubs must.
pub(crate) async fn answer(projects: &Projects, headers: &HeaderMap, body: &[u8]) -> Option<Response> {
    let asked = usual::read(body)?;
    let answered = match projects.of(headers) {
        Err(error) => Err(to_grpc(&error)),
        Ok(online) => {
            let retriever = &online.retriever;
            let known = || retriever.known(asked.spelling, asked.full_feature_names);
            let known = if let Some(known) = known() {
                known
            } else {
                retriever.learn(asked.spelling, asked.features()?, asked.full_feature_names).ok()?;
                known()?
            };
            let answer = retriever.get_known(&known, asked.entities, asked.include_feature_view_version_metadata).await;
            answer.map_err(|e| to_grpc(&e)).and_then(|answer| rpc::answer::framed(&answer))
        }
    };
    Some(answered.map_or_else(Status::into_http, |message| {
        let mut response = Response::new(Body::new(Unary::Message(message.into())));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }))
}

/// A message, and behind it that all went well.
enum Unary {
    Message(Bytes),
    Status,
    End,
}

impl http_body::Body for Unary {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match std::mem::replace(&mut *self, Self::End) {
            Self::Message(message) => {
                *self = Self::Status;
                Some(Frame::data(message))
            }
            Self::Status => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Frame::trailers(trailers))
            }
            Self::End => None,
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::End)
    }
}
