//! Responses as JSON, in the form of `convert_response_to_dict` in `feast/feature_server_utils.py`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, FixedOffset};
use model::value::{elements, proto_value::Val};
use model::{Timestamp, Value};
use proto::feast::serving::{FieldStatus, GetOnlineFeaturesResponse};
use serde_json::{Map, Value as Json, json};

/// The whole response.
pub(super) fn response(response: &GetOnlineFeaturesResponse) -> Json {
    let results: Vec<Json> = response
        .results
        .iter()
        .map(|vector| {
            let values: Vec<Json> = vector.values.iter().map(value).collect();
            let statuses: Vec<&str> = vector
                .statuses
                .iter()
                .map(|s| FieldStatus::try_from(*s).unwrap_or(FieldStatus::Invalid).as_str_name())
                .collect();
            let mut out = json!({ "values": values, "statuses": statuses });
            if !vector.event_timestamps.is_empty() {
                let times = vector.event_timestamps.iter().map(|t| Timestamp::from_proto(t).to_rfc3339());
                out["event_timestamps"] = times.collect();
            }
            out
        })
        .collect();
    let mut out = json!({ "results": results });
    if let Some(metadata) = &response.metadata {
        let names = metadata.feature_names.as_ref().map(|n| n.val.clone()).unwrap_or_default();
        out["metadata"] = json!({ "feature_names": names });
        if !metadata.feature_view_metadata.is_empty() {
            let views = metadata.feature_view_metadata.iter().map(|view| {
                let mut entry = Map::new();
                if !view.name.is_empty() {
                    entry.insert("name".into(), view.name.clone().into());
                }
                if view.version != 0 {
                    entry.insert("version".into(), view.version.into());
                }
                Json::Object(entry)
            });
            out["metadata"]["feature_view_metadata"] = views.collect();
        }
    }
    if response.status {
        out["status"] = true.into();
    }
    out
}

/// One value: plain JSON; bytes are base64, numbers that JSON lacks are strings.
fn value(value: &Value) -> Json {
    let Some(val) = &value.val else { return Json::Null };
    match val {
        Val::NullVal(_) | Val::ScalarMapVal(_) => Json::Null,
        Val::BytesVal(v) => STANDARD.encode(v).into(),
        Val::StringVal(v) | Val::JsonVal(v) | Val::UuidVal(v) | Val::TimeUuidVal(v) | Val::DecimalVal(v) => {
            v.clone().into()
        }
        Val::Int32Val(v) => (*v).into(),
        Val::Int64Val(v) | Val::UnixTimestampVal(v) => (*v).into(),
        Val::DoubleVal(v) => float(*v),
        Val::FloatVal(v) => float(f64::from(*v)),
        Val::BoolVal(v) => (*v).into(),
        Val::MapVal(m) | Val::StructVal(m) => map(m),
        Val::ZonedTimestampVal(v) => zoned(v.unix_timestamp, &v.zone),
        // Every other variant is a list or a set.
        _ => elements(value).unwrap_or_default().iter().map(self::value).collect(),
    }
}

fn map(map: &proto::feast::types::Map) -> Json {
    Json::Object(map.val.iter().map(|(k, v)| (k.clone(), value(v))).collect())
}

fn float(v: f64) -> Json {
    if v.is_finite() {
        v.into()
    } else if v.is_nan() {
        "NaN".into()
    } else if v > 0.0 {
        "Infinity".into()
    } else {
        "-Infinity".into()
    }
}

/// ISO 8601 in the stored zone where that is an offset; in UTC where it is a name.
fn zoned(seconds: i64, zone: &str) -> Json {
    let offset = zone.parse::<FixedOffset>().ok();
    let utc = DateTime::from_timestamp(seconds, 0);
    match (utc, offset) {
        (Some(utc), Some(offset)) => utc.with_timezone(&offset).to_rfc3339().into(),
        (Some(utc), None) => utc.to_rfc3339().into(),
        (None, _) => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_plain_json() {
        let of = |val| value(&Value { val: Some(val) });
        assert_eq!(of(Val::BytesVal(b"hi".to_vec())), json!("aGk="));
        assert_eq!(of(Val::DoubleVal(f64::NAN)), json!("NaN"));
        assert_eq!(of(Val::FloatVal(f32::NEG_INFINITY)), json!("-Infinity"));
        assert_eq!(of(Val::DoubleVal(1.0)).to_string(), "1.0");
        let list = proto::feast::types::BytesList { val: vec![b"hi".to_vec()] };
        assert_eq!(of(Val::BytesListVal(list)), json!(["aGk="]));
        let zoned = proto::feast::types::ZonedTimestamp { unix_timestamp: 0, zone: "+02:00".into() };
        assert_eq!(of(Val::ZonedTimestampVal(zoned)), json!("1970-01-01T02:00:00+02:00"));
    }
}
