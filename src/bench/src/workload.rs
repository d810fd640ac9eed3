//! The data and the requests, the same for every server: views `stats_00` … `stats_24` of ten int64 features,
//! keyed by `user_id`. A value is a function of user, view and feature (`python/feast_peer.py` has the same),
//! so an answer can be checked against nothing but arithmetic. Knows no server.

use std::fmt;
use std::str::FromStr;

use prost::Message as _;
use proto::feast::serving::get_online_features_request::Kind;
use proto::feast::serving::{FeatureList, GetOnlineFeaturesRequest};
use proto::feast::types::value::Val;
use proto::feast::types::{RepeatedValue, Value};
use serde_json::json;

use crate::wire::{self, Prepared};

pub(crate) const PROJECT: &str = "bench";
/// Features of a view.
pub(crate) const WIDTH: usize = 10;
/// The event time of every row, seconds: 2026-01-01 UTC.
pub(crate) const EVENT_SECONDS: i64 = 1_767_225_600;
/// Rows of one push.
pub(crate) const PUSH_ROWS: usize = 500;

/// Entities by features of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) entities: usize,
    pub(crate) features: usize,
}

pub(crate) const SHAPES: [Shape; 6] = [
    Shape { entities: 1, features: 50 },
    Shape { entities: 10, features: 50 },
    Shape { entities: 100, features: 50 },
    Shape { entities: 1, features: 250 },
    Shape { entities: 10, features: 250 },
    Shape { entities: 100, features: 250 },
];

impl Shape {
    /// How many views it reads.
    pub(crate) fn views(self) -> usize {
        self.features / WIDTH
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.entities, self.features)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        SHAPES
            .into_iter()
            .find(|s| s.to_string() == text)
            .ok_or_else(|| format!("'{text}' is no shape: use {}", SHAPES.map(|s| s.to_string()).join(", ")))
    }
}

/// The value of a feature (SplitMix64's multiplier, so that neighbours differ; below 10^9).
pub(crate) fn value(user: i64, view: usize, feature: usize) -> i64 {
    let seed = user as u64 * 1_000 + (view * WIDTH + feature) as u64;
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as i64 % 1_000_000_000
}

/// SplitMix64: the next of a sequence of random numbers.
pub(crate) fn scramble(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn view_name(view: usize) -> String {
    format!("stats_{view:02}")
}

pub(crate) fn feature_name(view: usize, feature: usize) -> String {
    format!("v{view:02}_f{feature}")
}

/// The references of a shape, view by view.
pub(crate) fn references(shape: Shape) -> Vec<String> {
    (0..shape.views())
        .flat_map(|v| (0..WIDTH).map(move |f| format!("{}:{}", view_name(v), feature_name(v, f))))
        .collect()
}

/// Users for `requests` requests, drawn at random from `keys`; the same in every run.
pub(crate) fn users(shape: Shape, keys: u64, requests: usize) -> Vec<Vec<i64>> {
    let mut state = keys ^ shape.entities as u64;
    (0..requests).map(|_| (0..shape.entities).map(|_| (scramble(&mut state) % keys) as i64).collect()).collect()
}

pub(crate) fn int64(n: i64) -> Value {
    Value { val: Some(Val::Int64Val(n)) }
}

/// A read over gRPC.
pub(crate) fn grpc(shape: Shape, users: &[i64]) -> Prepared {
    let column = RepeatedValue { val: users.iter().map(|u| int64(*u)).collect() };
    let request = GetOnlineFeaturesRequest {
        kind: Some(Kind::Features(FeatureList { val: references(shape) })),
        entities: [("user_id".to_owned(), column)].into(),
        ..GetOnlineFeaturesRequest::default()
    };
    Prepared::one(wire::grpc_frame(&request.encode_to_vec()))
}

/// A read over HTTP.
pub(crate) fn http(shape: Shape, users: &[i64]) -> Prepared {
    let body = json!({ "features": references(shape), "entities": { "user_id": users } });
    Prepared::one(wire::http1_request("/get-online-features", &body.to_string()))
}

/// A push of these users' rows of a view over HTTP; `generation` changes the values.
pub(crate) fn push(view: usize, users: &[i64], generation: i64) -> Prepared {
    let mut df = serde_json::Map::new();
    df.insert("user_id".into(), users.into());
    for feature in 0..WIDTH {
        let column: Vec<i64> = users.iter().map(|u| value(*u, view, feature) + generation).collect();
        df.insert(feature_name(view, feature), column.into());
    }
    // Feast's server parses no epoch: text is what both read.
    df.insert("event_timestamp".into(), vec!["2026-01-01T00:00:00Z"; users.len()].into());
    let body = json!({ "push_source_name": format!("push_{view:02}"), "df": df, "to": "online" });
    Prepared::one(wire::http1_request("/push", &body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_read_as_they_are_written() {
        for shape in SHAPES {
            assert_eq!(shape.to_string().parse(), Ok(shape));
            assert_eq!(references(shape).len(), shape.features);
        }
        assert!("7x7".parse::<Shape>().is_err_and(|e| e.contains("100x250")));
    }

    #[test]
    fn users_are_the_same_in_every_run_and_spread() {
        let shape = Shape { entities: 100, features: 50 };
        let drawn = users(shape, 10_000, 1_000);
        assert_eq!(drawn, users(shape, 10_000, 1_000));
        let distinct: std::collections::BTreeSet<_> = drawn.iter().flatten().collect();
        assert!(distinct.len() > 9_900, "100,000 draws find nearly all of 10,000: {}", distinct.len());
    }
}
