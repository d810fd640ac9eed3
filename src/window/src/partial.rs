//! What one tile keeps of one column for one purpose: it takes values one by one and merges with
//! its like. Knows no windows and no functions' names.

use std::cmp::Ordering;

use crate::compensated::Compensated;
use crate::scalar::{ColumnType, Scalar};

/// What a partial result is of. The discriminants are part of the fingerprint: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PartialKind {
    Count = 0,
    Sum = 1,
    Squares = 2,
    Min = 3,
    Max = 4,
    First = 5,
    Last = 6,
}

/// A partial result. `min` and `max` of no value are `Null`; `first` and `last` carry their time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Partial {
    Count(u64),
    SumInt(i128),
    SumFloat(Compensated),
    Squares(Compensated),
    Min(Scalar),
    Max(Scalar),
    First(Option<(i64, Scalar)>),
    Last(Option<(i64, Scalar)>),
}

impl Partial {
    /// Of no value.
    pub(crate) fn empty(kind: PartialKind, column: ColumnType) -> Self {
        match (kind, column) {
            (PartialKind::Count, _) => Self::Count(0),
            (PartialKind::Sum, ColumnType::Float) => Self::SumFloat(Compensated::default()),
            (PartialKind::Sum, _) => Self::SumInt(0),
            (PartialKind::Squares, _) => Self::Squares(Compensated::default()),
            (PartialKind::Min, _) => Self::Min(Scalar::Null),
            (PartialKind::Max, _) => Self::Max(Scalar::Null),
            (PartialKind::First, _) => Self::First(None),
            (PartialKind::Last, _) => Self::Last(None),
        }
    }

    /// Takes a value that is not null. Values of equal timestamp must come in arrival order.
    pub(crate) fn add(&mut self, ts_us: i64, value: &Scalar) {
        match self {
            Self::Count(n) => *n = n.saturating_add(1),
            Self::SumInt(sum) => {
                if let Scalar::Int(x) = value {
                    *sum = sum.saturating_add(i128::from(*x));
                }
            }
            Self::SumFloat(sum) => match value {
                Scalar::Float(x) => sum.add(*x),
                Scalar::Int(x) => sum.add(*x as f64),
                _ => {}
            },
            Self::Squares(sum) => match value {
                Scalar::Float(x) => sum.add_square(*x),
                Scalar::Int(x) => {
                    sum.merge(Compensated::from_i128(i128::from(*x) * i128::from(*x)));
                }
                _ => {}
            },
            Self::Min(best) => replace(best, value, Ordering::Less),
            Self::Max(best) => replace(best, value, Ordering::Greater),
            Self::First(found) => {
                if found.as_ref().is_none_or(|(at, _)| ts_us < *at) {
                    *found = Some((ts_us, value.clone()));
                }
            }
            Self::Last(found) => {
                if found.as_ref().is_none_or(|(at, _)| ts_us >= *at) {
                    *found = Some((ts_us, value.clone()));
                }
            }
        }
    }

    /// Takes what another of the same kind holds. Equal timestamps are never in two tiles.
    pub(crate) fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(n), Self::Count(m)) => *n = n.saturating_add(*m),
            (Self::SumInt(sum), Self::SumInt(x)) => *sum = sum.saturating_add(*x),
            (Self::SumFloat(sum), Self::SumFloat(x)) | (Self::Squares(sum), Self::Squares(x)) => {
                sum.merge(*x);
            }
            (this @ (Self::Min(_) | Self::Max(_)), Self::Min(x) | Self::Max(x)) if !x.is_null() => {
                this.add(0, x);
            }
            (this @ (Self::First(_) | Self::Last(_)), Self::First(Some((ts_us, x))) | Self::Last(Some((ts_us, x)))) => {
                this.add(*ts_us, x);
            }
            _ => {}
        }
    }
}

fn replace(best: &mut Scalar, value: &Scalar, when: Ordering) {
    if best.is_null() || value.order(best) == when {
        *best = value.clone();
    }
}
