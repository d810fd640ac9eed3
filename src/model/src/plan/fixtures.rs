//! For tests: a registry of project `p` made of Feast's own messages. Knows no plan.

use proto::feast::core;

use crate::ports::{Object, ObjectKind};
use crate::registry::Registry;
use crate::value::ValueType;

pub(super) fn object(kind: ObjectKind, name: &str, message: &impl prost::Message) -> Object {
    Object { kind, project: "p".into(), name: name.into(), bytes: message.encode_to_vec().into() }
}

/// Columns of one type.
pub(super) fn columns(names: &[&str], value_type: ValueType) -> Vec<core::FeatureSpecV2> {
    let of =
        |name: &&str| core::FeatureSpecV2 { name: (*name).into(), value_type: value_type.into(), ..Default::default() };
    names.iter().map(of).collect()
}

/// A plain view on `driver_id` of this type, with INT64 features.
pub(super) fn view(name: &str, key: ValueType, features: &[&str]) -> Object {
    let spec = core::FeatureViewSpec {
        name: name.into(),
        entities: vec!["driver".into()],
        entity_columns: columns(&["driver_id"], key),
        features: columns(features, ValueType::Int64),
        ..Default::default()
    };
    object(ObjectKind::FeatureView, name, &core::FeatureView { spec: Some(spec), meta: None })
}

/// These objects and the entity `driver`.
pub(super) fn registry(objects: Vec<Object>) -> Registry {
    let spec = core::EntitySpecV2 { name: "driver".into(), join_key: "driver_id".into(), ..Default::default() };
    let entity = object(ObjectKind::Entity, "driver", &core::Entity { spec: Some(spec), meta: None });
    Registry::resolve(1, objects.into_iter().chain([entity])).expect("resolves")
}
