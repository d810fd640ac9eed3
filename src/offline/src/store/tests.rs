//! Object stores, tested in memory. Knows no source.

use std::collections::BTreeMap;

use object_store::aws::AmazonS3ConfigKey;

use super::*;

fn options(pairs: &[(&str, &str)]) -> ObjectStoreOptions {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    ObjectStoreOptions::new(&pairs.iter().map(own).collect(), std::iter::empty())
}

#[test]
fn the_environment_lies_under_the_configuration_and_nothing_of_it_is_shown() {
    let env =
        [("AWS_REGION", "eu-west-1"), ("AWS_PROFILE", "mine"), ("AWS_SECRET_ACCESS_KEY", "hush-env"), ("HOME", "/")];
    let configured = BTreeMap::from([("aws_region".to_owned(), "eu-central-1".to_owned())]);
    let options = ObjectStoreOptions::new(&configured, env.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let set: Vec<(AmazonS3ConfigKey, &str)> = options.s3().collect();
    assert_eq!(set, [(AmazonS3ConfigKey::Region, "eu-central-1"), (AmazonS3ConfigKey::SecretAccessKey, "hush-env")]);
    assert!(!format!("{options:?}").contains("hush"), "{options:?}");
    assert_eq!(options.scrub("the key hush-env is bad"), "the key *** is bad");
    options.check().expect("all known");
}

#[test]
fn an_option_that_no_store_has_is_refused_by_name() {
    let error = Stores::new(options(&[("aws_key", "x")])).expect_err("unknown");
    assert!(error.message().contains("aws_key"), "{}", error.message());
}

#[test]
fn a_bucket_is_opened_once_for_each_endpoint() {
    let stores = Stores::new(options(&[("aws_access_key_id", "a"), ("aws_secret_access_key", "b")])).expect("stores");
    let (one, key) = stores.bucket("s3://bucket/some/key.parquet", "http://127.0.0.1:1").expect("bucket");
    assert_eq!((one.url(key).as_str(), key), ("s3://bucket/some/key.parquet", "some/key.parquet"));
    let (two, _) = stores.bucket("s3://bucket/other", "http://127.0.0.1:1").expect("bucket");
    let (three, _) = stores.bucket("s3://bucket/other", "").expect("bucket");
    assert!(Arc::ptr_eq(&one.store, &two.store) && !Arc::ptr_eq(&one.store, &three.store));
    for url in ["s3:///key", "hdfs://host/x"] {
        assert!(stores.bucket(url, "").expect_err(url).message().contains(url));
    }
}

#[tokio::test]
async fn an_object_replaced_after_it_was_listed_is_not_read() {
    let bucket = Bucket::in_memory();
    let path = bucket.path("a/b.parquet").expect("path");
    assert!(bucket.put(&path, Bytes::from_static(b"first"), None).await.expect("put"));
    let listed = bucket.list(&bucket.path("a").expect("path")).await.expect("list").remove(0);
    assert_eq!(bucket.read(&listed, Some(1..3)).await.expect("read"), "ir");
    assert!(!bucket.put(&path, Bytes::from_static(b"other"), None).await.expect("there is one"));
    assert!(bucket.put(&path, Bytes::from_static(b"other"), Some(&listed)).await.expect("put"));
    assert!(!bucket.put(&path, Bytes::from_static(b"third"), Some(&listed)).await.expect("another was faster"));
    let error = bucket.read(&listed, Some(1..3)).await.expect_err("replaced");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.message().contains("a/b.parquet"), "{}", error.message());
    bucket.delete(&path).await.expect("delete");
    assert!(bucket.head(&path).await.expect("head").is_none());
    assert!(bucket.read(&listed, None).await.expect_err("gone").message().contains("not there"));
}
