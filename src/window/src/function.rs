//! The aggregation functions: their names, what they take and give, and how a result is made of
//! what a window's tiles hold. Knows no time and no storage.

use std::sync::Arc;

use crate::compensated::Compensated;
use crate::error::Error;
use crate::partial::{Partial, PartialKind};
use crate::scalar::{ColumnType, Output, Scalar};
use crate::sketch;
use crate::timed::Recent;

/// An aggregation function. More of them will come: match with a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Function {
    /// Values that are not null; events if there is no column.
    Count,
    /// Sum of numbers, of the column's type.
    Sum,
    /// Mean of numbers; `avg` is the same.
    Mean,
    /// The least value.
    Min,
    /// The greatest value.
    Max,
    /// Variance of the sample.
    Var,
    /// Standard deviation of the sample.
    Stddev,
    /// The value of the earliest event that has one.
    First,
    /// The value of the latest event that has one.
    Last,
    /// Skewness of the sample.
    Skew,
    /// Excess kurtosis of the sample.
    Kurtosis,
    /// Seconds since the latest value.
    SecondsSinceLast,
    /// Seconds since the earliest value.
    SecondsSinceFirst,
    /// Sum of numbers that halves in so many microseconds.
    DecayedSum(i64),
    /// Count that halves in so many microseconds.
    DecayedCount(i64),
    /// Values of the open session, whose gaps are at most so many microseconds.
    SessionCount(i64),
    /// Sum of the open session.
    SessionSum(i64),
    /// Seconds from the first to the last value of the open session.
    SessionDuration(i64),
    /// Sum of the last so many numbers.
    SumLastK(i64),
    /// Mean of the last so many numbers.
    MeanLastK(i64),
    /// The least of the last so many values.
    MinLastK(i64),
    /// The greatest of the last so many values.
    MaxLastK(i64),
    /// The first so many values.
    FirstK(i64),
    /// The last so many values.
    LastK(i64),
    /// The greatest so many values.
    TopK(i64),
    /// The least so many values.
    BottomK(i64),
    /// How often each category was seen.
    Histogram,
    /// How many different values, exactly.
    CountDistinct,
    /// How many different values, about.
    ApproxCountDistinct,
    /// The value below which a part of all lie, within 1 %: the bits of that part, 0 to 1, as a double.
    ApproxPercentile(u64),
}

/// What a definition writes in parentheses, and how a function is made of it.
#[derive(Clone, Copy)]
enum Takes {
    Nothing(Function),
    Seconds(fn(i64) -> Function),
    Number(fn(i64) -> Function),
    Fraction(fn(u64) -> Function),
}

/// Every name that a definition may use.
const NAMES: [(&str, Takes); 32] = {
    use Takes::{Fraction, Nothing, Number, Seconds};
    [
        ("count", Nothing(Function::Count)),
        ("sum", Nothing(Function::Sum)),
        ("mean", Nothing(Function::Mean)),
        ("avg", Nothing(Function::Mean)),
        ("min", Nothing(Function::Min)),
        ("max", Nothing(Function::Max)),
        ("var", Nothing(Function::Var)),
        ("stddev", Nothing(Function::Stddev)),
        ("first", Nothing(Function::First)),
        ("last", Nothing(Function::Last)),
        ("skew", Nothing(Function::Skew)),
        ("kurtosis", Nothing(Function::Kurtosis)),
        ("seconds_since_last", Nothing(Function::SecondsSinceLast)),
        ("seconds_since_first", Nothing(Function::SecondsSinceFirst)),
        ("decayed_sum", Seconds(Function::DecayedSum)),
        ("decayed_count", Seconds(Function::DecayedCount)),
        ("session_count", Seconds(Function::SessionCount)),
        ("session_sum", Seconds(Function::SessionSum)),
        ("session_duration", Seconds(Function::SessionDuration)),
        ("sum_last_k", Number(Function::SumLastK)),
        ("mean_last_k", Number(Function::MeanLastK)),
        ("min_last_k", Number(Function::MinLastK)),
        ("max_last_k", Number(Function::MaxLastK)),
        ("first_k", Number(Function::FirstK)),
        ("last_k", Number(Function::LastK)),
        ("top_k", Number(Function::TopK)),
        ("bottom_k", Number(Function::BottomK)),
        ("histogram", Nothing(Function::Histogram)),
        ("count_distinct", Nothing(Function::CountDistinct)),
        ("approx_count_distinct", Nothing(Function::ApproxCountDistinct)),
        ("approx_percentile", Fraction(Function::ApproxPercentile)),
        ("median", Nothing(Function::ApproxPercentile(0.5f64.to_bits()))),
    ]
};

/// How many values `…_k` may keep per tile.
const MOST_KEPT: i64 = 10_000;

impl Function {
    /// Reads a function as the user writes it: a name, and parameters in parentheses where it
    /// takes any, as in `mean_last_k(10)`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, parameters) = split(text)?;
        let Some(&(_, takes)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let supported = NAMES.map(|(known, _)| known).join(", ");
            return Err(Error::UnknownFunction { function: text.to_owned(), supported });
        };
        let refuse = |reason: String| Err(Error::FunctionParameters { function: text.to_owned(), reason });
        match (takes, parameters.as_slice()) {
            (Takes::Nothing(function), []) => Ok(function),
            (Takes::Nothing(_), _) => refuse(format!("it takes no parameters: write `{name}`")),
            (Takes::Seconds(make), [seconds]) => match seconds.parse::<f64>().map(|s| (s * 1e6).round()) {
                Ok(us) if (1.0..=9e18).contains(&us) => Ok(make(us as i64)),
                _ => refuse(format!("`{seconds}` is no number of seconds above 0: write `{name}(3600)`")),
            },
            (Takes::Number(make), [number]) => match number.parse::<i64>() {
                Ok(k) if (1..=MOST_KEPT).contains(&k) => Ok(make(k)),
                _ => refuse(format!("`{number}` is no whole number from 1 to {MOST_KEPT}: write `{name}(10)`")),
            },
            (Takes::Fraction(make), [part]) => match part.parse::<f64>() {
                Ok(p) if (0.0..=1.0).contains(&p) => Ok(make((p + 0.0).to_bits())),
                _ => refuse(format!("`{part}` is no number from 0 to 1: write `{name}(0.95)`")),
            },
            (Takes::Seconds(_), _) => refuse(format!("it takes one parameter, seconds: write `{name}(3600)`")),
            (Takes::Number(_), _) => refuse(format!("it takes one parameter, how many: write `{name}(10)`")),
            (Takes::Fraction(_), _) => refuse(format!("it takes one parameter, from 0 to 1: write `{name}(0.95)`")),
        }
    }

    /// Whether it works on events, without a column.
    pub(crate) fn takes_events(self) -> bool {
        matches!(
            self,
            Self::Count
                | Self::SecondsSinceLast
                | Self::SecondsSinceFirst
                | Self::DecayedCount(_)
                | Self::SessionCount(_)
                | Self::SessionDuration(_)
        )
    }

    /// The type of the result over a column (`None`: over events), or why there is none.
    pub(crate) fn output(self, column: Option<ColumnType>) -> Result<Output, &'static str> {
        use ColumnType::{Bool, Float, Int, Other, Text};
        match (self, column) {
            (Self::FirstK(_) | Self::LastK(_) | Self::TopK(_) | Self::BottomK(_), Some(ty)) if ty != Other => {
                return Ok(Output::List(ty));
            }
            (Self::Histogram, Some(Text | Int | Bool)) => return Ok(Output::Counts),
            (Self::Histogram, _) => return Err("Text, Int or Bool"),
            _ => {}
        }
        match (self, column) {
            (Self::Count | Self::SessionCount(_), _) => Ok(Int),
            (Self::Sum | Self::SumLastK(_) | Self::SessionSum(_), Some(ty @ (Int | Float))) => Ok(ty),
            (
                Self::Mean
                | Self::Var
                | Self::Stddev
                | Self::Skew
                | Self::Kurtosis
                | Self::DecayedSum(_)
                | Self::MeanLastK(_)
                | Self::ApproxPercentile(_),
                Some(Int | Float),
            )
            | (
                Self::SecondsSinceLast | Self::SecondsSinceFirst | Self::DecayedCount(_) | Self::SessionDuration(_),
                _,
            ) => Ok(Float),
            (Self::Min | Self::Max | Self::First | Self::Last | Self::MinLastK(_) | Self::MaxLastK(_), Some(ty))
                if ty != Other =>
            {
                Ok(ty)
            }
            (Self::CountDistinct | Self::ApproxCountDistinct, Some(ty)) if ty != Other => Ok(Int),
            (
                Self::Min
                | Self::Max
                | Self::First
                | Self::Last
                | Self::MinLastK(_)
                | Self::MaxLastK(_)
                | Self::FirstK(_)
                | Self::LastK(_)
                | Self::TopK(_)
                | Self::BottomK(_)
                | Self::CountDistinct
                | Self::ApproxCountDistinct,
                _,
            ) => Err("any type but lists, maps and structs"),
            _ => Err("Int or Float"),
        }
        .map(Output::One)
    }

    /// What the tiles must hold for it, with parameters, in the order in which [`Self::finish`]
    /// wants it.
    pub(crate) fn needs(self) -> Vec<(PartialKind, i64)> {
        use PartialKind as K;
        let plain = |kinds: &[K]| kinds.iter().map(|kind| (*kind, 0)).collect();
        match self {
            Self::Count => plain(&[K::Count]),
            Self::Sum | Self::Mean => plain(&[K::Count, K::Sum]),
            Self::Min => plain(&[K::Min]),
            Self::Max => plain(&[K::Max]),
            Self::Var | Self::Stddev => plain(&[K::Count, K::Sum, K::Squares]),
            Self::First => plain(&[K::First]),
            Self::Last => plain(&[K::Last]),
            Self::Skew | Self::Kurtosis => plain(&[K::Moments]),
            Self::SecondsSinceLast => plain(&[K::Latest]),
            Self::SecondsSinceFirst => plain(&[K::Earliest]),
            Self::DecayedSum(us) => vec![(K::DecayedSum, us)],
            Self::DecayedCount(us) => vec![(K::DecayedCount, us)],
            Self::SessionCount(us) | Self::SessionSum(us) | Self::SessionDuration(us) => vec![(K::Sessions, us)],
            Self::SumLastK(k) | Self::MeanLastK(k) | Self::MinLastK(k) | Self::MaxLastK(k) | Self::LastK(k) => {
                vec![(K::Recent, k)]
            }
            Self::FirstK(k) => vec![(K::Firsts, k)],
            Self::TopK(k) => vec![(K::Top, k)],
            Self::BottomK(k) => vec![(K::Bottom, k)],
            Self::Histogram => plain(&[K::Histogram]),
            Self::CountDistinct => plain(&[K::Distinct]),
            Self::ApproxCountDistinct => plain(&[K::Registers]),
            Self::ApproxPercentile(_) => plain(&[K::Buckets]),
        }
    }

    /// The result at `t_us`, and whether it had to be clamped to 64 bits.
    pub(crate) fn finish(self, parts: &[&Partial], t_us: i64) -> (Scalar, bool) {
        let float = |x: Option<f64>| x.map_or(Scalar::Null, Scalar::Float);
        let value = match (self, parts) {
            (Self::Count, [Partial::Count(n)]) | (Self::CountDistinct, [Partial::Distinct(n)]) => {
                return clamp(i128::from(*n));
            }
            (Self::Sum | Self::Mean, [Partial::Count(0), _])
            | (Self::Var | Self::Stddev, [Partial::Count(0 | 1), ..]) => Scalar::Null,
            (Self::Sum, [_, sum]) => return summed(sum),
            (Self::Mean, [Partial::Count(n), sum]) => Scalar::Float(total(sum).mean(*n)),
            (Self::Min, [Partial::Min(value)]) | (Self::Max, [Partial::Max(value)]) => value.clone(),
            (Self::Var | Self::Stddev, [Partial::Count(n), sum, squares]) => {
                let n = *n as f64;
                let variance = total(squares).minus_square_over(total(sum), n) / (n - 1.0);
                Scalar::Float(if self == Self::Var { variance } else { variance.sqrt() })
            }
            (Self::First, [Partial::First(found)]) | (Self::Last, [Partial::Last(found)]) => {
                found.as_ref().map_or(Scalar::Null, |kept| kept.1.clone())
            }
            (Self::Skew, [Partial::Moments(moments)]) => float(moments.skew()),
            (Self::Kurtosis, [Partial::Moments(moments)]) => float(moments.kurtosis()),
            (Self::SecondsSinceLast, [Partial::Latest(found)])
            | (Self::SecondsSinceFirst, [Partial::Earliest(found)]) => float(found.map(|at| seconds(at, t_us))),
            (Self::DecayedSum(_), [Partial::DecayedSum(sum)]) => float(sum.block.map(|_| sum.at(t_us))),
            (Self::DecayedCount(_), [Partial::DecayedCount(sum)]) => Scalar::Float(sum.at(t_us)),
            (Self::SessionCount(_), [Partial::Sessions(all)]) => {
                return clamp(all.open(t_us).map_or(0, |session| i128::from(session.count)));
            }
            (Self::SessionSum(_), [Partial::Sessions(all)]) => match all.open(t_us) {
                Some(session) => return summed(&session.sum),
                None => Scalar::Null,
            },
            (Self::SessionDuration(_), [Partial::Sessions(all)]) => {
                float(all.open(t_us).map(|session| seconds(session.start_us, session.end_us)))
            }
            (Self::FirstK(_), [Partial::Firsts(kept)]) | (Self::LastK(_), [Partial::Recent(kept)]) => {
                list(kept.values.iter().map(|(_, value)| value))
            }
            (Self::TopK(_) | Self::BottomK(_), [Partial::Ranked(ranked)]) => list(ranked.values.iter()),
            (Self::Histogram, [Partial::Histogram(counts)]) if counts.is_empty() => Scalar::Null,
            (Self::Histogram, [Partial::Histogram(counts)]) => {
                let named =
                    counts.iter().map(|(category, n)| (name_of(category), i64::try_from(*n).unwrap_or(i64::MAX)));
                Scalar::Counts(named.collect())
            }
            (_, [Partial::Recent(recent)]) => return self.of_recent(recent),
            (Self::ApproxCountDistinct, [Partial::Registers(registers)]) => Scalar::Int(sketch::estimate(registers)),
            (Self::ApproxPercentile(p), [Partial::Buckets(buckets)]) => {
                float(sketch::percentile(buckets, f64::from_bits(p)))
            }
            // `needs` and `finish` stand side by side: no other pair is ever asked for
            _ => Scalar::Null,
        };
        (value, false)
    }

    /// The function of the last values alone, by the same partial results as that of a window.
    fn of_recent(self, recent: &Recent) -> (Scalar, bool) {
        let whole = match self {
            Self::SumLastK(_) => Self::Sum,
            Self::MeanLastK(_) => Self::Mean,
            Self::MinLastK(_) => Self::Min,
            _ => Self::Max,
        };
        let floats = recent.values.iter().any(|(_, value)| matches!(value, Scalar::Float(_)));
        let ty = if floats { ColumnType::Float } else { ColumnType::Int };
        let parts: Vec<Partial> = whole
            .needs()
            .into_iter()
            .map(|(kind, parameter)| {
                let mut partial = Partial::empty(kind, parameter, ty);
                recent.values.iter().for_each(|(ts_us, value)| partial.add(*ts_us, value));
                partial
            })
            .collect();
        whole.finish(&parts.iter().collect::<Vec<_>>(), 0)
    }
}

/// A list; null where nothing is in it.
fn list<'a>(values: impl ExactSizeIterator<Item = &'a Scalar>) -> Scalar {
    if values.len() == 0 { Scalar::Null } else { Scalar::List(values.cloned().collect()) }
}

/// A category's text.
fn name_of(category: &Scalar) -> Arc<str> {
    match category {
        Scalar::Text(text) => Arc::clone(text),
        Scalar::Int(number) => number.to_string().into(),
        Scalar::Bool(flag) => flag.to_string().into(),
        // no other type is taken
        _ => "".into(),
    }
}

fn seconds(from_us: i64, to_us: i64) -> f64 {
    (i128::from(to_us) - i128::from(from_us)) as f64 / 1e6
}

fn summed(part: &Partial) -> (Scalar, bool) {
    match part {
        Partial::SumInt(sum) => clamp(sum.get()),
        other => (Scalar::Float(total(other).value()), false),
    }
}

fn total(part: &Partial) -> Compensated {
    match part {
        Partial::SumInt(sum) => Compensated::from_i128(sum.get()),
        Partial::SumFloat(sum) | Partial::Squares(sum) => *sum,
        _ => Compensated::default(),
    }
}

fn clamp(exact: i128) -> (Scalar, bool) {
    match i64::try_from(exact) {
        Ok(value) => (Scalar::Int(value), false),
        Err(_) => (Scalar::Int(if exact > 0 { i64::MAX } else { i64::MIN }), true),
    }
}

/// Name and parameters of `name` or `name(a, b)`.
fn split(text: &str) -> Result<(&str, Vec<&str>), Error> {
    let text = text.trim();
    let Some((name, rest)) = text.split_once('(') else {
        return Ok((text, Vec::new()));
    };
    let malformed = |reason: &str| Error::FunctionParameters {
        function: text.to_owned(),
        reason: format!("{reason}: write parameters as in `mean_last_k(10)`"),
    };
    let inner = rest.strip_suffix(')').ok_or_else(|| malformed("the parenthesis is not closed"))?;
    let parameters: Vec<&str> = inner.split(',').map(str::trim).collect();
    if inner.contains(['(', ')']) || parameters.iter().any(|p| p.is_empty()) {
        return Err(malformed("the parameters cannot be read"));
    }
    Ok((name.trim_end(), parameters))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_and_the_alias_are_read() {
        for (name, takes) in NAMES {
            let (text, want) = match takes {
                Takes::Nothing(function) => (name.to_owned(), function),
                Takes::Seconds(make) => (format!("{name}(1.5)"), make(1_500_000)),
                Takes::Number(make) => (format!("{name}( 7 )"), make(7)),
                Takes::Fraction(make) => (format!("{name}(0.25)"), make(0.25f64.to_bits())),
            };
            assert_eq!(Function::parse(&text), Ok(want));
        }
        assert_eq!(Function::parse(" avg "), Ok(Function::Mean));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_list() {
        for text in ["mean_last(10)", "SUM", "", "foo"] {
            let error = Function::parse(text).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::UnknownFunction { .. }), "{text}");
            assert!(message.contains(&format!("`{text}`")) && message.contains("count, sum, mean, avg, min, max"));
        }
    }

    #[test]
    fn parameters_that_cannot_be_are_refused() {
        for text in [
            "sum_last_k",
            "sum_last_k(0)",
            "sum_last_k(-1)",
            "sum_last_k(1.5)",
            "sum_last_k(10001)",
            "sum_last_k(1, 2)",
            "decayed_sum",
            "decayed_sum(0)",
            "decayed_sum(-3)",
            "decayed_count(nan)",
            "session_sum(1e300)",
            "session_count(an hour)",
            "approx_percentile",
            "approx_percentile(2)",
            "approx_percentile(-0.1)",
            "approx_percentile(NaN)",
        ] {
            let error = Function::parse(text).unwrap_err();
            assert!(matches!(error, Error::FunctionParameters { .. }), "{text}: {error}");
            assert!(error.to_string().contains(": write `"), "{error}");
        }
    }

    #[test]
    fn parameters_are_read_and_refused_where_none_are_taken() {
        assert_eq!(split("f( 1 ,2)"), Ok(("f", vec!["1", "2"])));
        for text in ["sum(3)", "sum(", "sum()", "sum(1", "sum(1))", "sum(1,)", "sum(1)x"] {
            let error = Function::parse(text).unwrap_err();
            assert!(matches!(error, Error::FunctionParameters { .. }), "{text}: {error}");
        }
    }
}
