//! The catalog over a registry store in memory. Source of the expectations: Feast's own registry.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use model::ports::BoxFuture;
use model::registry::{FeatureRequest, Projection};
use proptest::prelude::*;
use prost::Message;
use proto::raw;

use super::*;

type Key = (ObjectKind, String, String);

/// A registry store in memory that counts commits, can be written behind the catalog's back, and can fail.
#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<Key, Object>>,
    stamp: AtomicU64,
    commits: AtomicU64,
    failing: AtomicBool,
}

impl Memory {
    fn put(&self, changes: Vec<Change>) {
        let mut objects = self.objects.lock().expect("not poisoned");
        for change in changes {
            match change {
                Change::Put(o) => {
                    objects.insert((o.kind, o.project.clone(), o.name.clone()), o);
                }
                Change::Delete { kind, project, name } => {
                    objects.remove(&(kind, project, name));
                }
            }
        }
        self.stamp.fetch_add(1, Ordering::SeqCst);
    }
}

impl RegistryStore for Memory {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>> {
        let objects = self.objects.lock().expect("not poisoned").values().cloned().collect();
        Box::pin(async { Ok(objects) })
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.failing.load(Ordering::SeqCst) {
                return Err(Error::new(Kind::Unavailable, "the disk is full"));
            }
            self.commits.fetch_add(1, Ordering::SeqCst);
            self.put(changes);
            Ok(())
        })
    }

    fn stamp(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Ok(self.stamp.load(Ordering::SeqCst)) })
    }
}

/// A clock that goes on by a second whenever it is looked at.
struct Ticking(AtomicI64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

struct World {
    store: Arc<Memory>,
    catalog: Catalog,
}

async fn world() -> World {
    world_with(CatalogSettings {
        cache_ttl: Duration::ZERO,
        online_versions: false,
        clear_online_rows: false,
        ..CatalogSettings::default()
    })
    .await
}

async fn world_with(settings: CatalogSettings) -> World {
    let store = Arc::new(Memory::default());
    let clock = Arc::new(Ticking(AtomicI64::new(1_000)));
    let catalog = Catalog::open(store.clone(), clock, settings).await.expect("opens");
    World { store, catalog }
}

impl World {
    async fn apply(&self, kind: ObjectKind, message: &impl Message) -> Result<()> {
        self.catalog.apply(kind, "p", message.encode_to_vec().into()).await
    }

    fn object(&self, kind: ObjectKind, name: &str) -> Object {
        self.catalog.snapshot().object(kind, "p", name).expect("it is registered").clone()
    }

    fn commits(&self) -> u64 {
        self.store.commits.load(Ordering::SeqCst)
    }

    fn meta(&self, name: &str) -> core::FeatureViewMeta {
        let object = self.object(ObjectKind::FeatureView, name);
        core::FeatureView::decode(object.bytes).expect("a view").meta.expect("meta")
    }
}

fn entity(name: &str, description: &str) -> core::Entity {
    let spec = core::EntitySpecV2 { name: name.into(), description: description.into(), ..Default::default() };
    core::Entity { spec: Some(spec), meta: None }
}

fn features(names: &[&str]) -> Vec<core::FeatureSpecV2> {
    names.iter().map(|n| core::FeatureSpecV2 { name: (*n).into(), value_type: 4, ..Default::default() }).collect()
}

fn view(name: &str, names: &[&str]) -> core::FeatureView {
    let spec = core::FeatureViewSpec { name: name.into(), features: features(names), ..Default::default() };
    core::FeatureView { spec: Some(spec), meta: None }
}

fn spec(view: &mut core::FeatureView) -> &mut core::FeatureViewSpec {
    view.spec.get_or_insert_default()
}

#[tokio::test]
async fn created_is_kept_and_an_identical_apply_changes_nothing() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("driver", "")).await.expect("applies");
    let first = w.object(ObjectKind::Entity, "driver");
    let created = first.created().expect("reads").expect("a time");
    assert_eq!(first.updated().expect("reads"), Some(created));
    assert_eq!(first.project, "p");
    assert_eq!(core::Entity::decode(first.bytes.clone()).expect("an entity").spec.expect("spec").project, "p");

    let (commits, revision) = (w.commits(), w.catalog.snapshot().revision);
    let mut again = entity("driver", "");
    again.meta = Some(core::EntityMeta {
        created_timestamp: Some(Timestamp::from_seconds(7).to_proto()),
        last_updated_timestamp: Some(Timestamp::from_seconds(8).to_proto()),
    });
    w.apply(ObjectKind::Entity, &again).await.expect("applies");
    assert_eq!((w.commits(), w.catalog.snapshot().revision), (commits, revision));
    assert_eq!(w.object(ObjectKind::Entity, "driver"), first);

    w.apply(ObjectKind::Entity, &entity("driver", "who drives")).await.expect("applies");
    let changed = w.object(ObjectKind::Entity, "driver");
    assert_eq!(changed.created().expect("reads"), Some(created));
    assert!(changed.updated().expect("reads") > Some(created));
    assert_eq!(w.commits(), commits + 1);
}

#[tokio::test]
async fn an_unknown_field_is_kept_and_its_change_is_a_change() {
    let w = world().await;
    let with = |text: &[u8]| {
        let mut bytes = entity("driver", "").encode_to_vec();
        raw::push(&mut bytes, 700, text);
        bytes
    };
    for text in [b"one", b"two"] {
        w.catalog.apply(ObjectKind::Entity, "p", with(text).into()).await.expect("applies");
        let stored = w.object(ObjectKind::Entity, "driver");
        assert_eq!(raw::get(&stored.bytes, 700).expect("whole"), [text]);
    }
}

/// Feast's SDK puts the time of the apply into every source inside another object.
#[tokio::test]
async fn the_times_of_a_source_inside_a_view_define_nothing() {
    let w = world().await;
    let at = |seconds| {
        let mut source = core::DataSource { name: "s".into(), ..Default::default() };
        source.meta = Some(core::data_source::SourceMeta {
            created_timestamp: Some(Timestamp::from_seconds(seconds).to_proto()),
            ..Default::default()
        });
        let mut outer = core::DataSource { name: "push".into(), ..Default::default() };
        outer.batch_source = Some(Box::new(source.clone()));
        let mut v = view("v", &["a"]);
        spec(&mut v).batch_source = Some(source);
        // Python writes the default value of a map entry out, prost does not
        let mut bytes = v.spec.unwrap_or_default().encode_to_vec();
        raw::push(&mut bytes, 5, b"\x0a\x05empty\x12\x00");
        let mut whole = Vec::new();
        raw::push(&mut whole, 1, &bytes);
        (outer, whole)
    };
    for seconds in [5, 6] {
        let (outer, bytes) = at(seconds);
        w.apply(ObjectKind::DataSource, &outer).await.expect("applies");
        w.catalog.apply(ObjectKind::FeatureView, "p", bytes.into()).await.expect("applies");
        assert_eq!(w.commits(), 2, "at {seconds}");
    }
}

#[tokio::test]
async fn a_project_is_made_with_its_first_object_and_goes_with_all_that_is_in_it() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("driver", "")).await.expect("applies");
    w.apply(ObjectKind::FeatureView, &view("v", &["a"])).await.expect("applies");
    assert!(w.catalog.snapshot().object(ObjectKind::Project, "p", "p").is_ok());
    w.catalog.delete(ObjectKind::Project, "p", "p").await.expect("deletes");
    assert!(w.catalog.snapshot().projects.is_empty());
    assert!(w.store.objects.lock().expect("not poisoned").is_empty());
    let error = w.catalog.delete(ObjectKind::Project, "p", "p").await.expect_err("it is gone");
    assert_eq!(error.class(), "ProjectObjectNotFoundException");
}

#[tokio::test]
async fn what_does_not_exist_is_told_in_feast_s_classes() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("driver", "")).await.expect("applies");
    let classes = [
        (ObjectKind::Entity, "EntityNotFoundException"),
        (ObjectKind::DataSource, "DataSourceObjectNotFoundException"),
        (ObjectKind::FeatureView, "FeatureViewNotFoundException"),
        (ObjectKind::FeatureService, "FeatureServiceNotFoundException"),
        (ObjectKind::SavedDataset, "SavedDatasetNotFound"),
        (ObjectKind::ValidationReference, "ValidationReferenceNotFound"),
        (ObjectKind::Permission, "PermissionObjectNotFoundException"),
    ];
    for (kind, class) in classes {
        for project in ["p", "no such project"] {
            let error = w.catalog.delete(kind, project, "x").await.expect_err("it does not exist");
            assert_eq!((error.class(), error.kind()), (class, Kind::NotFound));
            assert!(error.message().ends_with(&format!("x does not exist in project {project}")), "{error}");
        }
    }
    let error = w.catalog.delete_view("p", "driver").await.expect_err("an entity is no view");
    assert_eq!(error.class(), "FeatureViewNotFoundException");
}

#[tokio::test]
async fn views_of_all_kinds_share_one_namespace() {
    let w = world().await;
    w.apply(ObjectKind::FeatureView, &view("v", &["a"])).await.expect("applies");
    let stream = core::StreamFeatureView {
        spec: Some(core::StreamFeatureViewSpec { name: "v".into(), ..Default::default() }),
        meta: None,
    };
    let error = w.apply(ObjectKind::StreamFeatureView, &stream).await.expect_err("the name is taken");
    assert_eq!((error.class(), error.kind()), ("ConflictingFeatureViewNames", Kind::Conflict));
    assert_eq!(
        error.message(),
        "Feature view name 'v' is already used by a FeatureView. Cannot register a StreamFeatureView with the same \
         name. Feature view names must be unique across FeatureView, StreamFeatureView, and OnDemandFeatureView."
    );
    w.catalog.delete_view("p", "v").await.expect("deletes");
    w.apply(ObjectKind::StreamFeatureView, &stream).await.expect("the name is free");
    w.catalog.delete_view("p", "v").await.expect("deletes whatever kind it is");
}

#[tokio::test]
async fn versions_count_changes_of_the_schema() {
    let w = world().await;
    let apply = async |v: core::FeatureView| {
        w.apply(ObjectKind::FeatureView, &v).await?;
        Ok::<_, Error>(w.meta("v").current_version_number)
    };
    assert_eq!(apply(view("v", &["a", "b"])).await.expect("new"), 0);
    assert_eq!(apply(view("v", &["b", "a"])).await.expect("the order says nothing"), 0);
    let mut described = view("v", &["a", "b"]);
    spec(&mut described).description = "text".into();
    assert_eq!(apply(described).await.expect("settings"), 0);
    assert_eq!(apply(view("v", &["a"])).await.expect("schema"), 1);
    let mut described = view("v", &["a"]);
    spec(&mut described).description = "other".into();
    assert_eq!(apply(described).await.expect("the number stays"), 1);
    assert_eq!(apply(view("v", &["c"])).await.expect("schema"), 2);

    let pinned = |names: &[&str], version: &str| {
        let mut v = view("v", names);
        spec(&mut v).version = version.into();
        v
    };
    assert_eq!(apply(pinned(&["c"], "v2")).await.expect("where it is"), 2);
    assert_eq!(apply(pinned(&["d"], "v2")).await.expect_err("modified").class(), "FeatureViewPinConflict");
    assert_eq!(apply(pinned(&["c"], "v1")).await.expect("goes back"), 1);
    let back = core::FeatureView::decode(w.object(ObjectKind::FeatureView, "v").bytes).expect("a view");
    let back = back.spec.expect("a spec");
    assert_eq!((back.version.as_str(), back.features), ("v1", features(&["a"])));
    let commits = w.commits();
    assert_eq!(apply(pinned(&["c"], "v1")).await.expect("again, as before"), 1);
    assert_eq!(w.commits(), commits, "nothing changed");
    assert_eq!(apply(pinned(&["c"], "v2")).await.expect("and forth"), 2);
    assert_eq!(apply(pinned(&["c"], "two")).await.expect_err("no version").kind(), Kind::InvalidArgument);
    assert_eq!(apply(pinned(&["d"], "Version7")).await.expect("declared ahead"), 7);
    assert_eq!(apply(view("v", &["e"])).await.expect("goes on from there"), 8);
    let kept = || versions::history(&w.catalog.snapshot(), "p", "v").expect("a history");
    assert_eq!(kept().iter().map(|r| r.version_number).collect::<Vec<_>>(), [0, 1, 2, 7, 8]);
    assert_eq!(kept()[1].feature_view_type, "feature_view");
    w.catalog.delete_view("p", "v").await.expect("deletes");
    assert_eq!(kept(), []);
    assert_eq!(apply(view("v", &["f"])).await.expect("anew"), 0);
}

/// The features that a request may ask of `v`, by version.
fn asked(registry: &Registry, refs: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
    let request = FeatureRequest::Refs(refs.iter().map(|r| (*r).to_owned()).collect());
    let projections = registry.project("p")?.projections("p", &request)?;
    let names = |p: &Projection| p.features.iter().map(|f| f.name.clone()).collect();
    Ok(projections.iter().map(|p| (p.view.table.view.clone(), names(p))).collect())
}

#[tokio::test]
async fn versions_are_asked_for_where_each_has_a_table() {
    let settings = CatalogSettings {
        cache_ttl: Duration::ZERO,
        online_versions: true,
        clear_online_rows: true,
        ..CatalogSettings::default()
    };
    let w = world_with(settings).await;
    for features in [&["a"], &["b"], &["c"]] {
        w.apply(ObjectKind::FeatureView, &view("v", features)).await.expect("applies");
    }
    let registry = w.catalog.snapshot();
    let found = asked(&registry, &["v@v0:a", "v@v1:b", "v:c", "v@v2:c"]).expect("all are kept");
    let tables: Vec<_> = found.iter().map(|(table, _)| table.as_str()).collect();
    assert_eq!(tables, ["v", "v_v1", "v_v2", "v_v2"]);
    let error = asked(&registry, &["v@v3:c"]).expect_err("there is none");
    assert_eq!(error.message(), "Version v3 of feature view v does not exist in project p");
    assert!(asked(&registry, &["v@v0:b"]).expect_err("not in that version").message().contains('b'));

    // a catalog of the same store that opens later resolves the same
    let opened = Registry::resolve_versions(1, true, w.store.load().await.expect("loads")).expect("resolves");
    assert_eq!(asked(&opened, &["v@v0:a", "v@v1:b"]).expect("all are kept").len(), 2);
    let off = Registry::resolve(1, w.store.load().await.expect("loads")).expect("resolves");
    assert!(asked(&off, &["v@v0:a"]).expect_err("off").message().contains("online versioning is disabled"));

    // the rows of every version are noted for removal, and nothing comes back before they are gone
    w.catalog.delete_view("p", "v").await.expect("deletes");
    let pending = gone::pending(&w.catalog.snapshot());
    assert!(pending.iter().all(|(_, stays_until)| *stays_until == Timestamp(0)));
    let pending: Vec<_> = pending.into_iter().map(|(table, _)| table).collect();
    assert_eq!(pending.iter().map(|t| t.view.as_str()).collect::<Vec<_>>(), ["v", "v_v1", "v_v2"]);
    let other = view("v", &["d"]);
    let mut again = Box::pin(w.apply(ObjectKind::FeatureView, &other));
    for table in &pending {
        tokio::select! {
            biased;
            _ = &mut again => panic!("{table:?} is not cleared yet"),
            cleared = w.catalog.cleared(table) => cleared.expect("is taken away"),
        }
    }
    again.await.expect("applies");
    assert_eq!(gone::pending(&w.catalog.snapshot()), []);
}

#[tokio::test]
async fn materialized_intervals_are_joined_and_outlive_an_apply() {
    let w = world().await;
    w.apply(ObjectKind::FeatureView, &view("v", &["a"])).await.expect("applies");
    let record =
        |start, end| w.catalog.materialized("p", "v", Timestamp::from_seconds(start), Timestamp::from_seconds(end));
    let intervals = || {
        let view = w.catalog.snapshot().project("p").and_then(|p| p.view("v", "p").cloned()).expect("the view");
        view.materialized.iter().map(|(s, e)| (s / 1_000_000, e / 1_000_000)).collect::<Vec<_>>()
    };
    for (start, end) in [(0, 10), (20, 30), (10, 15), (25, 40)] {
        record(start, end).await.expect("records");
    }
    assert_eq!(intervals(), [(0, 15), (20, 40)]);
    assert_eq!(w.meta("v").state(), core::FeatureViewState::AvailableOnline);

    w.apply(ObjectKind::FeatureView, &view("v", &["a", "b"])).await.expect("applies");
    assert_eq!(intervals(), [(0, 15), (20, 40)]);
    // what a client sends stands only beside a new schema, as in Feast
    let mut sent = view("v", &["a", "b"]);
    let interval = |start, end| core::MaterializationInterval {
        start_time: Some(Timestamp::from_seconds(start).to_proto()),
        end_time: Some(Timestamp::from_seconds(end).to_proto()),
    };
    sent.meta = Some(core::FeatureViewMeta {
        materialization_intervals: vec![interval(90, 95), interval(95, 99)],
        ..Default::default()
    });
    w.apply(ObjectKind::FeatureView, &sent).await.expect("applies");
    assert_eq!(intervals(), [(0, 15), (20, 40)]);
    spec(&mut sent).features = features(&["c"]);
    w.apply(ObjectKind::FeatureView, &sent).await.expect("applies");
    assert_eq!(intervals(), [(90, 99)]);

    assert_eq!(record(5, 5).await.expect_err("empty").kind(), Kind::InvalidArgument);
    let unknown = w.catalog.materialized("p", "w", Timestamp(0), Timestamp(1)).await;
    assert_eq!(unknown.expect_err("no such view").class(), "FeatureViewNotFoundException");
}

#[tokio::test]
async fn a_state_is_set_once_and_outlives_an_apply_that_says_none() {
    let w = world().await;
    w.apply(ObjectKind::FeatureView, &view("v", &["a"])).await.expect("applies");
    let state = core::FeatureViewState::Materializing;
    w.catalog.set_view_state("p", "v", state).await.expect("sets");
    let commits = w.commits();
    w.catalog.set_view_state("p", "v", state).await.expect("sets");
    w.apply(ObjectKind::FeatureView, &view("v", &["a"])).await.expect("applies");
    assert_eq!((w.commits(), w.meta("v").state()), (commits, state));
    let mut sent = view("v", &["a"]);
    sent.meta.get_or_insert_default().set_state(core::FeatureViewState::Generated);
    w.apply(ObjectKind::FeatureView, &sent).await.expect("applies");
    assert_eq!(w.meta("v").state(), core::FeatureViewState::Generated);
}

#[tokio::test]
async fn what_cannot_be_computed_is_refused() {
    let w = world().await;
    let refused = async |message: core::FeatureView| {
        let error = w.apply(ObjectKind::FeatureView, &message).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        error.message().to_owned()
    };
    assert!(refused(view("", &["a"])).await.contains("no name"));
    assert!(refused(view("a:b", &["a"])).await.contains("'a:b'"));
    assert!(refused(view("v", &["a", "a"])).await.contains("twice"));
    // "costarring" and "liquid" are a known collision of 32-bit FNV-1a
    let text = refused(view("v", &["costarring", "liquid"])).await;
    assert!(text.contains("'costarring'") && text.contains("'liquid'"), "{text}");
    let error = w.catalog.apply(ObjectKind::Entity, "p", Bytes::from_static(b"\x0a\xff")).await;
    assert_eq!(error.expect_err("no message").kind(), Kind::InvalidArgument);

    let aggregation =
        core::Aggregation { function: "no_such_function".into(), column: "x".into(), ..Default::default() };
    let spec = core::StreamFeatureViewSpec {
        name: "windows".into(),
        features: features(&["no_such_function_x"]),
        aggregations: vec![aggregation],
        ..Default::default()
    };
    let stream = core::StreamFeatureView { spec: Some(spec), meta: None };
    let error = w.apply(ObjectKind::StreamFeatureView, &stream).await.expect_err("refused");
    assert!(error.message().contains("no_such_function"), "{error}");
    assert!(w.catalog.snapshot().projects.is_empty(), "nothing of it is left");
    assert_eq!(w.commits(), 0);
}

#[tokio::test]
async fn a_service_without_features_has_all_of_the_view() {
    let w = world().await;
    w.apply(ObjectKind::FeatureView, &view("v", &["a", "b"])).await.expect("applies");
    let projection = |columns| core::FeatureViewProjection {
        feature_view_name: "v".into(),
        feature_columns: columns,
        ..Default::default()
    };
    let spec = core::FeatureServiceSpec {
        name: "s".into(),
        features: vec![projection(features(&["b"])), projection(Vec::new())],
        ..Default::default()
    };
    w.apply(ObjectKind::FeatureService, &core::FeatureService { spec: Some(spec), meta: None }).await.expect("applies");
    let snapshot = w.catalog.snapshot();
    let service = &snapshot.project("p").expect("the project").feature_services["s"];
    let projections = &service.spec.as_ref().expect("spec").features;
    let names: Vec<Vec<_>> =
        projections.iter().map(|p| p.feature_columns.iter().map(|f| f.name.as_str()).collect()).collect();
    assert_eq!(names, [vec!["b"], vec!["a", "b"]]);
}

#[tokio::test]
async fn a_change_behind_our_back_is_seen_when_asked_for_and_before_a_write() {
    let w = world().await;
    let theirs = |name: &str| {
        let bytes = core::Entity {
            spec: Some(core::EntitySpecV2 { name: name.into(), project: "p".into(), ..Default::default() }),
            meta: None,
        };
        Change::Put(Object::read(ObjectKind::Entity, bytes.encode_to_vec().into()).expect("an object"))
    };
    w.store.put(vec![theirs("a")]);
    assert!(w.catalog.snapshot().projects.is_empty());
    assert!(w.catalog.refreshed().await.expect("reads").object(ObjectKind::Entity, "p", "a").is_ok());
    w.store.put(vec![theirs("b")]);
    let mut told = w.catalog.subscribe();
    w.catalog.delete(ObjectKind::Entity, "p", "b").await.expect("it is there by now");
    assert!(told.has_changed().expect("open"));
    let seen = told.borrow_and_update().clone();
    assert!(Arc::ptr_eq(&seen, &w.catalog.snapshot()));
    assert!(seen.object(ObjectKind::Entity, "p", "b").is_err());
}

#[tokio::test]
async fn the_snapshot_follows_the_store_by_itself() {
    let store = Arc::new(Memory::default());
    let settings = CatalogSettings {
        cache_ttl: Duration::from_millis(2),
        online_versions: false,
        clear_online_rows: false,
        ..CatalogSettings::default()
    };
    let clock = Arc::new(Ticking(AtomicI64::new(0)));
    let catalog = Catalog::open(store.clone(), clock, settings).await.expect("opens");
    let mut told = catalog.subscribe();
    store.put(vec![Change::Put(Object {
        kind: ObjectKind::Project,
        project: "q".into(),
        name: "q".into(),
        bytes: Bytes::new(),
    })]);
    told.changed().await.expect("the catalog lives");
    assert!(catalog.snapshot().projects.contains_key("q"));
}

#[tokio::test]
async fn a_write_that_fails_is_not_seen() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("a", "")).await.expect("applies");
    w.store.failing.store(true, Ordering::SeqCst);
    let error = w.apply(ObjectKind::Entity, &entity("b", "")).await.expect_err("the disk is full");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(w.catalog.refreshed().await.expect("reads").object(ObjectKind::Entity, "p", "b").is_err());
    w.store.failing.store(false, Ordering::SeqCst);
    w.apply(ObjectKind::Entity, &entity("b", "")).await.expect("applies");
    assert!(w.catalog.snapshot().object(ObjectKind::Entity, "p", "b").is_ok());
}

#[tokio::test]
async fn concurrent_writes_all_count() {
    let w = world().await;
    let writes: Vec<_> = (0..40)
        .map(|n| {
            let catalog = w.catalog.clone();
            let bytes = entity(&format!("e{n}"), "").encode_to_vec();
            tokio::spawn(async move { catalog.apply(ObjectKind::Entity, "p", bytes.into()).await })
        })
        .collect();
    for write in writes {
        write.await.expect("runs").expect("applies");
    }
    assert_eq!(w.catalog.snapshot().project("p").expect("the project").entities.len(), 40);
}

#[tokio::test]
async fn the_whole_registry_has_every_object_and_a_version_that_stays() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("a", "")).await.expect("applies");
    w.apply(ObjectKind::FeatureView, &view("v", &["x"])).await.expect("applies");
    let read = || core::Registry::decode(whole::whole(&w.catalog.snapshot()).expect("packs")).expect("a registry");
    let first = read();
    assert_eq!((first.projects.len(), first.entities.len(), first.feature_views.len()), (1, 1, 1));
    assert_eq!(read(), first);
    w.apply(ObjectKind::Entity, &entity("a", "other")).await.expect("applies");
    assert_ne!(read().version_id, first.version_id);
    assert!(read().last_updated.map(|t| t.seconds) > first.last_updated.map(|t| t.seconds));
}

#[tokio::test]
async fn lineage_tells_parts_and_parts_of_parts() {
    let w = world().await;
    w.apply(ObjectKind::Entity, &entity("driver", "")).await.expect("applies");
    let source = core::DataSource { name: "trips".into(), ..Default::default() };
    let mut v = view("v", &["speed"]);
    spec(&mut v).entities = vec!["driver".into()];
    spec(&mut v).batch_source = Some(source);
    w.apply(ObjectKind::FeatureView, &v).await.expect("applies");
    let projection = core::FeatureViewProjection { feature_view_name: "v".into(), ..Default::default() };
    let service = core::FeatureServiceSpec { name: "s".into(), features: vec![projection], ..Default::default() };
    w.apply(ObjectKind::FeatureService, &core::FeatureService { spec: Some(service), meta: None })
        .await
        .expect("applies");

    let snapshot = w.catalog.snapshot();
    let text = |relations: &[lineage::Relation]| {
        let mut out: Vec<_> = relations
            .iter()
            .map(|r| format!("{}:{} > {}:{}", r.source.kind, r.source.name, r.target.kind, r.target.name))
            .collect();
        out.sort();
        out
    };
    let all = lineage::lineage(&snapshot, "p").expect("tells");
    assert_eq!(
        text(&all.direct),
        [
            "dataSource:trips > featureView:v",
            "entity:driver > featureView:v",
            "feature:speed > featureView:v",
            "featureView:v > featureService:s",
        ]
    );
    assert_eq!(
        text(&all.indirect),
        [
            "dataSource:trips > featureService:s",
            "entity:driver > dataSource:trips",
            "entity:driver > featureService:s",
            "feature:speed > featureService:s",
        ]
    );
    assert_eq!(all.clone().of("dataSource", "trips").expect("filters").direct.len(), 1);
    assert_eq!(all.of("table", "x").expect_err("no type").kind(), Kind::InvalidArgument);
    assert_eq!(lineage::lineage(&snapshot, "nowhere").expect("tells"), lineage::Lineage::default());

    let object = snapshot.object(ObjectKind::FeatureView, "p", "v").expect("the view");
    let asked = |change: fn(&mut lineage::Parts)| {
        let mut parts = lineage::Parts::default();
        change(&mut parts);
        parts.are_of(&snapshot, object).expect("tells")
    };
    assert!(asked(|_| ()));
    assert!(asked(|p| p.entity = "driver".into()) && !asked(|p| p.entity = "speed".into()));
    assert!(asked(|p| p.feature_service = "s".into()) && !asked(|p| p.feature_service = "t".into()));
    assert!(asked(|p| p.data_source = "trips".into()) && !asked(|p| p.feature = "trips".into()));
}

proptest! {
    /// Joined intervals cover what the intervals covered, and no two of them touch.
    #[test]
    fn joined_intervals_cover_the_same(intervals in proptest::collection::vec((0i64..30, 1i64..6), 0..12)) {
        let intervals: Vec<_> = intervals.into_iter().map(|(start, len)| (start, start + len)).collect();
        let joined = apply::coalesced(intervals.clone());
        for t in 0..40 {
            let within = |all: &[(i64, i64)]| all.iter().any(|(s, e)| (*s..*e).contains(&t));
            prop_assert_eq!(within(&joined), within(&intervals));
        }
        prop_assert!(joined.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }

    /// A chain of incremental pictures is the picture of the end.
    #[test]
    fn an_incremental_picture_is_the_whole_picture(steps in proptest::collection::vec((0usize..4, 0usize..4, any::<bool>()), 1..30)) {
        let kinds = [ObjectKind::Entity, ObjectKind::FeatureView, ObjectKind::LabelView, ObjectKind::FeatureService];
        let mut registry = Registry::default();
        let mut stored: BTreeMap<Key, Object> = BTreeMap::new();
        for (kind, name, put) in steps {
            let (kind, name) = (kinds[kind], format!("n{name}"));
            let key = (kind, "p".to_owned(), name.clone());
            let change = if put {
                let mut message = view(&name, &["a"]);
                spec(&mut message).entities = vec!["n0".into()];
                let bytes = match kind {
                    ObjectKind::Entity => entity(&name, "").encode_to_vec(),
                    ObjectKind::FeatureView => message.encode_to_vec(),
                    _ => Vec::new(),
                };
                let object = Object { kind, project: "p".into(), name, bytes: bytes.into() };
                stored.insert(key, object.clone());
                Change::Put(object)
            } else {
                stored.remove(&key);
                Change::Delete { kind, project: "p".into(), name }
            };
            registry = registry.changed([change]).expect("resolves");
            let whole = Registry::resolve(registry.revision, stored.values().cloned()).expect("resolves");
            prop_assert_eq!(format!("{:?}", registry.projects), format!("{:?}", whole.projects));
        }
    }
}
