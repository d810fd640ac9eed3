//! `GET /streams` says how far the streams of the project's views are read; `POST /streams/{view}/pause`, `/resume` and
//! `/seek` (`{"to": "earliest" | "latest" | "committed" | TIMESTAMP}`) steer one. Larder's own: Feast has no such routes.

use axum::Json;
use axum::extract::Path;
use model::{Error, Kind};
use serde::Deserialize;
use serde_json::{Value, json};
use service::streams::{Stream, Streams};

use super::Failure;
use super::body::Body;
use crate::Online;
use crate::projects::Face;

/// The view of a path.
#[derive(Deserialize)]
pub(super) struct Name {
    view: String,
}

#[derive(Deserialize)]
pub(super) struct Seek {
    to: String,
}

pub(super) async fn list(Face(online): Face) -> Result<Json<Value>, Failure> {
    let streams = streams(&online)?.list().await?;
    Ok(Json(json!({ "streams": streams.iter().map(told).collect::<Vec<_>>() })))
}

pub(super) async fn pause(Face(online): Face, Path(Name { view }): Path<Name>) -> Result<Json<Value>, Failure> {
    streams(&online)?.pause(&view).await?;
    one(&online, &view).await
}

pub(super) async fn resume(Face(online): Face, Path(Name { view }): Path<Name>) -> Result<Json<Value>, Failure> {
    streams(&online)?.resume(&view).await?;
    one(&online, &view).await
}

pub(super) async fn seek(
    Face(online): Face,
    Path(Name { view }): Path<Name>,
    Body(request): Body<Seek>,
) -> Result<Json<Value>, Failure> {
    streams(&online)?.seek(&view, request.to.parse()?).await?;
    one(&online, &view).await
}

async fn one(online: &Online, view: &str) -> Result<Json<Value>, Failure> {
    let stream = streams(online)?.of_view(view).await?;
    Ok(Json(stream.as_ref().map_or(Value::Null, told)))
}

fn streams(online: &Online) -> Result<&Streams, Failure> {
    online.streams.as_ref().ok_or_else(|| {
        Failure(Error::new(Kind::Unsupported, "this server was built without Kafka and reads no streams"))
    })
}

fn told(stream: &Stream) -> Value {
    let (state, reason) = stream.state.parts();
    let partition = |p: &service::streams::Partition| {
        json!({
            "partition": p.number,
            "position": p.position,
            "lag": p.lag,
            "watermark": p.watermark.map(|t| t.to_string()),
        })
    };
    json!({
        "feature_view": stream.view,
        "topic": stream.topic,
        "group": stream.group,
        "state": state,
        "reason": reason,
        "cut_over": stream.cut_over.map(|t| t.to_string()),
        "partitions": stream.partitions.iter().map(partition).collect::<Vec<_>>(),
    })
}
