//! The answer to a read of online features, kept as the stored bytes it is made of, and its encoding
//! as `feast.serving.GetOnlineFeaturesResponse`: straight from the rows into one buffer, with no
//! message per value. Knows no store and no protocol but the message's bytes.
//!
//! Whatever it encodes is byte for byte what prost makes of [`Answer::to_message`]; the tests hold it.

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::feast::serving::get_online_features_response::FeatureVector;
use proto::feast::serving::{
    FeatureList, FeatureViewMetadata, FieldStatus, GetOnlineFeaturesResponse, GetOnlineFeaturesResponseMetadata,
};

use crate::error::{Error, Result};
use crate::row::Row;
use crate::time::Timestamp;
use crate::value::{Value, ValueType};

/// What one entity has of one view: per feature a value, a status and a time.
#[derive(Clone, Debug)]
pub struct Cells {
    /// The bytes that the spans point into.
    bytes: Bytes,
    /// Where each value's bytes stand; empty is null.
    spans: Vec<(u32, u32)>,
    statuses: Vec<FieldStatus>,
    /// One time for all features, or one each.
    times: Vec<Timestamp>,
}

/// The features of one view, for every row of the request.
#[derive(Debug)]
pub struct ViewAnswer {
    /// The features' names in the answer.
    pub names: Vec<String>,
    /// The distinct entities' cells.
    pub cells: Vec<Cells>,
    /// For each row of the request, whose cells it has.
    pub fan_out: Vec<usize>,
}

/// The whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The entity columns, as the request gave them.
    pub columns: Vec<(String, Vec<Value>)>,
    /// The views, in order.
    pub views: Vec<ViewAnswer>,
    /// Each view's version, where the request asks for it.
    pub versions: Vec<(String, i32)>,
}

impl Cells {
    /// An entity that has no row: every feature is `NOT_FOUND`, at the epoch.
    pub fn not_found(features: usize) -> Self {
        Self {
            bytes: Bytes::new(),
            spans: vec![(0, 0); features],
            statuses: vec![FieldStatus::NotFound; features],
            times: vec![Timestamp::default()],
        }
    }

    /// A stored row at `now`: the status rules of FEAST_CONTRACT.md, "Reading online". `columns` are the
    /// features' ids and registered types; `ttl_us` 0 is for ever. A value that was written under another
    /// type than the registered one was never written for this feature: it is null.
    pub fn of_row(row: &Row, columns: &[(u32, ValueType)], ttl_us: i64, now: Timestamp) -> Self {
        let (mut spans, mut statuses) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
        let newest = row.newest().event;
        let mut times = Vec::new();
        for (at, (id, value_type)) in columns.iter().enumerate() {
            let (span, time) = row.find(*id).map_or(((0, 0), newest), |(span, version)| (span, version.event));
            if time != newest && times.is_empty() {
                times = vec![newest; at];
            }
            if time != newest || !times.is_empty() {
                times.push(time);
            }
            let outside = ttl_us > 0 && now.micros().saturating_sub(time.micros()) > ttl_us;
            let (span, status) = match (outside, row.bytes_of(span)) {
                (true, _) => ((0, 0), FieldStatus::OutsideMaxAge),
                (false, value) if is_null(value) || !is_of_type(value, *value_type) => ((0, 0), FieldStatus::NullValue),
                (false, _) => (span, FieldStatus::Present),
            };
            spans.push(span);
            statuses.push(status);
        }
        if times.is_empty() {
            times.push(newest);
        }
        Self { bytes: row.as_bytes().clone(), spans, statuses, times }
    }

    /// Values worked out at the request's time, all of one time: null is `NULL_VALUE`.
    pub fn of_values(values: &[Value], time: Timestamp) -> Self {
        let (mut bytes, mut spans, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
        for value in values {
            let start = bytes.len() as u32;
            let present = !crate::value::is_null(value);
            if present {
                bytes.extend_from_slice(&value.encode_to_vec());
            }
            spans.push((start, bytes.len() as u32));
            statuses.push(if present { FieldStatus::Present } else { FieldStatus::NullValue });
        }
        Self { bytes: bytes.into(), spans, statuses, times: vec![time] }
    }

    fn value(&self, feature: usize) -> &[u8] {
        let (start, end) = self.spans[feature];
        &self.bytes[start as usize..end as usize]
    }

    fn time(&self, feature: usize) -> Timestamp {
        if self.times.len() == 1 { self.times[0] } else { self.times[feature] }
    }
}

/// Feast's explicit null, as it is stored: `null_val` (field 19) and nothing else.
fn is_null(value: &[u8]) -> bool {
    value.is_empty() || value == [0x98, 0x01, 0x00]
}

/// Whether a stored value is of this type: the fields of `Value` are numbered as the types are.
fn is_of_type(value: &[u8], value_type: ValueType) -> bool {
    let key = prost::encoding::decode_varint(&mut &*value).unwrap_or_default();
    value_type == ValueType::Invalid || key >> 3 == value_type as u64
}

impl Answer {
    /// The answer as a message. Errors where stored bytes are no value: the row is damaged.
    pub fn to_message(&self) -> Result<GetOnlineFeaturesResponse> {
        let mut results: Vec<FeatureVector> = self.columns.iter().map(|(_, values)| entity_vector(values)).collect();
        for view in &self.views {
            for (feature, name) in view.names.iter().enumerate() {
                let rows = || view.fan_out.iter().map(|at| &view.cells[*at]);
                let values =
                    rows().map(|c| Value::decode(c.value(feature))).collect::<Result<_, _>>().map_err(|e| {
                        Error::internal(format!("a stored value of {name} is damaged: write the row again"), e)
                    })?;
                results.push(FeatureVector {
                    values,
                    statuses: rows().map(|c| c.statuses[feature].into()).collect(),
                    event_timestamps: rows().map(|c| c.time(feature).to_proto()).collect(),
                });
            }
        }
        Ok(GetOnlineFeaturesResponse { metadata: Some(self.metadata()), results, status: true })
    }

    fn metadata(&self) -> GetOnlineFeaturesResponseMetadata {
        let entities = self.columns.iter().map(|(name, _)| name);
        let names = entities.chain(self.views.iter().flat_map(|v| &v.names));
        GetOnlineFeaturesResponseMetadata {
            feature_names: Some(FeatureList { val: names.cloned().collect() }),
            feature_view_metadata: self
                .versions
                .iter()
                .map(|(name, version)| FeatureViewMetadata { name: name.clone(), version: *version })
                .collect(),
        }
    }

    /// The answer as the message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size_hint());
        put_message(&mut out, 1, &self.metadata());
        for (_, values) in &self.columns {
            put_message(&mut out, 2, &entity_vector(values));
        }
        let mut times = Times::default();
        for view in &self.views {
            times.of_view(view);
            for feature in 0..view.names.len() {
                times.of_feature(view, feature);
                put_vector(&mut out, view, feature, &times.block);
            }
        }
        out.extend_from_slice(&[0x18, 0x01]); // status = true
        out
    }

    fn size_hint(&self) -> usize {
        let cells: usize = self.views.iter().map(|v| v.names.len() * v.fan_out.len()).sum();
        let values: usize = self.columns.iter().map(|(_, v)| v.len()).sum();
        256 + cells * 32 + values * 24
    }
}

/// One `FeatureVector` of a view, as field 2 of the response.
fn put_vector(out: &mut Vec<u8>, view: &ViewAnswer, feature: usize, times: &[u8]) {
    let rows = view.fan_out.len();
    let mut len = times.len();
    for at in &view.fan_out {
        let value = view.cells[*at].value(feature).len();
        len += 1 + encoded_len_varint(value as u64) + value;
    }
    if rows > 0 {
        len += 1 + encoded_len_varint(rows as u64) + rows;
    }
    out.push(0x12);
    encode_varint(len as u64, out);
    for at in &view.fan_out {
        put_bytes(out, 0x0A, view.cells[*at].value(feature));
    }
    if rows > 0 {
        out.push(0x12); // statuses, packed: every status is one byte
        encode_varint(rows as u64, out);
        out.extend(view.fan_out.iter().map(|at| view.cells[*at].statuses[feature] as u8));
    }
    out.extend_from_slice(times);
}

/// The encoded `event_timestamps` of a feature's rows. Where every entity has one time for all its
/// features the block is made once for the whole view.
#[derive(Default)]
struct Times {
    block: Vec<u8>,
    shared: bool,
}

impl Times {
    fn of_view(&mut self, view: &ViewAnswer) {
        self.shared = view.cells.iter().all(|c| c.times.len() == 1);
        if self.shared {
            self.fill(view, 0);
        }
    }

    fn of_feature(&mut self, view: &ViewAnswer, feature: usize) {
        if !self.shared {
            self.fill(view, feature);
        }
    }

    fn fill(&mut self, view: &ViewAnswer, feature: usize) {
        self.block.clear();
        for at in &view.fan_out {
            put_message(&mut self.block, 3, &view.cells[*at].time(feature).to_proto());
        }
    }
}

fn entity_vector(values: &[Value]) -> FeatureVector {
    FeatureVector {
        values: values.to_vec(),
        statuses: vec![FieldStatus::Present.into(); values.len()],
        event_timestamps: vec![prost_types::Timestamp::default(); values.len()],
    }
}

fn put_message(out: &mut Vec<u8>, field: u8, message: &impl prost::Message) {
    out.push(field << 3 | 2);
    encode_varint(message.encoded_len() as u64, out);
    message.encode_raw(out);
}

fn put_bytes(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    out.push(key);
    match bytes.len() {
        len @ 0..128 => out.push(len as u8),
        len => encode_varint(len as u64, out),
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Column, Version, column_id};
    use crate::value::proto_value::Val;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(|v| Some(Val::Int64Val(v))),
            any::<f64>().prop_map(|v| Some(Val::DoubleVal(v))),
            "[a-z]{0,200}".prop_map(|v| Some(Val::StringVal(v))),
            proptest::collection::vec(any::<f32>(), 0..40)
                .prop_map(|val| Some(Val::FloatListVal(proto::feast::types::FloatList { val }))),
            Just(Some(Val::NullVal(0))),
            Just(None),
        ]
        .prop_map(|val| Value { val })
    }

    fn features_of(ids: &[u32]) -> Vec<(u32, ValueType)> {
        ids.iter().map(|id| (*id, ValueType::Invalid)).collect()
    }

    fn cells(features: usize) -> impl Strategy<Value = Cells> {
        let ids: Vec<u32> = (0..features).map(|f| column_id(&f.to_string())).collect();
        let column = (any::<proptest::sample::Index>(), value(), 0i64..3);
        let row = proptest::collection::vec(column, 0..6).prop_map(move |columns| {
            let columns = columns.into_iter().map(|(at, value, second)| Column {
                id: column_id(&at.index(features + 1).to_string()),
                value: value.encode_to_vec().into(),
                version: Version { event: Timestamp::from_seconds(second), created: Timestamp::default() },
            });
            Cells::of_row(&Row::pack(columns.collect()), &features_of(&ids), 1_500_000, Timestamp::from_seconds(3))
        });
        let values = (proptest::collection::vec(value(), features), any::<i32>())
            .prop_map(|(values, time)| Cells::of_values(&values, Timestamp(i64::from(time) * 1000)));
        prop_oneof![4 => row, 1 => values, 1 => Just(Cells::not_found(features))]
    }

    fn view() -> impl Strategy<Value = ViewAnswer> {
        (1usize..5).prop_flat_map(|features| {
            let rows = proptest::collection::vec(any::<proptest::sample::Index>(), 0..200);
            (proptest::collection::vec(cells(features), 1..5), rows).prop_map(move |(cells, rows)| ViewAnswer {
                names: (0..features).map(|f| format!("feature_{f}")).collect(),
                fan_out: rows.iter().map(|at| at.index(cells.len())).collect(),
                cells,
            })
        })
    }

    proptest! {
        /// Every byte is what prost makes of the same answer.
        #[test]
        fn the_bytes_are_prosts(
            views in proptest::collection::vec(view(), 0..4),
            entities in proptest::collection::vec(proptest::collection::vec(value(), 0..5), 0..3),
            versions in proptest::collection::vec(("[a-z]{0,5}", 0i32..300), 0..3),
        ) {
            let columns = entities.into_iter().enumerate().map(|(i, v)| (format!("key_{i}"), v)).collect();
            let answer = Answer { columns, views, versions };
            prop_assert_eq!(answer.encode(), answer.to_message().expect("whole").encode_to_vec());
        }
    }

    /// A value of every type is read under its own type, and under no other.
    #[test]
    fn a_value_of_another_type_is_never_served() {
        let values = [
            (ValueType::Int64, Val::Int64Val(0)),
            (ValueType::String, Val::StringVal(String::new())),
            (ValueType::UnixTimestamp, Val::UnixTimestampVal(5)),
            (ValueType::FloatSet, Val::FloatSetVal(proto::feast::types::FloatSet { val: vec![1.0] })),
            (ValueType::Json, Val::JsonVal("{}".into())),
            (ValueType::ValueList, Val::ListVal(proto::feast::types::RepeatedValue::default())),
            (ValueType::Decimal, Val::DecimalVal("1".into())),
            (ValueType::ZonedTimestamp, Val::ZonedTimestampVal(proto::feast::types::ZonedTimestamp::default())),
        ];
        let types: Vec<ValueType> = values.iter().map(|(value_type, _)| *value_type).collect();
        for (written, val) in values {
            let value = Value { val: Some(val) }.encode_to_vec().into();
            let row = Row::pack(vec![Column { id: column_id("f"), value, version: Version::default() }]);
            for read in &types {
                let cells = Cells::of_row(&row, &[(column_id("f"), *read)], 0, Timestamp::default());
                let wanted = if *read == written { FieldStatus::Present } else { FieldStatus::NullValue };
                assert_eq!(cells.statuses, [wanted], "written as {written:?}, read as {read:?}");
            }
        }
    }

    #[test]
    fn the_statuses_follow_the_contract() {
        use FieldStatus::{NullValue, OutsideMaxAge, Present};
        let column = |name: &str, value: &Value, second| Column {
            id: column_id(name),
            value: value.encode_to_vec().into(),
            version: Version { event: Timestamp::from_seconds(second), created: Timestamp::default() },
        };
        let present = Value { val: Some(Val::Int64Val(1)) };
        let explicit_null = Value { val: Some(Val::NullVal(0)) };
        let row = Row::pack(vec![
            column("new", &present, 100),
            column("old", &present, 10),
            column("none", &Value::default(), 100),
            column("null", &explicit_null, 100),
        ]);
        let ids = ["new", "old", "none", "null", "never"].map(|name| (column_id(name), ValueType::Int64));
        let at = |ttl_us| Cells::of_row(&row, &ids, ttl_us, Timestamp::from_seconds(120));
        assert_eq!(at(0).statuses, [Present, Present, NullValue, NullValue, NullValue]);
        let aged = at(50_000_000);
        assert_eq!(aged.statuses, [Present, OutsideMaxAge, NullValue, NullValue, NullValue]);
        assert_eq!(aged.value(1), b"", "a value outside its age is not given");
        assert_eq!(aged.time(1), Timestamp::from_seconds(10), "its true time is");
    }
}
