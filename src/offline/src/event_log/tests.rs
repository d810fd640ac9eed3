//! Whatever crashes between an append and its checkpoint: the log has each event once, in the order of its partition.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use model::EntityKey;
use model::ports::{Object, ObjectKind};
use model::registry::Registry;
use model::row::Version;
use model::value::proto_value::Val;
use proptest::prelude::*;
use prost::Message as _;
use proto::feast::core;

use super::*;

const TOPIC: &str = "payments";

/// A view of cards and amounts on a topic.
fn stream_view(topic: &str) -> Arc<View> {
    let field = |name: &str, value_type: ValueType| core::FeatureSpecV2 {
        name: name.into(),
        value_type: value_type as i32,
        ..Default::default()
    };
    let source = core::DataSource {
        name: "payments".into(),
        timestamp_field: "ts".into(),
        options: Some(core::data_source::Options::KafkaOptions(core::data_source::KafkaOptions {
            topic: topic.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let batch = core::DataSource {
        name: "payments_file".into(),
        timestamp_field: "ts".into(),
        options: Some(core::data_source::Options::FileOptions(core::data_source::FileOptions::default())),
        ..Default::default()
    };
    let view = core::FeatureView {
        spec: Some(core::FeatureViewSpec {
            name: "cards".into(),
            project: "demo".into(),
            entities: vec!["card".into()],
            entity_columns: vec![field("card_id", ValueType::String)],
            features: vec![field("amount", ValueType::Double)],
            stream_source: Some(source),
            batch_source: Some(batch),
            online: true,
            ..Default::default()
        }),
        meta: None,
    };
    let card = core::Entity {
        spec: Some(core::EntitySpecV2 {
            name: "card".into(),
            join_key: "card_id".into(),
            value_type: ValueType::String as i32,
            ..Default::default()
        }),
        meta: None,
    };
    let object = |kind, name: &str, bytes: Vec<u8>| Object {
        kind,
        project: "demo".into(),
        name: name.into(),
        bytes: bytes.into(),
    };
    let objects = [
        object(ObjectKind::Entity, "card", card.encode_to_vec()),
        object(ObjectKind::FeatureView, "cards", view.encode_to_vec()),
    ];
    Arc::clone(&Registry::resolve(1, objects).expect("resolves").projects["demo"].views["cards"])
}

fn columns() -> Vec<(String, ValueType)> {
    vec![("card_id".into(), ValueType::String), ("amount".into(), ValueType::Double)]
}

/// The event of a partition at an offset: everything of it follows from the two.
fn event(partition: i32, offset: i64) -> LoggedEvent {
    let text = |text: String| Value { val: Some(Val::StringVal(text)) };
    let card = text(format!("c{}", offset % 3));
    let time = 1_700_000_000_000_000 + (offset * 7 % 5 - 2) * DAY + offset;
    LoggedEvent {
        partition,
        offset,
        arrived: Timestamp(1_800_000_000_000_000 + offset),
        key: EntityKey::encode(&[("card_id", &card)]).expect("key"),
        version: Version { event: Timestamp(time), created: Timestamp(0) },
        values: vec![card, Value { val: Some(Val::DoubleVal(offset as f64)) }].into(),
    }
}

async fn open(root: &Path, view: &View, next: &BTreeMap<i32, i64>) -> Box<dyn EventAppender> {
    let of = LogOf { view, topic: TOPIC, columns: &columns() };
    Log::new(root.to_path_buf()).open(of, next.clone()).await.expect("opens")
}

/// All that a reader finds: partition, offset, and whether the rest is that event's.
fn read(root: &Path, view: &View) -> Vec<(i32, i64)> {
    let log = Log::new(root.to_path_buf());
    let mut found = Vec::new();
    for file in log.files(view).expect("lists") {
        let At::Local(path) = file else { panic!("a local file") };
        let date = path.parent().and_then(Path::file_name).expect("a folder").to_string_lossy().into_owned();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("file")).expect("parquet");
        for batch in reader.build().expect("reader") {
            rows(&batch.expect("batch"), &date, &mut found);
        }
    }
    found
}

fn rows(batch: &RecordBatch, date: &str, found: &mut Vec<(i32, i64)>) {
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let (partitions, offsets) =
        (column(PARTITION).as_primitive::<Int32Type>(), column(OFFSET).as_primitive::<Int64Type>());
    let times = column("ts").as_primitive::<TimestampMicrosecondType>();
    let arrived = column(ARRIVED).as_primitive::<TimestampMicrosecondType>();
    let cards = column("card_id").as_string::<i32>();
    for row in 0..batch.num_rows() {
        let wanted = event(partitions.value(row), offsets.value(row));
        assert_eq!(times.value(row), wanted.version.event.micros());
        assert_eq!(arrived.value(row), wanted.arrived.micros());
        assert_eq!(cards.value(row), format!("c{}", wanted.offset % 3));
        assert!(date.ends_with(&wanted.version.event.to_rfc3339()[..10]), "{date}");
        found.push((wanted.partition, wanted.offset));
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many events of each of two partitions, appended, and their positions stored.
    Checkpoint(i64, i64),
    /// The same, but the store fails: the positions stay where they were, and the events with them.
    Unstored(i64, i64),
    /// The process ends, and another one begins at the stored positions.
    Crash,
    /// The same, at positions so far before those that were stored: another reader catches up.
    Back(i64, i64),
    /// The same, behind an append whose positions were not stored, of which some files were not yet in their place.
    TornCrash(i64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0i64..4, 0i64..4).prop_map(|(a, b)| Step::Checkpoint(a, b)),
        1 => (0i64..4, 0i64..4).prop_map(|(a, b)| Step::Unstored(a, b)),
        1 => Just(Step::Crash),
        1 => (0i64..9, 0i64..9).prop_map(|(a, b)| Step::Back(a, b)),
        1 => (1i64..6, 0usize..4).prop_map(|(n, lost)| Step::TornCrash(n, lost)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn each_event_is_there_once_whatever_crashes(steps in proptest::collection::vec(step(), 1..40)) {
        let (dir, view) = (tempfile::tempdir().expect("dir"), stream_view(TOPIC));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let mut next = BTreeMap::from([(0, 0), (1, 0)]);
            let mut log = open(dir.path(), &view, &next).await;
            for step in steps {
                match step {
                    Step::Checkpoint(a, b) | Step::Unstored(a, b) => {
                        let to = [(0, next[&0] + a), (1, next[&1] + b)];
                        let events = to.iter().flat_map(|(p, to)| (next[p]..*to).map(|offset| event(*p, offset)));
                        log.append(Arc::new(events.collect())).await.expect("appends");
                        if matches!(step, Step::Checkpoint(..)) {
                            log.counted();
                            next.extend(to);
                        }
                    }
                    Step::Back(a, b) => {
                        next.extend([(0, (next[&0] - a).max(0)), (1, (next[&1] - b).max(0))]);
                        log = open(dir.path(), &view, &next).await;
                    }
                    Step::Crash => log = open(dir.path(), &view, &next).await,
                    Step::TornCrash(count, lost) => {
                        let before: Vec<PathBuf> = paths(dir.path(), &view);
                        log.append(Arc::new((next[&0]..next[&0] + count).map(|o| event(0, o)).collect())).await.expect("appends");
                        let new = paths(dir.path(), &view).into_iter().filter(|path| !before.contains(path));
                        // a merge leaves nothing out: what is taken away here was just written
                        for path in new.filter(|path| is_of(path, next[&0])).take(lost) {
                            std::fs::remove_file(path).expect("removes");
                        }
                        log = open(dir.path(), &view, &next).await;
                    }
                }
            }
            // what is not counted comes again
            drop(log);
            drop(open(dir.path(), &view, &next).await);
            let mut found = read(dir.path(), &view);
            found.sort_unstable();
            let counted: Vec<(i32, i64)> = next.iter().flat_map(|(p, next)| (0..*next).map(|o| (*p, o))).collect();
            prop_assert!(found.windows(2).all(|w| w[0] < w[1]), "twice: {found:?}");
            // of what was counted once and is not counted now some may still be there
            found.retain(|(partition, offset)| *offset < next[partition]);
            prop_assert_eq!(found, counted);
            Ok(())
        })?;
    }
}

fn paths(root: &Path, view: &View) -> Vec<PathBuf> {
    let files = Log::new(root.to_path_buf()).files(view).expect("lists");
    files.into_iter().map(|file| PathBuf::from(file.name())).collect()
}

/// Whether a file begins at this offset or behind it.
fn is_of(path: &Path, offset: i64) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('-').nth(2).and_then(|first| first.parse().ok()).is_some_and(|first: i64| first >= offset)
}

#[tokio::test]
async fn small_files_become_one_and_readers_see_each_event_once_meanwhile() {
    let (dir, view) = (tempfile::tempdir().expect("dir"), stream_view(TOPIC));
    let mut log = open(dir.path(), &view, &BTreeMap::new()).await;
    for round in 0..40 {
        assert_eq!(
            log.append(Arc::new((round * 5..round * 5 + 5).map(|o| event(0, o)).collect())).await.expect("appends"),
            5
        );
        log.counted();
    }
    assert!(paths(dir.path(), &view).len() < 5 * (2 * MERGED + 40 / MERGED), "{}", paths(dir.path(), &view).len());
    let mut found = read(dir.path(), &view);
    found.sort_unstable();
    assert_eq!(found, (0..200).map(|o| (0, o)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_made_anew_has_other_events_at_its_offsets() {
    let (dir, view) = (tempfile::tempdir().expect("dir"), stream_view(TOPIC));
    let mut log = open(dir.path(), &view, &BTreeMap::new()).await;
    assert_eq!(log.append(Arc::new((0..3).map(|o| event(0, o)).collect())).await.expect("appends"), 3);
    assert_eq!(log.append(Arc::new((0..3).map(|o| event(0, o)).collect())).await.expect("known"), 0);
    log.begin_anew(0);
    assert_eq!(log.append(Arc::new((0..2).map(|o| event(0, o)).collect())).await.expect("appends"), 2);
    drop(open(dir.path(), &view, &BTreeMap::from([(0, 2)])).await);
    let mut found = read(dir.path(), &view);
    found.sort_unstable();
    assert_eq!(found, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2)]);
}

#[tokio::test]
async fn another_set_of_columns_is_refused_by_its_folder() {
    let (dir, view) = (tempfile::tempdir().expect("dir"), stream_view(TOPIC));
    let mut log = open(dir.path(), &view, &BTreeMap::new()).await;
    log.append(Arc::new(vec![event(0, 0)])).await.expect("appends");
    let of = LogOf { view: &view, topic: TOPIC, columns: &[("merchant".into(), ValueType::String)] };
    let refused = Log::new(dir.path().to_path_buf()).open(of, BTreeMap::new()).await;
    let error = refused.err().expect("refused");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.message().contains(TOPIC) && error.message().contains("merchant"), "{}", error.message());
}
