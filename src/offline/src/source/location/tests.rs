//! Where sources are, tested on files. Knows no Parquet.

use super::*;

fn source(uri: &str) -> DataSource {
    let options = proto::feast::core::data_source::FileOptions { uri: uri.into(), ..Default::default() };
    DataSource { name: "s".into(), options: Some(Options::FileOptions(options)), ..DataSource::default() }
}

#[test]
fn a_source_is_a_file_a_directory_or_a_pattern() {
    let dir = tempfile::tempdir().expect("dir");
    let touch = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(&path, b"x").expect("write");
        path
    };
    let (a, b) = (touch("d/a.parquet"), touch("d/e/b.parquet"));
    touch("d/.c.parquet.tmp");
    touch("d/.hidden.parquet");
    touch("d/_SUCCESS");
    let of = |uri: &str| Location::of(&source(uri), dir.path(), &Stores::default()).expect(uri);
    assert_eq!(of("d").files().expect("list"), [a.clone(), b.clone()]);
    assert_eq!(of("d/*.parquet").files().expect("list"), std::slice::from_ref(&a));
    assert!(matches!(of(&format!("file://{}", a.display())), Location::File(path) if path == a));
    assert_eq!(of("d/**/b.parquet").files().expect("list"), [b]);
    assert_eq!(of("new.parquet").files().expect("list"), Vec::<PathBuf>::new());
    let logged = touch("logs/__log_date=2026-01-01/c.parquet");
    touch("logs/_temporary/d.parquet");
    assert_eq!(of("logs").files().expect("list"), [logged]);
    for remote in ["abfss://bucket/x.parquet", "hdfs://bucket/x"] {
        let error = Location::of(&source(remote), dir.path(), &Stores::default()).expect_err(remote);
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains(remote), "{}", error.message());
    }
}
