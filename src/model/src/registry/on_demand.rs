//! What an on-demand feature view computes and from what: its sources, its request data and its
//! function, as opaque bytes. Knows no Python, no Arrow and nothing that runs a function.
//!
//! Source: `feast/on_demand_feature_view.py`.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::feast::core;
use proto::feast::core::feature_transformation_v2::Transformation;
use proto::feast::core::on_demand_source::Source;

use super::view::{Field, field};

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// A Python function (dill bytes and source text) in this mode: `pandas` or `python`.
    Python {
        /// Whether it takes and gives a data frame rather than a dict of lists.
        pandas: bool,
    },
    /// A serialized `substrait.Plan`.
    Substrait(Bytes),
    /// Something that is not computed here; the text says what.
    Other(String),
}

/// A view that is read for its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceView {
    /// The view's name.
    pub view: String,
    /// The features that the function takes, by name.
    pub features: Vec<String>,
    /// Join key → the request's column that carries it, where they differ.
    pub join_key_map: BTreeMap<String, String>,
}

/// The definition of an on-demand feature view.
#[derive(Clone, Debug)]
pub struct OnDemand {
    /// What runs.
    pub function: Function,
    /// Whether a Python function takes one row at a time.
    pub singleton: bool,
    /// Whether it is computed when rows are written, and read like any other view.
    pub write_to_online_store: bool,
    /// The views whose features it takes.
    pub sources: Vec<SourceView>,
    /// The columns that come with the request.
    pub request: Vec<Field>,
    /// The serialized `feast.core.OnDemandFeatureView` as it is registered.
    pub message: Bytes,
}

impl OnDemand {
    pub(super) fn new(spec: &core::OnDemandFeatureViewSpec, message: Bytes) -> Self {
        let (mut sources, mut request) = (Vec::new(), Vec::new());
        for source in spec.sources.values() {
            match &source.source {
                Some(Source::FeatureViewProjection(p)) => sources.push(SourceView {
                    view: p.feature_view_name.clone(),
                    features: p.feature_columns.iter().map(|f| f.name.clone()).collect(),
                    join_key_map: p.join_key_map.clone(),
                }),
                Some(Source::FeatureView(view)) => {
                    let of = view.spec.clone().unwrap_or_default();
                    let features = of.features.into_iter().map(|f| f.name).collect();
                    sources.push(SourceView { view: of.name, features, join_key_map: BTreeMap::new() });
                }
                Some(Source::RequestDataSource(data)) => {
                    if let Some(core::data_source::Options::RequestDataOptions(options)) = &data.options {
                        request.extend(options.schema.iter().map(field));
                        let old = options.deprecated_schema.iter();
                        request.extend(old.map(|(name, value_type)| Field {
                            name: name.clone(),
                            value_type: crate::ValueType::try_from(*value_type).unwrap_or_default(),
                        }));
                    }
                }
                None => {}
            }
        }
        Self {
            function: function(spec),
            singleton: spec.singleton,
            write_to_online_store: spec.write_to_online_store,
            sources,
            request,
            message,
        }
    }
}

#[allow(deprecated)] // older registries have the function in the old field only
fn function(spec: &core::OnDemandFeatureViewSpec) -> Function {
    match spec.feature_transformation.as_ref().and_then(|t| t.transformation.as_ref()) {
        Some(Transformation::SubstraitTransformation(plan)) => Function::Substrait(plan.substrait_plan.clone().into()),
        Some(Transformation::UserDefinedFunction(_)) => match spec.mode.as_str() {
            "pandas" | "" => Function::Python { pandas: true },
            "python" => Function::Python { pandas: false },
            other => Function::Other(format!("its mode '{other}' is not one of pandas, python and substrait")),
        },
        None if !spec.aggregations.is_empty() => {
            Function::Other("aggregations over the rows of a request are not computed here".into())
        }
        None if spec.user_defined_function.is_some() => Function::Python { pandas: true },
        None => Function::Other("it has no function: apply it again".into()),
    }
}
