//! Columns as a client sent them, and how they become values of registered types, column by column.
//! Knows no protocol: a face makes a [`Frame`].

use std::borrow::Cow;

use model::row::Version;
use model::{Error, Kind, Result, Timestamp, Value, ValueType, value};
use prost::Message;
use value::proto_value::Val;

/// One value as a client sent it, to be read as whatever type is registered.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Plain JSON (HTTP).
    Json(serde_json::Value),
    /// Text (`PushRequest.features`).
    Text(String),
    /// A typed value (`PushRequest.typed_features`).
    Typed(Value),
}

impl Cell {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(a), Self::Json(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Typed(a), Self::Typed(b)) => a == b,
            _ => false,
        }
    }
}

/// The cells of one column. The first three say the same as JSON numbers and strings one by one, for
/// a fraction of the cost.
#[derive(Clone, Debug)]
pub enum Cells {
    /// JSON numbers, all of them integers of 64 bits.
    Integers(Vec<i64>),
    /// JSON numbers, all of them with a fraction or an exponent.
    Floats(Vec<f64>),
    /// JSON strings.
    Texts(Texts),
    /// Anything else.
    Mixed(Vec<Cell>),
}

/// Texts in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    text: String,
    ends: Vec<usize>,
}

/// Columns of one length, by name.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The number of rows.
    pub rows: usize,
    /// The columns.
    pub columns: Vec<(String, Cells)>,
}

/// A column's values as the protobuf bytes of their `feast.types.Value`, in one piece of memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frame {
    /// Refuses a value of more bytes than the limit (`limits.max_value_bytes`).
    pub(super) fn check_values(&self, limit: usize) -> Result<()> {
        for (name, cells) in &self.columns {
            if let Some((row, bytes)) = cells.longer_than(limit) {
                let what = format!("row {row}, column '{name}': a value has {bytes} bytes, the limit is {limit}");
                return Err(Error::over_limit(Kind::TooLarge, "max_value_bytes", what, "send a shorter one"));
            }
        }
        Ok(())
    }
}

impl Texts {
    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// The number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at a place.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn at(&self, index: usize) -> &str {
        &self.text[start(&self.ends, index)..self.ends[index]]
    }
}

impl Encoded {
    /// The bytes of a row's value.
    pub(super) fn at(&self, row: usize) -> &[u8] {
        &self.bytes[start(&self.ends, row)..self.ends[row]]
    }

    /// The values.
    pub(super) fn values(&self) -> Result<Vec<Value>> {
        let decode = |row| Value::decode(self.at(row)).map_err(|e| Error::invalid(e.to_string()));
        (0..self.ends.len()).map(decode).collect()
    }
}

fn start(ends: &[usize], index: usize) -> usize {
    if index == 0 { 0 } else { ends[index - 1] }
}

impl Cells {
    /// The number of cells.
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(cells) => cells.len(),
            Self::Floats(cells) => cells.len(),
            Self::Texts(cells) => cells.len(),
            Self::Mixed(cells) => cells.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every second cell, where each cell stands twice in a row; else `None`.
    #[must_use]
    pub fn halved(&self) -> Option<Self> {
        fn every_second<T: Clone>(cells: &[T], same: impl Fn(&T, &T) -> bool) -> Option<Vec<T>> {
            cells.chunks(2).map(|pair| matches!(pair, [a, b] if same(a, b)).then(|| pair[0].clone())).collect()
        }
        Some(match self {
            Self::Integers(cells) => Self::Integers(every_second(cells, i64::eq)?),
            Self::Floats(cells) => Self::Floats(every_second(cells, |a, b| a.to_bits() == b.to_bits())?),
            Self::Texts(cells) => {
                let all: Vec<_> = (0..cells.len()).map(|row| cells.at(row)).collect();
                let mut half = Texts::default();
                every_second(&all, |a, b| a == b)?.into_iter().for_each(|text| half.push(text));
                Self::Texts(half)
            }
            Self::Mixed(cells) => Self::Mixed(every_second(cells, Cell::same)?),
        })
    }

    /// The cell of a row.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn at(&self, row: usize) -> Cow<'_, Cell> {
        Cow::Owned(match self {
            Self::Integers(cells) => Cell::Json(cells[row].into()),
            Self::Floats(cells) => Cell::Json(cells[row].into()),
            Self::Texts(cells) => Cell::Json(cells.at(row).into()),
            Self::Mixed(cells) => return Cow::Borrowed(&cells[row]),
        })
    }

    /// The first cell of more bytes than the limit, and how many it has.
    fn longer_than(&self, limit: usize) -> Option<(usize, usize)> {
        match self {
            Self::Integers(_) | Self::Floats(_) => None,
            // None of them is longer than all together.
            Self::Texts(cells) if cells.text.len() <= limit => None,
            Self::Texts(cells) => (0..cells.len()).map(|row| cells.at(row).len()).enumerate().find(|(_, n)| *n > limit),
            Self::Mixed(cells) => cells.iter().map(Cell::bytes).enumerate().find(|(_, n)| *n > limit),
        }
    }

    /// The values in a registered type, or the first row that does not fit and why.
    pub(super) fn values(&self, target: ValueType) -> Result<Vec<Value>, (usize, Error)> {
        let mut out = Vec::with_capacity(self.len());
        self.each(target, |value| out.push(value))?;
        Ok(out)
    }

    /// The same, encoded.
    pub(super) fn encode(&self, target: ValueType) -> Result<Encoded, (usize, Error)> {
        let mut out = Encoded { bytes: Vec::with_capacity(self.len() * 8), ends: Vec::with_capacity(self.len()) };
        self.each(target, |value| {
            // A vector grows: there is always room.
            let _ = value.encode(&mut out.bytes);
            out.ends.push(out.bytes.len());
        })?;
        Ok(out)
    }

    fn each(&self, target: ValueType, mut take: impl FnMut(Value)) -> Result<(), (usize, Error)> {
        match self {
            Self::Integers(cells) if is_number(target) => {
                for (row, cell) in cells.iter().enumerate() {
                    let value = Value { val: Some(Val::Int64Val(*cell)) };
                    take(value::coerce(value, target).map_err(|e| (row, e))?);
                }
            }
            Self::Floats(cells) if is_number(target) => {
                for (row, cell) in cells.iter().enumerate() {
                    let value = Value { val: Some(Val::DoubleVal(*cell)) };
                    take(value::coerce(value, target).map_err(|e| (row, e))?);
                }
            }
            Self::Texts(cells) if target == ValueType::String => {
                for row in 0..cells.len() {
                    take(Value { val: Some(Val::StringVal(cells.at(row).to_owned())) });
                }
            }
            _ => {
                for row in 0..self.len() {
                    take(self.at(row).read(target).map_err(|e| (row, e))?);
                }
            }
        }
        Ok(())
    }

    /// The column's timestamps; where a cell is null, what stands for null.
    pub(super) fn times(&self, name: &str, null: impl Fn(usize) -> Result<Timestamp>) -> Result<Vec<Timestamp>> {
        match self {
            Self::Integers(cells) => Ok(cells.iter().map(|n| Timestamp::from_epoch(*n)).collect()),
            Self::Texts(cells) => {
                let mut out: Vec<Timestamp> = Vec::with_capacity(cells.len());
                for row in 0..cells.len() {
                    // A frame often has one time for all.
                    let same = row > 0 && cells.at(row) == cells.at(row - 1);
                    let time = match out.last() {
                        Some(last) if same => *last,
                        _ => text_time(cells.at(row)).map_err(|what| no_time(name, row, &what))?,
                    };
                    out.push(time);
                }
                Ok(out)
            }
            _ => (0..self.len())
                .map(|row| match self.at(row).time().map_err(|what| no_time(name, row, &what))? {
                    Some(time) => Ok(time),
                    None => null(row),
                })
                .collect(),
        }
    }
}

impl From<Cell> for Cells {
    fn from(cell: Cell) -> Self {
        Self::Mixed(vec![cell])
    }
}

/// Types that a JSON number becomes by [`value::coerce`] alone.
fn is_number(target: ValueType) -> bool {
    use ValueType as T;
    matches!(target, T::Int32 | T::Int64 | T::Double | T::Float | T::UnixTimestamp | T::Bool | T::Invalid)
}

/// The bytes of a JSON value: those of its texts, and of a number in a list 8.
fn json_bytes(json: &serde_json::Value) -> usize {
    use serde_json::Value as Json;
    match json {
        Json::Null => 0,
        Json::Bool(_) => 1,
        Json::Number(_) => 8,
        Json::String(text) => text.len(),
        Json::Array(values) => values.iter().map(json_bytes).sum(),
        Json::Object(fields) => fields.iter().map(|(name, value)| name.len() + json_bytes(value)).sum(),
    }
}

impl Cell {
    /// The bytes of the value: a text's own, and of anything composed those of its parts.
    fn bytes(&self) -> usize {
        match self {
            Self::Json(json) => json_bytes(json),
            Self::Text(text) => text.len(),
            Self::Typed(value) => match &value.val {
                Some(Val::StringVal(text)) => text.len(),
                Some(Val::BytesVal(bytes)) => bytes.len(),
                _ => value.encoded_len(),
            },
        }
    }

    /// Reads the cell as a registered type.
    fn read(&self, value_type: ValueType) -> Result<Value> {
        match self {
            Self::Json(json) if value_type == ValueType::Invalid => value::guess_json(json),
            Self::Json(json) => value::from_json(json, value_type),
            Self::Text(text) => value::parse_text(text, value_type),
            Self::Typed(typed) => value::coerce(typed.clone(), value_type),
        }
    }

    /// The cell as a timestamp; `None` where it is null. Numbers are epoch seconds, milliseconds,
    /// microseconds or nanoseconds by their magnitude ([`Timestamp::from_epoch`]); typed timestamps are
    /// seconds. Fails with what it is instead.
    fn time(&self) -> Result<Option<Timestamp>, String> {
        let number = |n: i64| Ok(Some(Timestamp::from_epoch(n)));
        let float = |f: f64| within(Timestamp((f * 1e6).round() as i64)).map(Some).ok_or_else(|| f.to_string());
        match self {
            Self::Json(serde_json::Value::Null) => Ok(None),
            Self::Json(serde_json::Value::String(s)) | Self::Text(s) => text_time(s).map(Some),
            Self::Json(json) => match (json.as_i64(), json.as_f64()) {
                (Some(n), _) => number(n),
                (None, Some(f)) if f.is_finite() => float(f),
                _ => Err(json.to_string()),
            },
            Self::Typed(typed) => match &typed.val {
                None | Some(Val::NullVal(_)) => Ok(None),
                Some(Val::UnixTimestampVal(seconds)) => {
                    within(Timestamp::from_seconds(*seconds)).map(Some).ok_or_else(|| format!("{seconds} s since 1970"))
                }
                Some(Val::Int64Val(n)) => number(*n),
                Some(Val::Int32Val(n)) => number(i64::from(*n)),
                Some(Val::DoubleVal(f)) if f.is_finite() => float(*f),
                Some(Val::StringVal(s)) => text_time(s).map(Some),
                Some(_) => Err(format!("a value of type {}", value::type_of(typed).as_str_name())),
            },
        }
    }
}

/// A time outside of the years 1 to 9999 is refused: neither `google.protobuf.Timestamp` nor Python has it, and
/// no later row could replace one that happened after all others.
fn within(time: Timestamp) -> Option<Timestamp> {
    const FIRST: Timestamp = Timestamp(-62_135_596_800_000_000);
    const LAST: Timestamp = Timestamp(253_402_300_799_999_999);
    (FIRST..=LAST).contains(&time).then_some(time)
}

fn text_time(text: &str) -> Result<Timestamp, String> {
    let parsed = text.parse().map(Timestamp::from_epoch).or_else(|_| Timestamp::parse(text));
    parsed.ok().and_then(within).ok_or_else(|| format!("{text:?}"))
}

fn no_time(column: &str, row: usize, what: &str) -> Error {
    Error::invalid(format!("row {row}, column '{column}': {what} is not a timestamp: send ISO 8601 text or an epoch"))
}

/// Each row's version from its times; without created times they are 0.
pub(super) fn versions(events: Vec<Timestamp>, created: Option<Vec<Timestamp>>) -> Vec<Version> {
    match created {
        Some(created) => events.into_iter().zip(created).map(|(event, created)| Version { event, created }).collect(),
        None => events.into_iter().map(|event| Version { event, created: Timestamp::default() }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_type() -> impl Strategy<Value = ValueType> {
        (0..60i32).prop_filter_map("is a type", |n| ValueType::try_from(n).ok())
    }

    fn cells() -> impl Strategy<Value = Cells> {
        let text = "[0-9a-z.:TZ \\-\\[\\]{}\"]{0,12}";
        prop_oneof![
            proptest::collection::vec(prop_oneof![any::<i64>(), -3..3i64], 1..5).prop_map(Cells::Integers),
            proptest::collection::vec(prop_oneof![any::<f64>(), (-3..3i64).prop_map(|n| n as f64)], 1..5)
                .prop_map(|cells| Cells::Floats(cells.into_iter().filter(|f| f.is_finite()).collect())),
            proptest::collection::vec(prop_oneof![text, Just("2026-01-01T00:00:00Z".to_owned())], 1..5).prop_map(
                |cells| {
                    let mut texts = Texts::default();
                    for cell in &cells {
                        texts.push(cell);
                    }
                    Cells::Texts(texts)
                }
            ),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// A column of one kind is read as its cells are, one by one: same values, same refusals.
        #[test]
        fn columns_are_read_as_their_cells(cells in cells(), target in any_type()) {
            let one_by_one = Cells::Mixed((0..cells.len()).map(|row| cells.at(row).into_owned()).collect());
            let message = |(row, e): (usize, Error)| (row, e.message().to_owned());
            prop_assert_eq!(cells.values(target).map_err(message), one_by_one.values(target).map_err(message));
            if let (Ok(encoded), Ok(values)) = (cells.encode(target), cells.values(target)) {
                prop_assert_eq!(encoded.values().expect("decodes"), values);
            }
            let null = |_| Ok(Timestamp::default());
            let text = |e: Error| e.message().to_owned();
            prop_assert_eq!(
                cells.times("c", null).map_err(text),
                one_by_one.times("c", null).map_err(text)
            );
        }
    }
}
