//! The greatest or least values, and counts by value, both as sorted lists that merge. Knows no time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::scalar::Scalar;
use crate::sketch::canonical;

/// The `k` values that come first in an order, each as often as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ranked {
    pub(crate) k: usize,
    /// How a value compares with those behind it: `Greater` for the greatest first.
    pub(crate) first: Ordering,
    pub(crate) values: Vec<Scalar>,
}

impl Ranked {
    pub(crate) fn new(k: usize, first: Ordering) -> Self {
        Self { k, first, values: Vec::new() }
    }

    pub(crate) fn add(&mut self, value: &Scalar) {
        let at = self.values.partition_point(|known| known.order(value) != self.first.reverse());
        if at < self.k {
            self.values.truncate(self.k - 1);
            self.values.insert(at, one_nan(value));
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for value in &other.values {
            // the other's values only become worse
            if self.values.len() == self.k
                && self.values.last().is_some_and(|last| last.order(value) != self.first.reverse())
            {
                return;
            }
            self.add(value);
        }
    }

    /// Many merged, by their heads: only values that are kept are looked at twice.
    pub(crate) fn of<'a>(empty: &Self, parts: impl Iterator<Item = &'a Self>) -> Self {
        let mut heads: BinaryHeap<Head<'a>> =
            parts.filter_map(|part| Some(Head { first: empty.first, rest: part.values.split_first()? })).collect();
        let mut merged = empty.clone();
        while merged.values.len() < empty.k
            && let Some(mut head) = heads.peek_mut()
        {
            merged.values.push(head.rest.0.clone());
            match head.rest.1.split_first() {
                Some(rest) => head.rest = rest,
                None => {
                    PeekMut::pop(head);
                }
            }
        }
        merged
    }

    /// Whether the values stand in order, and are no more than `k`.
    pub(crate) fn holds(&self) -> bool {
        self.values.len() <= self.k && self.values.windows(2).all(|two| two[0].order(&two[1]) != self.first.reverse())
    }
}

/// What is left of one list; the head that comes first is the greatest.
struct Head<'a> {
    first: Ordering,
    rest: (&'a Scalar, &'a [Scalar]),
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = self.rest.0.order(other.rest.0);
        if self.first == Ordering::Greater { order } else { order.reverse() }
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}

/// All NaN are one value, so that the order of events does not show.
fn one_nan(value: &Scalar) -> Scalar {
    match value {
        Scalar::Float(x) if x.is_nan() => Scalar::Float(f64::NAN),
        other => other.clone(),
    }
}

/// Takes from the count of a value, which was added before.
pub(crate) fn discount(counts: &mut Vec<(Scalar, u64)>, value: &Scalar, n: u64) {
    if let Ok(at) = counts.binary_search_by(|(known, _)| known.order(value)) {
        counts[at].1 = counts[at].1.saturating_sub(n);
        if counts[at].1 == 0 {
            counts.remove(at);
        }
    }
}

/// Adds to the count of a value.
pub(crate) fn count(counts: &mut Vec<(Scalar, u64)>, value: &Scalar, n: u64) {
    match counts.binary_search_by(|(known, _)| known.order(value)) {
        Ok(at) => counts[at].1 = counts[at].1.saturating_add(n),
        Err(at) => counts.insert(at, (canonical(value), n)),
    }
}
