//! What is gathered and encoded, against a plain reading of the contract and against prost.

use proptest::prelude::*;

use super::*;
use crate::row::{Column, Row, RowRef, Slim, Version, column_id};
use crate::value::ValueType;
use crate::value::proto_value::Val;

fn names(features: usize) -> Arc<Names> {
    Arc::new(Names::new((0..features).map(|f| format!("feature_{f}")).collect()))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => any::<i64>().prop_map(|v| Some(Val::Int64Val(v))),
        2 => any::<f64>().prop_map(|v| Some(Val::DoubleVal(v))),
        2 => "[a-z]{0,200}".prop_map(|v| Some(Val::StringVal(v))),
        1 => (-5i64..5).prop_map(|v| Some(Val::UnixTimestampVal(v))),
        1 => any::<bool>().prop_map(|v| Some(Val::BoolVal(v))),
        1 => "[0-9]{0,20}".prop_map(|v| Some(Val::DecimalVal(v))),
        1 => proptest::collection::vec(any::<f32>(), 0..40)
            .prop_map(|val| Some(Val::FloatListVal(proto::feast::types::FloatList { val }))),
        1 => Just(Some(Val::NullVal(0))),
        1 => Just(None),
    ]
    .prop_map(|val| Value { val })
}

/// What a feature of a row is by the contract alone: value, status, time.
type Expected = (Vec<u8>, FieldStatus, Timestamp);

const TTL: i64 = 1_500_000;
const NOW: Timestamp = Timestamp(3_000_000);

fn expected(row: Option<&Row>, id: u32, value_type: ValueType, ttl_us: i64) -> Expected {
    let Some(row) = row else { return (Vec::new(), FieldStatus::NotFound, Timestamp::default()) };
    let (bytes, version) = row.get(id).unwrap_or_default();
    let time = if row.get(id).is_some() { version.event } else { row.newest().event };
    if ttl_us > 0 && NOW.0 - time.0 > ttl_us {
        return (Vec::new(), FieldStatus::OutsideMaxAge, time);
    }
    let value = Value::decode(bytes.clone()).expect("a value");
    let of_type = value_type == ValueType::Invalid || crate::value::type_of(&value) == value_type;
    if crate::value::is_null(&value) || !of_type {
        return (Vec::new(), FieldStatus::NullValue, time);
    }
    (bytes.into(), FieldStatus::Present, time)
}

fn of_row(row: &Row, wanted: &[(u32, ValueType)], ttl_us: i64, now: Timestamp) -> ViewAnswer {
    let wanted: Vec<_> =
        wanted.iter().enumerate().map(|(at, (id, value_type))| Wanted::new(at, *id, *value_type, 0)).collect();
    let mut gather = Gather::new(names(wanted.len()), &wanted, ttl_us, now, 1);
    gather.push(Some(row.borrowed()));
    gather.finish()
}

fn statuses(view: &ViewAnswer) -> Vec<FieldStatus> {
    (0..view.names().len()).flat_map(|feature| view.feature(feature).map(|cell| cell.status)).collect()
}

/// A row of some of these features and one more, with one time or several.
fn row(features: usize) -> impl Strategy<Value = Option<Row>> {
    let column = (any::<proptest::sample::Index>(), value(), 0i64..3);
    let columns = proptest::collection::vec(column, 0..8);
    (columns, any::<bool>(), 0i64..3, 0u8..5).prop_map(move |(columns, split, second, there)| {
        let columns = columns.into_iter().map(|(at, value, own)| Column {
            id: column_id(&at.index(features + 1).to_string()),
            value: value.encode_to_vec().into(),
            version: Version {
                event: Timestamp::from_seconds(if split { own } else { second }),
                created: Timestamp::default(),
            },
        });
        (there > 0).then(|| Row::pack(columns.collect()))
    })
}

#[derive(Clone, Debug)]
struct Case {
    rows: Vec<Option<Row>>,
    wanted: Vec<(u32, ValueType, usize)>,
    ttl_us: i64,
    fan_out: Vec<usize>,
    /// Whether the wanted features are in the order of a row's columns.
    sorted: bool,
}

impl Case {
    fn wanted(&self) -> Vec<Wanted> {
        let wanted = self.wanted.iter().enumerate().map(|(at, (id, t, position))| Wanted::new(at, *id, *t, *position));
        let mut wanted: Vec<_> = wanted.collect();
        if self.sorted {
            wanted.sort_by_key(Wanted::id);
        }
        wanted
    }

    fn gather(&self) -> ViewAnswer {
        let wanted = self.wanted();
        let mut gather = Gather::new(names(wanted.len()), &wanted, self.ttl_us, NOW, self.rows.len());
        for row in &self.rows {
            gather.push(row.as_ref().map(Row::borrowed));
        }
        gather.finish()
    }

    /// The same of rows without their ids, where a row has such a form; bytes stand behind it in `slack`.
    fn gather_slim(&self, slack: usize) -> ViewAnswer {
        let wanted = self.wanted();
        let mut gather = Gather::new(names(wanted.len()), &wanted, self.ttl_us, NOW, self.rows.len());
        for row in &self.rows {
            let Some((row, ids)) = row.as_ref().and_then(|row| Some((row, Slim::ids(row)?))) else {
                gather.push(row.as_ref().map(Row::borrowed));
                continue;
            };
            let mut bytes = Vec::new();
            Slim::put(&mut bytes, row);
            bytes.resize(bytes.len() + slack, 0xFF);
            let slim = RowRef::Slim(Slim::of(&ids, &bytes));
            assert_eq!(slim.to_row(), *row);
            gather.push(Some(slim));
        }
        gather.finish()
    }

    fn expected(&self, feature: usize) -> Vec<Expected> {
        let (id, value_type, _) = self.wanted[feature];
        self.rows.iter().map(|row| expected(row.as_ref(), id, value_type, self.ttl_us)).collect()
    }
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..5).prop_flat_map(|features| {
        let types = prop_oneof![4 => Just(ValueType::Int64), 1 => Just(ValueType::String),
            1 => Just(ValueType::Decimal), 2 => Just(ValueType::Invalid)];
        let wanted = (0..features).map(|f| (Just(column_id(&f.to_string())), types.clone(), 0usize..6));
        let rows = proptest::collection::vec(row(features), 0..40);
        let fan_out = proptest::collection::vec(any::<proptest::sample::Index>(), 0..200);
        (rows, wanted.collect::<Vec<_>>(), prop_oneof![Just(0), Just(TTL)], fan_out, any::<bool>()).prop_map(
            |(rows, wanted, ttl_us, fan_out, sorted)| {
                let fan_out = if rows.is_empty() { Vec::new() } else { fan_out };
                Case { fan_out: fan_out.iter().map(|at| at.index(rows.len())).collect(), rows, wanted, ttl_us, sorted }
            },
        )
    })
}

fn cells(view: &ViewAnswer, feature: usize) -> Vec<Expected> {
    view.feature(feature).map(|cell| (cell.value.to_vec(), cell.status, cell.time)).collect()
}

/// Times around the epoch, of today, of any length as a varint, and before 1970; whole seconds too.
fn time() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![
        any::<i32>().prop_map(|n| i64::from(n) >> 10),
        1_700_000_000i64..1_800_000_000,
        (0u32..40, -1i64..2).prop_map(|(bits, more)| (1 << bits) + more),
        -(1i64 << 36)..0,
    ];
    let micros = prop_oneof![Just(0), 0i64..1_000_000];
    (seconds, micros).prop_map(|(seconds, micros)| Timestamp(seconds * 1_000_000 + micros))
}

proptest! {
    /// Whatever the rows are (missing columns, other orders, split times, long values, other types), a
    /// feature's value, status and time are what the contract says, and so they are for other rows.
    #[test]
    fn what_is_gathered_is_what_the_contract_says(case in case()) {
        let view = case.gather();
        let fanned_out = view.fanned_out(&case.fan_out);
        for feature in 0..case.wanted.len() {
            let expected = case.expected(feature);
            let of_rows: Vec<_> = case.fan_out.iter().map(|row| expected[*row].clone()).collect();
            prop_assert_eq!(cells(&fanned_out, feature), of_rows);
            for slack in [0, 16] {
                prop_assert_eq!(&cells(&case.gather_slim(slack), feature), &expected);
            }
            prop_assert_eq!(cells(&view, feature), expected);
        }
    }

    /// Every byte is what prost makes of the same answer.
    #[test]
    fn the_bytes_are_prosts(
        cases in proptest::collection::vec((case(), any::<bool>()), 0..4),
        computed in proptest::collection::vec(proptest::collection::vec(value(), 3), 0..3),
        times in proptest::collection::vec(time(), 3),
        entities in proptest::collection::vec(proptest::collection::vec(value(), 0..5), 0..3),
        versions in proptest::collection::vec(("[a-z]{0,5}", 0i32..300), 0..3),
    ) {
        let mut views: Vec<_> = cases.iter().map(|(case, fan_out)| {
            let view = case.gather();
            if *fan_out { view.fanned_out(&case.fan_out) } else { view }
        }).collect();
        views.push(ViewAnswer::of_columns(names(computed.len()), &computed, &times));
        let columns = entities.into_iter().enumerate().map(|(i, v)| (format!("key_{i}"), v)).collect();
        let answer = Answer { columns, views, versions };
        let encoded = answer.encode();
        prop_assert_eq!(encoded.len(), answer.encoded_len());
        prop_assert_eq!(encoded, answer.to_message().expect("whole").encode_to_vec());
    }

    /// Values that are worked out come back as they are; null has the status `NULL_VALUE`.
    #[test]
    fn computed_columns_come_back(columns in proptest::collection::vec(proptest::collection::vec(value(), 4), 0..4)) {
        let times = [1, 2, 3, 4].map(Timestamp::from_seconds);
        let view = ViewAnswer::of_columns(names(columns.len()), &columns, &times);
        for (feature, column) in columns.iter().enumerate() {
            for ((cell, value), time) in view.feature(feature).zip(column).zip(times) {
                let null = crate::value::is_null(value);
                let bytes = if null { Vec::new() } else { value.encode_to_vec() };
                let status = if null { FieldStatus::NullValue } else { FieldStatus::Present };
                prop_assert_eq!((cell.value, cell.status, cell.time), (bytes.as_slice(), status, time));
            }
        }
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
        // A column of the same value behind it: a short value is then read by the copy of fixed size.
        let value = bytes::Bytes::from(Value { val: Some(val) }.encode_to_vec());
        let padding = Column { id: u32::MAX, value: vec![0; 20].into(), version: Version::default() };
        let column = Column { id: column_id("f"), value, version: Version::default() };
        for row in [vec![column.clone()], vec![column, padding]].map(Row::pack) {
            for read in &types {
                let view = of_row(&row, &[(column_id("f"), *read)], 0, Timestamp::default());
                let wanted = if *read == written { FieldStatus::Present } else { FieldStatus::NullValue };
                assert_eq!(statuses(&view), [wanted], "written as {written:?}, read as {read:?}");
            }
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
    let at = |ttl_us| of_row(&row, &ids, ttl_us, Timestamp::from_seconds(120));
    assert_eq!(statuses(&at(0)), [Present, Present, NullValue, NullValue, NullValue]);
    let aged = at(50_000_000);
    assert_eq!(statuses(&aged), [Present, OutsideMaxAge, NullValue, NullValue, NullValue]);
    let cell = aged.feature(1).next().expect("a row");
    assert_eq!(cell.value, b"", "a value outside its age is not given");
    assert_eq!(cell.time, Timestamp::from_seconds(10), "its true time is");
}
