//! Definitions, events and comparisons that the tests share. Knows only the public API.

use proptest::prelude::*;
use window::{AggregationDef, Answer, ColumnType, Scalar, Spec, Tiling};

pub(crate) const MS: i64 = 1_000;
pub(crate) const S: i64 = 1_000_000;

/// The stream: integers, tame floats, wild floats, text, times, lists.
pub(crate) const STREAM: [(&str, ColumnType); 6] = [
    ("amount", ColumnType::Float),
    ("clicks", ColumnType::Int),
    ("merchant", ColumnType::Text),
    ("seen", ColumnType::Timestamp),
    ("tags", ColumnType::Other),
    ("wild", ColumnType::Float),
];

pub(crate) fn column_type(name: &str) -> Option<ColumnType> {
    STREAM.iter().find(|(known, _)| *known == name).map(|(_, ty)| *ty)
}

pub(crate) fn def(feature: &str, function: &str, column: &str, window_us: i64, slide_us: i64) -> AggregationDef {
    AggregationDef { feature: feature.into(), column: column.into(), function: function.into(), window_us, slide_us }
}

pub(crate) fn spec(defs: &[AggregationDef], tiling: Tiling) -> Spec {
    Spec::new(defs, tiling, column_type).unwrap()
}

/// The columns of a spec with their types, as the oracle wants them.
pub(crate) fn columns(spec: &Spec) -> Vec<(String, ColumnType)> {
    spec.columns().iter().map(|name| (name.clone(), column_type(name).unwrap())).collect()
}

/// The values of a whole stream row that a spec reads.
pub(crate) fn project(spec: &Spec, row: &[Scalar]) -> Vec<Scalar> {
    let at = |name: &String| STREAM.iter().position(|(known, _)| known == name).unwrap();
    spec.columns().iter().map(|name| row[at(name)].clone()).collect()
}

/// Integers, text and times exactly, floats to 1e-12 relative; signs of zero where the value is one of the column's.
pub(crate) fn assert_same(defs: &[AggregationDef], got: Option<&Answer>, want: Option<&Answer>, context: &str) {
    let (got, want) = match (got, want) {
        (None, None) => return,
        (Some(got), Some(want)) => (got, want),
        _ => panic!("known or not: got {got:?}, want {want:?}; {context}"),
    };
    assert_eq!(got.event_ts_us, want.event_ts_us, "event timestamp; {context}");
    assert_eq!(got.saturated, want.saturated, "saturated; {context}");
    assert_eq!(got.values.len(), defs.len());
    for ((def, got), want) in defs.iter().zip(&got.values).zip(&want.values) {
        let name = def.function.split('(').next().unwrap();
        let picked = matches!(name, "min" | "max" | "first" | "last" | "min_last_k" | "max_last_k");
        let same = match (name, got, want) {
            // few values in 4,096 registers: two of them may share one, and another two
            ("approx_count_distinct", Scalar::Int(a), Scalar::Int(b)) => a.abs_diff(*b) <= 2 + (*b as u64) / 20,
            ("approx_percentile" | "median", Scalar::Float(a), Scalar::Float(b)) => {
                a.total_cmp(b).is_eq() || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 0.010_001 * b.abs()
            }
            // the oracle's own rounding, where terms cancel
            ("skew" | "kurtosis", Scalar::Float(a), Scalar::Float(b)) => {
                (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-11 * b.abs().max(1.0)
            }
            // values up to 1e12 that cancel, and weights beyond the range of a double
            ("decayed_sum", Scalar::Float(a), Scalar::Float(b)) => (a - b).abs() <= (1e-12 * b.abs()).max(0.02),
            ("decayed_count", Scalar::Float(a), Scalar::Float(b)) => (a - b).abs() <= (1e-12 * b.abs()).max(1e-280),
            (_, got, want) => same_scalar(got, want, picked),
        };
        assert!(same, "{def:?}: got {got:?}, want {want:?}; {context}");
    }
}

fn same_scalar(got: &Scalar, want: &Scalar, picked: bool) -> bool {
    match (got, want) {
        (Scalar::Float(a), Scalar::Float(b)) if a.is_nan() || b.is_nan() => a.is_nan() && b.is_nan(),
        (Scalar::Float(a), Scalar::Float(b)) if picked => a.to_bits() == b.to_bits(),
        (Scalar::Float(a), Scalar::Float(b)) => a.total_cmp(b).is_eq() || (a - b).abs() <= 1e-12 * b.abs(),
        (Scalar::List(a), Scalar::List(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same_scalar(a, b, true))
        }
        (a, b) => a == b,
    }
}

pub(crate) fn definitions() -> impl Strategy<Value = (Vec<AggregationDef>, Tiling)> {
    let windows = prop_oneof![Just(S), Just(2 * S), Just(2_500 * MS), Just(7 * S), Just(20 * S), Just(1_800 * S)];
    let slide =
        prop_oneof![3 => Just(0), 1 => Just(100 * MS), 1 => Just(300 * MS), 1 => Just(999_999), 1 => Just(i64::MAX)];
    let calls: Vec<(&str, &str)> = vec![
        ("count", ""),
        ("count", "amount"),
        ("count", "tags"),
        ("sum", "amount"),
        ("sum", "clicks"),
        ("sum", "wild"),
        ("mean", "amount"),
        ("avg", "clicks"),
        ("mean", "wild"),
        ("min", "amount"),
        ("max", "clicks"),
        ("min", "wild"),
        ("max", "wild"),
        ("min", "merchant"),
        ("max", "merchant"),
        ("max", "seen"),
        ("var", "amount"),
        ("stddev", "clicks"),
        ("first", "merchant"),
        ("last", "merchant"),
        ("first", "amount"),
        ("last", "clicks"),
        ("skew", "amount"),
        ("skew", "clicks"),
        ("kurtosis", "amount"),
        ("kurtosis", "clicks"),
        ("seconds_since_last", ""),
        ("seconds_since_last", "tags"),
        ("seconds_since_first", "merchant"),
        ("decayed_sum(2.5)", "amount"),
        ("decayed_sum(600)", "amount"),
        ("decayed_count(0.3)", ""),
        ("decayed_count(60)", "wild"),
        ("session_count(0.1)", ""),
        ("session_count(3)", "amount"),
        ("session_sum(1)", "clicks"),
        ("session_sum(3)", "amount"),
        ("session_duration(3)", "merchant"),
        ("sum_last_k(3)", "clicks"),
        ("sum_last_k(2)", "wild"),
        ("mean_last_k(4)", "amount"),
        ("mean_last_k(1)", "clicks"),
        ("min_last_k(3)", "merchant"),
        ("max_last_k(2)", "wild"),
        ("max_last_k(5)", "seen"),
        ("first_k(3)", "merchant"),
        ("first_k(2)", "wild"),
        ("last_k(3)", "clicks"),
        ("last_k(40)", "merchant"),
        ("top_k(3)", "clicks"),
        ("top_k(4)", "wild"),
        ("top_k(2)", "merchant"),
        ("bottom_k(3)", "amount"),
        ("bottom_k(5)", "seen"),
        ("bottom_k(4)", "wild"),
        ("histogram", "merchant"),
        ("histogram", "clicks"),
        ("count_distinct", "merchant"),
        ("count_distinct", "wild"),
        ("count_distinct", "clicks"),
        ("approx_count_distinct", "seen"),
        ("approx_count_distinct", "wild"),
        ("median", "amount"),
        ("median", "clicks"),
        ("approx_percentile(0.9)", "wild"),
        ("approx_percentile(0)", "amount"),
        ("approx_percentile(1)", "clicks"),
    ];
    let aggregation = (windows, slide, prop::sample::select(calls));
    let tiling = prop_oneof![
        2 => Just(Tiling::default()),
        1 => Just(Tiling { enabled: true, hop_us: 900 * MS }),
        1 => Just(Tiling { enabled: true, hop_us: 250 * MS }),
    ];
    // now and then one window is a lifetime, which makes the entity known for good
    (prop::collection::vec(aggregation, 1..9), tiling, prop::bool::weighted(0.15)).prop_map(
        |(list, tiling, lifetime)| {
            let defs = list.into_iter().enumerate().map(|(i, (window, slide, (function, column)))| {
                let window = if lifetime && i == 0 { 0 } else { window };
                def(&format!("f{i}"), function, column, window, slide)
            });
            (defs.collect(), tiling)
        },
    )
}

/// A row of the stream, nulls in every column now and then.
pub(crate) fn row() -> impl Strategy<Value = Vec<Scalar>> {
    let tame = prop_oneof![
        3 => (-10_000i64..10_000).prop_map(|cents| Scalar::Float(cents as f64 / 100.0)),
        1 => Just(Scalar::Float(1e12)),
        1 => Just(Scalar::Float(-1e12)),
        1 => Just(Scalar::Float(1e-3)),
        1 => (-5i64..5).prop_map(Scalar::Int),
        1 => Just(Scalar::Null),
    ];
    let clicks = prop_oneof![
        8 => (-100i64..100).prop_map(Scalar::Int),
        1 => Just(Scalar::Int(i64::MAX)),
        1 => Just(Scalar::Int(i64::MIN)),
        2 => Just(Scalar::Null),
    ];
    let merchant = prop_oneof![4 => "[a-c]{0,2}".prop_map(|s| Scalar::Text(s.into())), 1 => Just(Scalar::Null)];
    let seen = prop_oneof![2 => any::<i64>().prop_map(Scalar::Int), 1 => Just(Scalar::Null)];
    let tags = prop_oneof![Just(Scalar::Bool(true)), Just(Scalar::Null)];
    let wild = prop_oneof![
        6 => (-4i64..4).prop_map(|x| Scalar::Float(x as f64 / 3.0)),
        1 => Just(Scalar::Float(f64::NAN)),
        1 => Just(Scalar::Float(-f64::NAN)),
        1 => Just(Scalar::Float(f64::INFINITY)),
        1 => Just(Scalar::Float(f64::NEG_INFINITY)),
        2 => Just(Scalar::Float(-0.0)),
        2 => Just(Scalar::Float(0.0)),
        2 => Just(Scalar::Null),
    ];
    (tame, clicks, merchant, seen, tags, wild).prop_map(|(a, b, c, d, e, f)| vec![a, b, c, d, e, f])
}
