//! Where an object's name, project, tags and times stand in its message, so that they can be read and
//! set on the wire level, unknown fields untouched. Knows no store.
//!
//! Source: the field numbers of `feast.core` (`proto/feast/core/*.proto`).

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::feast::core;
use proto::raw;

use crate::error::{Error, Kind, Result};
use crate::ports::{Object, ObjectKind};
use crate::time::Timestamp;

/// Field numbers of one kind's message; 0 is "has none". `name` to `owner` stand in the message in
/// the field `spec`, or in the object itself where that is 0; `created` and `updated` in `meta`.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// In `feast.core.Registry`.
    pub registry: u32,
    /// The specification.
    pub spec: u32,
    /// The name.
    pub name: u32,
    /// The project's name.
    pub project: u32,
    /// `map<string, string>`.
    pub tags: u32,
    /// The description.
    pub description: u32,
    /// The owner.
    pub owner: u32,
    /// What the registry keeps about the object.
    pub meta: u32,
    /// When it was first applied.
    pub created: u32,
    /// When it last changed.
    pub updated: u32,
}

const fn layout(registry: u32, spec: [u32; 6], meta: [u32; 3]) -> Layout {
    let [spec, name, project, tags, description, owner] = spec;
    let [meta, created, updated] = meta;
    Layout { registry, spec, name, project, tags, description, owner, meta, created, updated }
}

const META: [u32; 3] = [2, 1, 2];

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 17] = [
        Self::Project,
        Self::Entity,
        Self::DataSource,
        Self::FeatureView,
        Self::StreamFeatureView,
        Self::OnDemandFeatureView,
        Self::LabelView,
        Self::FeatureService,
        Self::SavedDataset,
        Self::ValidationReference,
        Self::Permission,
        Self::Infra,
        Self::ProjectMetadata,
        Self::FeatureViewVersion,
        Self::ClearedTable,
        Self::DatasetJob,
        Self::StreamReading,
    ];

    /// The kinds that share one namespace of views, in the order in which Feast looks a name up.
    pub const VIEWS: [Self; 4] =
        [Self::FeatureView, Self::StreamFeatureView, Self::OnDemandFeatureView, Self::LabelView];

    /// Whether it is Larder's own: Feast knows no such object, and no client is given one.
    pub fn is_own(self) -> bool {
        matches!(self, Self::ClearedTable | Self::DatasetJob | Self::StreamReading)
    }

    /// Whether it is a view.
    pub fn is_view(self) -> bool {
        Self::VIEWS.contains(&self)
    }

    /// The name of its class in Feast's SDK.
    pub fn class(self) -> &'static str {
        match self {
            Self::Project => "Project",
            Self::Entity => "Entity",
            Self::DataSource => "DataSource",
            Self::FeatureView => "FeatureView",
            Self::StreamFeatureView => "StreamFeatureView",
            Self::OnDemandFeatureView => "OnDemandFeatureView",
            Self::LabelView => "LabelView",
            Self::FeatureService => "FeatureService",
            Self::SavedDataset => "SavedDataset",
            Self::ValidationReference => "ValidationReference",
            Self::Permission => "Permission",
            Self::Infra => "Infra",
            Self::ProjectMetadata => "ProjectMetadata",
            Self::FeatureViewVersion => "FeatureViewVersion",
            Self::ClearedTable => "ClearedTable",
            Self::DatasetJob => "DatasetJob",
            Self::StreamReading => "StreamReading",
        }
    }

    /// The type of a view as version records say it (`_infer_fv_type_string`).
    pub fn record_type(self) -> &'static str {
        match self {
            Self::StreamFeatureView => "stream_feature_view",
            Self::OnDemandFeatureView => "on_demand_feature_view",
            Self::LabelView => "label_view",
            _ => "feature_view",
        }
    }

    /// Where things stand in its message.
    pub fn layout(self) -> Layout {
        match self {
            Self::Project => layout(17, [1, 1, 0, 3, 2, 4], META),
            Self::Entity => layout(1, [1, 1, 9, 8, 3, 10], META),
            Self::DataSource => layout(12, [0, 20, 21, 24, 23, 25], [50, 3, 4]),
            Self::FeatureView => layout(6, [1, 1, 2, 5, 10, 11], META),
            Self::StreamFeatureView => layout(14, [1, 1, 2, 7, 6, 8], META),
            Self::OnDemandFeatureView => layout(8, [1, 1, 2, 7, 6, 8], META),
            Self::LabelView => layout(19, [1, 1, 2, 5, 9, 10], META),
            Self::FeatureService => layout(7, [1, 1, 2, 4, 5, 6], META),
            Self::SavedDataset => layout(11, [1, 1, 2, 7, 11, 0], META),
            Self::ValidationReference => layout(13, [0, 1, 3, 5, 4, 0], [0, 0, 0]),
            Self::Permission => layout(16, [1, 1, 2, 8, 0, 0], META),
            Self::Infra => layout(10, [0; 6], [0; 3]),
            Self::ProjectMetadata => layout(15, [0, 1, 0, 0, 0, 0], [0; 3]),
            Self::FeatureViewVersion => layout(18, [0, 1, 2, 0, 0, 0], [0; 3]),
            // far above what Feast uses: its own writes keep fields that they do not know
            Self::ClearedTable => layout(20_001, [0, 1, 2, 0, 0, 0], [0; 3]),
            Self::DatasetJob => layout(20_002, [0, 1, 2, 0, 0, 0], [0; 3]),
            Self::StreamReading => layout(20_003, [0, 1, 2, 0, 0, 0], [0; 3]),
        }
    }

    /// What Feast says where there is no such object. Feast has one class for views of all kinds
    /// (`proto_registry_utils.py`).
    pub fn not_found(self, name: &str, project: &str) -> Error {
        match self {
            Self::Project | Self::Infra | Self::ProjectMetadata => Error::project_not_found(project),
            Self::Entity => Error::entity_not_found(name, project),
            Self::DataSource => Error::data_source_not_found(name, project),
            Self::FeatureView | Self::StreamFeatureView | Self::OnDemandFeatureView | Self::LabelView => {
                Error::feature_view_not_found(name, project)
            }
            Self::FeatureService => Error::feature_service_not_found(name, project),
            Self::SavedDataset => Error::saved_dataset_not_found(name, project),
            Self::ValidationReference => Error::validation_reference_not_found(name, project),
            Self::Permission => Error::permission_not_found(name, project),
            Self::FeatureViewVersion => {
                let (view, version) = name.rsplit_once('@').unwrap_or((name, "latest"));
                Error::of_class(
                    Kind::NotFound,
                    "FeatureViewVersionNotFound",
                    format!("Version {version} of feature view {view} does not exist in project {project}"),
                )
            }
            Self::DatasetJob => Error::of_class(
                Kind::NotFound,
                "FeastObjectNotFoundException",
                format!("Dataset job '{name}' not found"),
            ),
            Self::ClearedTable => Error::new(Kind::NotFound, format!("table {name} is not being cleared")),
            Self::StreamReading => Error::feature_view_not_found(name, project),
        }
    }
}

/// The name under which a view's definition is kept as a version.
pub fn version_name(view: &str, number: i32) -> String {
    format!("{view}@v{number}")
}

/// The view's object that a version record keeps.
///
/// Errors: `Internal` for a record of a type that is none.
pub fn of_version(record: core::FeatureViewVersionRecord) -> Result<Object> {
    let kind = ObjectKind::VIEWS.into_iter().find(|kind| kind.record_type() == record.feature_view_type);
    let Some(kind) = kind else {
        return Err(Error::new(
            Kind::Internal,
            format!("Unknown feature view type: {} of {}", record.feature_view_type, record.feature_view_name),
        ));
    };
    Ok(Object {
        kind,
        project: record.project_id,
        name: record.feature_view_name,
        bytes: record.feature_view_proto.into(),
    })
}

impl Object {
    /// From a message's bytes; name and project are read from it ([`Infra`](ObjectKind::Infra) has
    /// neither). The bytes are not checked any further.
    ///
    /// Errors: bytes that are no message, a name that is no text.
    pub fn read(kind: ObjectKind, bytes: Bytes) -> Result<Self> {
        let mut object = Self { kind, project: String::new(), name: String::new(), bytes };
        let layout = kind.layout();
        object.name = object.text(layout.name)?;
        object.project = match kind {
            ObjectKind::Project | ObjectKind::ProjectMetadata => object.name.clone(),
            _ => object.text(layout.project)?,
        };
        if kind == ObjectKind::FeatureViewVersion {
            let record =
                core::FeatureViewVersionRecord::decode(object.bytes.clone()).map_err(|e| object.malformed(e))?;
            object.name = version_name(&record.feature_view_name, record.version_number);
        }
        Ok(object)
    }

    /// The bytes of the specification: the object itself where its message has none.
    pub fn spec(&self) -> Result<Vec<u8>> {
        match self.kind.layout().spec {
            0 => Ok(self.bytes.to_vec()),
            number => self.part(number),
        }
    }

    /// The bytes of the meta message; empty where there is none.
    pub fn meta(&self) -> Result<Vec<u8>> {
        match self.kind.layout().meta {
            0 => Ok(Vec::new()),
            number => self.part(number),
        }
    }

    /// This object with another specification. Only for kinds that have one.
    pub fn with_spec(mut self, spec: &[u8]) -> Result<Self> {
        self.bytes = match self.kind.layout().spec {
            0 => Bytes::copy_from_slice(spec),
            number => self.edited(&self.bytes, number, Some(spec))?.into(),
        };
        Ok(self)
    }

    /// This object with another meta message.
    pub fn with_meta(mut self, meta: &[u8]) -> Result<Self> {
        let number = self.kind.layout().meta;
        if number != 0 {
            self.bytes = self.edited(&self.bytes, number, Some(meta))?.into();
        }
        Ok(self)
    }

    /// This object in another project.
    pub fn in_project(mut self, project: &str) -> Result<Self> {
        let number = self.kind.layout().project;
        if number != 0 && self.project != project {
            let spec = self.edited(&self.spec()?, number, Some(project.as_bytes()))?;
            self = self.with_spec(&spec)?;
        }
        project.clone_into(&mut self.project);
        Ok(self)
    }

    /// The tags.
    pub fn tags(&self) -> Result<BTreeMap<String, String>> {
        let number = self.kind.layout().tags;
        if number == 0 {
            return Ok(BTreeMap::new());
        }
        let spec = self.spec()?;
        let entries = raw::get(&spec, number).map_err(|e| self.malformed(e))?;
        entries.into_iter().map(|entry| Ok((self.text_in(entry, 1)?, self.text_in(entry, 2)?))).collect()
    }

    /// The text in a field of the specification; empty for field 0, which no message has.
    pub fn text(&self, number: u32) -> Result<String> {
        if number == 0 {
            return Ok(String::new());
        }
        self.text_in(&self.spec()?, number)
    }

    /// When it was created, where it says so.
    pub fn created(&self) -> Result<Option<Timestamp>> {
        self.time(self.kind.layout().created)
    }

    /// When it last changed, where it says so.
    pub fn updated(&self) -> Result<Option<Timestamp>> {
        self.time(self.kind.layout().updated)
    }

    fn time(&self, number: u32) -> Result<Option<Timestamp>> {
        if number == 0 {
            return Ok(None);
        }
        let meta = self.meta()?;
        let found = raw::get(&meta, number).map_err(|e| self.malformed(e))?;
        let Some(bytes) = found.last() else {
            return Ok(None);
        };
        let time = prost_types::Timestamp::decode(*bytes).map_err(|e| self.malformed(e))?;
        Ok(Some(Timestamp::from_proto(&time)))
    }

    /// A message in a field of the object. A message that comes in pieces is the pieces in a row
    /// (protobuf's rule of merging).
    fn part(&self, number: u32) -> Result<Vec<u8>> {
        Ok(raw::get(&self.bytes, number).map_err(|e| self.malformed(e))?.concat())
    }

    fn text_in(&self, bytes: &[u8], number: u32) -> Result<String> {
        let found = raw::get(bytes, number).map_err(|e| self.malformed(e))?;
        let bytes = found.last().copied().unwrap_or_default();
        String::from_utf8(bytes.to_vec()).map_err(|e| self.malformed(e))
    }

    fn edited(&self, bytes: &[u8], number: u32, payload: Option<&[u8]>) -> Result<Vec<u8>> {
        raw::set(bytes, number, payload).map_err(|e| self.malformed(e))
    }

    fn malformed(&self, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::invalid(format!("the bytes of this {} are no valid message: {cause}", self.kind.class()))
            .with_cause(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::feast::core;

    fn stream_view() -> core::StreamFeatureView {
        let spec = core::StreamFeatureViewSpec {
            name: "clicks".into(),
            project: "a".into(),
            tags: [("team".to_owned(), "x".to_owned()), ("empty".to_owned(), String::new())].into(),
            ..Default::default()
        };
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let meta =
            core::FeatureViewMeta { created_timestamp: time(5), last_updated_timestamp: time(6), ..Default::default() };
        core::StreamFeatureView { spec: Some(spec), meta: Some(meta) }
    }

    #[test]
    fn reads_and_moves_an_object_without_losing_unknown_fields() {
        let mut spec = stream_view().spec.expect("spec").encode_to_vec();
        raw::push(&mut spec, 4000, b"new in spec");
        let mut bytes = Vec::new();
        raw::push(&mut bytes, 1, &spec);
        raw::push(&mut bytes, 2, &stream_view().meta.expect("meta").encode_to_vec());
        raw::push(&mut bytes, 4001, b"new outside");

        let object = Object::read(ObjectKind::StreamFeatureView, bytes.into()).expect("an object");
        assert_eq!((object.name.as_str(), object.project.as_str()), ("clicks", "a"));
        assert_eq!(object.tags().expect("tags"), stream_view().spec.expect("spec").tags);
        assert_eq!(object.created().expect("a time"), Some(Timestamp::from_seconds(5)));
        assert_eq!(object.updated().expect("a time"), Some(Timestamp::from_seconds(6)));

        let moved = object.in_project("b").expect("moved");
        assert_eq!(raw::get(&moved.bytes, 4001).expect("whole"), [b"new outside"]);
        assert_eq!(raw::get(&moved.spec().expect("spec"), 4000).expect("whole"), [b"new in spec"]);
        let typed = core::StreamFeatureView::decode(moved.bytes).expect("typed");
        assert_eq!(typed.spec.expect("spec").project, "b");
    }

    fn tags() -> BTreeMap<String, String> {
        [("k".to_owned(), "v".to_owned())].into()
    }

    fn check(kind: ObjectKind, message: &impl Message, owner: &str) {
        let object = Object::read(kind, message.encode_to_vec().into()).expect("reads");
        let layout = kind.layout();
        assert_eq!(object.name, "n", "{kind:?}");
        assert_eq!(object.text(layout.description).expect("text"), "d", "{kind:?}");
        assert_eq!(object.text(layout.owner).expect("text"), owner, "{kind:?}");
        assert_eq!(object.tags().expect("tags"), tags(), "{kind:?}");
        let mut listed = Vec::new();
        raw::push(&mut listed, layout.registry, &object.bytes);
        let registry = core::Registry::decode(listed.as_slice()).expect("a registry");
        assert_eq!(registry.encode_to_vec(), listed, "{kind:?}");
    }

    /// Every layout agrees with the generated messages: what the typed message says is what is read.
    #[test]
    fn layouts_agree_with_the_messages() {
        let text = str::to_owned;
        let spec = core::ProjectSpec { name: text("n"), description: text("d"), owner: text("o"), tags: tags() };
        check(ObjectKind::Project, &core::Project { spec: Some(spec), ..Default::default() }, "o");
        let spec = core::EntitySpecV2 {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::Entity, &core::Entity { spec: Some(spec), ..Default::default() }, "o");
        let spec = core::FeatureViewSpec {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::FeatureView, &core::FeatureView { spec: Some(spec), ..Default::default() }, "o");
        let spec = core::StreamFeatureViewSpec {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::StreamFeatureView, &core::StreamFeatureView { spec: Some(spec), ..Default::default() }, "o");
        let spec = core::OnDemandFeatureViewSpec {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(
            ObjectKind::OnDemandFeatureView,
            &core::OnDemandFeatureView { spec: Some(spec), ..Default::default() },
            "o",
        );
        let spec = core::LabelViewSpec {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::LabelView, &core::LabelView { spec: Some(spec), ..Default::default() }, "o");
        let spec = core::FeatureServiceSpec {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::FeatureService, &core::FeatureService { spec: Some(spec), ..Default::default() }, "o");
        let spec =
            core::SavedDatasetSpec { name: text("n"), description: text("d"), tags: tags(), ..Default::default() };
        check(ObjectKind::SavedDataset, &core::SavedDataset { spec: Some(spec), ..Default::default() }, "");
        let source = core::DataSource {
            name: text("n"),
            description: text("d"),
            owner: text("o"),
            tags: tags(),
            ..Default::default()
        };
        check(ObjectKind::DataSource, &source, "o");
        let reference =
            core::ValidationReference { name: text("n"), description: text("d"), tags: tags(), ..Default::default() };
        check(ObjectKind::ValidationReference, &reference, "");
    }
}
