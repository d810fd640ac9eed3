//! Whether two objects say the same, and if not, whether a view's schema or function differs. The order
//! of maps and of a view's features says nothing (the SDK does not keep it), and the pickled bytes of a
//! function make no new version where its source text stands beside them. Decides from values alone.
//!
//! Source: `_schema_or_udf_changed` and `__eq__` of Feast's views.

use bytes::Bytes;
use model::ports::{Object, ObjectKind};
use model::{Error, Result};
use prost::Message;

use super::known::Schema;
use proto::feast::core;

/// How an object differs from the one that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// Not at all.
    None,
    /// In description, tags, sources or settings.
    Settings,
    /// In what a view computes: a new version of it.
    Schema,
}

/// Whether the bytes are the kind's message.
pub(super) fn check_message(kind: ObjectKind, bytes: &Bytes) -> Result<()> {
    fn of<M: Message + Default>(bytes: &Bytes) -> Result<(), prost::DecodeError> {
        M::decode(bytes.clone()).map(drop)
    }
    let checked = match kind {
        ObjectKind::Project => of::<core::Project>(bytes),
        ObjectKind::Entity => of::<core::Entity>(bytes),
        ObjectKind::DataSource => of::<core::DataSource>(bytes),
        ObjectKind::FeatureView => of::<core::FeatureView>(bytes),
        ObjectKind::StreamFeatureView => of::<core::StreamFeatureView>(bytes),
        ObjectKind::OnDemandFeatureView => of::<core::OnDemandFeatureView>(bytes),
        ObjectKind::LabelView => of::<core::LabelView>(bytes),
        ObjectKind::FeatureService => of::<core::FeatureService>(bytes),
        ObjectKind::SavedDataset => of::<core::SavedDataset>(bytes),
        ObjectKind::ValidationReference => of::<core::ValidationReference>(bytes),
        ObjectKind::Permission => of::<core::Permission>(bytes),
        ObjectKind::Infra => of::<core::Infra>(bytes),
        ObjectKind::ProjectMetadata => of::<core::ProjectMetadata>(bytes),
        ObjectKind::FeatureViewVersion => of::<core::FeatureViewVersionRecord>(bytes),
        ObjectKind::ClearedTable | ObjectKind::DatasetJob | ObjectKind::StreamReading => Ok(()),
    };
    checked.map_err(|e| Error::invalid(format!("these bytes are no feast.core.{}: {e}", kind.class())).with_cause(e))
}

/// Compares what two objects of one kind and name define, without their meta messages.
pub(super) fn compare(old: &Object, new: &Object) -> Result<Difference> {
    let (old_bytes, new_bytes) = (without_meta(old)?, without_meta(new)?);
    if old_bytes == new_bytes {
        return Ok(Difference::None);
    }
    let (a, b) = (Canonical::of(old.kind, &old_bytes)?, Canonical::of(new.kind, &new_bytes)?);
    if a.schema != b.schema {
        return Ok(Difference::Schema);
    }
    // the typed messages may be equal and a field that they do not know differ
    let same = a.whole == b.whole && known(old.kind, &old_bytes)? && known(new.kind, &new_bytes)?;
    Ok(if same { Difference::None } else { Difference::Settings })
}

fn known(kind: ObjectKind, bytes: &[u8]) -> Result<bool> {
    let schema = Schema::load()?;
    schema.knows(&format!(".feast.core.{}", kind.class()), bytes).map_err(malformed)
}

fn malformed(cause: prost::DecodeError) -> Error {
    Error::invalid(format!("the object is no valid message: {cause}")).with_cause(cause)
}

/// Whether the meta messages say the same, in whatever order.
pub(super) fn same_meta(old: &Object, new: &Object) -> Result<bool> {
    fn same<M: Message + Default + PartialEq>(old: &[u8], new: &[u8]) -> Result<bool> {
        let read = |bytes| M::decode(bytes).map_err(|e| Error::invalid(format!("a malformed meta message: {e}")));
        Ok(read(old)? == read(new)?)
    }
    let (a, b) = (old.meta()?, new.meta()?);
    match old.kind {
        ObjectKind::FeatureView | ObjectKind::StreamFeatureView => same::<core::FeatureViewMeta>(&a, &b),
        ObjectKind::OnDemandFeatureView => same::<core::OnDemandFeatureViewMeta>(&a, &b),
        ObjectKind::SavedDataset => same::<core::SavedDatasetMeta>(&a, &b),
        ObjectKind::DataSource => same::<core::data_source::SourceMeta>(&a, &b),
        // created and updated, which an apply takes over
        _ => Ok(true),
    }
}

fn without_meta(object: &Object) -> Result<Vec<u8>> {
    match object.kind.layout().meta {
        0 => Ok(object.bytes.to_vec()),
        number => proto::raw::set(&object.bytes, number, None).map_err(malformed),
    }
}

/// An object's definition in a form in which equal definitions are equal bytes.
struct Canonical {
    whole: Vec<u8>,
    /// Of a view: what makes a new version of it.
    schema: Vec<u8>,
}

impl Canonical {
    fn of(kind: ObjectKind, bytes: &[u8]) -> Result<Self> {
        match kind {
            ObjectKind::FeatureView => Self::view(bytes, feature_view, |v| {
                let spec = v.spec.take().unwrap_or_default();
                v.spec = Some(core::FeatureViewSpec {
                    entities: sorted(spec.entities),
                    features: spec.features,
                    entity_columns: spec.entity_columns,
                    source_views: spec.source_views,
                    feature_transformation: without_pickle(spec.feature_transformation),
                    mode: spec.mode,
                    ..Default::default()
                });
            }),
            ObjectKind::StreamFeatureView => Self::view(bytes, stream_feature_view, |v| {
                let spec = v.spec.take().unwrap_or_default();
                v.spec = Some(core::StreamFeatureViewSpec {
                    entities: sorted(spec.entities),
                    features: spec.features,
                    entity_columns: spec.entity_columns,
                    feature_transformation: without_pickle(spec.feature_transformation),
                    aggregations: spec.aggregations,
                    timestamp_field: spec.timestamp_field,
                    mode: spec.mode,
                    enable_tiling: spec.enable_tiling,
                    tiling_hop_size: spec.tiling_hop_size,
                    ..Default::default()
                });
            }),
            ObjectKind::OnDemandFeatureView => Self::view(bytes, on_demand_feature_view, |v| {
                let spec = v.spec.take().unwrap_or_default();
                v.spec = Some(core::OnDemandFeatureViewSpec {
                    features: spec.features,
                    entity_columns: spec.entity_columns,
                    feature_transformation: without_pickle(spec.feature_transformation),
                    sources: spec.sources,
                    mode: spec.mode,
                    aggregations: spec.aggregations,
                    ..Default::default()
                });
            }),
            ObjectKind::LabelView => Self::view(bytes, label_view, |v| {
                let spec = v.spec.take().unwrap_or_default();
                v.spec = Some(core::LabelViewSpec {
                    entities: sorted(spec.entities),
                    features: spec.features,
                    entity_columns: spec.entity_columns,
                    ..Default::default()
                });
            }),
            ObjectKind::FeatureService => Self::view(bytes, feature_service, |v| v.spec = None),
            ObjectKind::DataSource => Self::view(bytes, data_source, |v| *v = core::DataSource::default()),
            ObjectKind::Entity => Self::view(bytes, |_: &mut core::Entity| (), |v| v.spec = None),
            ObjectKind::Project => Self::view(bytes, |_: &mut core::Project| (), |v| v.spec = None),
            ObjectKind::SavedDataset => Self::view(bytes, |_: &mut core::SavedDataset| (), |v| v.spec = None),
            ObjectKind::Permission => Self::view(bytes, |_: &mut core::Permission| (), |v| v.spec = None),
            ObjectKind::ValidationReference => {
                Self::view(bytes, |_: &mut core::ValidationReference| (), |v| *v = core::ValidationReference::default())
            }
            ObjectKind::Infra
            | ObjectKind::ProjectMetadata
            | ObjectKind::FeatureViewVersion
            | ObjectKind::ClearedTable
            | ObjectKind::DatasetJob
            | ObjectKind::StreamReading => Ok(Self { whole: bytes.to_vec(), schema: Vec::new() }),
        }
    }

    /// From a typed message, `order`ed, of which `keep_schema` then leaves what makes a version.
    fn view<M: Message + Default>(bytes: &[u8], order: impl Fn(&mut M), keep_schema: impl Fn(&mut M)) -> Result<Self> {
        let mut message = M::decode(bytes).map_err(malformed)?;
        order(&mut message);
        let whole = message.encode_to_vec();
        keep_schema(&mut message);
        Ok(Self { whole, schema: message.encode_to_vec() })
    }
}

fn feature_view(view: &mut core::FeatureView) {
    if let Some(spec) = &mut view.spec {
        feature_view_spec(spec);
    }
}

fn feature_view_spec(spec: &mut core::FeatureViewSpec) {
    by_name(&mut spec.features);
    by_name(&mut spec.entity_columns);
    source(spec.batch_source.as_mut());
    source(spec.stream_source.as_mut());
    spec.source_views.iter_mut().for_each(feature_view_spec);
}

fn stream_feature_view(view: &mut core::StreamFeatureView) {
    if let Some(spec) = &mut view.spec {
        by_name(&mut spec.features);
        by_name(&mut spec.entity_columns);
        source(spec.batch_source.as_mut());
        source(spec.stream_source.as_mut());
    }
}

fn on_demand_feature_view(view: &mut core::OnDemandFeatureView) {
    let Some(spec) = &mut view.spec else { return };
    by_name(&mut spec.features);
    by_name(&mut spec.entity_columns);
    for from in spec.sources.values_mut() {
        use core::on_demand_source::Source;
        match &mut from.source {
            Some(Source::FeatureView(view)) => {
                feature_view(view);
                view.meta = None;
            }
            Some(Source::FeatureViewProjection(from)) => projection(from),
            Some(Source::RequestDataSource(request)) => source(Some(request)),
            None => {}
        }
    }
}

fn label_view(view: &mut core::LabelView) {
    if let Some(spec) = &mut view.spec {
        by_name(&mut spec.features);
        by_name(&mut spec.entity_columns);
        source(spec.source.as_mut());
    }
}

fn feature_service(service: &mut core::FeatureService) {
    service.spec.iter_mut().flat_map(|s| &mut s.features).for_each(|p| {
        source(p.batch_source.as_mut());
        source(p.stream_source.as_mut());
    });
}

fn projection(projection: &mut core::FeatureViewProjection) {
    by_name(&mut projection.feature_columns);
    source(projection.batch_source.as_mut());
    source(projection.stream_source.as_mut());
}

fn data_source(outer: &mut core::DataSource) {
    source(outer.batch_source.as_deref_mut());
}

/// A source inside another object carries times of its own, which define nothing.
fn source(source: Option<&mut core::DataSource>) {
    if let Some(source) = source {
        source.meta = None;
        self::source(source.batch_source.as_deref_mut());
    }
}

/// A function by its source text, where that is there: the pickle differs from one Python to the next.
fn without_pickle(transformation: Option<core::FeatureTransformationV2>) -> Option<core::FeatureTransformationV2> {
    use core::feature_transformation_v2::Transformation;
    let mut transformation = transformation?;
    if let Some(Transformation::UserDefinedFunction(udf)) = &mut transformation.transformation
        && !udf.body_text.is_empty()
    {
        udf.body.clear();
    }
    Some(transformation)
}

fn by_name(features: &mut [core::FeatureSpecV2]) {
    features.sort_by(|a, b| a.name.cmp(&b.name));
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
