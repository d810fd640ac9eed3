//! Columns of every registered type there and back, and tables that are none.

use model::value::proto_value::Val;
use model::value::{collect, from_json, type_of};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn every_type() -> Vec<ValueType> {
    let is_type = |t: &ValueType| !matches!(t, ValueType::Invalid | ValueType::Null);
    (0..100).filter_map(|n| ValueType::try_from(n).ok()).filter(is_type).collect()
}

/// Two different values of a scalar type, with the edges of its range.
fn scalars(value_type: ValueType) -> Option<Vec<Value>> {
    use ValueType as T;
    let text = |texts: [&str; 2], val: fn(String) -> Val| texts.map(|t| val(t.to_owned())).to_vec();
    let ids = ["00000000-0000-1000-8000-000000000001", "ffffffff-ffff-1fff-bfff-ffffffffffff"];
    let vals = match value_type {
        T::Bytes => vec![Val::BytesVal(vec![0, 255]), Val::BytesVal(vec![])],
        T::String => text(["", "äöü\0"], Val::StringVal),
        T::Int32 => vec![Val::Int32Val(i32::MIN), Val::Int32Val(i32::MAX)],
        T::Int64 => vec![Val::Int64Val(i64::MIN), Val::Int64Val(i64::MAX)],
        T::Double => vec![Val::DoubleVal(-0.1), Val::DoubleVal(f64::MAX)],
        T::Float => vec![Val::FloatVal(0.1), Val::FloatVal(f32::MIN)],
        T::Bool => vec![Val::BoolVal(true), Val::BoolVal(false)],
        T::UnixTimestamp => vec![Val::UnixTimestampVal(-1), Val::UnixTimestampVal(1 << 33)],
        T::Json => text(["{\"a\":[1,null]}", "[]"], Val::JsonVal),
        T::Uuid => text(ids, Val::UuidVal),
        T::TimeUuid => text(ids, Val::TimeUuidVal),
        T::Decimal => text(["-1.50", "12345678901234567890.123"], Val::DecimalVal),
        _ => return None,
    };
    Some(vals.into_iter().map(|val| Value { val: Some(val) }).collect())
}

fn samples(value_type: ValueType) -> Vec<Value> {
    use ValueType as T;
    if let Some(scalars) = scalars(value_type) {
        return scalars;
    }
    if let Some(elements) = element_type(value_type).and_then(scalars) {
        let both = collect(value_type, elements.clone()).expect("a list");
        let one = collect(value_type, elements[..1].to_vec()).expect("a list");
        return vec![both, one, collect(value_type, Vec::new()).expect("an empty list")];
    }
    let of = |json| from_json(&json, value_type).unwrap_or_else(|e| panic!("{value_type:?}: {}", e.message()));
    match value_type {
        T::Map | T::Struct => vec![of(json!({"a": 1, "b": {"c": ["x", "y"]}})), of(json!({}))],
        T::MapList | T::StructList => vec![of(json!([{"a": 1}, {"b": "x"}])), of(json!([]))],
        T::ValueList | T::ValueSet => vec![of(json!([[1, 2], [3]])), of(json!([[]]))],
        T::ScalarMap => {
            use proto::feast::types::{MapKey, ScalarMap, ScalarMapEntry, map_key::Key};
            let key = Some(MapKey { key: Some(Key::Int64Key(1)) });
            let value = Some(Value { val: Some(Val::StringVal("x".into())) });
            vec![Value { val: Some(Val::ScalarMapVal(ScalarMap { val: vec![ScalarMapEntry { key, value }] })) }]
        }
        T::ZonedTimestamp => {
            let zoned = proto::feast::types::ZonedTimestamp { unix_timestamp: 7, zone: "Europe/Berlin".into() };
            vec![Value { val: Some(Val::ZonedTimestampVal(zoned)) }]
        }
        other => panic!("no samples of {}: add some", other.as_str_name()),
    }
}

/// The samples between nulls, through the bytes that a worker gets.
fn there_and_back(value_type: ValueType, values: &[Value], as_values: bool) -> Result<Vec<Value>> {
    let column = TypedColumn { name: "c".into(), value_type, values: values.to_vec() };
    let batch = decode(encode(&to_batch(&[column], values.len(), as_values)?)?.into())?;
    let mut back = from_batch(&batch, "v", &[("c".to_owned(), value_type)])?;
    assert_eq!(back.len(), 1);
    Ok(back.remove(0).values)
}

#[test]
fn every_type_comes_back_as_it_went() {
    let types = every_type();
    assert!(types.len() >= 43, "the loop finds Feast's types: {}", types.len());
    for value_type in types {
        let mut values = vec![NULL];
        for sample in samples(value_type) {
            assert_eq!(type_of(&sample), value_type, "a sample is of its type");
            values.extend([sample, NULL]);
        }
        let back = there_and_back(value_type, &values, true);
        assert_eq!(back.unwrap_or_else(|e| panic!("{value_type:?}: {}", e.message())), values, "{value_type:?}");
        let nulls = vec![NULL; 3];
        assert_eq!(there_and_back(value_type, &nulls, true).expect("nulls"), nulls, "{value_type:?}");
        assert_eq!(there_and_back(value_type, &[], true).expect("no rows"), [], "{value_type:?}");
    }
}

/// Feast's own transformation server gets Arrow types alone: scalars and lists of them are the same there.
#[test]
fn plain_types_come_back_without_our_own_mark() {
    for value_type in every_type() {
        if wire_type(value_type).is_some() {
            let values = samples(value_type);
            assert_eq!(there_and_back(value_type, &values, false).expect("plain"), values, "{value_type:?}");
        }
    }
}

#[test]
fn a_column_may_go_by_its_full_name_and_others_are_left() {
    let column = |name: &str, n| {
        let values = vec![Value { val: Some(Val::Int64Val(n)) }];
        TypedColumn { name: name.into(), value_type: ValueType::Int64, values }
    };
    let batch = to_batch(&[column("v__a", 1), column("other", 2), column("b", 3), column("v__b", 4)], 1, true);
    let types = ["a", "b", "missing"].map(|n| (n.to_owned(), ValueType::Int32));
    let back = from_batch(&batch.expect("a table"), "v", &types).expect("they fit");
    let given: Vec<_> = back.iter().map(|c| (c.name.as_str(), c.values[0].val.clone())).collect();
    assert_eq!(given, [("a", Some(Val::Int32Val(1))), ("b", Some(Val::Int32Val(3)))]);
}

#[test]
fn what_does_not_fit_names_feature_and_types() {
    let values = vec![Value { val: Some(Val::DoubleVal(7.5)) }];
    let column = TypedColumn { name: "c".into(), value_type: ValueType::Double, values };
    let batch = to_batch(&[column], 1, true).expect("a table");
    let error = from_batch(&batch, "v", &[("c".to_owned(), ValueType::Int64)]).expect_err("7.5 is no integer");
    for part in ["'c'", "INT64", "Float64", "7.5"] {
        assert!(error.message().contains(part), "{part}: {}", error.message());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What a server answers with is a table or an error.
    #[test]
    fn a_damaged_table_does_no_harm(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
        keep in any::<proptest::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let columns = [ValueType::Int64, ValueType::String, ValueType::StringList].map(|value_type| {
            let values = samples(value_type)[..2].to_vec();
            TypedColumn { name: value_type.as_str_name().into(), value_type, values }
        });
        let mut bytes = encode(&to_batch(&columns, 2, true).expect("a table")).expect("bytes");
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let types: Vec<_> = columns.iter().map(|c| (c.name.clone(), c.value_type)).collect();
        let read = decode(bytes.into()).and_then(|batch| from_batch(&batch, "v", &types));
        if let Ok(back) = read {
            prop_assert!(back.iter().all(|c| c.values.len() == back[0].values.len()));
        }
    }
}
