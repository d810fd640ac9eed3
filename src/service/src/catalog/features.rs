//! The features of all views as a flat list. Decides from values alone.
//!
//! Source: `ListFeatures` of `feast/registry_server.py`; owner and times, which Feast means to give and
//! does not, are the view's.

use std::collections::BTreeMap;

use model::ports::{Object, ObjectKind};
use model::registry::Registry;
use model::{Error, Kind, Result, Timestamp, ValueType};
use prost::Message;
use proto::feast::core::FeatureSpecV2;
use proto::raw;

use super::list::{Sortable, in_order, objects};

/// One feature of one view.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// The view.
    pub view: String,
    /// Its type as Feast's SDK writes it: `Int64`, `Array(Float32)`.
    pub type_name: String,
    /// The feature's description.
    pub description: String,
    /// The view's owner.
    pub owner: String,
    /// When the view was first applied.
    pub created: Option<Timestamp>,
    /// When the view last changed.
    pub updated: Option<Timestamp>,
    /// The feature's tags.
    pub tags: BTreeMap<String, String>,
    /// `feature`, or `label` for a label view's.
    pub kind: &'static str,
}

/// Which features are asked for; empty is all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// Of this view.
    pub view: &'a str,
    /// Of this name.
    pub name: &'a str,
    /// `feature` or `label`.
    pub kind: &'a str,
}

/// The features of a project's views, view by view.
///
/// Errors: a stored view that is damaged.
pub fn features(registry: &Registry, project: &str, filter: Filter<'_>) -> Result<Vec<Feature>> {
    let asked = |asked: &str, is: &str| asked.is_empty() || asked == is;
    let mut out = Vec::new();
    for object in objects(registry, Some(project), &ObjectKind::VIEWS, &BTreeMap::new())? {
        let kind = if object.kind == ObjectKind::LabelView { "label" } else { "feature" };
        if !asked(filter.view, &object.name) || !asked(filter.kind, kind) {
            continue;
        }
        let view = registry.project(project)?.view(&object.name, project)?;
        for spec in specs(&object)? {
            // a join key may stand among the features, and is none
            if asked(filter.name, &spec.name) && view.feature(&spec.name).is_some() {
                out.push(Feature {
                    type_name: type_name(spec.value_type),
                    name: spec.name,
                    view: object.name.clone(),
                    description: spec.description,
                    owner: object.text(object.kind.layout().owner)?,
                    created: object.created()?,
                    updated: object.updated()?,
                    tags: spec.tags,
                    kind,
                });
            }
        }
    }
    Ok(out)
}

/// One feature.
///
/// Errors: `FeastObjectNotFoundException`.
pub fn feature(registry: &Registry, project: &str, view: &str, name: &str) -> Result<Feature> {
    let found = match (view, name) {
        ("", _) | (_, "") => None,
        _ => features(registry, project, Filter { view, name, kind: "" })?.into_iter().next(),
    };
    found.ok_or_else(|| {
        Error::of_class(
            Kind::NotFound,
            "FeastObjectNotFoundException",
            format!("Feature {name} not found in feature view {view} in project {project}"),
        )
    })
}

fn specs(view: &Object) -> Result<Vec<FeatureSpecV2>> {
    let number = if view.kind == ObjectKind::OnDemandFeatureView { 3 } else { 4 };
    let damaged = |e| Error::internal(format!("the stored view '{}' is damaged", view.name), e);
    let spec = view.spec()?;
    let found = raw::get(&spec, number).map_err(damaged)?;
    found.into_iter().map(|bytes| FeatureSpecV2::decode(bytes).map_err(damaged)).collect()
}

/// A value type as `str()` of Feast's dtype.
fn type_name(value_type: i32) -> String {
    let name = ValueType::try_from(value_type).unwrap_or(ValueType::Invalid).as_str_name();
    let base = |name: &str| match name {
        "INVALID" | "NULL" => "Invalid".to_owned(),
        "DOUBLE" => "Float64".to_owned(),
        "FLOAT" => "Float32".to_owned(),
        _ => name
            .split('_')
            .map(|word| {
                let mut letters = word.chars();
                letters.next().map_or_else(String::new, |c| format!("{c}{}", letters.as_str().to_lowercase()))
            })
            .collect(),
    };
    match (name.strip_suffix("_LIST"), name.strip_suffix("_SET")) {
        (Some(of), _) => format!("Array({})", base(of)),
        (_, Some(of)) => format!("Set({})", base(of)),
        _ => base(name),
    }
}

impl Sortable for Feature {
    const ATTRIBUTES: &'static [&'static str] = &[
        "name",
        "feature_view",
        "type",
        "description",
        "owner",
        "kind",
        "created_timestamp",
        "last_updated_timestamp",
    ];

    fn attribute(&self, name: &str) -> Result<Option<String>> {
        Ok(match name {
            "name" => Some(self.name.clone()),
            "feature_view" => Some(self.view.clone()),
            "type" => Some(self.type_name.clone()),
            "description" => Some(self.description.clone()),
            "owner" => Some(self.owner.clone()),
            "kind" => Some(self.kind.to_owned()),
            "created_timestamp" => self.created.map(in_order),
            "last_updated_timestamp" => self.updated.map(in_order),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_the_sdk_names_them() {
        let named = [
            (ValueType::Int64, "Int64"),
            (ValueType::Double, "Float64"),
            (ValueType::FloatList, "Array(Float32)"),
            (ValueType::StringSet, "Set(String)"),
            (ValueType::UnixTimestamp, "UnixTimestamp"),
            (ValueType::UnixTimestampList, "Array(UnixTimestamp)"),
            (ValueType::TimeUuid, "TimeUuid"),
            (ValueType::Invalid, "Invalid"),
        ];
        for (value_type, name) in named {
            assert_eq!(type_name(value_type as i32), name);
        }
        assert_eq!(type_name(4711), "Invalid");
    }
}
