//! Golden bytes: what Feast's own code writes, and we must write too.

use model::value::proto_value::Val;
use model::{EntityKey, Value};
use serde_json::Value as Json;

/// `entity_keys.json` is written by `integration-tests/golden.py` from `feast.infra.key_encoding_utils`,
/// and `integration-tests/test_golden.py` checks that it still is what Feast writes.
const ENTITY_KEYS: &str = include_str!("../golden/entity_keys.json");

fn value(kind: &str, json: &Json) -> Value {
    let int = || json.as_i64().expect("an integer");
    let val = match kind {
        "string_val" => Val::StringVal(json.as_str().expect("text").to_owned()),
        "bytes_val" => Val::BytesVal(unhex(json.as_str().expect("hex"))),
        "int32_val" => Val::Int32Val(i32::try_from(int()).expect("32 bits")),
        "int64_val" => Val::Int64Val(int()),
        "unix_timestamp_val" => Val::UnixTimestampVal(int()),
        other => panic!("{other}"),
    };
    Value { val: Some(val) }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

#[test]
fn entity_keys_are_feasts_bytes() {
    let cases: Vec<Json> = serde_json::from_str(ENTITY_KEYS).expect("JSON");
    assert!(cases.len() > 10);
    let mut texts = 0;
    for case in cases {
        let parts: Vec<(String, Value)> = case["parts"]
            .as_array()
            .expect("parts")
            .iter()
            .map(|p| {
                (p["name"].as_str().expect("name").to_owned(), value(p["kind"].as_str().expect("kind"), &p["value"]))
            })
            .collect();
        let borrowed: Vec<_> = parts.iter().map(|(n, v)| (n.as_str(), v)).collect();
        let key = EntityKey::encode(&borrowed).expect("a key");
        assert_eq!(key.as_bytes(), unhex(case["hex"].as_str().expect("hex")), "{case}");
        if let [(name, Value { val: Some(Val::StringVal(text)) })] = &parts[..] {
            assert_eq!(EntityKey::of_text(name, text), key, "{case}");
            texts += 1;
        }

        let mut sorted = parts;
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(key.decode().expect("decodes"), sorted);
    }
    assert!(texts > 0);
}

#[test]
fn the_key_of_no_entity_is_feasts() {
    let dummy = Value { val: Some(Val::StringVal("__dummy".into())) };
    let encoded = EntityKey::encode(&[("__dummy_id", &dummy)]).expect("a key");
    assert_eq!(EntityKey::dummy(), encoded);
}

proptest::proptest! {
    #[test]
    fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
        let _ = EntityKey::from_bytes(&bytes).decode();
    }
}
