//! `POST /parity/{view}` (`{"entities": 100, "seed": 0}`): a windowed view's online answers beside those of a training set
//! for the same time, with the events that explain a difference. Larder's own: Feast has no such route.

use axum::Json;
use axum::extract::Path;
use model::{Error, Kind};
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::parity::{Difference, Report};

use super::body::Body;
use super::{Failure, json as feast};
use crate::projects::Face;

/// Entities that are compared where nobody says how many, and at most.
const USUAL: usize = 100;
const MOST: usize = 10_000;

/// The view of a path.
#[derive(Deserialize)]
pub(super) struct Name {
    view: String,
}

#[derive(Deserialize)]
pub(super) struct Sample {
    entities: Option<usize>,
    #[serde(default)]
    seed: u64,
}

pub(super) async fn check(
    Face(online): Face,
    Path(Name { view }): Path<Name>,
    Body(sample): Body<Sample>,
) -> Result<Json<Value>, Failure> {
    let parity = online.parity.as_ref().ok_or_else(|| {
        let message = "this server has no offline side to compare with: start it with the service 'offline'";
        Failure(Error::new(Kind::Unsupported, message))
    })?;
    let most = sample.entities.unwrap_or(USUAL);
    if !(1..=MOST).contains(&most) {
        return Err(Error::invalid(format!("entities: from 1 to {MOST}, not {most}")).into());
    }
    let report = parity.check(&view, most, sample.seed).await?;
    Ok(Json(json!({
        "feature_view": view,
        "at": report.at.to_string(),
        "entities": report.entities,
        "values": report.values,
        "differences": report.differences.iter().map(|d| told(&report, d)).collect::<Vec<_>>(),
    })))
}

fn told(report: &Report, difference: &Difference) -> Value {
    let object = |parts: &mut dyn Iterator<Item = (&String, &model::Value)>| {
        Value::Object(parts.map(|(name, value)| (name.clone(), plain(value))).collect::<Map<_, _>>())
    };
    let events = difference.events.iter().map(|(event, unseen)| {
        json!({
            "ts": event.time.to_string(),
            "values": object(&mut report.columns.iter().zip(&event.values)),
            "later_than_online": unseen,
        })
    });
    json!({
        "entity": object(&mut difference.entity.iter().map(|(name, value)| (name, value))),
        "feature": difference.feature,
        "online": plain(&difference.online),
        "offline": plain(&difference.offline),
        "events": events.collect::<Vec<_>>(),
    })
}

/// As Feast's server writes a value; null where it cannot be written.
fn plain(value: &model::Value) -> Value {
    let mut text = Vec::new();
    match feast::value(&mut text, &value.encode_to_vec()) {
        Ok(()) => serde_json::from_slice(&text).unwrap_or_else(|_| String::from_utf8_lossy(&text).into()),
        Err(_) => Value::Null,
    }
}
