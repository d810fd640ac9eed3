//! What is read in the usual form is what serde reads.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::GetOnlineFeatures;
use super::*;
use service::retrieve;

/// By the reader of all of JSON.
fn by_serde(body: &[u8]) -> Option<retrieve::Request> {
    serde_json::from_slice::<GetOnlineFeatures>(body).ok().map(Into::into)
}

/// Fails where the body is read otherwise than by serde; gives whether it was read.
fn check(body: &[u8]) -> bool {
    let Some(usual) = read(body) else { return false };
    // Only a text that was checked is ever taken for features.
    let refs = serde_json::from_slice(usual.features).map(FeatureRequest::Refs);
    let Ok(features) = refs.or_else(|_| serde_json::from_slice(usual.features).map(FeatureRequest::Service)) else {
        return false;
    };
    let request = by_serde(body).expect("serde reads it too");
    assert!(spells(usual.features, &request.features));
    assert_eq!(features, request.features);
    assert_eq!(usual.entities, request.entities);
    assert_eq!(usual.full_feature_names, request.full_feature_names);
    assert_eq!(usual.include_feature_view_version_metadata, request.include_feature_view_version_metadata);
    true
}

#[test]
fn the_usual_forms_are_read() {
    for body in [
        r#"{"features": ["v:a", "v:b"], "entities": {"id": [1, 2, -3, 0, 999999999999999999]}}"#,
        r#"{"features":["v:a"],"entities":{"id":["x","ü"],"other":[1]},"full_feature_names":true}"#,
        " {\n\t\"feature_service\" : \"s\" , \"entities\" : { \"id\" : [ 1 ,\r2 ] }\n} ",
        r#"{"include_feature_view_version_metadata":true,"full_feature_names":false,"entities":{},"features":[]}"#,
        r#"{"features":["v:a"],"entities":{"id":[]}}"#,
    ] {
        assert!(check(body.as_bytes()), "{body}");
    }
}

#[test]
fn all_else_is_left() {
    for body in [
        r#"{"features":["v:a"],"entities":{"id":[1.5]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[1e2]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[-0]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[01]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[9223372036854775808]}}"#,
        r#"{"features":["v:a"],"entities":{"id":["\u0041"]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[1],"id":[2]}}"#,
        r#"{"features":["v:a"],"features":["v:b"],"entities":{"id":[1]}}"#,
        r#"{"features":["v:a"],"feature_service":"s","entities":{"id":[1]}}"#,
        r#"{"feature_service":"","entities":{"id":[1]}}"#,
        r#"{"features":["v:a]"],"entities":{"id":[1]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[1]},"full_feature_names":1}"#,
        r#"{"features":["v:a"],"entities":{"id":[1,]}}"#,
        r#"{"features":["v:a"],"entities":{"id":[1]},}"#,
        r#"{"features":["v:a"],"entities":{"id":[1]}} x"#,
        r#"{"features":["v:a"],"entities":{"id":[1]}"#,
        r#"{"features":["v:a"]}"#,
        r#"{"entities":{"id":[1]}}"#,
    ] {
        assert!(!check(body.as_bytes()), "{body}");
    }
    assert!(read(b"{\"features\":[\"v:a\"],\"entities\":{\"id\":[\"\xff\"]}}").is_none());
}

fn entity() -> impl Strategy<Value = Json> {
    prop_oneof![
        6 => (any::<i64>(), 0u32..64).prop_map(|(number, shift)| json!(number >> shift)),
        4 => any::<String>().prop_map(Json::from),
        4 => "[a-z]{0,5}".prop_map(Json::from),
        1 => any::<f64>().prop_map(Json::from),
        1 => any::<u64>().prop_map(Json::from),
        1 => Just(Json::Null),
        1 => Just(json!([1])),
    ]
}

fn body() -> impl Strategy<Value = Json> {
    let column = ("[a-z\\\\\"é]{0,3}", proptest::collection::vec(entity(), 0..5));
    let name = || "[a-z:\\]\\[,\"]{0,6}";
    let features = prop_oneof![
        proptest::collection::vec(name(), 0..4).prop_map(|refs| ("features", json!(refs))),
        name().prop_map(|service| ("feature_service", json!(service))),
    ];
    (features, proptest::collection::vec(column, 0..3), any::<Option<bool>>(), any::<Option<bool>>()).prop_map(
        |((key, features), columns, full_names, versions)| {
            let columns: serde_json::Map<_, _> = columns.into_iter().map(|(name, of)| (name, of.into())).collect();
            let mut body = json!({ key: features, "entities": columns });
            if let Some(flag) = full_names {
                body["full_feature_names"] = flag.into();
            }
            if let Some(flag) = versions {
                body["include_feature_view_version_metadata"] = flag.into();
            }
            body
        },
    )
}

proptest! {
    #[test]
    fn it_is_what_serde_reads(body in body(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
        check(text.expect("JSON").as_bytes());
    }

    #[test]
    fn whatever_is_changed_in_it(
        body in body(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), prop_oneof![
            proptest::sample::select(b"[]{}\",:\\0-1 .e\n".to_vec()), any::<u8>()]), 1..4),
    ) {
        let mut bytes = body.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&bytes);
    }
}
