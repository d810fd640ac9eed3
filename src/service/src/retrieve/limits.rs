//! How much one read may ask for. Knows no store and no protocol.

use model::registry::FeatureRequest;
use model::value::proto_value::Val;
use model::{Error, Kind, Result, Value};

/// The most that one read may have. Each is `limits.<name>` in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entity rows.
    pub max_entities: usize,
    /// References to features.
    pub max_features: usize,
    /// Rows times features.
    pub max_values: usize,
    /// Bytes of one text among the entities; a push's values have the same limit.
    pub max_value_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_entities: 100_000, max_features: 10_000, max_values: 5_000_000, max_value_bytes: 4 << 20 }
    }
}

impl Limits {
    /// The features asked for, before there is a plan.
    pub(super) fn check_features(&self, features: &FeatureRequest) -> Result<()> {
        if let FeatureRequest::Refs(refs) = features
            && refs.len() > self.max_features
        {
            let what = format!("{} features in one request, the limit is {}", refs.len(), self.max_features);
            return Err(too_large("max_features", what, "ask in several requests, or for a feature service"));
        }
        Ok(())
    }

    /// The entity columns.
    pub(super) fn check_entities(&self, entities: &[(String, Vec<Value>)]) -> Result<()> {
        for (name, values) in entities {
            if values.len() > self.max_entities {
                let (rows, limit) = (values.len(), self.max_entities);
                let what = format!("{rows} entity rows in one request, the limit is {limit}");
                return Err(too_large("max_entities", what, "ask in several requests"));
            }
            let size = |val: &Val| match val {
                Val::StringVal(text) => text.len(),
                Val::BytesVal(bytes) => bytes.len(),
                _ => 0,
            };
            let longest = values.iter().filter_map(|v| v.val.as_ref()).map(size).max().unwrap_or_default();
            if longest > self.max_value_bytes {
                let limit = self.max_value_bytes;
                let what = format!("a value of '{name}' has {longest} bytes, the limit is {limit}");
                return Err(too_large("max_value_bytes", what, "send a shorter one"));
            }
        }
        Ok(())
    }

    /// What the answer would be.
    pub(super) fn check_values(&self, rows: usize, features: usize) -> Result<()> {
        if rows.saturating_mul(features) <= self.max_values {
            return Ok(());
        }
        let limit = self.max_values;
        let what =
            format!("{rows} entity rows with {features} features each in one request, the limit is {limit} values");
        Err(too_large("max_values", what, "ask in several requests"))
    }
}

fn too_large(limit: &'static str, what: String, advice: &str) -> Error {
    Error::over_limit(Kind::TooLarge, limit, what, advice)
}
