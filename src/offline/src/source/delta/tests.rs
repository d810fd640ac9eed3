//! Delta logs, tested by their lines. Knows no Parquet.

use std::fs;

use super::*;
use crate::store::Stores;

const SCHEMA: &str = r#"{\"type\":\"struct\",\"fields\":[{\"name\":\"id\",\"type\":\"long\",\"nullable\":false,\"metadata\":{}},{\"name\":\"day\",\"type\":\"date\",\"nullable\":true,\"metadata\":{}},{\"name\":\"tags\",\"type\":{\"type\":\"array\",\"elementType\":\"string\",\"containsNull\":true},\"nullable\":true,\"metadata\":{}}]}"#;

fn begin(reader: &str, configuration: &str) -> String {
    format!(
        r#"{{"protocol":{reader}}}
{{"metaData":{{"id":"x","schemaString":"{SCHEMA}","partitionColumns":["day"],"configuration":{configuration}}}}}
{{"commitInfo":{{"operation":"CREATE TABLE"}}}}
"#
    )
}

fn add(path: &str, day: &str) -> String {
    format!(r#"{{"add":{{"path":"{path}","partitionValues":{{"day":{day}}},"size":1,"dataChange":true}}}}"#)
}

/// The listing of a table with these commits, by their versions.
async fn table(commits: &[(u64, String)]) -> Result<Listing> {
    let dir = tempfile::tempdir().expect("dir");
    let log = dir.path().join("_delta_log");
    fs::create_dir(&log).expect("log");
    for (version, text) in commits {
        fs::write(log.join(format!("{version:020}.json")), text).expect("commit");
    }
    let bucket = Stores::default().local(dir.path()).expect("bucket");
    list(&bucket, "", Some(Path::new("/table"))).await
}

const V1: &str = r#"{"minReaderVersion":1,"minWriterVersion":2}"#;

#[tokio::test]
async fn what_is_added_and_not_removed_belongs_to_the_table() {
    let first = begin(V1, "{}") + &add("a%20b.parquet", "\"2024-01-01\"") + "\n" + &add("gone.parquet", "null");
    let second = format!("{}\n{}", r#"{"remove":{"path":"gone.parquet"}}"#, add("c.parquet", "null"));
    let listing = table(&[(0, first), (1, second)]).await.expect("table");
    let files: Vec<_> = listing.files.iter().map(|f| (f.at.name(), f.partition.clone())).collect();
    assert_eq!(
        files,
        [("/table/a b.parquet".into(), vec![Some("2024-01-01".into())]), ("/table/c.parquet".into(), vec![None])]
    );
    let names = |fields: &[std::sync::Arc<arrow::datatypes::Field>]| -> Vec<String> {
        fields.iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect()
    };
    assert_eq!(names(&listing.partitions), ["day: Date32"]);
    let schema = listing.schema.expect("schema");
    assert_eq!(schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["id", "tags"]);
}

#[tokio::test]
async fn what_is_not_read_is_refused_by_name() {
    let v3 = |feature: &str| {
        format!(r#"{{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["{feature}"],"writerFeatures":[]}}"#)
    };
    for (text, want) in [
        (begin(&v3("variantType"), "{}"), "variantType"),
        (begin(&v3("v2Checkpoint"), "{}"), "v2Checkpoint"),
        (begin(r#"{"minReaderVersion":4,"minWriterVersion":9}"#, "{}"), "version 4"),
        (begin(V1, r#"{"delta.columnMapping.mode":"id"}"#), "column mapping"),
        (begin(V1, "{}") + &add("s3://elsewhere/a.parquet", "null"), "shallow clone"),
    ] {
        let error = table(&[(0, text)]).await.expect_err(want);
        assert_eq!(error.kind(), Kind::Unsupported, "{}", error.message());
        assert!(error.message().contains(want), "{}", error.message());
    }
    table(&[(0, begin(&v3("timestampNtz"), "{}"))]).await.expect("a known feature");
}

#[tokio::test]
async fn a_file_is_told_by_its_path_and_its_deletion_vector() {
    let protocol =
        r#"{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":[]}"#;
    let path = r#""path":"a.parquet","partitionValues":{},"size":1"#;
    let text = r#""pathOrInlineDv":"^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L""#;
    let with = format!(r#""deletionVector":{{"storageType":"i",{text},"sizeInBytes":44,"cardinality":6}}"#);
    // the same, its fields in another order
    let same =
        format!(r#""deletionVector":{{"cardinality":6,"sizeInBytes":44,{text},"storageType":"i","offset":null}}"#);
    let whole = begin(protocol, "{}") + &add("a.parquet", "null");
    let deleted =
        format!("{}\n{}", r#"{"remove":{"path":"a.parquet"}}"#, format_args!(r#"{{"add":{{{path},{with}}}}}"#));
    let listing = table(&[(0, whole.clone()), (1, deleted.clone())]).await.expect("table");
    let rows: Vec<_> = listing.files.iter().map(|f| f.deleted.as_ref().map(roaring::RoaringTreemap::len)).collect();
    assert_eq!(rows, [Some(6)]);
    let back =
        format!("{}\n{}", format_args!(r#"{{"remove":{{"path":"a.parquet",{same}}}}}"#), add("a.parquet", "null"));
    let listing = table(&[(0, whole), (1, deleted), (2, back)]).await.expect("table");
    assert_eq!(listing.files.iter().map(|f| f.deleted.is_some()).collect::<Vec<_>>(), [false]);
    let bad = format!(r#"{{"add":{{{path},{}}}}}"#, with.replace(":6}", ":7}"));
    let error = table(&[(0, begin(protocol, "{}") + &bad)]).await.expect_err("damaged");
    assert!(error.message().contains("for a.parquet in its log is damaged"), "{}", error.message());
}

#[tokio::test]
async fn a_log_with_a_hole_or_without_a_beginning_is_damaged() {
    let whole = || begin(V1, "{}");
    for (commits, want) in [
        (vec![(0, whole()), (2, String::new())], "no commit 1"),
        (vec![(5, whole())], "no commit 0"),
        (vec![(0, String::new())], "no metadata"),
        (vec![(0, "{".to_owned())], "cannot be read"),
        (vec![], "no _delta_log"),
    ] {
        let error = table(&commits).await.expect_err(want);
        assert!(error.message().contains(want), "{}", error.message());
    }
}

#[tokio::test]
async fn the_newest_whole_checkpoint_counts_and_a_v2_one_is_refused() {
    let named = |names: &[&str]| {
        let meta = |name: &&str| ObjectMeta {
            location: format!("t/_delta_log/{name}").into(),
            last_modified: <_>::default(),
            size: 1,
            e_tag: None,
            version: None,
        };
        Log::of(names.iter().map(meta).collect())
    };
    let log = named(&[
        "00000000000000000002.checkpoint.parquet",
        "00000000000000000004.checkpoint.0000000001.0000000002.parquet",
        "00000000000000000003.json",
        "00000000000000000004.json",
        "_last_checkpoint",
    ]);
    let (checkpoint, commits) = log.newest().expect("whole");
    let versions = |files: &[ObjectMeta]| -> Vec<String> {
        files.iter().filter_map(|m| m.location.filename()).map(|n| n[19..20].to_owned()).collect()
    };
    assert_eq!((versions(&checkpoint), versions(&commits)), (vec!["2".into()], vec!["3".into(), "4".into()]));
    let log = named(&[
        "00000000000000000004.checkpoint.0000000001.0000000002.parquet",
        "00000000000000000004.checkpoint.0000000002.0000000002.parquet",
        "00000000000000000005.json",
    ]);
    assert!(!log.has_v2);
    assert_eq!(log.newest().expect("whole").0.len(), 2);
    assert!(named(&["00000000000000000004.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json"]).has_v2);
}
