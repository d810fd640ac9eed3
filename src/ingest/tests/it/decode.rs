//! Messages to events: what is read, what is a dead letter and why. Knows no store.

use ingest::decode::avro::Writers;
use ingest::decode::json::{Record, Wanted};
use ingest::decode::{Columns as _, Decoder, Event, Reason};
use ingest::feed::{Feed, Source};
use ingest::formats::Formats;
use ingest::message::{Copies, Message};
use model::value::{NULL, ValueType, proto_value::Val};
use model::{Timestamp, Value};
use proptest::prelude::*;

use crate::support::{SECOND, Stream, T0, entity, int};

fn feed() -> Feed {
    Stream::plain("v", "localhost:9092", "t").feed()
}

fn event(feed: &Feed, payload: Option<&[u8]>, skew: i64) -> Result<Event, Reason> {
    let message = Message { body: Copies::default().of(None, payload), ..Message::default() };
    Decoder::new(&[feed], &Writers::new()).read(&message, Timestamp(T0), skew).event(0)
}

fn read(text: &str) -> Result<Event, Reason> {
    event(&feed(), Some(text.as_bytes()), 5 * SECOND)
}

#[test]
fn an_event_has_key_time_and_values() {
    let event = read(r#"{"user": "a", "amount": 7, "ts": "2025-12-31T23:59:00.250", "more": [1]}"#).expect("valid");
    assert_eq!(event.key, entity("user", "a"));
    assert_eq!(event.version.event, Timestamp(T0 - 60 * SECOND + 250_000));
    assert_eq!(*event.values, [int(7)]);
    let without = read(r#"{"user": "a", "ts": 1767225000}"#).expect("a missing feature is null");
    assert_eq!(*without.values, [NULL]);
}

#[test]
fn what_is_no_event_says_why() {
    for (text, label, names) in [
        ("", "undecodable", "JSON"),
        ("{\"user\": ", "undecodable", "JSON"),
        ("[1]", "undecodable", "array"),
        ("\u{0}\u{1}", "undecodable", "JSON"),
        (r#"{"amount": 1, "ts": 1767225000}"#, "missing_key", "'user'"),
        (r#"{"user": null, "ts": 1767225000}"#, "missing_key", "'user'"),
        (r#"{"user": "a", "amount": 1}"#, "missing_timestamp", "'ts'"),
        (r#"{"user": "a", "ts": null}"#, "missing_timestamp", "'ts'"),
        (r#"{"user": "a", "ts": "soon"}"#, "wrong_type", "'ts'"),
        (r#"{"user": "a", "ts": true}"#, "wrong_type", "'ts'"),
        (r#"{"user": "a", "ts": 1767225000, "amount": "x"}"#, "wrong_type", "'amount'"),
        (r#"{"user": "a", "ts": 1767225000, "amount": 1.5}"#, "wrong_type", "'amount'"),
        (r#"{"user": true, "ts": 1767225000}"#, "wrong_type", "'user'"),
        (r#"{"user": "a", "ts": "2026-01-01T00:00:05.000001Z"}"#, "future", "00:00:05.000001Z"),
    ] {
        let reason = read(text).expect_err(text);
        assert_eq!(reason.label(), label, "{text}");
        assert!(reason.to_string().contains(names), "{text}: {reason}");
    }
    assert!(read(r#"{"user": "a", "ts": "2026-01-01T00:00:05Z"}"#).is_ok(), "the skew itself is allowed");
    let tombstone = event(&feed(), None, 0).expect_err("no value");
    assert_eq!(tombstone, Reason::Tombstone);
}

#[test]
fn the_unit_of_a_number_shows_in_its_magnitude() {
    let column = Source { name: "ts".to_owned(), value_type: ValueType::UnixTimestamp };
    let want = T0 + 123_456;
    for (text, micros) in [
        ("1767225600", T0),
        ("1767225600.123456", want),
        ("1767225600123", T0 + 123_000),
        ("1767225600123.456", want),
        ("1767225600123456", want),
        ("1767225600123456789", want),
        ("\"2026-01-01 00:00:00.123456\"", want),
        ("\"2026-01-01T01:00:00.123456+01:00\"", want),
        ("0", 0),
        ("-1.5", -1_500_000),
        ("-1", -1_000_000),
    ] {
        let wanted = Wanted::new(std::iter::once(&column));
        let object = format!("{{\"ts\": {text}}}");
        let record = Record::parse(object.as_bytes(), &wanted).expect("an object");
        assert_eq!(record.time(&column), Ok(Some(Timestamp(micros))), "{text}");
        let seconds = Value { val: Some(Val::UnixTimestampVal(micros.div_euclid(SECOND))) };
        assert_eq!(record.value(&column), Ok(seconds), "{text}");
    }
}

#[test]
fn a_feed_that_cannot_be_is_refused_with_the_column() {
    let refuse = |change: fn(&mut Stream)| {
        let mut stream = Stream::windowed("v", "localhost:9092", "t");
        change(&mut stream);
        Feed::of(&stream.view(), "larder", &Formats::default()).expect_err("refused").message().to_owned()
    };
    assert!(refuse(|s| s.schema = "amount bigint, ts timestamp").contains("no column 'user'"));
    assert!(refuse(|s| s.schema = "user string, amount bigint").contains("no column 'ts'"));
    assert!(refuse(|s| s.schema = "user string, ts timestamp").contains("`amount`"));
    assert!(refuse(|s| s.schema = "user string, amount colour").contains("colour"));
    assert!(refuse(|s| s.aggregations = vec![("n", "average", "amount")]).contains("average"));
    let wrong_type = refuse(|s| {
        s.features = vec![("m", ValueType::Int64)];
        s.aggregations = vec![("m", "mean", "amount")];
    });
    assert!(wrong_type.contains("`m`") && wrong_type.contains("register DOUBLE"), "{wrong_type}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = event(&feed(), Some(&bytes), 0);
    }

    #[test]
    fn arbitrary_members_never_panic(user in json(), amount in json(), ts in json()) {
        let text = format!("{{\"user\": {user}, \"amount\": {amount}, \"ts\": {ts}}}");
        let _ = event(&feed(), Some(text.as_bytes()), 0);
    }

    /// What a producer writes is what is read.
    #[test]
    fn valid_events_round_trip(user in ".{1,12}", amount in any::<i64>(), before in 0i64..4_000_000_000_000_000) {
        let time = Timestamp(T0 - before);
        let text = serde_json::json!({"user": user, "amount": amount, "ts": time.to_rfc3339()}).to_string();
        let event = read(&text).expect("valid");
        prop_assert_eq!(event.key, entity("user", &user));
        prop_assert_eq!(event.version.event, time);
        prop_assert_eq!(event.values.to_vec(), vec![int(amount)]);
    }
}

/// Any small piece of JSON.
fn json() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|i| i.to_string()),
        any::<u64>().prop_map(|i| i.to_string()),
        any::<f64>().prop_filter("JSON has no other", |f| f.is_finite()).prop_map(|f| format!("{f:?}")),
        "[a-z0-9:TZ. +-]{0,25}".prop_map(|s| format!("{s:?}")),
        Just("[1, null, \"a\"]".to_owned()),
        Just("{\"a\": {}}".to_owned()),
    ]
}
