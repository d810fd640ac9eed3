//! What one tile keeps of one column for one purpose: it takes values one by one and merges with
//! its like. Knows no windows and no functions' names.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::compensated::Compensated;
use crate::moments::Moments;
use crate::ranked::{self, Ranked};
use crate::scalar::{ColumnType, Scalar};
use crate::sketch::{self, Register};
use crate::timed::{Decay, Recent, Sessions};

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
    Earliest = 7,
    Latest = 8,
    Moments = 9,
    DecayedSum = 10,
    DecayedCount = 11,
    Sessions = 12,
    Recent = 13,
    Distinct = 14,
    Registers = 15,
    Buckets = 16,
    Firsts = 17,
    Top = 18,
    Bottom = 19,
    Histogram = 20,
}

impl PartialKind {
    /// Whether blocks of tiles have it: not where a read looks at the ends of its window alone, or at every tile.
    pub(crate) fn in_blocks(self) -> bool {
        use PartialKind as K;
        !matches!(
            self,
            K::First | K::Last | K::Earliest | K::Latest | K::Recent | K::Firsts | K::Distinct | K::Registers
        )
    }

    /// Whether what is merged can be taken out again, to the last bit.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::Buckets | Self::Histogram)
    }

    /// Several of this kind, ascending in time, as one; `empty` is one of no value.
    pub(crate) fn merged(self, empty: &Partial, parts: &[Cow<'_, Partial>]) -> Partial {
        if self == Self::Buckets {
            return Partial::Buckets(sketch::totals(parts.iter().map(|part| part.buckets())));
        }
        if let Partial::Ranked(empty) = empty {
            let lists =
                parts.iter().filter_map(|part| if let Partial::Ranked(list) = &**part { Some(&**list) } else { None });
            return Partial::Ranked(Box::new(Ranked::of(empty, lists)));
        }
        let mut merged = empty.clone();
        for part in parts {
            merged.merge(part);
        }
        merged
    }
}

/// A sum of integers: an `i128` in two parts, so that a partial result needs no more than the alignment of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Whole {
    high: i64,
    low: u64,
}

impl Whole {
    pub(crate) fn new(sum: i128) -> Self {
        Self { high: (sum >> 64) as i64, low: sum as u64 }
    }

    pub(crate) fn get(self) -> i128 {
        i128::from(self.high) << 64 | i128::from(self.low)
    }
}

/// A partial result. `min` and `max` of no value are `Null`; `first` and `last` carry their time.
///
/// Many are kept, of the simple kinds most: it is four words, and what needs more stands elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Partial {
    Count(u64),
    SumInt(Whole),
    SumFloat(Compensated),
    Squares(Compensated),
    Min(Scalar),
    Max(Scalar),
    First(Option<Box<(i64, Scalar)>>),
    Last(Option<Box<(i64, Scalar)>>),
    Earliest(Option<i64>),
    Latest(Option<i64>),
    Moments(Box<Moments>),
    DecayedSum(Box<Decay>),
    DecayedCount(Box<Decay>),
    Sessions(Box<Sessions>),
    Recent(Box<Recent>),
    /// How many values were seen in this tile and in no later one: [`crate::tiles::Tiles`] knows which.
    Distinct(u64),
    /// Register and rank, sorted.
    Registers(Vec<Register>),
    /// Bucket and count, sorted.
    Buckets(Vec<(i32, u64)>),
    /// The first values.
    Firsts(Box<Recent>),
    /// The greatest values, or the least.
    Ranked(Box<Ranked>),
    /// Category and count, sorted.
    Histogram(Vec<(Scalar, u64)>),
}

impl Partial {
    /// Of no value. The parameter is the half-life or the gap in microseconds, or how many to keep.
    pub(crate) fn empty(kind: PartialKind, parameter: i64, column: ColumnType) -> Self {
        match (kind, column) {
            (PartialKind::Count, _) => Self::Count(0),
            (PartialKind::Sum, ColumnType::Float) => Self::SumFloat(Compensated::default()),
            (PartialKind::Sum, _) => Self::SumInt(Whole::default()),
            (PartialKind::Squares, _) => Self::Squares(Compensated::default()),
            (PartialKind::Min, _) => Self::Min(Scalar::Null),
            (PartialKind::Max, _) => Self::Max(Scalar::Null),
            (PartialKind::First, _) => Self::First(None),
            (PartialKind::Last, _) => Self::Last(None),
            (PartialKind::Earliest, _) => Self::Earliest(None),
            (PartialKind::Latest, _) => Self::Latest(None),
            (PartialKind::Moments, _) => Self::Moments(Box::default()),
            (PartialKind::DecayedSum, _) => Self::DecayedSum(Box::new(Decay::new(parameter))),
            (PartialKind::DecayedCount, _) => Self::DecayedCount(Box::new(Decay::new(parameter))),
            (PartialKind::Sessions, _) => Self::Sessions(Box::new(Sessions {
                gap_us: parameter,
                zero: Self::empty(PartialKind::Sum, 0, column),
                list: Vec::new(),
            })),
            (PartialKind::Recent, _) => Self::Recent(Box::new(Recent { k: many(parameter), values: Vec::new() })),
            (PartialKind::Firsts, _) => Self::Firsts(Box::new(Recent { k: many(parameter), values: Vec::new() })),
            (PartialKind::Top, _) => Self::Ranked(Box::new(Ranked::new(many(parameter), Ordering::Greater))),
            (PartialKind::Bottom, _) => Self::Ranked(Box::new(Ranked::new(many(parameter), Ordering::Less))),
            (PartialKind::Histogram, _) => Self::Histogram(Vec::new()),
            (PartialKind::Distinct, _) => Self::Distinct(0),
            (PartialKind::Registers, _) => Self::Registers(Vec::new()),
            (PartialKind::Buckets, _) => Self::Buckets(Vec::new()),
        }
    }

    /// Gives back the memory that nothing stands in: most tiles get no more events.
    pub(crate) fn shrink(&mut self) {
        match self {
            Self::Recent(kept) | Self::Firsts(kept) => kept.values.shrink_to_fit(),
            Self::Ranked(ranked) => ranked.values.shrink_to_fit(),
            Self::Histogram(counts) => counts.shrink_to_fit(),
            Self::Registers(registers) => registers.shrink_to_fit(),
            Self::Buckets(buckets) => buckets.shrink_to_fit(),
            _ => {}
        }
    }

    /// Takes out what was merged before; for counts alone.
    pub(crate) fn remove(&mut self, other: &Self) {
        match (self, other) {
            (Self::Buckets(buckets), Self::Buckets(x)) => sketch::take_out(buckets, x),
            (Self::Histogram(counts), Self::Histogram(x)) => {
                for (category, n) in x {
                    ranked::discount(counts, category, *n);
                }
            }
            _ => {}
        }
    }

    /// The values that it keeps with their times.
    pub(crate) fn kept(&self) -> &[(i64, Scalar)] {
        if let Self::Recent(kept) | Self::Firsts(kept) = self { &kept.values } else { &[] }
    }

    fn buckets(&self) -> &[(i32, u64)] {
        if let Self::Buckets(buckets) = self { buckets } else { &[] }
    }

    /// Whether it has a value, for the kinds that keep one with its time.
    pub(crate) fn found(&self) -> bool {
        match self {
            Self::First(found) | Self::Last(found) => found.is_some(),
            Self::Earliest(found) | Self::Latest(found) => found.is_some(),
            _ => true,
        }
    }

    /// Takes a value that is not null. Values of equal timestamp must come in arrival order.
    pub(crate) fn add(&mut self, ts_us: i64, value: &Scalar) {
        match self {
            Self::Count(n) => *n = n.saturating_add(1),
            Self::SumInt(sum) => {
                if let Scalar::Int(x) = value {
                    *sum = Whole::new(sum.get().saturating_add(i128::from(*x)));
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
                if found.as_ref().is_none_or(|kept| ts_us < kept.0) {
                    *found = Some(Box::new((ts_us, value.clone())));
                }
            }
            Self::Last(found) => {
                if found.as_ref().is_none_or(|kept| ts_us >= kept.0) {
                    *found = Some(Box::new((ts_us, value.clone())));
                }
            }
            Self::Earliest(found) => *found = Some(found.map_or(ts_us, |at| at.min(ts_us))),
            Self::Latest(found) => *found = Some(found.map_or(ts_us, |at| at.max(ts_us))),
            Self::Moments(moments) => match value {
                Scalar::Float(x) => moments.merge(&Moments::of(Compensated::of(*x))),
                Scalar::Int(x) => moments.merge(&Moments::of(Compensated::from_i128(i128::from(*x)))),
                _ => {}
            },
            Self::DecayedSum(sum) => {
                if let Some(x) = value.number() {
                    sum.add(ts_us, x);
                }
            }
            Self::DecayedCount(sum) => sum.add(ts_us, 1.0),
            Self::Sessions(sessions) => sessions.add(ts_us, value),
            Self::Recent(recent) => recent.add(ts_us, value),
            Self::Firsts(firsts) => firsts.add_first(ts_us, value),
            Self::Ranked(ranked) => ranked.add(value),
            Self::Histogram(counts) => ranked::count(counts, value, 1),
            // whoever has the tiles counts them
            Self::Distinct(_) => {}
            Self::Registers(registers) => sketch::raise(registers, sketch::register(value)),
            Self::Buckets(buckets) => {
                if let Some(x) = value.number() {
                    sketch::count(buckets, sketch::bucket(x), 1);
                }
            }
        }
    }

    /// Takes what another of the same kind holds. Equal timestamps are never in two tiles.
    pub(crate) fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(n), Self::Count(m)) => *n = n.saturating_add(*m),
            (Self::SumInt(sum), Self::SumInt(x)) => *sum = Whole::new(sum.get().saturating_add(x.get())),
            (Self::SumFloat(sum), Self::SumFloat(x)) | (Self::Squares(sum), Self::Squares(x)) => {
                sum.merge(*x);
            }
            (this @ (Self::Min(_) | Self::Max(_)), Self::Min(x) | Self::Max(x)) if !x.is_null() => {
                this.add(0, x);
            }
            (this @ (Self::First(_) | Self::Last(_)), Self::First(Some(kept)) | Self::Last(Some(kept))) => {
                this.add(kept.0, &kept.1);
            }
            (this @ (Self::Earliest(_) | Self::Latest(_)), Self::Earliest(Some(ts_us)) | Self::Latest(Some(ts_us))) => {
                this.add(*ts_us, &Scalar::Null);
            }
            (Self::Moments(moments), Self::Moments(x)) => moments.merge(x),
            (Self::DecayedSum(sum), Self::DecayedSum(x)) | (Self::DecayedCount(sum), Self::DecayedCount(x)) => {
                sum.merge(x);
            }
            (Self::Sessions(sessions), Self::Sessions(x)) => sessions.merge(x),
            (Self::Recent(recent), Self::Recent(x)) => x.values.iter().for_each(|(ts_us, x)| recent.add(*ts_us, x)),
            (Self::Firsts(firsts), Self::Firsts(x)) => {
                x.values.iter().for_each(|(ts_us, x)| firsts.add_first(*ts_us, x));
            }
            (Self::Ranked(ranked), Self::Ranked(x)) => ranked.merge(x),
            (Self::Histogram(counts), Self::Histogram(x)) => {
                for (category, n) in x {
                    ranked::count(counts, category, *n);
                }
            }
            (Self::Registers(registers), Self::Registers(x)) => x.iter().for_each(|x| sketch::raise(registers, *x)),
            (Self::Buckets(buckets), Self::Buckets(x)) => x.iter().for_each(|(b, n)| sketch::count(buckets, *b, *n)),
            _ => {}
        }
    }
}

fn many(parameter: i64) -> usize {
    usize::try_from(parameter).unwrap_or(usize::MAX)
}

fn replace(best: &mut Scalar, value: &Scalar, when: Ordering) {
    if best.is_null() || value.order(best) == when {
        *best = value.clone();
    }
}
