//! The same JSON by way of messages and a tree: slow, plain, and only for the tests to compare with.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::value::{elements, proto_value::Val};
use model::{Timestamp, Value};
use proto::feast::serving::{FieldStatus, GetOnlineFeaturesResponse};
use serde::Serialize as _;
use serde_json::ser::Formatter;
use serde_json::{Map, Value as Json, json};

/// One value.
pub(super) fn value(value: &Value) -> String {
    render(&tree(value))
}

/// A whole response.
pub(super) fn response(response: &GetOnlineFeaturesResponse) -> String {
    let results: Vec<Json> = response
        .results
        .iter()
        .map(|vector| {
            let values: Vec<Json> = vector.values.iter().map(tree).collect();
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
    render(&out)
}

fn tree(value: &Value) -> Json {
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
        Val::MapVal(m) | Val::StructVal(m) => {
            Json::Object(m.val.iter().map(|(key, value)| (key.clone(), tree(value))).collect())
        }
        // The golden files say what zones are.
        Val::ZonedTimestampVal(v) => super::zone::iso_8601(v.unix_timestamp, &v.zone).into(),
        // Every other variant is a list or a set.
        _ => elements(value).unwrap_or_default().iter().map(tree).collect(),
    }
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

/// Python's `repr` of a float, from Rust's own shortest digits.
struct Python;

impl Formatter for Python {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, v: f64) -> io::Result<()> {
        let digits = format!("{v:e}").split('e').next().map_or(0, |m| m.chars().filter(char::is_ascii_digit).count());
        // Of two that are equally near and short, Python has the even one, as exact formatting has.
        let scientific = format!("{v:.*e}", digits - 1);
        let (mantissa, exponent) = scientific.split_once('e').expect("an exponent");
        let exponent: i32 = exponent.parse().expect("a number");
        if v == 0.0 || (-4..16).contains(&exponent) {
            let decimals = (digits as i32 - 1 - exponent).max(1) as usize;
            return write!(out, "{v:.decimals$}");
        }
        write!(out, "{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    }
}

fn render(tree: &Json) -> String {
    let mut out = Vec::new();
    tree.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Python)).expect("written");
    String::from_utf8(out).expect("UTF-8")
}
