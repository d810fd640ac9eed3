//! The whole response (`convert_response_to_dict`) from an [`Answer`]'s bytes into one buffer. What
//! features have in common, statuses and times, is rendered once and copied. Knows no HTTP.

use model::answer::{Answer, ViewAnswer};
use model::value::proto_value::Val;
use model::{Error, Result, Timestamp, Value};
use prost::Message as _;
use proto::feast::serving::FieldStatus;

use super::{text, value, whole, wire};

/// The response's body.
///
/// Errors: a stored value is damaged.
pub fn response(answer: &Answer) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size_hint(answer));
    out.extend_from_slice(b"{\"results\":[");
    let first = out.len();
    let mut beside = Beside::default();
    for (name, values) in &answer.columns {
        out.extend_from_slice(b"{\"values\":[");
        entities(&mut out, name, values)?;
        let (statuses, times) = (vec![FieldStatus::Present as u8; values.len()], vec![Timestamp(0); values.len()]);
        beside.put(&mut out, &statuses, &times);
    }
    for view in &answer.views {
        for (feature, name) in view.names().iter().enumerate() {
            out.extend_from_slice(b"{\"values\":[");
            features(&mut out, name, view.values(feature))?;
            beside.put(&mut out, view.statuses(feature), view.times(feature));
        }
    }
    if out.len() > first {
        out.pop();
    }
    out.extend_from_slice(b"],\"metadata\":{\"feature_names\":[");
    let first = out.len();
    for (name, _) in &answer.columns {
        text::string(&mut out, name);
        out.push(b',');
    }
    for view in &answer.views {
        out.extend_from_slice(view.names_written(names));
    }
    if out.len() > first {
        out.pop();
    }
    out.push(b']');
    if !answer.versions.is_empty() {
        out.extend_from_slice(b",\"feature_view_metadata\":[");
        for (name, version) in &answer.versions {
            view_metadata(&mut out, name, *version);
            out.push(b',');
        }
        out.pop();
        out.push(b']');
    }
    out.extend_from_slice(b"}}");
    Ok(out)
}

/// The values of an entity column.
fn entities(out: &mut Vec<u8>, name: &str, values: &[Value]) -> Result<()> {
    let mut encoded = Vec::new();
    for value in values {
        if let Some(Val::Int64Val(number)) = value.val {
            whole::integer(out, number);
        } else {
            encoded.clear();
            value.encode_raw(&mut encoded);
            let failed = |e| Error::internal(format!("the column {name} cannot be written"), e);
            value::value(out, &encoded).map_err(failed)?;
        }
        out.push(b',');
    }
    if !values.is_empty() {
        out.pop();
    }
    Ok(())
}

/// The values of a feature, as [`ViewAnswer::values`] gives them.
fn features(out: &mut Vec<u8>, name: &str, (bytes, end): (&[u8], usize)) -> Result<()> {
    let mut at = 0;
    while at < end {
        at += whole::numbers(out, &bytes[at..], end - at);
        let mut rest = &bytes[at..end];
        let Some(value) = wire::next(&mut rest, 1).map_err(|e| damaged(name, e))? else { break };
        value::value(out, value).map_err(|e| damaged(name, e))?;
        out.push(b',');
        at = end - rest.len();
    }
    if end > 0 {
        out.pop();
    }
    Ok(())
}

fn damaged(name: &str, error: impl Into<value::Damaged>) -> Error {
    Error::internal(format!("a stored value of {name} is damaged: write the row again"), error.into())
}

/// The names, with a comma behind each.
fn names(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        text::string(&mut out, name);
        out.push(b',');
    }
    out
}

/// What stands beside the values of a feature, from the end of the values on, and the comma that the next
/// feature needs. Where a feature has the same as the one before, the JSON is copied.
#[derive(Default)]
struct Beside {
    statuses: Block<u8>,
    times: Block<Timestamp>,
    json: Vec<u8>,
}

impl Beside {
    fn put(&mut self, out: &mut Vec<u8>, statuses: &[u8], times: &[Timestamp]) {
        // Both are made, whether or not the first is new.
        let new = self.statuses.take(statuses, status) | self.times.take(times, text::time);
        if new || self.json.is_empty() {
            self.json.clear();
            self.json.extend_from_slice(b"],\"statuses\":[");
            self.json.extend_from_slice(&self.statuses.json);
            if !times.is_empty() {
                self.json.extend_from_slice(b"],\"event_timestamps\":[");
                self.json.extend_from_slice(&self.times.json);
            }
            self.json.extend_from_slice(b"]},");
        }
        out.extend_from_slice(&self.json);
    }
}

/// Items row after row, and their JSON.
#[derive(Default)]
struct Block<T> {
    items: Vec<T>,
    json: Vec<u8>,
}

impl<T: Copy + PartialEq> Block<T> {
    /// Renders these items, if they are not those that are rendered; gives whether it did.
    fn take(&mut self, items: &[T], put: impl Fn(&mut Vec<u8>, T)) -> bool {
        if self.items == items {
            return false;
        }
        self.items.clear();
        self.items.extend_from_slice(items);
        self.json.clear();
        let mut last: Option<(T, usize)> = None;
        for item in items {
            let start = self.json.len();
            match last {
                Some((same, from)) if same == *item => self.json.extend_from_within(from..start),
                _ => {
                    put(&mut self.json, *item);
                    self.json.push(b',');
                }
            }
            last = Some((*item, start));
        }
        self.json.pop();
        true
    }
}

/// The name of a `FieldStatus` number.
fn status(out: &mut Vec<u8>, status: u8) {
    let status = FieldStatus::try_from(i32::from(status)).unwrap_or_default();
    out.push(b'"');
    out.extend_from_slice(status.as_str_name().as_bytes());
    out.push(b'"');
}

/// Proto3's JSON leaves out what is empty.
fn view_metadata(out: &mut Vec<u8>, name: &str, version: i32) {
    out.push(b'{');
    if !name.is_empty() {
        out.extend_from_slice(b"\"name\":");
        text::string(out, name);
    }
    if version != 0 {
        out.extend_from_slice(if name.is_empty() { b"\"version\":" } else { b",\"version\":" });
        whole::integer(out, i64::from(version));
    }
    out.push(b'}');
}

/// A value of a few digits, its status and its time take some fifty bytes; a feature some eighty more.
fn size_hint(answer: &Answer) -> usize {
    let of_view = |view: &ViewAnswer| view.names().len() * (80 + view.rows() * 48);
    let of_column = |values: &Vec<Value>| 80 + values.len() * 56;
    let views: usize = answer.views.iter().map(of_view).sum();
    256 + views + answer.columns.iter().map(|(_, values)| of_column(values)).sum::<usize>()
}
