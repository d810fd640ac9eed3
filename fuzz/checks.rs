//! What must hold of any bytes at all: one check per decoder. The fuzz targets call them with what libFuzzer
//! makes up, `cargo test` with the seeds. Knows no fuzzer.

use bytes::Bytes;
use model::row::{Row, merge};
use model::{EntityKey, Value};
use prost::Message as _;

/// A request body, the first byte choosing the path: read or refused, by the caller's fault.
pub(crate) fn body(data: &[u8]) {
    let Some((path, body)) = data.split_first() else { return };
    let path = ["/get-online-features", "/push", "/write-to-online-store"][usize::from(path % 3)];
    if let Err(error) = server::http::check_body(path, body) {
        assert!(matches!(error.kind(), model::Kind::InvalidArgument | model::Kind::TooLarge), "{error:?}");
    }
}

/// An entity key: what can be read is written again as one key.
pub(crate) fn entity_key(data: &[u8]) {
    let Ok(parts) = EntityKey::from_bytes(data).decode() else { return };
    let parts_of = |parts: &[(String, Value)]| {
        let parts: Vec<_> = parts.iter().map(|(name, value)| (name.as_str(), value)).collect();
        EntityKey::encode(&parts)
    };
    if let Ok(key) = parts_of(&parts) {
        let again = key.decode().expect("what was encoded is decoded");
        assert_eq!(parts_of(&again).expect("and encoded"), key);
    }
}

/// Two rows, the first byte saying where the second begins: read in any case, merged to what both have.
pub(crate) fn row(data: &[u8]) {
    let Some((at, data)) = data.split_first() else { return };
    let (one, other) = data.split_at(data.len() * usize::from(*at) / 255);
    let rows: Vec<Row> = [one, other].iter().filter_map(|b| Row::open(Bytes::copy_from_slice(b))).collect();
    for row in &rows {
        for column in row.columns() {
            assert_eq!(row.get(column.id), Some((column.value, column.version)));
        }
        assert_eq!(Row::pack(row.columns()).columns(), row.columns());
    }
    let [stored, written] = &rows[..] else { return };
    if let Some(merged) = merge(Some(stored), written) {
        for column in merged.columns() {
            let of = |row: &Row| row.get(column.id) == Some((column.value.clone(), column.version));
            assert!(of(stored) || of(written), "{column:?} is of neither row");
        }
        assert_eq!(merged.len(), merged.columns().len());
        assert!(Row::open(merged.as_bytes().clone()).is_some());
    }
}

/// A value's bytes: JSON where prost reads a value, and the same JSON from the bytes that prost writes.
pub(crate) fn value(data: &[u8]) {
    let mut json = Vec::new();
    let written = server::http::json::value(&mut json, data).is_ok();
    let value = Value::decode(data);
    assert_eq!(written, value.is_ok(), "{value:?}");
    if let Ok(value) = value {
        let mut usual = Vec::new();
        server::http::json::value(&mut usual, &value.encode_to_vec()).expect("a value");
        assert!(json == usual, "{} is not {}", String::from_utf8_lossy(&json), String::from_utf8_lossy(&usual));
        std::str::from_utf8(&json).expect("JSON is text");
    }
}
