//! The whole response (`convert_response_to_dict`) from an [`Answer`]'s bytes into one buffer. What
//! features have in common, statuses and times, is rendered once and copied. Knows no HTTP.

use model::answer::{Answer, ViewAnswer};
use model::{Error, Result, Timestamp};
use prost::Message as _;
use proto::feast::serving::FieldStatus;

use super::{text, value};

/// The response's body.
///
/// Errors: a stored value is damaged.
pub fn response(answer: &Answer) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size_hint(answer));
    out.extend_from_slice(b"{\"results\":[");
    let first = out.len();
    let (mut statuses, mut times) = (Block::default(), Block::default());
    let mut encoded = Vec::new();
    for (name, values) in &answer.columns {
        out.extend_from_slice(b"{\"values\":[");
        list(&mut out, values, |out, value| {
            encoded.clear();
            value.encode_raw(&mut encoded);
            value::value(out, &encoded).map_err(|e| Error::internal(format!("the column {name} cannot be written"), e))
        })?;
        statuses.next.resize(values.len(), FieldStatus::Present);
        times.next.resize(values.len(), Timestamp::default());
        close(&mut out, &mut statuses, &mut times);
    }
    for view in &answer.views {
        for (feature, name) in view.names().iter().enumerate() {
            out.extend_from_slice(b"{\"values\":[");
            list(&mut out, view.feature(feature), |out, cell| {
                statuses.next.push(cell.status);
                times.next.push(cell.time);
                value::value(out, cell.value).map_err(|e| {
                    Error::internal(format!("a stored value of {name} is damaged: write the row again"), e)
                })
            })?;
            close(&mut out, &mut statuses, &mut times);
        }
    }
    if out.len() > first {
        out.pop();
    }
    out.extend_from_slice(b"],\"metadata\":{\"feature_names\":[");
    let columns = answer.columns.iter().map(|(name, _)| name);
    list(&mut out, columns.chain(answer.views.iter().flat_map(ViewAnswer::names)), |out, name| {
        text::string(out, name);
        Ok(())
    })?;
    out.push(b']');
    if !answer.versions.is_empty() {
        out.extend_from_slice(b",\"feature_view_metadata\":[");
        list(&mut out, &answer.versions, |out, (name, version)| {
            view_metadata(out, name, *version);
            Ok(())
        })?;
        out.push(b']');
    }
    out.extend_from_slice(b"},\"status\":true}");
    Ok(out)
}

/// What stands beside the values of one feature, row after row, and its JSON. Where the next feature has
/// the same, the JSON is copied.
#[derive(Default)]
struct Block<T> {
    next: Vec<T>,
    last: Vec<T>,
    json: Vec<u8>,
}

impl<T: Copy + PartialEq> Block<T> {
    fn put(&mut self, out: &mut Vec<u8>, item: impl Fn(&mut Vec<u8>, T)) {
        if self.next != self.last {
            self.json.clear();
            for value in &self.next {
                item(&mut self.json, *value);
                self.json.push(b',');
            }
            self.json.pop();
            std::mem::swap(&mut self.next, &mut self.last);
        }
        self.next.clear();
        out.extend_from_slice(&self.json);
    }
}

/// The rest of a feature, with the comma that the next one needs.
fn close(out: &mut Vec<u8>, statuses: &mut Block<FieldStatus>, times: &mut Block<Timestamp>) {
    let rows = times.next.len();
    out.extend_from_slice(b"],\"statuses\":[");
    statuses.put(out, |out, status| {
        out.push(b'"');
        out.extend_from_slice(status.as_str_name().as_bytes());
        out.push(b'"');
    });
    if rows > 0 {
        out.extend_from_slice(b"],\"event_timestamps\":[");
        times.put(out, text::time);
    }
    out.extend_from_slice(b"]},");
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
        text::integer(out, i64::from(version));
    }
    out.push(b'}');
}

/// Items with commas between them.
fn list<I: IntoIterator>(
    out: &mut Vec<u8>,
    items: I,
    mut put: impl FnMut(&mut Vec<u8>, I::Item) -> Result<()>,
) -> Result<()> {
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put(out, item)?;
    }
    Ok(())
}

/// A value of a few digits, its status and its time take some fifty bytes.
fn size_hint(answer: &Answer) -> usize {
    let cells: usize = answer.views.iter().map(|v| v.names().len() * v.rows()).sum();
    let values: usize = answer.columns.iter().map(|(_, values)| values.len()).sum();
    512 + (cells + values) * 56
}
