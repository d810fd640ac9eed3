//! Sums in double-double: two doubles that together hold about 106 bits, so that the order of the
//! summands does not show in the rounded result. Knows nothing of events or tiles.
//!
//! Source: Knuth's TwoSum and Dekker's FastTwoSum; the accurate addition of Joldes, Muller and
//! Popescu, "Tight and rigorous error bounds for basic building blocks of double-word arithmetic"
//! (ACM TOMS 44, 2017), algorithms 4 and 6.

const NAN: u8 = 1;
const POSITIVE: u8 = 2;
const NEGATIVE: u8 = 4;

/// An unevaluated sum `hi + lo`, and which non-finite summands were seen beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Compensated {
    hi: f64,
    lo: f64,
    special: u8,
}

impl Compensated {
    /// From its parts, as [`Self::parts`] gives them. `None` if no sum has such parts.
    pub(crate) fn from_parts(hi: f64, lo: f64, special: u8) -> Option<Self> {
        let valid = hi.is_finite() && lo.is_finite() && special <= NAN | POSITIVE | NEGATIVE;
        valid.then_some(Self { hi, lo, special })
    }

    /// The parts: high word, low word, flags of non-finite summands.
    pub(crate) fn parts(self) -> (f64, f64, u8) {
        (self.hi, self.lo, self.special)
    }

    /// The parts in words.
    pub(crate) fn words(self) -> [u64; 3] {
        [self.hi.to_bits(), self.lo.to_bits(), self.special.into()]
    }

    /// From what [`Self::words`] gave.
    pub(crate) fn from_words([hi, lo, special]: [u64; 3]) -> Self {
        Self { hi: f64::from_bits(hi), lo: f64::from_bits(lo), special: special as u8 }
    }

    /// The nearest double-double to an integer.
    pub(crate) fn from_i128(x: i128) -> Self {
        let hi = x as f64;
        // hi may round up to 2^127: saturate, the rest then still is the difference to within lo
        let lo = x.saturating_sub(hi as i128) as f64;
        Self { hi, lo, special: 0 }
    }

    /// Of one value.
    pub(crate) fn of(x: f64) -> Self {
        let mut sum = Self::default();
        sum.add(x);
        sum
    }

    /// Adds a value.
    pub(crate) fn add(&mut self, x: f64) {
        if !x.is_finite() {
            self.special |= flag(x);
            return;
        }
        let (s, e) = two_sum(self.hi, x);
        self.settle(s, self.lo + e);
    }

    /// Adds the square of a value.
    pub(crate) fn add_square(&mut self, x: f64) {
        let square = x * x;
        if !square.is_finite() {
            self.special |= flag(square);
            return;
        }
        self.merge(Self { hi: square, lo: x.mul_add(x, -square), special: 0 });
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: Self) {
        self.special |= other.special;
        let (sh, sl) = two_sum(self.hi, other.hi);
        if !sh.is_finite() {
            self.settle(sh, 0.0);
            return;
        }
        let (th, tl) = two_sum(self.lo, other.lo);
        let (vh, vl) = fast_two_sum(sh, sl + th);
        self.settle(vh, tl + vl);
    }

    /// This minus the square of `other` divided by `n`: what is left of a sum of squares when the
    /// mean is taken out. Never negative; what lies below the noise of the representation is 0.
    pub(crate) fn minus_square_over(self, other: Self, n: f64) -> f64 {
        let (squares, sum) = (self.value(), other.value());
        if !squares.is_finite() || !sum.is_finite() {
            // an infinite value has no variance; squares alone overflow for values above 1e154
            return if squares == f64::INFINITY && sum.is_finite() { f64::INFINITY } else { f64::NAN };
        }
        let mean = other.divided_by(n);
        let product = mean.times(other);
        let mut rest = self;
        rest.merge(Self { hi: -product.hi, lo: -product.lo, special: 0 });
        let rest = rest.value();
        let noise = squares * n * 2f64.powi(-104);
        if rest <= noise { 0.0 } else { rest }
    }

    /// Times a power of two: exact, unless it leaves the range of a double.
    pub(crate) fn scaled(self, exponent: i32) -> Self {
        let (first, second) = (2f64.powi(exponent / 4), 2f64.powi(exponent - exponent / 4 * 4));
        let by = |x: f64| x * first * first * first * first * second;
        Self { hi: by(self.hi), lo: by(self.lo), special: self.special }
    }

    /// Times a number.
    pub(crate) fn by(self, x: f64) -> Self {
        self.times(Self { hi: x, lo: 0.0, special: 0 })
    }

    /// Divided by a number.
    pub(crate) fn over(self, n: f64) -> Self {
        self.divided_by(n)
    }

    fn divided_by(self, n: f64) -> Self {
        let q = self.hi / n;
        let r = (-q).mul_add(n, self.hi) + self.lo;
        let (hi, lo) = fast_two_sum(q, r / n);
        Self { hi, lo, special: self.special }
    }

    /// The product. What is beyond a double stays so when it is merged.
    pub(crate) fn times(self, other: Self) -> Self {
        let p = self.hi * other.hi;
        let e = self.hi.mul_add(other.hi, -p);
        let (hi, lo) = fast_two_sum(p, e + self.hi.mul_add(other.lo, self.lo * other.hi));
        Self { hi, lo, special: self.special | other.special }
    }

    /// The sum divided by a count; infinite only if the sum is.
    pub(crate) fn mean(self, n: u64) -> f64 {
        if self.special != 0 {
            return self.value();
        }
        self.divided_by(n as f64).value()
    }

    /// The sum, rounded to a double.
    pub(crate) fn value(self) -> f64 {
        match self.special {
            0 => self.hi + self.lo,
            POSITIVE => f64::INFINITY,
            NEGATIVE => f64::NEG_INFINITY,
            _ => f64::NAN,
        }
    }

    fn settle(&mut self, hi: f64, lo: f64) {
        let (hi, lo) = fast_two_sum(hi, lo);
        if hi.is_finite() && lo.is_finite() {
            (self.hi, self.lo) = (hi, lo);
        } else {
            self.special |= flag(hi);
            (self.hi, self.lo) = (0.0, 0.0);
        }
    }
}

fn flag(x: f64) -> u8 {
    if x.is_nan() {
        NAN
    } else if x > 0.0 {
        POSITIVE
    } else {
        NEGATIVE
    }
}

/// The sum and its rounding error.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

/// The same where `|a| >= |b|` or `a` is 0.
fn fast_two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    (s, b - (s - a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut total = Compensated::default();
        for &value in values {
            total.add(value);
        }
        total.value()
    }

    #[test]
    fn what_a_plain_sum_loses_is_kept() {
        assert_eq!(sum(&[1e16, 1.0, -1e16]).to_bits(), 1f64.to_bits());
        assert_eq!(sum(&[0.1; 10]).to_bits(), 1f64.to_bits());
    }

    #[test]
    fn merging_is_adding() {
        let (mut a, mut b) = (Compensated::default(), Compensated::default());
        a.add(1e16);
        a.add(3.0);
        b.add(-1e16);
        b.add(1e-3);
        a.merge(b);
        assert_eq!(a.value().to_bits(), 3.001f64.to_bits());
    }

    #[test]
    fn non_finite_values_follow_ieee() {
        assert!(sum(&[1.0, f64::NAN]).is_nan());
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(sum(&[f64::INFINITY, -1e300]).total_cmp(&f64::INFINITY).is_eq());
        assert!(sum(&[-f64::MAX, -f64::MAX, 1.0]).total_cmp(&f64::NEG_INFINITY).is_eq());
        let (mut a, mut b) = (Compensated::default(), Compensated::default());
        a.add(f64::MAX);
        b.add(f64::MAX);
        a.merge(b);
        assert!(a.value().total_cmp(&f64::INFINITY).is_eq());
    }

    #[test]
    fn integers_keep_106_bits() {
        let x = (1i128 << 100) + 1;
        let d = Compensated::from_i128(x);
        assert_eq!(d.parts().0 as i128 + d.parts().1 as i128, x);
        assert!(Compensated::from_i128(i128::MAX).value().is_finite());
    }
}
