//! The body of `/get-online-features`, read from JSON straight into columns of values.
//!
//! Source: `GetOnlineFeaturesRequest` in `feast/feature_server.py`; what is not one of its fields is
//! ignored, as pydantic does.

pub(super) mod usual;

use std::fmt;

use model::Value;
use model::registry::FeatureRequest;
use model::value::Guessed;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Unexpected, Visitor};
use service::retrieve;

/// `GetOnlineFeaturesRequest`.
#[derive(Debug, Deserialize)]
pub(super) struct GetOnlineFeatures {
    entities: Columns,
    #[serde(default)]
    feature_service: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default, deserialize_with = "flag")]
    full_feature_names: bool,
    #[serde(default, deserialize_with = "flag")]
    include_feature_view_version_metadata: bool,
}

impl From<GetOnlineFeatures> for retrieve::Request {
    fn from(request: GetOnlineFeatures) -> Self {
        let features = match request.feature_service {
            Some(name) if !name.is_empty() => FeatureRequest::Service(name),
            _ => FeatureRequest::Refs(request.features),
        };
        Self {
            features,
            entities: request.entities.0,
            full_feature_names: request.full_feature_names,
            include_feature_view_version_metadata: request.include_feature_view_version_metadata,
        }
    }
}

/// Columns by name, in order; the last of equal names stays, as in Python.
#[derive(Debug)]
struct Columns(Vec<(String, Vec<Value>)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> Visitor<'de> for ByName {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of entities: {\"column\": [values]}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut json: A) -> Result<Columns, A::Error> {
                let mut columns: Vec<(String, Vec<Value>)> = Vec::new();
                let mut positions = std::collections::HashMap::<String, usize>::new();
                while let Some(name) = json.next_key::<String>()? {
                    let values = json.next_value::<Vec<Guessed>>().map_err(|e| in_column(&name, &e))?;
                    let values = values.into_iter().map(|Guessed(value)| value).collect();
                    if let Some(at) = positions.get(&name) {
                        columns[*at].1 = values;
                    } else {
                        positions.insert(name.clone(), columns.len());
                        columns.push((name, values));
                    }
                }
                Ok(Columns(columns))
            }
        }

        json.deserialize_map(ByName)
    }
}

/// The error with the column's name; serde_json finds the place at its end again.
fn in_column<E: serde::de::Error>(name: &str, error: &E) -> E {
    E::custom(format_args!("entities: '{name}' is not a list of values: {error}"))
}

/// What pydantic takes for a bool.
fn flag<'de, D: Deserializer<'de>>(json: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(f64),
        Text(String),
    }
    let other = match Flag::deserialize(json)? {
        Flag::Bool(flag) => return Ok(flag),
        Flag::Number(0.0) => return Ok(false),
        Flag::Number(1.0) => return Ok(true),
        Flag::Number(number) => return Err(D::Error::invalid_value(Unexpected::Float(number), &"true or false")),
        Flag::Text(text) => text,
    };
    match other.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => Err(D::Error::invalid_value(Unexpected::Str(&other), &"true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<retrieve::Request, String> {
        serde_json::from_str::<GetOnlineFeatures>(text).map(Into::into).map_err(|e| e.to_string())
    }

    #[test]
    fn a_request_is_read_as_pydantic_reads_it() {
        let text = r#"{"features": ["v:f"], "entities": {"b": [1], "a": ["x"], "b": [2.5]}, "full_feature_names": "yes",
                       "feature_service": null, "unknown": {"a": [1]}}"#;
        let request = read(text).expect("a request");
        let names: Vec<_> = request.entities.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(request.entities[0].1, [Value { val: Some(model::value::proto_value::Val::DoubleVal(2.5)) }]);
        assert!(request.full_feature_names && !request.include_feature_view_version_metadata);
        assert_eq!(request.features, FeatureRequest::Refs(vec!["v:f".into()]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            (r#"{"features": []}"#, "entities"),
            (r#"{"entities": []}"#, "{\"column\": [values]}"),
            (r#"{"entities": {"driver": 1}}"#, "'driver'"),
            (r#"{"entities": {"driver": [18446744073709551615]}}"#, "'driver'"),
            (r#"{"entities": {"driver": [NaN]}}"#, "line 1"),
            (r#"{"entities": {}, "features": null}"#, "null"),
            (r#"{"entities": {}, "full_feature_names": 2}"#, "true or false"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
