//! The definition of a window, evaluated naively over a list of events: no tiles, no state, no
//! shared code with the fast path but the plain types. For tests, here and in other crates.

use std::cmp::Ordering;

use crate::scalar::{ColumnType, Scalar};
use crate::spec::{AggregationDef, Tiling};
use crate::state::Answer;

/// The features of an entity at `t_us`, straight from the definition; `None` if it is unknown then.
///
/// `columns` are names and types in the order in which the events hold their values, `events` are
/// timestamp (µs) and values in arrival order, future ones included. Takes definitions that
/// [`crate::Spec::new`] accepts; a function it does not know answers null.
pub fn evaluate(
    defs: &[AggregationDef],
    tiling: Tiling,
    columns: &[(String, ColumnType)],
    events: &[(i64, Vec<Scalar>)],
    t_us: i64,
) -> Option<Answer> {
    let mut past: Vec<&(i64, Vec<Scalar>)> = events.iter().filter(|(ts, _)| *ts <= t_us).collect();
    past.sort_by_key(|(ts, _)| *ts);

    let earliest = defs.iter().map(|def| start(def, tiling, t_us)).min()?;
    let latest = past.iter().map(|(ts, _)| *ts).filter(|ts| i128::from(*ts) >= earliest).max()?;

    let mut answer = Answer { event_ts_us: latest, values: Vec::new(), saturated: false };
    for def in defs {
        let from = start(def, tiling, t_us);
        let window: Vec<_> = past.iter().filter(|(ts, _)| i128::from(*ts) >= from).collect();
        let timed: Vec<(i64, Scalar)> = match columns.iter().position(|(name, _)| *name == def.column) {
            None => window.iter().map(|(ts, _)| (*ts, Scalar::Bool(true))).collect(),
            Some(i) => window
                .iter()
                .map(|(ts, values)| match (&values[i], columns[i].1) {
                    (Scalar::Int(x), ColumnType::Float) => (*ts, Scalar::Float(*x as f64)),
                    (value, _) => (*ts, value.clone()),
                })
                .filter(|(_, value)| *value != Scalar::Null)
                .collect(),
        };
        let (value, saturated) = evaluate_one(&def.function, &timed, t_us);
        answer.values.push(value);
        answer.saturated |= saturated;
    }
    Some(answer)
}

/// `floor((t - W) / h) * h`, or the beginning of time.
fn start(def: &AggregationDef, tiling: Tiling, t_us: i64) -> i128 {
    let window = i128::from(def.window_us);
    if window == 0 {
        return i128::MIN;
    }
    let slide = i128::from(def.slide_us);
    let hop = if slide > 0 && slide < window {
        slide
    } else if tiling.enabled {
        i128::from(if tiling.hop_us == 0 { 300_000_000 } else { tiling.hop_us })
    } else {
        // seconds, but for the first
        let seconds = [1, 5, 10, 30, 60, 300, 900, 1800, 3600, 21_600, 86_400];
        let widest = seconds.into_iter().map(|s: i128| s * 1_000_000).rfind(|h| h * 300 <= window);
        widest.unwrap_or(100_000)
    };
    let back = i128::from(t_us) - window;
    let mut tiles = back / hop;
    if back % hop < 0 {
        tiles -= 1;
    }
    tiles * hop
}

/// A function over the window's values with their times, sorted.
fn evaluate_one(function: &str, timed: &[(i64, Scalar)], t_us: i64) -> (Scalar, bool) {
    let (name, parameter) = function.trim_end_matches(')').split_once('(').unwrap_or((function, "0.5"));
    let parameter: f64 = parameter.parse().unwrap_or(f64::NAN);
    let all: Vec<Scalar> = timed.iter().map(|(_, value)| value.clone()).collect();
    let seconds = |from: i64, to: i64| Scalar::Float((i128::from(to) - i128::from(from)) as f64 / 1e6);
    let decayed = |number: &dyn Fn(&Scalar) -> f64| {
        let weighed = |(ts, value): &(i64, Scalar)| number(value) * (-((t_us - ts) as f64 / 1e6) / parameter).exp2();
        Scalar::Float(exact_sum(&timed.iter().map(weighed).collect::<Vec<f64>>()))
    };
    // backwards from t for as long as no gap is too wide
    let mut open = timed.len();
    let mut next_us = t_us;
    while open > 0 && (next_us - timed[open - 1].0) as f64 <= parameter * 1e6 {
        open -= 1;
        next_us = timed[open].0;
    }
    let session = &timed[open..];
    let value = match (name, timed) {
        ("seconds_since_last", [.., (last, _)]) => seconds(*last, t_us),
        ("seconds_since_first", [(first, _), ..]) => seconds(*first, t_us),
        ("decayed_count", _) => decayed(&|_| 1.0),
        ("decayed_sum", [_, ..]) => decayed(&|value| number(value).unwrap_or(f64::NAN)),
        ("session_count", _) => Scalar::Int(session.len() as i64),
        ("session_sum", _) => return aggregate("sum", &all[open..]),
        ("session_duration", _) => session.last().map_or(Scalar::Null, |last| seconds(session[0].0, last.0)),
        ("first_k", _) => list(all[..all.len().min(parameter as usize)].to_vec()),
        ("last_k", _) => list(all[all.len().saturating_sub(parameter as usize)..].to_vec()),
        ("top_k" | "bottom_k", _) => {
            // the extreme of what is left, one after the other
            let (mut left, mut picked) = (all, Vec::new());
            while !left.is_empty() && picked.len() < parameter as usize {
                let wanted = if name == "top_k" { Ordering::Greater } else { Ordering::Less };
                let best = extreme(&left, wanted);
                left.remove(left.iter().position(|x| same(x, &best) && bits(x) == bits(&best)).unwrap_or(0));
                picked.push(best);
            }
            list(picked)
        }
        ("histogram", [_, ..]) => {
            let mut categories: Vec<Scalar> = Vec::new();
            for value in &all {
                if !categories.contains(value) {
                    categories.push(value.clone());
                }
            }
            categories.sort_by(|a, b| match (a, b) {
                (Scalar::Int(a), Scalar::Int(b)) => a.cmp(b),
                (Scalar::Bool(a), Scalar::Bool(b)) => a.cmp(b),
                (Scalar::Text(a), Scalar::Text(b)) => a.cmp(b),
                _ => Ordering::Equal,
            });
            let text = |value: &Scalar| match value {
                Scalar::Int(x) => format!("{x}"),
                Scalar::Bool(x) => format!("{x}"),
                Scalar::Text(x) => x.to_string(),
                other => format!("{other:?}"),
            };
            let count = |value: &Scalar| all.iter().filter(|other| *other == value).count() as i64;
            Scalar::Counts(categories.iter().map(|value| (text(value).into(), count(value))).collect())
        }
        (_, timed) if name.ends_with("_last_k") => {
            let from = timed.len().saturating_sub(parameter as usize);
            return aggregate(name.trim_end_matches("_last_k"), &all[from..]);
        }
        ("approx_percentile" | "median", [_, ..]) => {
            let mut sorted: Vec<f64> = all.iter().filter_map(number).collect();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())));
            Scalar::Float(sorted[(parameter * (sorted.len() - 1) as f64).floor() as usize])
        }
        _ => return aggregate(name, &all),
    };
    (value, false)
}

fn number(value: &Scalar) -> Option<f64> {
    match value {
        Scalar::Float(x) => Some(*x),
        Scalar::Int(x) => Some(*x as f64),
        _ => None,
    }
}

fn list(values: Vec<Scalar>) -> Scalar {
    if values.is_empty() { Scalar::Null } else { Scalar::List(values.into()) }
}

/// NaN is like NaN, and zeros of both signs are alike.
fn same(a: &Scalar, b: &Scalar) -> bool {
    a == b || matches!((a, b), (Scalar::Float(a), Scalar::Float(b)) if a.is_nan() && b.is_nan())
}

/// Tells zeros apart, but not one NaN from another.
fn bits(value: &Scalar) -> Option<bool> {
    if let Scalar::Float(x) = value { Some(x.is_sign_negative() && !x.is_nan()) } else { None }
}

/// How many values differ.
fn distinct(values: &[Scalar]) -> usize {
    (0..values.len()).filter(|&i| !values[..i].iter().any(|known| same(known, &values[i]))).count()
}

/// Skewness or excess kurtosis of a sample, in two passes.
fn shape(values: &[f64], power: i32) -> Scalar {
    let n = values.len() as f64;
    if values.len() < power as usize {
        return Scalar::Null;
    }
    let mean = exact_sum(values) / n;
    let central = |p: i32| exact_sum(&values.iter().map(|x| (x - mean).powi(p)).collect::<Vec<f64>>());
    let deviation = (central(2) / (n - 1.0)).sqrt();
    if values.iter().all(|x| x.partial_cmp(&values[0]) == Some(Ordering::Equal) && x.is_finite()) {
        return Scalar::Float(0.0);
    }
    let moment = central(power) / deviation.powi(power);
    Scalar::Float(if power == 3 {
        moment * n / ((n - 1.0) * (n - 2.0))
    } else {
        moment * n * (n + 1.0) / ((n - 1.0) * (n - 2.0) * (n - 3.0))
            - 3.0 * (n - 1.0) * (n - 1.0) / ((n - 2.0) * (n - 3.0))
    })
}

fn aggregate(function: &str, values: &[Scalar]) -> (Scalar, bool) {
    let floats: Vec<f64> = values.iter().filter_map(number).collect();
    let integers: Option<i128> =
        values.iter().map(|value| if let Scalar::Int(x) = value { Some(i128::from(*x)) } else { None }).sum();
    let n = floats.len() as f64;
    let value = match function {
        "count" => Scalar::Int(values.len() as i64),
        "count_distinct" | "approx_count_distinct" => Scalar::Int(distinct(values) as i64),
        _ if values.is_empty() => Scalar::Null,
        "sum" => match integers {
            Some(sum) if sum > i128::from(i64::MAX) => return (Scalar::Int(i64::MAX), true),
            Some(sum) if sum < i128::from(i64::MIN) => return (Scalar::Int(i64::MIN), true),
            Some(sum) => Scalar::Int(sum as i64),
            None => Scalar::Float(exact_sum(&floats)),
        },
        "mean" | "avg" => Scalar::Float(integers.map_or_else(|| exact_sum(&floats), |sum| sum as f64) / n),
        "min" => extreme(values, Ordering::Less),
        "max" => extreme(values, Ordering::Greater),
        "var" | "stddev" if floats.len() < 2 => Scalar::Null,
        "var" => Scalar::Float(variance(&floats)),
        "stddev" => Scalar::Float(variance(&floats).sqrt()),
        "skew" => shape(&floats, 3),
        "kurtosis" => shape(&floats, 4),
        "first" => values[0].clone(),
        "last" => values[values.len() - 1].clone(),
        _ => Scalar::Null,
    };
    (value, false)
}

fn extreme(values: &[Scalar], wanted: Ordering) -> Scalar {
    let mut best = &values[0];
    for value in &values[1..] {
        let order = match (value, best) {
            (Scalar::Float(a), Scalar::Float(b)) if a.is_nan() || b.is_nan() => a.is_nan().cmp(&b.is_nan()),
            (Scalar::Float(a), Scalar::Float(b)) if *a == 0.0 && *b == 0.0 => {
                b.is_sign_negative().cmp(&a.is_sign_negative())
            }
            (Scalar::Float(a), Scalar::Float(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            (Scalar::Int(a), Scalar::Int(b)) => a.cmp(b),
            (Scalar::Bool(a), Scalar::Bool(b)) => a.cmp(b),
            (Scalar::Text(a), Scalar::Text(b)) => a.cmp(b),
            (Scalar::Bytes(a), Scalar::Bytes(b)) => a.cmp(b),
            _ => Ordering::Equal,
        };
        if order == wanted {
            best = value;
        }
    }
    best.clone()
}

/// Two passes, with the correction for the rounding of the mean.
fn variance(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = exact_sum(values) / n;
    let deviations: Vec<f64> = values.iter().map(|x| x - mean).collect();
    let squares: Vec<f64> = deviations.iter().map(|d| d * d).collect();
    let drift = exact_sum(&deviations);
    (exact_sum(&squares) - drift * drift / n) / (n - 1.0)
}

/// The sum without rounding until the end, by a growing list of parts that do not overlap
/// (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997). IEEE rules where a value is
/// not finite.
fn exact_sum(values: &[f64]) -> f64 {
    if values.iter().any(|x| !x.is_finite()) {
        return values.iter().filter(|x| !x.is_finite()).sum();
    }
    let mut parts: Vec<f64> = Vec::new();
    for &value in values {
        let mut x = value;
        let mut kept = Vec::with_capacity(parts.len() + 1);
        for &part in &parts {
            let (big, small) = if x.abs() < part.abs() { (part, x) } else { (x, part) };
            let high = big + small;
            let low = small - (high - big);
            if low != 0.0 {
                kept.push(low);
            }
            x = high;
        }
        kept.push(x);
        parts = kept;
    }
    parts.iter().sum()
}
