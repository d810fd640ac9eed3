//! What Feast's own code writes (`integration-tests/golden.py`), against what is written here.

use model::Value;
use prost::Message as _;
use proto::feast::serving::GetOnlineFeaturesResponse;

/// The message's bytes and the JSON of every case.
fn cases(file: &str) -> Vec<(Vec<u8>, String)> {
    let cases: Vec<serde_json::Value> = serde_json::from_str(file).expect("a golden file");
    assert!(cases.len() > 20, "the cases are found");
    let text = |case: &serde_json::Value, key: &str| case[key].as_str().expect("text").to_owned();
    let hex = |text: &str| {
        let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(digit).collect()
    };
    cases.iter().map(|case| (hex(&text(case, "hex")), text(case, "json"))).collect()
}

#[test]
fn every_value_is_written_as_feast_writes_it() {
    let mut variants = std::collections::BTreeSet::new();
    for (bytes, wanted) in cases(include_str!("../../../tests/golden/json_values.json")) {
        let mut out = Vec::new();
        super::value(&mut out, &bytes).expect("a value");
        let value = Value::decode(&bytes[..]).expect("a value");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), wanted, "{value:?}");
        assert_eq!(super::oracle::value(&value), wanted, "the oracle on {value:?}");
        variants.extend(value.val.map(|val| std::mem::discriminant(&val)).map(|d| format!("{d:?}")));
    }
    assert_eq!(variants.len(), 44, "every variant of feast.types.Value");
}

#[test]
fn the_oracle_writes_whole_responses_as_feast_does() {
    for (bytes, wanted) in cases(include_str!("../../../tests/golden/json_responses.json")) {
        let response = GetOnlineFeaturesResponse::decode(&bytes[..]).expect("a response");
        assert_eq!(super::oracle::response(&response), wanted);
    }
}
