//! The seeds of the fuzz targets as ordinary tests: the golden files, good bodies, what fuzzing has found.
//! `LARDER_FUZZ_CORPUS=DIR` also writes them there, for libFuzzer to begin with (`make fuzz` does it).

use std::path::Path;

use crate::checks;

type Check = fn(&[u8]);

fn hex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The `hex` of every case of a golden file.
fn golden(file: &str) -> Vec<Vec<u8>> {
    let cases: Vec<serde_json::Value> = serde_json::from_str(file).expect("a golden file");
    cases.iter().map(|case| hex(case["hex"].as_str().expect("text"))).collect()
}

fn bodies() -> Vec<Vec<u8>> {
    let texts = [
        (
            0,
            r#"{"features": ["v:f"], "entities": {"a": [1, 2.5, "x", null, true, [1], {"k": []}]}, "full_feature_names": 1}"#,
        ),
        (0, r#"{"feature_service": "s", "entities": {"a": [18446744073709551615]}, "unknown": [{}]}"#),
        (1, r#"{"push_source_name": "s", "df": {"a": [1, 2], "b": ["x", "y"], "c": [1.5, null]}, "to": "online"}"#),
        (1, r#"{"push_source_name": "s", "df": {"a": {"0": 1, "1": 2}, "b": {"1": [1], "0": {"k": "\ud83d\ude00"}}}}"#),
        (2, r#"{"feature_view_name": "v", "df": {"a": [-1e400, 1E-9]}, "allow_registry_cache": false}"#),
        (0, "\u{feff} [{}, null, []]"),
        (1, r#"{"push_source_name": "s", "df": {"t": [1e300, "+12345-01-01", {"a": null}], "u": [true, -0.0, NaN]}}"#),
        (2, "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["),
    ];
    texts.iter().map(|(path, text)| [&[*path], text.as_bytes()].concat()).collect()
}

fn rows() -> Vec<Vec<u8>> {
    use model::row::{Column, Row, Version, column_id};
    let column = |name: &str, value: &[u8], time| Column {
        id: column_id(name),
        value: value.to_vec().into(),
        version: Version { event: model::Timestamp(time), created: model::Timestamp(0) },
    };
    let one = Row::pack(vec![column("a", &[0x20, 1], 5), column("b", b"", 5)]);
    let two = Row::pack(vec![column("a", &[0x20, 2], 6), column("c", b"\x12\x01x", 4)]);
    let both = [
        &[((one.as_bytes().len() * 255).div_ceil(one.as_bytes().len() + two.as_bytes().len())) as u8],
        &one.as_bytes()[..],
        two.as_bytes(),
    ];
    vec![both.concat(), [&[255], &one.as_bytes()[..]].concat()]
}

fn targets() -> [(&'static str, Check, Vec<Vec<u8>>); 4] {
    [
        ("body", checks::body, bodies()),
        ("entity_key", checks::entity_key, golden(include_str!("../../../model/tests/golden/entity_keys.json"))),
        ("row", checks::row, rows()),
        ("value", checks::value, golden(include_str!("../golden/json_values.json"))),
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
