//! Sets and sketches as sorted lists: distinct values, `HyperLogLog` registers, buckets of a
//! relative-error sketch. All merge, and no order shows. Knows no time.
//!
//! Sources: Flajolet and others, "HyperLogLog" (2007), with linear counting where few values were
//! seen; Masson and others, "`DDSketch`" (VLDB 2019).

use crate::scalar::Scalar;

/// Registers: 4,096, a standard error of 1.6 %.
const BITS: u32 = 12;
/// Relative error of a percentile.
const ERROR: f64 = 0.01;
/// Added to the logarithm's bucket, so that zero lies below every positive bucket.
const OFFSET: i32 = 100_000;
/// Buckets of what has no logarithm: infinities and NaN, which is the greatest value.
const INFINITE: i32 = 1_000_000;
const NAN: i32 = 1_000_001;

/// Puts a value into a sorted set.
pub(crate) fn insert(set: &mut Vec<Scalar>, value: &Scalar) {
    let value = canonical(value);
    if let Err(at) = set.binary_search_by(|known| known.order(&value)) {
        set.insert(at, value);
    }
}

/// Zeros of both signs are one value, as in SQL; so are all NaN.
pub(crate) fn canonical(value: &Scalar) -> Scalar {
    match value {
        Scalar::Float(x) if x.is_nan() => Scalar::Float(f64::NAN),
        Scalar::Float(x) => Scalar::Float(x + 0.0),
        other => other.clone(),
    }
}

/// A register and its rank.
pub(crate) type Register = (u16, u8);

/// Register and rank of a value in a `HyperLogLog`.
pub(crate) fn register(value: &Scalar) -> Register {
    let hash = hash(&canonical(value));
    let rank = (hash << BITS | 1 << (BITS - 1)).leading_zeros() + 1;
    ((hash >> (64 - BITS)) as u16, rank as u8)
}

/// FNV-1a with the finalizer of `MurmurHash3`; part of the stored form: never change it.
fn hash(value: &Scalar) -> u64 {
    let fnv = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
    };
    let mut h = match value {
        // no column has what a function answers
        Scalar::Null | Scalar::List(_) | Scalar::Counts(_) => 0,
        Scalar::Bool(x) => fnv(&[u8::from(*x)]),
        Scalar::Int(x) => fnv(&x.to_le_bytes()),
        Scalar::Float(x) => fnv(&x.to_le_bytes()),
        Scalar::Text(x) => fnv(x.as_bytes()),
        Scalar::Bytes(x) => fnv(x),
    };
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Sets a register to the greater rank.
pub(crate) fn raise(registers: &mut Vec<Register>, (index, rank): Register) {
    match registers.binary_search_by_key(&index, |(known, _)| *known) {
        Ok(at) => registers[at].1 = registers[at].1.max(rank),
        Err(at) => registers.insert(at, (index, rank)),
    }
}

/// The ranks of all registers, 0 where nothing was seen.
pub(crate) struct Ranks(Box<[u8; 1 << BITS]>);

impl Ranks {
    pub(crate) fn new() -> Self {
        Self(Box::new([0; 1 << BITS]))
    }

    /// Sets a register to the greater rank; whether the new one was.
    pub(crate) fn raise(&mut self, (index, rank): Register) -> bool {
        let known = &mut self.0[usize::from(index) & ((1 << BITS) - 1)];
        let greater = rank > *known;
        *known = rank.max(*known);
        greater
    }

    /// The registers that are set, ascending.
    pub(crate) fn sorted(&self) -> Vec<Register> {
        let all = self.0.iter().zip(0u16..);
        all.filter(|(rank, _)| **rank > 0).map(|(rank, index)| (index, *rank)).collect()
    }
}

/// How many distinct values were seen, about.
pub(crate) fn estimate(registers: &[Register]) -> i64 {
    let m = f64::from(1u32 << BITS);
    let empty = m - registers.len() as f64;
    // 2^-rank, by its bits: a rank is at most 53
    let part = |(_, rank): &Register| f64::from_bits((1023 - u64::from(*rank)) << 52);
    let sum: f64 = empty + registers.iter().map(part).sum::<f64>();
    let raw = 0.7213 / (1.0 + 1.079 / m) * m * m / sum;
    let linear = m * (m / empty).ln();
    (if raw <= 2.5 * m && empty > 0.0 { linear } else { raw }).round() as i64
}

/// The bucket of a number: of all values in one, none is further than 1 % from its middle.
pub(crate) fn bucket(x: f64) -> i32 {
    if x.is_nan() {
        return NAN;
    }
    let magnitude = if x.is_infinite() {
        INFINITE
    } else if x.abs() > 0.0 {
        OFFSET + (x.abs().ln() / gamma().ln()).ceil() as i32
    } else {
        0
    };
    if x < 0.0 { -magnitude } else { magnitude }
}

/// Whether a number has this bucket.
pub(crate) fn is_bucket(bucket: i32) -> bool {
    bucket == 0 || bucket == NAN || bucket.abs() == INFINITE || (bucket.abs() - OFFSET).abs() < 40_000
}

/// Adds to the count of a bucket.
pub(crate) fn count(buckets: &mut Vec<(i32, u64)>, bucket: i32, n: u64) {
    match buckets.binary_search_by_key(&bucket, |(known, _)| *known) {
        Ok(at) => buckets[at].1 = buckets[at].1.saturating_add(n),
        Err(at) => buckets.insert(at, (bucket, n)),
    }
}

/// Takes counts that were added out again. Both are sorted.
pub(crate) fn take_out(buckets: &mut Vec<(i32, u64)>, other: &[(i32, u64)]) {
    let mut others = other.iter().peekable();
    buckets.retain_mut(|(bucket, n)| {
        while others.next_if(|(known, _)| known < bucket).is_some() {}
        if let Some((_, out)) = others.next_if(|(known, _)| known == bucket) {
            *n = n.saturating_sub(*out);
        }
        *n > 0
    });
}

/// How wide a range of buckets is counted by their place: beyond it, one by one.
const DENSE: i32 = 1 << 14;

/// The counts of several sketches together.
pub(crate) fn totals<'a>(parts: impl Iterator<Item = &'a [(i32, u64)]> + Clone) -> Vec<(i32, u64)> {
    let mut out: Vec<(i32, u64)> = Vec::new();
    // negative and positive numbers lie far apart, zero and what is infinite between and beyond
    for (from, to) in [(-INFINITE + 1, 0), (1, INFINITE)] {
        let inside = |part: &'a [(i32, u64)]| {
            let begin = part.partition_point(|(bucket, _)| *bucket < from);
            &part[begin..begin + part[begin..].partition_point(|(bucket, _)| *bucket < to)]
        };
        let parts = parts.clone().map(inside);
        let lowest = parts.clone().filter_map(|part| part.first()).map(|(bucket, _)| *bucket).min();
        let highest = parts.clone().filter_map(|part| part.last()).map(|(bucket, _)| *bucket).max();
        let (Some(lowest), Some(highest)) = (lowest, highest) else { continue };
        if highest - lowest >= DENSE {
            parts.flatten().for_each(|(bucket, n)| count(&mut out, *bucket, *n));
            continue;
        }
        let mut counts = vec![0u64; (highest - lowest + 1) as usize];
        for (bucket, n) in parts.flatten() {
            let known = &mut counts[(bucket - lowest) as usize];
            *known = known.saturating_add(*n);
        }
        out.extend((lowest..).zip(counts).filter(|(_, n)| *n > 0));
    }
    out.sort_unstable_by_key(|(bucket, _)| *bucket);
    for part in parts {
        let zero = part.binary_search_by_key(&0, |(bucket, _)| *bucket).ok().map(|at| &part[at]);
        let outside = part.iter().rev().take_while(|(bucket, _)| *bucket >= INFINITE);
        let infinite = part.first().filter(|(bucket, _)| *bucket == -INFINITE);
        outside.chain(infinite).chain(zero).for_each(|(bucket, n)| count(&mut out, *bucket, *n));
    }
    out
}

/// The value at rank `floor(p * (n - 1))` of the sorted values, within 1 %; `None` if there is none.
pub(crate) fn percentile(buckets: &[(i32, u64)], p: f64) -> Option<f64> {
    let n = buckets.iter().fold(0u64, |n, (_, count)| n.saturating_add(*count));
    let rank = (p * n.checked_sub(1)? as f64).floor() as u64;
    let mut below = 0u64;
    let (bucket, _) = buckets.iter().find(|(_, count)| {
        below = below.saturating_add(*count);
        below > rank
    })?;
    Some(match bucket {
        0 => 0.0,
        &NAN => f64::NAN,
        b if b.abs() == INFINITE => f64::INFINITY.copysign(f64::from(*b)),
        // half of the bucket's two ends, in a form that does not overflow before its time
        b => {
            let middle = 2.0 / (gamma() + 1.0) * (f64::from(b.abs() - OFFSET) * gamma().ln()).exp();
            middle.min(f64::MAX).copysign(f64::from(*b))
        }
    })
}

fn gamma() -> f64 {
    (1.0 + ERROR) / (1.0 - ERROR)
}
