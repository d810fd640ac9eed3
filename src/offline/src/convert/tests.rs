//! Values through Arrow and back, for every registered type that Arrow carries.

use std::sync::Arc;

use arrow::array::{
    DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, ListArray, StringArray, StructArray,
    TimestampNanosecondArray,
};
use arrow::datatypes::Int32Type;
use model::Value;
use model::value::{NULL, collect, element_type, proto_value::Val};
use proptest::prelude::*;
use proto::feast::types as t;

use super::*;

fn scalar(value_type: ValueType) -> BoxedStrategy<Val> {
    use ValueType as T;
    let text = || "[a-z ü{}\"]{0,8}";
    match value_type {
        T::Bytes => any::<Vec<u8>>().prop_map(Val::BytesVal).boxed(),
        T::String => text().prop_map(Val::StringVal).boxed(),
        T::Int32 => any::<i32>().prop_map(Val::Int32Val).boxed(),
        T::Int64 => any::<i64>().prop_map(Val::Int64Val).boxed(),
        T::Double => (-1e300f64..1e300).prop_map(Val::DoubleVal).boxed(),
        T::Float => (-1e30f32..1e30).prop_map(Val::FloatVal).boxed(),
        T::Bool => any::<bool>().prop_map(Val::BoolVal).boxed(),
        T::UnixTimestamp => (-10_000_000_000i64..10_000_000_000).prop_map(Val::UnixTimestampVal).boxed(),
        T::Json => text().prop_map(|text| Val::JsonVal(format!("[{}]", text.len()))).boxed(),
        T::Uuid => text().prop_map(Val::UuidVal).boxed(),
        T::TimeUuid => text().prop_map(Val::TimeUuidVal).boxed(),
        T::Decimal => (0u32..100_000).prop_map(|v| Val::DecimalVal(format!("{v}.5"))).boxed(),
        _ => {
            let entries = proptest::collection::btree_map("[a-z]{1,4}", text(), 0..4);
            let val = entries.prop_map(|m| {
                let wrap = |(k, v)| (k, Value { val: Some(Val::StringVal(v)) });
                t::Map { val: m.into_iter().map(wrap).collect() }
            });
            val.prop_map(Val::MapVal).boxed()
        }
    }
}

const SCALARS: [ValueType; 13] = [
    ValueType::Bytes,
    ValueType::String,
    ValueType::Int32,
    ValueType::Int64,
    ValueType::Double,
    ValueType::Float,
    ValueType::Bool,
    ValueType::UnixTimestamp,
    ValueType::Json,
    ValueType::Uuid,
    ValueType::TimeUuid,
    ValueType::Decimal,
    ValueType::Map,
];

const LISTS: [ValueType; 22] = [
    ValueType::BytesList,
    ValueType::StringList,
    ValueType::Int32List,
    ValueType::Int64List,
    ValueType::DoubleList,
    ValueType::FloatList,
    ValueType::BoolList,
    ValueType::UnixTimestampList,
    ValueType::JsonList,
    ValueType::UuidList,
    ValueType::TimeUuidList,
    ValueType::DecimalList,
    ValueType::MapList,
    ValueType::BytesSet,
    ValueType::StringSet,
    ValueType::Int32Set,
    ValueType::Int64Set,
    ValueType::DoubleSet,
    ValueType::FloatSet,
    ValueType::BoolSet,
    ValueType::UnixTimestampSet,
    ValueType::DecimalSet,
];

fn values() -> impl Strategy<Value = (ValueType, Vec<Value>)> {
    let scalars = (0..SCALARS.len()).prop_flat_map(|i| {
        let value = proptest::option::of(scalar(SCALARS[i])).prop_map(|val| Value { val });
        (Just(SCALARS[i]), proptest::collection::vec(value, 0..6))
    });
    let lists = (0..LISTS.len()).prop_flat_map(|i| {
        let element = element_type(LISTS[i]).expect("a list");
        let items = proptest::collection::vec(scalar(element).prop_map(|v| Value { val: Some(v) }), 0..4);
        let list = move |items| collect(LISTS[i], items).expect("typed");
        let value = proptest::option::of(items).prop_map(move |items| items.map_or(NULL, list));
        (Just(LISTS[i]), proptest::collection::vec(value, 0..6))
    });
    prop_oneof![scalars, lists]
}

proptest! {
    #[test]
    fn a_value_survives_arrow((value_type, values) in values()) {
        let target = arrow_type(value_type, None);
        let array = from_values(&values, &target).expect("to Arrow");
        prop_assert_eq!(array.data_type(), &target);
        prop_assert_eq!(to_values(&array, value_type).expect("from Arrow"), values);
        // What is of the registered type already is passed on as it is.
        let same = to_registered("c", &array, value_type).expect("registered");
        prop_assert_eq!(&same, &array);
    }
}

fn registered(array: impl Array + 'static, value_type: ValueType) -> Result<ArrayRef> {
    let array: ArrayRef = Arc::new(array);
    to_registered("c", &array, value_type)
}

#[test]
fn what_loses_nothing_is_cast_and_the_rest_is_refused_by_column() {
    let ints = registered(Float64Array::from(vec![Some(1.0), None, Some(f64::NAN)]), ValueType::Int64).expect("pandas");
    assert_eq!(ints.as_ref(), &Int64Array::from(vec![Some(1), None, None]) as &dyn Array);
    let error = registered(Float64Array::from(vec![1.5]), ValueType::Int64).expect_err("lossy");
    assert!(error.message().contains("'c'") && error.message().contains("1.5"), "{}", error.message());
    let error = registered(StringArray::from(vec!["x"]), ValueType::Double).expect_err("text");
    assert!(error.message().contains("\"x\""), "{}", error.message());
    let wide = registered(Int32Array::from(vec![7]), ValueType::Double).expect("wider");
    assert_eq!(wide.as_ref(), &Float64Array::from(vec![7.0]) as &dyn Array);
    let dictionary: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
    let text = registered(dictionary, ValueType::String).expect("dictionary");
    assert_eq!(text.as_ref(), &StringArray::from(vec!["a", "b", "a"]) as &dyn Array);
}

#[test]
fn times_of_any_unit_become_utc_micros() {
    let nanos = TimestampNanosecondArray::from(vec![1_500, -1]).with_timezone("America/New_York");
    let out = registered(nanos, ValueType::UnixTimestamp).expect("times");
    assert_eq!(out.data_type(), &utc_micros());
    let text: ArrayRef = Arc::new(LargeStringArray::from(vec!["2026-01-01T00:00:00Z", "1970-01-01 00:00:01"]));
    assert_eq!(micros("t", &text).expect("text"), Int64Array::from(vec![1_767_225_600_000_000, 1_000_000]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert!(micros("t", &number).expect_err("no time").message().contains("'t'"));
}

#[test]
fn shapes_that_the_registered_type_leaves_open_stay_as_they_are() {
    let fields = Fields::from(vec![Field::new("a", DataType::Int64, true)]);
    let inner: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let rows = StructArray::new(fields, vec![inner], None);
    let kept = registered(rows.clone(), ValueType::Struct).expect("struct");
    assert_eq!(kept.as_ref(), &rows as &dyn Array);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), Some(2)])]);
    let wide = registered(lists, ValueType::Int64List).expect("widened");
    assert_eq!(wide.data_type(), &arrow_type(ValueType::Int64List, None));
}

#[test]
fn maps_by_numbers_there_and_back() {
    let item = Arc::new(Field::new(
        "entries",
        DataType::Struct(
            vec![Field::new("key", DataType::Int64, false), Field::new("value", DataType::Utf8, true)].into(),
        ),
        false,
    ));
    let rows = StructArray::try_from(vec![
        ("key", Arc::new(Int64Array::from(vec![7, 8, 9])) as ArrayRef),
        ("value", Arc::new(StringArray::from(vec![Some("seven"), None, Some("nine")]))),
    ])
    .expect("entries");
    let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0, 1, 0]);
    let valid = vec![true, true, true, false].into();
    let DataType::Struct(fields) = item.data_type() else { unreachable!() };
    let rows = StructArray::new(fields.clone(), rows.columns().to_vec(), None);
    let array: ArrayRef = Arc::new(arrow::array::MapArray::new(item.clone(), offsets, rows, Some(valid), false));
    let values = to_values(&array, ValueType::ScalarMap).expect("maps");
    let keys = |v: &Value| match &v.val {
        Some(Val::ScalarMapVal(m)) => Some(m.val.iter().map(|e| e.key.clone().and_then(|k| k.key)).collect::<Vec<_>>()),
        _ => None,
    };
    let key = |k| Some(t::map_key::Key::Int64Key(k));
    let wanted = [Some(vec![key(7), key(8)]), Some(vec![]), Some(vec![key(9)]), None];
    assert_eq!(values.iter().map(keys).collect::<Vec<_>>(), wanted);
    assert_eq!(&from_values(&values, array.data_type()).expect("an array"), &array);
    // by text it is a Map
    let error =
        to_values(&from_values(&values, &arrow_type(ValueType::Map, None)).expect("text"), ValueType::ScalarMap);
    assert!(error.expect_err("text").message().contains("register the type Map"));
}
