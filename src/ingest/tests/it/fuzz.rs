//! The seeds of the fuzz targets of streams as ordinary tests: good messages and states, what fuzzing has found.
//! `LARDER_FUZZ_CORPUS=DIR` also writes them there, for libFuzzer to begin with (`make fuzz` does it).

use std::path::Path;

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use window::{Event, Scalar, State};

use crate::stream_checks::{self, AVRO, T0};

type Check = fn(&[u8]);

fn json() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"user": "a", "amount": 1.5, "number": -3, "tags": ["x", "ü"], "on": true, "ts": 1767225600000000}"#,
        r#"{"ts": "2025-12-31T23:59:59.5Z", "user": "a", "amount": null, "number": 1e3, "tags": [], "on": 1}"#,
        r#"{"user": "a", "user": "b", "ts": -1, "amount": "1.5", "number": 9223372036854775808}"#,
        "\u{feff}[[[[{}]]]]",
        "{\"user\": \"\\ud83d\\ude00\", \"ts\": 0, \"x\": {\"y\": [1, {}]}}",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.push([&[0, 0, 0, 0, 7], texts[0].as_bytes()].concat());
    seeds
}

fn avro() -> Vec<Vec<u8>> {
    let schema = Schema::parse_str(AVRO).expect("a schema");
    let writer = GenericDatumWriter::builder(&schema).build().expect("a writer");
    let record = |inner: Avro| {
        Avro::Record(vec![
            ("user".into(), Avro::String("a".into())),
            ("amount".into(), Avro::Union(1, Box::new(Avro::Double(1.5)))),
            ("number".into(), Avro::Decimal(apache_avro::Decimal::from(vec![1, 44]))),
            ("tags".into(), Avro::Array(vec![Avro::String("x".into())])),
            ("on".into(), Avro::Enum(1, "NO".into())),
            ("inner".into(), inner),
            ("ts".into(), Avro::TimestampMicros(T0)),
        ])
    };
    let flat = record(Avro::Union(0, Box::new(Avro::Null)));
    let one = Avro::Record(vec![
        ("tags".into(), Avro::Array(vec![Avro::String("x".into()), Avro::String(String::new())])),
        ("n".into(), Avro::Union(1, Box::new(Avro::Float(0.5)))),
    ]);
    let deep = record(Avro::Union(1, Box::new(Avro::Map([("k".to_owned(), one)].into()))));
    [flat, deep].into_iter().map(|record| writer.write_value_to_vec(record).expect("a record")).collect()
}

fn protobuf() -> Vec<Vec<u8>> {
    // user "a", amount 1.5, number -3, tags "x", on, an inner one, ts
    let inner = [&b"\x0a\x01a\x11\0\0\0\0\0\0\xf8\x3f\x18\x05\x22\x01x\x28\x01"[..], b"\x38\x05"].concat();
    let outer =
        [&inner[..inner.len() - 2], &[0x32, inner.len() as u8], &inner, b"\x38\x80\xa0\x8d\xa9\xbb\xe5\x91\x03"]
            .concat();
    vec![inner, outer, b"\x08\x01".to_vec()]
}

fn states() -> Vec<Vec<u8>> {
    let spec = stream_checks::spec();
    let mut state = State::new(&spec);
    let mut seeds = Vec::new();
    for at in [0i64, 1, 90, 95, 3000, 4000, 59_000] {
        let columns = [
            Scalar::Float(at as f64 / 3.0),
            Scalar::Int(at % 4),
            Scalar::Bool(at > 90),
            Scalar::Text(format!("m{}", at % 3).into()),
        ];
        let ts_us = T0 + at * 1_000;
        state.apply(&spec, Event { ts_us, columns: &columns }, T0 + 5_000_000).expect("fits");
        let mut bytes = vec![0];
        state.encode(&spec, &mut bytes);
        // version, checksum, fingerprint
        seeds.push([&[2], &bytes[1 + 13..]].concat());
        seeds.push(bytes);
    }
    seeds
}

fn targets() -> [(&'static str, Check, Vec<Vec<u8>>); 4] {
    [
        ("stream_json", stream_checks::json, json()),
        ("stream_avro", stream_checks::avro, avro()),
        ("stream_protobuf", stream_checks::protobuf, protobuf()),
        ("window_state", stream_checks::state, states()),
    ]
}

#[test]
fn the_seeds_hold() {
    for (name, check, seeds) in targets() {
        assert!(!seeds.is_empty(), "{name} has seeds");
        for seed in &seeds {
            check(seed);
            // and what is left of them when they are cut off
            (0..seed.len().min(200)).for_each(|end| check(&seed[..end]));
        }
        if let Some(corpus) = std::env::var_os("LARDER_FUZZ_CORPUS") {
            let dir = Path::new(&corpus).join(name);
            std::fs::create_dir_all(&dir).expect("a directory");
            for (at, seed) in seeds.iter().enumerate() {
                std::fs::write(dir.join(format!("seed-{at}")), seed).expect("written");
            }
        }
    }
}
