//! Deletion vectors from the protocol's text, and damaged ones. Knows no log.

use std::fs;

use super::*;
use crate::store::Stores;

/// As other readers have it in their tests.
const INLINE: &str = "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L";
/// Of the protocol's text: in a form before the one that it tells of.
const NATIVE: &str = "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L";
const UUID_TEXT: &str = "vBn[lx{q8@P<9BNH/isA";

fn vector(storage_type: &str, text: &str, offset: Option<u64>, size: u64, cardinality: u64) -> Vector {
    let (storage_type, path_or_inline_dv) = (storage_type.to_owned(), text.to_owned());
    Vector { storage_type, path_or_inline_dv, offset, size_in_bytes: size, cardinality }
}

fn add(vector: Vector) -> Add {
    Add { path: "a.parquet".into(), partition_values: <_>::default(), size: 1, deletion_vector: Some(vector) }
}

/// A vector's bytes.
fn encoded(rows: &RoaringTreemap) -> Vec<u8> {
    let mut data = MAGIC.to_le_bytes().to_vec();
    rows.serialize_into(&mut data).expect("writes");
    data
}

/// A file of these vectors, with where each begins.
fn file(vectors: &[Vec<u8>]) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut at) = (vec![VERSION], Vec::new());
    for data in vectors {
        at.push(bytes.len() as u64);
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes.extend(crc32fast::hash(data).to_be_bytes());
    }
    (bytes, at)
}

#[test]
fn base_85_is_that_of_the_protocol() {
    assert_eq!(base85("HelloWorld").expect("of RFC 32"), [0x86, 0x4F, 0xD2, 0x6F, 0xB5, 0x59, 0xF7, 0x5B]);
    let name = relative("ab^-aqEH.-t@S}K{vb[*k^").expect("of the protocol");
    assert_eq!(name, "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin");
    for wrong in ["HelloWorld!", "Hello Word", "#####", "Hellö"] {
        assert_eq!(base85(wrong), None, "{wrong}");
    }
    for wrong in ["", "abc", "äHelloWorldHelloWor"] {
        assert_eq!(relative(wrong), None, "{wrong}");
    }
}

#[test]
fn a_vector_in_the_log_is_as_others_write_it() {
    let rows = inline(&vector("i", INLINE, None, 44, 6)).expect("whole");
    assert_eq!(rows.iter().collect::<Vec<_>>(), [3, 4, 7, 11, 18, 29]);
    for (text, size, count, want) in [
        (INLINE, 44, 5, "6 rows, and 5"),
        (INLINE, 48, 6, "44 bytes, not 48"),
        (INLINE, 40, 6, "44 bytes, not 40"),
        (INLINE, 43, 6, "damaged"),
        (NATIVE, 40, 6, "in no known form"),
        ("0000000000", 8, 0, "begins with 0"),
        ("", 0, 0, "too short"),
        ("wi5b", 4, 0, "base 85"),
    ] {
        let error = inline(&vector("i", text, None, size, count)).expect_err(want);
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn rows_beyond_32_bits_and_of_every_kind_of_container_are_read() {
    let mut rows: RoaringTreemap = [0, 1 << 16, (7 << 32) + 5].into_iter().collect();
    rows.extend((1 << 20..(1 << 20) + 30_000).step_by(3));
    rows.extend(1 << 24..(1 << 24) + 100_000);
    rows.optimize();
    assert_eq!(bitmap(&encoded(&rows), rows.len()).expect("whole"), rows);
}

#[test]
fn what_is_damaged_in_a_file_is_said() {
    let rows: RoaringTreemap = (0..100).collect();
    let data = encoded(&rows);
    let (whole, at) = file(&[encoded(&RoaringTreemap::new()), data.clone()]);
    let part = |size: usize| Part { offset: at[1], size: size as u64, cardinality: 100 };
    let read = |change: &dyn Fn(&mut Vec<u8>), part: Part| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        part.read(&bytes.into())
    };
    assert_eq!(read(&|_| {}, part(data.len())).expect("whole"), rows);
    for (change, size, want) in [
        (&(|b: &mut Vec<u8>| b[0] = 2) as &dyn Fn(&mut Vec<u8>), data.len(), "version 2"),
        (&|b| b.clear(), data.len(), "is empty"),
        (&|b| b.truncate(b.len() - 1), data.len(), "ends before byte"),
        (&|b| b.truncate(40), data.len(), "ends before byte"),
        (&|b| b.truncate(3), data.len(), "ends before byte"),
        (
            &|b| {
                let last = b.len() - 6;
                b[last] ^= 1;
            },
            data.len(),
            "checksum",
        ),
        (&|_| {}, data.len() + 1, "by the log"),
    ] {
        let error = read(change, part(size)).expect_err(want);
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut rows: RoaringTreemap = (0..20_000).step_by(2).collect();
    rows.extend([1 << 40, 70_000]);
    let data = encoded(&rows);
    for at in 0..data.len().min(200) {
        for bit in 0..8 {
            let mut bytes = data.clone();
            bytes[at] ^= 1 << bit;
            // what is still a bitmap has another count, or other rows
            drop(bitmap(&bytes, rows.len()));
        }
        drop(bitmap(&data[..at], rows.len()));
    }
}

#[tokio::test]
async fn files_are_found_below_the_table_and_not_outside() {
    let dir = tempfile::tempdir().expect("dir");
    let (one, two): (RoaringTreemap, RoaringTreemap) = ((0..3).collect(), (5..9).collect());
    let vectors = [encoded(&one), encoded(&two)];
    let (bytes, at) = file(&vectors);
    let name = relative(UUID_TEXT).expect("a UUID");
    fs::create_dir_all(dir.path().join("t able/ab")).expect("creates");
    let root = dir.path().join("t able");
    for folder in ["", "ab"] {
        fs::write(root.join(folder).join(&name), &bytes).expect("writes");
    }
    let (path, size) = (root.join(&name).display().to_string(), |i: usize| vectors[i].len() as u64);
    let adds = [
        add(vector("u", UUID_TEXT, Some(at[0]), size(0), 3)),
        add(vector("u", &format!("ab{UUID_TEXT}"), Some(at[1]), size(1), 4)),
        add(vector("p", &format!("file://{}", path.replace(' ', "%20")), Some(at[1]), size(1), 4)),
        add(vector("p", &path, None, size(0), 3)),
        Add { deletion_vector: None, ..add(vector("i", "", None, 0, 0)) },
    ];
    let stores = Stores::default();
    let (in_it, around) = (stores.local(&root).expect("bucket"), stores.local(dir.path()).expect("bucket"));
    let table = Table { bucket: &in_it, root: &Path::default(), local: Some(&root), name: "t" };
    let found = read(&table, &adds).await.expect("whole");
    assert_eq!(Vec::from_iter(found), [(0, one.clone()), (1, two.clone()), (2, two.clone()), (3, one.clone())]);

    // As in an object store, where the table is not the bucket.
    let url = |key: &str| add(vector("p", &format!("{around}/t%20able/{key}"), Some(at[0]), size(0), 3));
    let below = Path::parse("t able").expect("path");
    let table = Table { bucket: &around, root: &below, local: None, name: "t" };
    assert_eq!(read(&table, &[url(&name)]).await.expect("whole")[&0], one);

    let outside = "s3://elsewhere/deletion_vector.bin";
    let error = read(&table, &[add(vector("p", outside, None, 1, 1))]).await.expect_err("outside");
    assert_eq!(error.kind(), model::Kind::Unsupported);
    assert!(error.message().contains(outside), "{}", error.message());
    let error = read(&table, &[url("gone.bin")]).await.expect_err("gone");
    assert!(error.message().contains("t able/gone.bin is not there"), "{}", error.message());
    let error = read(&table, &[add(vector("x", "", None, 1, 1))]).await.expect_err("unknown");
    assert!(error.message().contains("stored as 'x'"), "{}", error.message());
}
