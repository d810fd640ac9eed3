//! Plans of plain views over a registry made of Feast's own messages. Knows no rows.

use super::fixtures::{registry, view};
use super::*;
use crate::value::proto_value::Val;

#[test]
fn every_view_is_read_by_the_key_of_its_own_type() {
    let views = [("wide", ValueType::Int64), ("narrow", ValueType::Int32), ("text", ValueType::String)];
    let registry = registry(views.map(|(name, key)| view(name, key, &[&format!("{name}_trips")])).to_vec());
    let project = registry.project("p").expect("the project");
    let refs = ["wide:wide_trips", "narrow:narrow_trips", "text:text_trips"].map(str::to_owned).to_vec();
    let plan = Plan::new(project, "p", &FeatureRequest::Refs(refs), false).expect("a plan");

    let sent = vec![Value { val: Some(Val::Int64Val(1001)) }];
    let bound = plan.bind(vec![("driver_id".into(), sent)]).expect("binds");
    let wanted = [Val::Int64Val(1001), Val::Int32Val(1001), Val::StringVal("1001".into())];
    for (keys, val) in bound.keys.iter().zip(wanted) {
        let key = EntityKey::encode(&[("driver_id", &Value { val: Some(val) })]).expect("a key");
        assert_eq!(keys.iter().collect::<Vec<_>>(), [key.as_bytes()]);
    }

    let error = plan.bind(vec![("driver_id".into(), vec![Value { val: Some(Val::Int64Val(i64::MAX)) }])]);
    let error = error.expect_err("too wide for INT32");
    assert!(error.message().contains("driver_id") && error.message().contains("INT32"), "{}", error.message());
}
