//! What must hold of any message of a stream and of any stored window state. The fuzz targets call them with what
//! libFuzzer makes up, `cargo test` with the seeds. Knows no fuzzer.

use std::collections::BTreeMap;
use std::sync::Arc;

use ingest::Settings;
use ingest::decode::Decoder;
use ingest::decode::avro::Writers;
use ingest::feed::Feed;
use ingest::formats::Formats;
use ingest::message::{Body, Message};
use model::Timestamp;
use model::registry::View;
use model::value::ValueType;
use prost::Message as _;
use proto::feast::core;
use proto::feast::core::stream_format::{AvroFormat, Format, JsonFormat, ProtoFormat};
use window::{AggregationDef, ColumnType, Event, Scalar, Spec, State, Tiling};

/// 2026-01-01T00:00:00Z in microseconds.
pub(crate) const T0: i64 = 1_767_225_600_000_000;
const SKEW: i64 = 5_000_000;
const SCHEMA: &str = "user string, amount double, number bigint, tags array<string>, on boolean, ts timestamp";
pub(crate) const AVRO: &str = r#"{"type": "record", "name": "Tx", "fields": [
    {"name": "user", "type": "string"},
    {"name": "amount", "type": ["null", "double"], "default": null},
    {"name": "number", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}},
    {"name": "tags", "type": {"type": "array", "items": "string"}},
    {"name": "on", "type": {"type": "enum", "name": "On", "symbols": ["YES", "NO"]}},
    {"name": "inner", "type": ["null", {"type": "map", "values": {"type": "record", "name": "In", "fields": [
        {"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "n", "type": ["long", "float"]}]}}]},
    {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}"#;

/// A JSON message.
pub(crate) fn json(data: &[u8]) {
    let format = Format::JsonFormat(JsonFormat { schema_json: SCHEMA.to_owned() });
    let features = [
        ("amount", ValueType::Double),
        ("number", ValueType::Int64),
        ("tags", ValueType::StringList),
        ("on", ValueType::Bool),
    ];
    read(data, &feeds(&format, &features, &Formats::default()));
}

/// An Avro record.
pub(crate) fn avro(data: &[u8]) {
    let format = Format::AvroFormat(AvroFormat { schema_json: AVRO.to_owned() });
    let features = [
        ("amount", ValueType::Double),
        ("number", ValueType::Decimal),
        ("tags", ValueType::StringList),
        ("on", ValueType::String),
    ];
    read(data, &feeds(&format, &features, &Formats::default()));
}

/// A Protobuf message.
pub(crate) fn protobuf(data: &[u8]) {
    let format = Format::ProtoFormat(ProtoFormat { class_path: "shop.Tx".to_owned() });
    let features = [
        ("amount", ValueType::Double),
        ("number", ValueType::Int64),
        ("tags", ValueType::StringList),
        ("on", ValueType::Bool),
        ("inner", ValueType::Struct),
    ];
    let descriptor_sets = BTreeMap::from([("shop.pb".to_owned(), descriptors())]);
    let formats = Formats::new(&Settings { descriptor_sets, ..Settings::default() }).expect("descriptors");
    read(data, &feeds(&format, &features, &formats));
}

/// `shop.Tx`, as protoc would describe it.
fn descriptors() -> Vec<u8> {
    use prost_types::field_descriptor_proto::{Label, Type};
    let field = |number: i32, name: &str, ty: Type, label: Label, of: Option<&str>| prost_types::FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        r#type: Some(ty.into()),
        label: Some(label.into()),
        type_name: of.map(str::to_owned),
        ..Default::default()
    };
    let message = prost_types::DescriptorProto {
        name: Some("Tx".to_owned()),
        field: vec![
            field(1, "user", Type::String, Label::Optional, None),
            field(2, "amount", Type::Double, Label::Optional, None),
            field(3, "number", Type::Sint64, Label::Optional, None),
            field(4, "tags", Type::String, Label::Repeated, None),
            field(5, "on", Type::Bool, Label::Optional, None),
            field(6, "inner", Type::Message, Label::Optional, Some(".shop.Tx")),
            field(7, "ts", Type::Int64, Label::Optional, None),
        ],
        ..Default::default()
    };
    let file = prost_types::FileDescriptorProto {
        name: Some("shop.proto".to_owned()),
        package: Some("shop".to_owned()),
        message_type: vec![message],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    prost_types::FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// A plain and a windowed view on a stream of this format.
fn feeds(format: &Format, features: &[(&str, ValueType)], formats: &Formats) -> [Feed; 2] {
    let field = |name: &str, value_type: ValueType| core::FeatureSpecV2 {
        name: name.to_owned(),
        value_type: value_type as i32,
        ..Default::default()
    };
    let options = core::data_source::KafkaOptions {
        kafka_bootstrap_servers: "localhost:9092".to_owned(),
        topic: "t".to_owned(),
        message_format: Some(core::StreamFormat { format: Some(format.clone()) }),
        ..Default::default()
    };
    let source = core::DataSource {
        name: "events".to_owned(),
        timestamp_field: "ts".to_owned(),
        options: Some(core::data_source::Options::KafkaOptions(options)),
        ..Default::default()
    };
    let view = |name: &str, features: Vec<core::FeatureSpecV2>, aggregations: Vec<core::Aggregation>| {
        let spec = core::StreamFeatureViewSpec {
            name: name.to_owned(),
            project: "demo".to_owned(),
            entities: vec!["user".to_owned()],
            entity_columns: vec![field("user", ValueType::String)],
            features,
            aggregations,
            stream_source: Some(source.clone()),
            online: true,
            ..Default::default()
        };
        let view = core::StreamFeatureView { spec: Some(spec), meta: None };
        let view = Arc::new(View::of_stream("demo", view, &BTreeMap::new()));
        Feed::of(&view, "larder", formats).expect("a good feed").expect("a stream")
    };
    let count = core::Aggregation {
        name: "n".to_owned(),
        function: "mean".to_owned(),
        column: "amount".to_owned(),
        time_window: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let rows = features.iter().map(|(name, value_type)| field(name, *value_type)).collect();
    [view("rows", rows, vec![]), view("windows", vec![field("n", ValueType::Double)], vec![count])]
}

/// An event of both views, or a dead letter: the same each time, with a key, a time that may be, and its columns.
fn read(data: &[u8], feeds: &[Feed; 2]) {
    let message = Message { body: Body::of(data.to_vec()), ..Message::default() };
    let writers = Writers::new();
    let shared = [&feeds[0], &feeds[1]];
    let together = Decoder::new(&shared, &writers);
    let mut reading = together.read(&message, Timestamp(T0), SKEW);
    for (place, feed) in feeds.iter().enumerate() {
        let one = [feed];
        let alone = Decoder::new(&one, &writers).read(&message, Timestamp(T0), SKEW).event(0);
        let event = reading.event(place);
        // by its text: NaN is not equal to itself
        assert_eq!(format!("{event:?}"), format!("{alone:?}"));
        match event {
            Ok(event) => {
                assert!(event.version.event.micros() <= T0 + SKEW);
                assert!(event.key.decode().is_ok(), "a key");
                assert_eq!(event.columns.is_empty(), place == 0);
            }
            Err(reason) => assert!(!reason.to_string().is_empty()),
        }
    }
}

/// A definition with every kind of partial result.
pub(crate) fn spec() -> Spec {
    let functions = [
        ("count", ""),
        ("sum", "number"),
        ("sum", "amount"),
        ("var", "amount"),
        ("min", "who"),
        ("max", "amount"),
        ("first", "amount"),
        ("last", "who"),
        ("skew", "amount"),
        ("seconds_since_last", ""),
        ("seconds_since_first", ""),
        ("decayed_sum(2)", "amount"),
        ("decayed_count(2)", ""),
        ("session_sum(1)", "number"),
        ("min_last_k(3)", "who"),
        ("first_k(2)", "amount"),
        ("top_k(2)", "amount"),
        ("bottom_k(3)", "who"),
        ("histogram", "who"),
        ("count_distinct", "amount"),
        ("count_distinct", "on"),
        ("approx_count_distinct", "number"),
        ("median", "amount"),
    ];
    let windows = [(0, 0), (5_000_000, 100_000), (60_000_000, 0)];
    let of = |(window_us, slide_us): (i64, i64)| {
        functions.iter().map(move |(function, column)| AggregationDef {
            feature: format!("{function} {column} {window_us}"),
            column: (*column).to_owned(),
            function: (*function).to_owned(),
            window_us,
            slide_us,
        })
    };
    let defs: Vec<AggregationDef> = windows.into_iter().flat_map(of).collect();
    let types = |column: &str| match column {
        "amount" => Some(ColumnType::Float),
        "number" => Some(ColumnType::Int),
        "who" => Some(ColumnType::Text),
        "on" => Some(ColumnType::Bool),
        _ => None,
    };
    Spec::new(&defs, Tiling::default(), types).expect("a good definition")
}

/// A window state. The first byte says what the rest is: 0 all of a state's bytes, else what stands behind the
/// fingerprint of one of that version, whose checksum is right.
pub(crate) fn state(data: &[u8]) {
    let Some((version, rest)) = data.split_first() else { return };
    let spec = spec();
    let bytes = if *version == 0 { rest.to_vec() } else { framed(&spec, *version, rest) };
    let Ok(state) = State::decode(&spec, &bytes) else { return };
    let mut again = Vec::new();
    state.encode(&spec, &mut again);
    let same = State::decode(&spec, &again).expect("what was written is read");
    assert_eq!(format!("{same:?}"), format!("{state:?}"));
    use_it(&spec, state);
}

/// The bytes of a state of a version, with this behind the fingerprint.
pub(crate) fn framed(spec: &Spec, version: u8, rest: &[u8]) -> Vec<u8> {
    let body = [&spec.fingerprint().to_le_bytes(), rest].concat();
    let checksum = crc32fast::hash(&body).to_le_bytes();
    if version == 1 { [&[1], &body[..]].concat() } else { [&[version], &checksum[..], &body].concat() }
}

/// Nothing may panic, whatever the state says.
fn use_it(spec: &Spec, mut state: State) {
    for t_us in [i64::MIN, -1_000_000, 0, T0, i64::MAX] {
        state.evaluate(spec, t_us);
    }
    let values = [Scalar::Float(1.5), Scalar::Int(-3), Scalar::Bool(true), Scalar::Text("x".into())];
    assert_eq!(spec.columns(), ["amount", "number", "on", "who"]);
    for ts_us in [i64::MIN, 0, T0 - 1, T0, T0 + 40_000_000, i64::MAX] {
        state.apply(spec, Event { ts_us, columns: &values }, T0).expect("the event fits");
    }
    state.evict(spec, T0 + 50_000_000);
    state.evaluate(spec, T0 + 60_000_000);
    state.encode(spec, &mut Vec::new());
    state.evict(spec, i64::MAX);
    state.evaluate(spec, i64::MAX);
}
