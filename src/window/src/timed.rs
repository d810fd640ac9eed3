//! What a tile keeps where time is part of the value: decayed sums, sessions, the last values.
//! Everything merges, and the order of events of different times does not show. Knows no windows.

use crate::compensated::Compensated;
use crate::partial::Partial;
use crate::scalar::Scalar;

/// A sum that halves every `half_life_us`, scaled to the start of a half-life.
///
/// Half-lives are counted from the epoch, so to carry the sum from one to another is to multiply it
/// by a power of two, which is exact: the order of events does not show.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decay {
    pub(crate) half_life_us: i64,
    /// Which half-life the sum is scaled to; `None` if nothing was added.
    pub(crate) block: Option<i64>,
    pub(crate) sum: Compensated,
}

impl Decay {
    pub(crate) fn new(half_life_us: i64) -> Self {
        Self { half_life_us, block: None, sum: Compensated::default() }
    }

    pub(crate) fn add(&mut self, ts_us: i64, x: f64) {
        let (block, fraction) = self.split(ts_us);
        let sum = Compensated::of(x * fraction.exp2());
        self.merge(&Self { half_life_us: self.half_life_us, block: Some(block), sum });
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let Some(theirs) = other.block else { return };
        let ours = self.block.unwrap_or(theirs);
        let block = ours.max(theirs);
        self.sum = self.sum.scaled(halvings(ours, block));
        self.sum.merge(other.sum.scaled(halvings(theirs, block)));
        self.block = Some(block);
    }

    /// The sum as it is at `t_us`.
    pub(crate) fn at(&self, t_us: i64) -> f64 {
        let (block, fraction) = self.split(t_us);
        let from = self.block.unwrap_or(block);
        self.sum.scaled(halvings(from, block)).value() / fraction.exp2()
    }

    fn split(&self, ts_us: i64) -> (i64, f64) {
        let part = ts_us.rem_euclid(self.half_life_us) as f64 / self.half_life_us as f64;
        (ts_us.div_euclid(self.half_life_us), part)
    }
}

/// The exponent that carries a sum from one half-life to another.
fn halvings(from: i64, to: i64) -> i32 {
    i32::try_from(i128::from(from) - i128::from(to)).unwrap_or(i32::MIN / 2).max(-4_000)
}

/// Events with no gap above the session's between them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Session {
    pub(crate) start_us: i64,
    pub(crate) end_us: i64,
    pub(crate) count: u64,
    pub(crate) sum: Partial,
}

/// Sessions, ascending, more than `gap_us` apart. All are kept, because a late event may join two.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sessions {
    pub(crate) gap_us: i64,
    /// A sum of nothing, to copy.
    pub(crate) zero: Partial,
    pub(crate) list: Vec<Session>,
}

impl Sessions {
    pub(crate) fn add(&mut self, ts_us: i64, value: &Scalar) {
        let mut sum = self.zero.clone();
        sum.add(ts_us, value);
        self.insert(Session { start_us: ts_us, end_us: ts_us, count: 1, sum });
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        other.list.iter().for_each(|session| self.insert(session.clone()));
    }

    fn insert(&mut self, mut session: Session) {
        let near = |end_us: i64, start_us: i64| i128::from(start_us) - i128::from(end_us) <= i128::from(self.gap_us);
        let from = self.list.partition_point(|known| !near(known.end_us, session.start_us));
        let to = from + self.list[from..].partition_point(|known| near(session.end_us, known.start_us));
        for known in &self.list[from..to] {
            session.start_us = session.start_us.min(known.start_us);
            session.end_us = session.end_us.max(known.end_us);
            session.count = session.count.saturating_add(known.count);
            session.sum.merge(&known.sum);
        }
        self.list.splice(from..to, [session]);
    }

    /// Puts a session before the first one, if that is joined to it or there is none yet; else `false`.
    pub(crate) fn extend_back(&mut self, earlier: &Session) -> bool {
        match self.list.first() {
            Some(first) if i128::from(first.start_us) - i128::from(earlier.end_us) > i128::from(self.gap_us) => false,
            _ => {
                self.insert(earlier.clone());
                true
            }
        }
    }

    /// The session that is open at `t_us`.
    pub(crate) fn open(&self, t_us: i64) -> Option<&Session> {
        let last = self.list.last()?;
        (i128::from(t_us) - i128::from(last.end_us) <= i128::from(self.gap_us)).then_some(last)
    }
}

/// The last `k` values (or the first) with their times, oldest first; arrival order among equal times.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recent {
    pub(crate) k: usize,
    pub(crate) values: Vec<(i64, Scalar)>,
}

impl Recent {
    pub(crate) fn add(&mut self, ts_us: i64, value: &Scalar) {
        let at = self.values.partition_point(|(known, _)| *known <= ts_us);
        if self.values.len() < self.k {
            self.values.insert(at, (ts_us, value.clone()));
        } else if at > 0 {
            // the oldest makes room
            self.values[..at].rotate_left(1);
            self.values[at - 1] = (ts_us, value.clone());
        }
    }

    /// The same for the first `k` values.
    pub(crate) fn add_first(&mut self, ts_us: i64, value: &Scalar) {
        let at = self.values.partition_point(|(known, _)| *known <= ts_us);
        if at < self.k {
            self.values.truncate(self.k - 1);
            self.values.insert(at, (ts_us, value.clone()));
        }
    }
}
