//! Between the messages of `feast.registry` and the words of the catalog. Knows no rule of the registry.

use std::collections::BTreeMap;

use model::ports::{Object, ObjectKind};
use proto::Raw;
use proto::registry as pb;
use service::catalog::features::Feature;
use service::catalog::lineage::{Reference, Relation};
use service::catalog::list::{Page, Paging};

/// What every list request says.
#[derive(Default)]
pub(super) struct Listing {
    /// The project; all where `None`.
    pub(super) project: Option<String>,
    pub(super) allow_cache: bool,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) paging: Paging,
}

/// What the list requests of one project's objects have in common.
pub(super) fn listing(
    project: String,
    allow_cache: bool,
    tags: BTreeMap<String, String>,
    page: Option<pb::PaginationParams>,
    order: Option<pb::SortingParams>,
) -> Listing {
    Listing { project: Some(project), allow_cache, tags, paging: paging(page, order) }
}

/// Negative numbers of pages and items are none, as in Feast.
pub(super) fn paging(page: Option<pb::PaginationParams>, order: Option<pb::SortingParams>) -> Paging {
    let (page, order) = (page.unwrap_or_default(), order.unwrap_or_default());
    Paging {
        sort_by: order.sort_by,
        sort_order: order.sort_order,
        page: u32::try_from(page.page).unwrap_or(0),
        limit: u32::try_from(page.limit).unwrap_or(0),
    }
}

/// Where a page stands in the whole.
pub(super) fn position<T>(page: &Page<T>) -> pb::PaginationMetadata {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let current = page.page as usize;
    pb::PaginationMetadata {
        page: number(current),
        limit: number(page.limit as usize),
        total_count: number(page.total),
        total_pages: number(page.pages),
        has_next: current > 0 && current < page.pages,
        has_previous: current > 1,
    }
}

/// A stored object's bytes, as a message.
pub(super) fn message(bytes: &[u8]) -> Raw {
    Raw(bytes.to_vec())
}

/// The items of a page, as messages.
pub(super) fn messages(page: &Page<Object>) -> Vec<Raw> {
    page.items.iter().map(|o| message(&o.bytes)).collect()
}

/// A view of whatever kind.
pub(super) fn any_view(object: &Object) -> pb::AnyFeatureView {
    use pb::any_feature_view::AnyFeatureView as Any;
    let raw = message(&object.bytes);
    let any = match object.kind {
        ObjectKind::StreamFeatureView => Any::StreamFeatureView(raw),
        ObjectKind::OnDemandFeatureView => Any::OnDemandFeatureView(raw),
        ObjectKind::LabelView => Any::LabelView(raw),
        _ => Any::FeatureView(raw),
    };
    pb::AnyFeatureView { any_feature_view: Some(any) }
}

/// A feature of a view.
pub(super) fn feature(feature: Feature) -> pb::Feature {
    pb::Feature {
        name: feature.name,
        feature_view: feature.view,
        r#type: feature.type_name,
        description: feature.description,
        owner: feature.owner,
        created_timestamp: feature.created.map(model::Timestamp::to_proto),
        last_updated_timestamp: feature.updated.map(model::Timestamp::to_proto),
        tags: feature.tags,
        kind: feature.kind.to_owned(),
    }
}

/// The items of a page, as messages.
pub(super) fn relations(page: &Page<Relation>) -> Vec<pb::EntityRelation> {
    let reference = |r: &Reference| Some(pb::EntityReference { r#type: r.kind.to_owned(), name: r.name.clone() });
    page.items
        .iter()
        .map(|r| pb::EntityRelation { source: reference(&r.source), target: reference(&r.target) })
        .collect()
}
