//! Central moments of up to the fourth order in double-double, that merge. Knows no events or tiles.
//!
//! Source: Pébay, "Formulas for robust, one-pass parallel computation of covariances and
//! arbitrary-order statistical moments" (Sandia report SAND2008-6212), equations 3.1.

use crate::compensated::Compensated;

/// Count, mean, and sums of the second, third and fourth powers of the deviation from the mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) n: u64,
    /// Mean, then the sums of powers 2, 3 and 4.
    pub(crate) sums: [Compensated; 4],
}

impl Moments {
    /// Of one value.
    pub(crate) fn of(x: Compensated) -> Self {
        Self { n: 1, sums: [x, Compensated::default(), Compensated::default(), Compensated::default()] }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if other.n == 0 {
            return;
        }
        if self.n == 0 {
            self.clone_from(other);
            return;
        }
        let (a, b) = (self.n as f64, other.n as f64);
        let n = a + b;
        let [mean, m2, m3, m4] = self.sums;
        let [other_mean, o2, o3, o4] = other.sums;
        let delta = plus(other_mean, mean.by(-1.0));
        let step = delta.over(n);
        let pair = delta.times(step).by(a).by(b);
        // the deviations of both parts, weighted crosswise
        let cross2 = plus(o2.by(a), m2.by(-b));
        let cross22 = plus(o2.by(a).by(a), m2.by(b).by(b));
        let cross3 = plus(o3.by(a), m3.by(-b));
        let spread = plus(Compensated::of(a * a), plus(Compensated::of(-a).by(b), Compensated::of(b * b)));
        self.sums = [
            plus(mean, step.by(b)),
            plus(plus(m2, o2), pair),
            plus(plus(m3, o3), plus(pair.times(step).by(a - b), step.times(cross2).by(3.0))),
            plus(
                plus(plus(m4, o4), pair.times(step).times(step).times(spread)),
                plus(step.times(step).times(cross22).by(6.0), step.times(cross3).by(4.0)),
            ),
        ];
        self.n = self.n.saturating_add(other.n);
    }

    /// Skewness of the sample, corrected for bias; `None` for fewer than 3 values.
    pub(crate) fn skew(&self) -> Option<f64> {
        let (n, [_, m2, m3, _]) = (self.n as f64, self.sums.map(Compensated::value));
        if self.n < 3 {
            return None;
        }
        // the sums are scaled by the deviation first, so that their powers stay in range
        let deviation = (m2 / (n - 1.0)).sqrt();
        let scaled = m3 / deviation / deviation / deviation;
        Some(if is_zero(m2) { 0.0 } else { n / ((n - 1.0) * (n - 2.0)) * scaled })
    }

    /// Excess kurtosis of the sample, corrected for bias; `None` for fewer than 4 values.
    pub(crate) fn kurtosis(&self) -> Option<f64> {
        let (n, [_, m2, _, m4]) = (self.n as f64, self.sums.map(Compensated::value));
        if self.n < 4 {
            return None;
        }
        let variance = m2 / (n - 1.0);
        let scaled = m4 / variance / variance;
        let raw = n * (n + 1.0) / ((n - 1.0) * (n - 2.0) * (n - 3.0)) * scaled;
        let normal = 3.0 * (n - 1.0) * (n - 1.0) / ((n - 2.0) * (n - 3.0));
        Some(if is_zero(m2) { 0.0 } else { raw - normal })
    }
}

fn is_zero(x: f64) -> bool {
    x.total_cmp(&0.0).is_eq() || x.total_cmp(&-0.0).is_eq()
}

fn plus(mut a: Compensated, b: Compensated) -> Compensated {
    a.merge(b);
    a
}
