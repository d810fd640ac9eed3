//! The functions with numbers that can be checked by hand, or that another library gave, and the
//! sketches at sizes where they are sketches.

use window::{Event, Scalar, Spec, State, Tiling};

use crate::support::{S, def, spec};

/// The value of one function over events of one column, at `t_us`.
fn at(function: &str, column: &str, events: &[(i64, Scalar)], t_us: i64) -> Scalar {
    let spec = spec(&[def("all", "count", "", 0, 0), def("f", function, column, 100_000 * S, 0)], Tiling::default());
    run(&spec, events, t_us)
}

fn run(spec: &Spec, events: &[(i64, Scalar)], t_us: i64) -> Scalar {
    let mut state = State::new(spec);
    for (ts_us, value) in events {
        let columns = if spec.columns().is_empty() { &[] } else { std::slice::from_ref(value) };
        state.apply(spec, Event { ts_us: *ts_us, columns }, t_us).unwrap();
    }
    state.evaluate(spec, t_us).unwrap().values.remove(1)
}

fn float(value: &Scalar) -> f64 {
    let Scalar::Float(x) = value else { panic!("{value:?}") };
    *x
}

fn close(value: &Scalar, want: f64, relative: f64) {
    let x = float(value);
    assert!((x - want).abs() <= relative * want.abs(), "{x}, want {want}");
}

fn numbers(values: &[f64]) -> Vec<(i64, Scalar)> {
    values.iter().enumerate().map(|(i, x)| (i as i64 * S, Scalar::Float(*x))).collect()
}

#[test]
fn shapes_are_those_that_pandas_gives_also_far_from_zero() {
    let values = [2.0, 8.0, 0.0, 4.0, 1.0, 9.0, 9.0, 0.0];
    // pandas 2: Series(values).skew(), .kurt()
    let (skew, kurtosis) = (0.330_582_180_407_974_7, -2.098_602_258_096_087);
    for shift in [0.0, 1e6, -1e9] {
        let events = numbers(&values.map(|x| x + shift));
        close(&at("skew", "amount", &events, 60 * S), skew, 1e-12);
        close(&at("kurtosis", "amount", &events, 60 * S), kurtosis, 1e-12);
    }
    let same = numbers(&[0.1; 7]);
    assert_eq!(at("skew", "amount", &same, 60 * S), Scalar::Float(0.0));
    assert_eq!(at("kurtosis", "amount", &same, 60 * S), Scalar::Float(0.0));
    assert_eq!(at("skew", "amount", &same[..2], 60 * S), Scalar::Null);
    assert_eq!(at("kurtosis", "amount", &same[..3], 60 * S), Scalar::Null);
}

#[test]
fn decay_halves_by_age_and_gaps_end_sessions() {
    let events = numbers(&[8.0, 4.0, 2.0]);
    // ages 3, 2 and 1 s: 8/8 + 4/4 + 2/2
    close(&at("decayed_sum(1)", "amount", &events, 3 * S), 3.0, 1e-15);
    close(&at("decayed_count(1)", "", &events, 3 * S), 0.875, 1e-15);
    close(&at("seconds_since_first", "", &events, 3 * S + 500_000), 3.5, 0.0);
    close(&at("seconds_since_last", "amount", &events, 3 * S + 500_000), 1.5, 0.0);

    let at_seconds = |seconds: &[i64]| -> Vec<_> { seconds.iter().map(|s| (s * S, Scalar::Int(*s))).collect() };
    let session = |function: &str, seconds: &[i64], t| at(function, "clicks", &at_seconds(seconds), t * S);
    assert_eq!(session("session_count(10)", &[0, 10, 21], 31), Scalar::Int(1));
    assert_eq!(session("session_sum(10)", &[0, 10, 21], 31), Scalar::Int(21));
    assert_eq!(session("session_count(10)", &[0, 10, 21], 32), Scalar::Int(0), "none is open");
    assert_eq!(session("session_sum(10)", &[0, 10, 21], 32), Scalar::Null);
    assert_eq!(session("session_duration(10)", &[0, 10, 21], 32), Scalar::Null);
    // a late event joins two
    assert_eq!(session("session_count(10)", &[0, 10, 21, 15], 25), Scalar::Int(4));
    assert_eq!(session("session_duration(10)", &[0, 10, 21, 15], 25), Scalar::Float(21.0));
}

#[test]
fn the_last_k_are_those_of_the_latest_times() {
    let events = [(5, 50), (1, 10), (3, 30), (2, 20), (4, 40)].map(|(s, x)| (s * S, Scalar::Int(x)));
    assert_eq!(at("sum_last_k(2)", "clicks", &events, 60 * S), Scalar::Int(90));
    assert_eq!(at("min_last_k(3)", "clicks", &events, 60 * S), Scalar::Int(30));
    assert_eq!(at("max_last_k(9)", "clicks", &events, 60 * S), Scalar::Int(50));
    assert_eq!(at("mean_last_k(4)", "clicks", &events, 60 * S), Scalar::Float(35.0));
    assert_eq!(at("mean_last_k(4)", "clicks", &[(0, Scalar::Null)], 60 * S), Scalar::Null);
}

#[test]
fn sketches_stay_within_their_error_and_order_does_not_show() {
    let mut events: Vec<(i64, Scalar)> = (0..50_000).map(|i| (i * S, Scalar::Int(i * i % 40_009))).collect();
    let t_us = 60_000 * S;
    let mut values: Vec<i64> = events.iter().map(|(s, _)| s / S).map(|i| i * i % 40_009).collect();
    values.sort_unstable();
    let percentiles = [0.01, 0.5, 0.99].map(|p| (format!("approx_percentile({p})"), values[(p * 49_999.0) as usize]));
    values.dedup();
    assert_eq!(at("count_distinct", "clicks", &events, t_us), Scalar::Int(values.len() as i64));
    let about = at("approx_count_distinct", "clicks", &events, t_us);
    // three standard errors of 1.6 %
    assert!(
        matches!(about, Scalar::Int(n) if n.abs_diff(values.len() as i64) * 20 <= values.len() as u64),
        "{about:?}"
    );
    let ranks = percentiles.map(|(function, want)| {
        let value = at(&function, "clicks", &events, t_us);
        close(&value, want as f64, 0.010_001);
        (function, value)
    });
    events.reverse();
    assert_eq!(at("approx_count_distinct", "clicks", &events, t_us), about);
    for (function, value) in ranks {
        assert_eq!(at(&function, "clicks", &events, t_us), value);
    }
}

#[test]
fn every_magnitude_has_a_bucket_within_one_percent() {
    for exponent in -1074..=1023 {
        let x = 1.37 * 2f64.powi(exponent);
        for x in [x, -x] {
            let value = at("median", "amount", &[(0, Scalar::Float(x))], S);
            assert!((float(&value) - x).abs() <= 0.010_001 * x.abs() + f64::from_bits(1), "{x}: {value:?}");
        }
    }
}
