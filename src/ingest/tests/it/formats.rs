//! Avro, Protobuf and what a message says beside its value: what is read equals what was written, and what is none
//! is a dead letter with the reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Decimal, Schema};
use ingest::Settings;
use ingest::decode::avro::{Writer, Writers};
use ingest::decode::{Decoder, Event, Reason};
use ingest::feed::Feed;
use ingest::formats::Formats;
use ingest::message::{Body, Copies, Message};
use model::value::{NULL, ValueType, proto_value::Val};
use model::{Timestamp, Value};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, Value as Proto};
use proto::feast::core::stream_format::{AvroFormat, Format, ProtoFormat};

use crate::support::{SECOND, Stream, T0, entity, int};

const AVRO: &str = r#"{"type": "record", "name": "Tx", "fields": [
    {"name": "card", "type": {"type": "record", "name": "Card", "fields": [
        {"name": "user", "type": "string"}, {"name": "limit", "type": ["null", "long"], "default": null}]}},
    {"name": "amount", "type": "long", "default": 7},
    {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}},
    {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["SALE", "REFUND"]}},
    {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}"#;

fn value(val: Val) -> Value {
    Value { val: Some(val) }
}

/// A view on a nested Avro record.
fn avro_stream() -> Stream {
    Stream {
        format: Some(Format::AvroFormat(AvroFormat { schema_json: AVRO.to_owned() })),
        mapping: vec![("card.user", "user"), ("card.limit", "limit")],
        features: vec![
            ("limit", ValueType::Int64),
            ("amount", ValueType::Int64),
            ("price", ValueType::Decimal),
            ("tags", ValueType::StringList),
            ("kind", ValueType::String),
        ],
        ..Stream::plain("v", "localhost:9092", "t")
    }
}

fn tx(user: &str, limit: Option<i64>, amount: i64, cents: i64, ts: i64) -> Avro {
    let limit = limit.map_or(Avro::Union(0, Box::new(Avro::Null)), |v| Avro::Union(1, Box::new(Avro::Long(v))));
    Avro::Record(vec![
        ("card".into(), Avro::Record(vec![("user".into(), Avro::String(user.into())), ("limit".into(), limit)])),
        ("amount".into(), Avro::Long(amount)),
        ("price".into(), Avro::Decimal(Decimal::from(cents.to_be_bytes()))),
        ("tags".into(), Avro::Array(vec![Avro::String("a".into()), Avro::String("b".into())])),
        ("kind".into(), Avro::Enum(1, "REFUND".into())),
        ("ts".into(), Avro::TimestampMicros(ts)),
    ])
}

fn written(schema: &str, record: Avro) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    let writer = GenericDatumWriter::builder(&schema).build().expect("a writer");
    writer.write_value_to_vec(record).expect("a record")
}

fn decoded(feed: &Feed, writers: &Writers, payload: Vec<u8>) -> Result<Event, Reason> {
    let message = Message { body: Body::of(payload), ..Message::default() };
    Decoder::new(&[feed], writers).read(&message, Timestamp(T0), 5 * SECOND).event(0)
}

fn framed(id: u32, record: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], record].concat()
}

/// The formats of a server that has a schema registry, which is never asked here.
fn with_registry() -> Formats {
    let settings = ingest::schema_registry::Settings {
        url: "http://127.0.0.1:9".to_owned(),
        user: None,
        timeout: std::time::Duration::from_secs(1),
    };
    Formats::new(&Settings { schema_registry: Some(settings), ..Settings::default() }).expect("good settings")
}

proptest! {
    #[test]
    fn an_avro_record_is_what_was_written(
        user in ".{1,9}",
        limit in any::<Option<i64>>(),
        amount in any::<i64>(),
        cents in any::<i64>(),
        before in 0..4_000_000_000_000_000_i64,
    ) {
        let payload = written(AVRO, tx(&user, limit, amount, cents, T0 - before));
        let event = decoded(&avro_stream().feed(), &Writers::new(), payload).expect("valid");
        prop_assert_eq!(event.key, entity("user", &user));
        prop_assert_eq!(event.version.event, Timestamp(T0 - before));
        let sign = if cents < 0 { "-" } else { "" };
        let price = format!("{sign}{}.{:02}", cents.unsigned_abs() / 100, cents.unsigned_abs() % 100);
        let tags = proto::feast::types::StringList { val: vec!["a".into(), "b".into()] };
        let want = [
            limit.map_or(NULL, int),
            int(amount),
            value(Val::DecimalVal(price)),
            value(Val::StringListVal(tags)),
            value(Val::StringVal("REFUND".into())),
        ];
        prop_assert_eq!(event.values.to_vec(), want);
    }

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (plain, other) = (avro_stream().feed(), avro_stream().feed_with(&with_registry()));
        let writers = Writers::from([(1, Arc::new(Writer::parse(AVRO, &[]).expect("a schema")))]);
        let _ = decoded(&plain, &Writers::new(), bytes.clone());
        let _ = decoded(&other, &writers, bytes.clone());
        let _ = decoded(&other, &writers, framed(1, &bytes));
        let _ = decoded(&proto_stream().feed_with(&with_types()), &Writers::new(), bytes);
    }

    /// A record that is cut, or has more behind it, is never an event.
    #[test]
    fn a_truncated_record_is_a_dead_letter(cut in any::<prop::sample::Index>(), more in 1..9_usize) {
        let whole = written(AVRO, tx("a", Some(3), 5, 123, T0));
        let feed = avro_stream().feed();
        let cut = decoded(&feed, &Writers::new(), whole[..cut.index(whole.len())].to_vec());
        prop_assert_eq!(cut.expect_err("cut").label(), "undecodable");
        let longer = [whole, vec![0; more]].concat();
        prop_assert_eq!(decoded(&feed, &Writers::new(), longer).expect_err("longer").label(), "undecodable");
    }
}

#[test]
fn an_older_writer_is_resolved_to_the_sources_schema() {
    // an int where the source has a long, no amount (its default stands), a field that is gone, other order
    let older = r#"{"type": "record", "name": "Tx", "fields": [
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["SALE", "REFUND"]}},
        {"name": "gone", "type": "string"},
        {"name": "card", "type": {"type": "record", "name": "Card", "fields": [
            {"name": "limit", "type": ["null", "int"]}, {"name": "user", "type": "string"}]}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}"#;
    let record = Avro::Record(vec![
        ("kind".into(), Avro::Enum(0, "SALE".into())),
        ("gone".into(), Avro::String("x".into())),
        (
            "card".into(),
            Avro::Record(vec![
                ("limit".into(), Avro::Union(1, Box::new(Avro::Int(9)))),
                ("user".into(), Avro::String("a".into())),
            ]),
        ),
        ("price".into(), Avro::Decimal(Decimal::from([5_u8]))),
        ("ts".into(), Avro::TimestampMicros(T0)),
    ]);
    let feed = avro_stream().feed_with(&with_registry());
    let parse = |text: &str| Arc::new(Writer::parse(text, &[]).expect("a schema"));
    let other = r#"{"type": "record", "name": "Tx", "fields": [{"name": "amount", "type": "string"}]}"#;
    let scaled = AVRO.replace("\"scale\": 2", "\"scale\": 3");
    let writers = Writers::from([(3, parse(older)), (4, parse(other)), (5, parse(&scaled))]);
    let payload = framed(3, &written(older, record));
    let message = Message { body: Body::of(payload.clone()), ..Message::default() };
    assert_eq!(Decoder::wanted(&feed, std::iter::once(&message)).into_iter().collect::<Vec<_>>(), [3]);
    let event = decoded(&feed, &writers, payload.clone()).expect("resolved");
    assert_eq!(event.key, entity("user", "a"));
    let none = proto::feast::types::StringList::default();
    let want = [int(9), int(7), value(Val::DecimalVal("0.05".into())), value(Val::StringListVal(none))];
    assert_eq!(event.values[..4], want);

    for (payload, says) in [
        (framed(9, b""), "has no schema 9"),
        (written(AVRO, tx("a", None, 1, 1, T0)), "a zero and a schema's id"),
        (framed(4, &[2, b'x']), "schema 4"),
        (framed(3, b"\x00"), "schema 3"),
        (framed(5, &written(&scaled, tx("a", None, 1, 1, T0))), "scale 3"),
    ] {
        let reason = decoded(&feed, &writers, payload).expect_err(says);
        assert_eq!(reason.label(), "undecodable");
        assert!(reason.to_string().contains(says), "{reason}");
    }
    assert!(Decoder::wanted(&avro_stream().feed(), std::iter::once(&message)).is_empty(), "a plain message has no id");
}

const PROTO: &str = r#"syntax = "proto3"; package shop;
    import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
    message Card { string user = 1; }
    enum Kind { SALE = 0; REFUND = 1; }
    message Tx {
        Card card = 1; int64 amount = 2; optional int64 maybe = 3; google.protobuf.DoubleValue rate = 4;
        repeated string tags = 5; map<string, int32> counts = 6; Kind kind = 7; google.protobuf.Timestamp ts = 8;
        bytes raw = 9;
    }"#;

fn types() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("shop.proto"), PROTO).expect("written");
    let set = protox::compile(["shop.proto"], [dir.path()]).expect("compiles");
    set.encode_to_vec()
}

fn with_types() -> Formats {
    let descriptor_sets = BTreeMap::from([("shop.pb".to_owned(), types())]);
    Formats::new(&Settings { descriptor_sets, ..Settings::default() }).expect("descriptors")
}

fn proto_stream() -> Stream {
    Stream {
        format: Some(Format::ProtoFormat(ProtoFormat { class_path: "shop.Tx".to_owned() })),
        mapping: vec![("card.user", "user")],
        features: vec![
            ("amount", ValueType::Int64),
            ("maybe", ValueType::Int64),
            ("rate", ValueType::Double),
            ("tags", ValueType::StringList),
            ("kind", ValueType::String),
            ("raw", ValueType::Bytes),
        ],
        ..Stream::plain("v", "localhost:9092", "t")
    }
}

fn proto_message(user: &str, amount: i64, rate: Option<f64>, ts: i64) -> Vec<u8> {
    let pool = DescriptorPool::decode(types().as_slice()).expect("descriptors");
    let of = |name: &str| DynamicMessage::new(pool.get_message_by_name(name).expect(name));
    let mut card = of("shop.Card");
    card.set_field_by_name("user", Proto::String(user.to_owned()));
    let mut time = of("google.protobuf.Timestamp");
    time.set_field_by_name("seconds", Proto::I64(ts.div_euclid(SECOND)));
    time.set_field_by_name("nanos", Proto::I32((ts.rem_euclid(SECOND) * 1000) as i32));
    let mut tx = of("shop.Tx");
    tx.set_field_by_name("card", Proto::Message(card));
    tx.set_field_by_name("amount", Proto::I64(amount));
    if let Some(rate) = rate {
        let mut wrapped = of("google.protobuf.DoubleValue");
        wrapped.set_field_by_name("value", Proto::F64(rate));
        tx.set_field_by_name("rate", Proto::Message(wrapped));
    }
    tx.set_field_by_name("tags", Proto::List(vec![Proto::String("x".into())]));
    tx.set_field_by_name("counts", Proto::Map([(MapKey::String("n".into()), Proto::I32(1))].into()));
    tx.set_field_by_name("kind", Proto::EnumNumber(1));
    tx.set_field_by_name("ts", Proto::Message(time));
    tx.set_field_by_name("raw", Proto::Bytes(vec![1, 2].into()));
    tx.encode_to_vec()
}

proptest! {
    #[test]
    fn a_protobuf_message_is_what_was_written(
        user in ".{1,9}",
        amount in any::<i64>(),
        rate in any::<Option<f64>>(),
        before in 0..4_000_000_000_000_000_i64,
    ) {
        let payload = proto_message(&user, amount, rate, T0 - before);
        let event = decoded(&proto_stream().feed_with(&with_types()), &Writers::new(), payload).expect("valid");
        prop_assert_eq!(event.key, entity("user", &user));
        prop_assert_eq!(event.version.event, Timestamp(T0 - before));
        let tags = proto::feast::types::StringList { val: vec!["x".into()] };
        let want = [
            int(amount),
            NULL,
            rate.map_or(NULL, |rate| value(Val::DoubleVal(rate))),
            value(Val::StringListVal(tags)),
            value(Val::StringVal("REFUND".into())),
            value(Val::BytesVal(vec![1, 2])),
        ];
        prop_assert_eq!(event.values.to_vec(), want);
    }
}

#[test]
fn protobuf_types_are_named_by_the_configuration() {
    let refused = |class_path: &str| {
        let format = Some(Format::ProtoFormat(ProtoFormat { class_path: class_path.to_owned() }));
        Feed::of(&Stream { format, ..proto_stream() }.view(), "larder", &with_types())
            .expect_err("refused")
            .message()
            .to_owned()
    };
    assert!(refused("shop.Ty").contains("no Protobuf message type \"shop.Ty\""));
    // a field that is not set has no presence of its own: its default stands
    let empty = proto_message("a", 0, None, T0);
    let java = Some(Format::ProtoFormat(ProtoFormat { class_path: "com.shop.TxOuterClass$Tx".to_owned() }));
    let feed = Stream { format: java, ..proto_stream() }.feed_with(&with_types());
    assert_eq!(decoded(&feed, &Writers::new(), empty).expect("valid").values[0], int(0));
    let broken = Settings { descriptor_sets: [("x.pb".to_owned(), vec![9, 9])].into(), ..Settings::default() };
    let reason = Formats::new(&broken).err().expect("refused").to_string();
    assert!(reason.contains("x.pb") && reason.contains("protoc"), "{reason}");
}

#[test]
fn a_framed_protobuf_message_has_a_path_to_its_type() {
    let settings = ingest::schema_registry::Settings {
        url: "http://127.0.0.1:9".to_owned(),
        user: None,
        timeout: std::time::Duration::from_secs(1),
    };
    let descriptor_sets = BTreeMap::from([("shop.pb".to_owned(), types())]);
    let formats = Formats::new(&Settings { descriptor_sets, schema_registry: Some(settings), ..Settings::default() })
        .expect("good");
    let feed = proto_stream().feed_with(&formats);
    let message = proto_message("a", 5, None, T0);
    // the first type of its file, in short; then [1] and [0, 2], as zigzag numbers behind their count
    for path in [&[0][..], &[2, 2], &[4, 0, 4]] {
        let payload = [&framed(1, path)[..], &message].concat();
        assert_eq!(decoded(&feed, &Writers::new(), payload).expect("valid").values[0], int(5), "{path:?}");
    }
    for broken in [framed(1, &[]), framed(1, &[2]), framed(1, &[0xff; 12]), vec![0, 1]] {
        assert_eq!(decoded(&feed, &Writers::new(), broken).expect_err("broken").label(), "undecodable");
    }
}

#[test]
fn what_stands_beside_the_value_is_a_column() {
    let stream = Stream {
        schema: "amount bigint, card struct<user: string>, `__headers.tenant` string",
        mapping: vec![("__key", "user"), ("__timestamp", "at"), ("__headers.tenant", "tenant"), ("card.id", "card_id")],
        time: "at",
        features: vec![("amount", ValueType::Int64), ("tenant", ValueType::String)],
        ..Stream::plain("v", "localhost:9092", "t")
    };
    let feed = stream.feed();
    let given = Some(&br#"{"amount": 3}"#[..]);
    let message = Message {
        body: Copies::default().of(Some(b"a"), given),
        timestamp_ms: Some(T0 / 1000 - 5),
        headers: vec![("tenant".into(), Some(b"old".to_vec())), ("tenant".into(), Some(b"new".to_vec()))],
        ..Message::default()
    };
    let read = |message: &Message| Decoder::new(&[&feed], &Writers::new()).read(message, Timestamp(T0), 0).event(0);
    let event = read(&message).expect("valid");
    assert_eq!(event.key, entity("user", "a"));
    assert_eq!(event.version.event, Timestamp(T0 - 5000));
    assert_eq!(*event.values, [int(3), value(Val::StringVal("new".into()))]);

    let tombstone = Message { body: Copies::default().of(Some(b"a"), None), ..message.clone() };
    let event = read(&tombstone).expect("key and time do not stand in the value");
    assert_eq!((event.key, event.values[0].clone()), (entity("user", "a"), NULL));

    assert_eq!(
        read(&Message { body: Copies::default().of(None, given), ..message.clone() }).expect_err("no key").label(),
        "missing_key"
    );
    assert_eq!(
        read(&Message { timestamp_ms: None, ..message.clone() }).expect_err("no time").label(),
        "missing_timestamp"
    );
    assert_eq!(
        read(&Message { body: Copies::default().of(Some(b"\xff"), given), ..message }).expect_err("no text").label(),
        "wrong_type"
    );
}

#[test]
fn columns_by_their_paths() {
    let stream = Stream {
        schema: "`card.user` string, `lines.1.price` double, `a.b` bigint, ts timestamp",
        mapping: vec![("card.user", "user"), ("lines.1.price", "price"), ("a.b", "ab")],
        features: vec![("price", ValueType::Double), ("ab", ValueType::Int64)],
        ..Stream::plain("v", "localhost:9092", "t")
    };
    let text = format!(
        r#"{{"card": {{"user": "a"}}, "lines": [{{"price": 1.5}}, {{"price": 2.5}}], "a.b": 4, "a": {{"b": 5}}, "ts": {}}}"#,
        T0 / SECOND
    );
    let event = decoded(&stream.feed(), &Writers::new(), text.into_bytes()).expect("valid");
    assert_eq!(event.key, entity("user", "a"));
    assert_eq!(*event.values, [value(Val::DoubleVal(2.5)), int(4)], "a member of that very name goes before a path");
}
