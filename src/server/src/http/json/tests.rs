//! The writer against the oracle, on answers and on bytes that nobody meant.

use std::sync::Arc;

use model::answer::{Answer, Gather, Names, ViewAnswer, Wanted};
use model::row::{Column, Version, column_id};
use model::value::proto_value::Val;
use model::{Row, Timestamp, Value, ValueType};
use proptest::prelude::*;
use prost::Message as _;
use proto::feast::types as t;

fn leaf() -> impl Strategy<Value = Option<Val>> {
    prop_oneof![
        Just(None),
        Just(Some(Val::NullVal(0))),
        any::<i32>().prop_map(|v| Some(Val::Int32Val(v))),
        any::<i64>().prop_map(|v| Some(Val::Int64Val(v))),
        any::<u64>().prop_map(|v| Some(Val::DoubleVal(f64::from_bits(v)))),
        any::<f64>().prop_map(|v| Some(Val::DoubleVal(v))),
        (-1e6f64..1e6).prop_map(|v| Some(Val::DoubleVal((v * 100.0).round() / 100.0))),
        any::<u32>().prop_map(|v| Some(Val::FloatVal(f32::from_bits(v)))),
        any::<bool>().prop_map(|v| Some(Val::BoolVal(v))),
        any::<String>().prop_map(|v| Some(Val::StringVal(v))),
        any::<Vec<u8>>().prop_map(|v| Some(Val::BytesVal(v))),
        any::<Vec<i32>>().prop_map(|val| Some(Val::Int32ListVal(t::Int32List { val }))),
        any::<Vec<f32>>().prop_map(|val| Some(Val::FloatSetVal(t::FloatSet { val }))),
        any::<Vec<bool>>().prop_map(|val| Some(Val::BoolListVal(t::BoolList { val }))),
        any::<Vec<String>>().prop_map(|val| Some(Val::JsonListVal(t::StringList { val }))),
        any::<Vec<Vec<u8>>>().prop_map(|val| Some(Val::BytesSetVal(t::BytesSet { val }))),
        (any::<i64>(), "[+-][0-9]{4}|Europe/Berlin|[A-Za-z/]{0,6}").prop_map(|(unix_timestamp, zone)| {
            Some(Val::ZonedTimestampVal(t::ZonedTimestamp { unix_timestamp, zone }))
        }),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_map(|val| Value { val }).prop_recursive(3, 20, 4, |inner| {
        let map =
            || proptest::collection::btree_map(any::<String>(), inner.clone(), 0..4).prop_map(|val| t::Map { val });
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|val| Some(Val::ListVal(t::RepeatedValue { val }))),
            map().prop_map(|map| Some(Val::StructVal(map))),
            proptest::collection::vec(map(), 0..3).prop_map(|val| Some(Val::MapListVal(t::MapList { val }))),
        ]
        .prop_map(|val| Value { val })
    })
}

fn view() -> impl Strategy<Value = ViewAnswer> {
    (1usize..4, 0usize..6).prop_flat_map(|(features, rows)| {
        let columns = proptest::collection::vec(proptest::collection::vec(value(), rows), features);
        let names = proptest::collection::vec(any::<String>(), features);
        let time = -60_000_000_000_000_000i64..250_000_000_000_000_000;
        let times = proptest::collection::vec(time.prop_map(Timestamp), rows);
        (names, columns, times)
            .prop_map(|(names, columns, times)| ViewAnswer::of_columns(Arc::new(Names::new(names)), &columns, &times))
    })
}

/// Rows as a store has them, some of them missing, too old, or with a time for each column; read as columns of
/// whole numbers of any size, and of one type.
fn stored() -> impl Strategy<Value = ViewAnswer> {
    let number = (any::<i64>(), 0u32..64).prop_map(|(number, shift)| number >> shift);
    let cell = (number, 0u8..12, 0i64..3);
    let rows = proptest::collection::vec((proptest::collection::vec(cell, 3), 0u8..8, 0i64..4), 0..40);
    let types = proptest::sample::select(vec![ValueType::Int32, ValueType::Int64, ValueType::UnixTimestamp]);
    (rows, types, any::<bool>()).prop_map(|(rows, value_type, split)| {
        let ids: Vec<u32> = (0..3).map(|feature| column_id(&format!("f{feature}"))).collect();
        let wanted: Vec<_> = (0..).zip(&ids).map(|(at, id)| Wanted::new(at, *id, value_type, 0)).collect();
        let names = Arc::new(Names::new(vec!["f0".into(), "f1".into(), "f2".into()]));
        let mut gather = Gather::new(names, &wanted, 2_000_000, Timestamp::from_seconds(4), rows.len());
        for (cells, there, second) in rows {
            let columns = ids.iter().zip(cells).map(|(id, (number, null, own))| Column {
                id: *id,
                value: match (null, value_type) {
                    (0, _) => Vec::new(),
                    (_, ValueType::Int32) => Value { val: Some(Val::Int32Val(number as i32)) }.encode_to_vec(),
                    (_, ValueType::Int64) => Value { val: Some(Val::Int64Val(number)) }.encode_to_vec(),
                    _ => Value { val: Some(Val::UnixTimestampVal(number)) }.encode_to_vec(),
                }
                .into(),
                version: Version {
                    event: Timestamp::from_seconds(if split { own } else { second }),
                    created: Timestamp::default(),
                },
            });
            let row = (there > 0).then(|| Row::pack(columns.collect()));
            gather.push(row.as_ref().map(Row::borrowed));
        }
        gather.finish()
    })
}

/// What prost makes of bytes, and the JSON of that.
fn by_prost(bytes: &[u8]) -> Option<String> {
    Value::decode(bytes).ok().map(|value| super::oracle::value(&value))
}

fn by_writer(bytes: &[u8]) -> Option<String> {
    let mut out = b"before".to_vec();
    let written = super::value(&mut out, bytes).is_ok();
    let text = String::from_utf8(out.split_off(6)).expect("UTF-8");
    assert!(written || text.is_empty(), "an error leaves nothing behind");
    written.then_some(text)
}

proptest! {
    #[test]
    fn answers_are_what_their_messages_give(
        views in proptest::collection::vec(prop_oneof![view(), stored()], 0..4),
        entities in proptest::collection::vec(proptest::collection::vec(value(), 0..5), 0..3),
        versions in proptest::collection::vec(("[a-z]{0,5}", 0i32..300), 0..3),
    ) {
        let columns = entities.into_iter().enumerate().map(|(i, v)| (format!("key_{i}"), v)).collect();
        let answer = Answer { columns, views, versions };
        let written = String::from_utf8(super::response(&answer).expect("whole")).expect("UTF-8");
        prop_assert_eq!(written, super::oracle::response(&answer.to_message().expect("whole")));
    }

    #[test]
    fn values_are_what_their_messages_give(value in value()) {
        let bytes = value.encode_to_vec();
        prop_assert_eq!(by_writer(&bytes), by_prost(&bytes));
    }

    /// Bytes that are damaged, cut off, or put together from several values mean what prost says.
    #[test]
    fn odd_bytes_mean_what_prost_says(
        one in value(),
        other in value(),
        cut in any::<proptest::sample::Index>(),
        flipped in any::<(proptest::sample::Index, u8)>(),
    ) {
        let mut bytes = one.encode_to_vec();
        bytes.extend(other.encode_to_vec());
        prop_assert_eq!(by_writer(&bytes), by_prost(&bytes));
        let cut = &bytes[..cut.index(bytes.len() + 1)];
        prop_assert_eq!(by_writer(cut), by_prost(cut));
        if !bytes.is_empty() {
            let at = flipped.0.index(bytes.len());
            bytes[at] ^= flipped.1;
            prop_assert_eq!(by_writer(&bytes), by_prost(&bytes));
        }
    }
}

/// Maps as another writer may have them: keys out of order, twice, left out.
#[test]
fn a_map_in_any_order_is_one_map() {
    let entry = |key: &[u8], number: u8| [&[0x0A, key.len() as u8], key, &[0x12, 2, 0x20, number]].concat();
    let entries = [entry(b"b", 1), entry(b"a", 2), entry(b"b", 3), vec![0x12, 2, 0x20, 4], entry(b"", 5)];
    let fields: Vec<u8> = entries.iter().flat_map(|e| [&[0x0A, e.len() as u8], &e[..]].concat()).collect();
    let bytes = [&[0xA2, 0x01, fields.len() as u8], &fields[..]].concat();
    assert_eq!(by_writer(&bytes).as_deref(), Some(r#"{"":5,"a":2,"b":3}"#));
    assert_eq!(by_writer(&bytes), by_prost(&bytes));
}
