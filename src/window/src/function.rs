//! The aggregation functions: their names, what they take and give, and how a result is made of
//! what a window's tiles hold. Knows no time and no storage.

use crate::compensated::Compensated;
use crate::error::Error;
use crate::partial::{Partial, PartialKind};
use crate::scalar::{ColumnType, Scalar};

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
}

/// Every name that a definition may use.
const NAMES: [(&str, Function); 10] = [
    ("count", Function::Count),
    ("sum", Function::Sum),
    ("mean", Function::Mean),
    ("avg", Function::Mean),
    ("min", Function::Min),
    ("max", Function::Max),
    ("var", Function::Var),
    ("stddev", Function::Stddev),
    ("first", Function::First),
    ("last", Function::Last),
];

impl Function {
    /// Reads a function as the user writes it: a name, and parameters in parentheses where it
    /// takes any, as in `mean_last_k(10)`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, parameters) = split(text)?;
        let Some(&(_, function)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let supported = NAMES.map(|(known, _)| known).join(", ");
            return Err(Error::UnknownFunction { function: text.to_owned(), supported });
        };
        if !parameters.is_empty() {
            return Err(Error::FunctionParameters {
                function: text.to_owned(),
                reason: format!("it takes no parameters: write `{name}`"),
            });
        }
        Ok(function)
    }

    /// The type of the result over a column (`None`: over events), or why there is none.
    pub(crate) fn output(self, column: Option<ColumnType>) -> Result<ColumnType, &'static str> {
        use ColumnType::{Float, Int, Other};
        match (self, column) {
            (Self::Count, _) => Ok(Int),
            (Self::Sum, Some(ty @ (Int | Float))) => Ok(ty),
            (Self::Mean | Self::Var | Self::Stddev, Some(Int | Float)) => Ok(Float),
            (Self::Sum | Self::Mean | Self::Var | Self::Stddev, _) => Err("Int or Float"),
            (Self::Min | Self::Max | Self::First | Self::Last, Some(ty)) if ty != Other => Ok(ty),
            _ => Err("any type but lists, maps and structs"),
        }
    }

    /// What the tiles must hold for it, in the order in which [`Self::finish`] wants it.
    pub(crate) fn needs(self) -> &'static [PartialKind] {
        use PartialKind::{Count, First, Last, Max, Min, Squares, Sum};
        match self {
            Self::Count => &[Count],
            Self::Sum | Self::Mean => &[Count, Sum],
            Self::Min => &[Min],
            Self::Max => &[Max],
            Self::Var | Self::Stddev => &[Count, Sum, Squares],
            Self::First => &[First],
            Self::Last => &[Last],
        }
    }

    /// The result, and whether it had to be clamped to 64 bits.
    pub(crate) fn finish(self, parts: &[&Partial]) -> (Scalar, bool) {
        let value = match (self, parts) {
            (Self::Count, [Partial::Count(n)]) => return clamp(i128::from(*n)),
            (Self::Sum | Self::Mean, [Partial::Count(0), _])
            | (Self::Var | Self::Stddev, [Partial::Count(0 | 1), ..]) => Scalar::Null,
            (Self::Sum, [_, Partial::SumInt(sum)]) => return clamp(*sum),
            (Self::Sum, [_, Partial::SumFloat(sum)]) => Scalar::Float(sum.value()),
            (Self::Mean, [Partial::Count(n), sum]) => Scalar::Float(total(sum).mean(*n)),
            (Self::Min, [Partial::Min(value)]) | (Self::Max, [Partial::Max(value)]) => value.clone(),
            (Self::Var | Self::Stddev, [Partial::Count(n), sum, squares]) => {
                let n = *n as f64;
                let variance = total(squares).minus_square_over(total(sum), n) / (n - 1.0);
                Scalar::Float(if self == Self::Var { variance } else { variance.sqrt() })
            }
            (Self::First, [Partial::First(found)]) | (Self::Last, [Partial::Last(found)]) => {
                found.as_ref().map_or(Scalar::Null, |(_, value)| value.clone())
            }
            // `needs` and `finish` stand side by side: no other pair is ever asked for
            _ => Scalar::Null,
        };
        (value, false)
    }
}

fn total(part: &Partial) -> Compensated {
    match part {
        Partial::SumInt(sum) => Compensated::from_i128(*sum),
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
        for (name, function) in NAMES {
            assert_eq!(Function::parse(name), Ok(function));
        }
        assert_eq!(Function::parse(" avg "), Ok(Function::Mean));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_list() {
        for text in ["mean_last_k(10)", "SUM", "", "foo"] {
            let error = Function::parse(text).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::UnknownFunction { .. }), "{text}");
            assert!(message.contains(&format!("`{text}`")) && message.contains("count, sum, mean, avg, min, max"));
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
