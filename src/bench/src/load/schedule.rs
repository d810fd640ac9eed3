//! When requests arrive: at random, independent of each other and of the server (a Poisson process), and
//! the same in every run. Knows no clock.

use std::time::Duration;

/// The times of arrivals, from 0 on, without end.
pub(super) struct Arrivals {
    /// Arrivals a second.
    rate: f64,
    at: f64,
    state: u64,
}

impl Arrivals {
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, at: 0.0, state: 0x9e37_79b9 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let uniform = (crate::workload::scramble(&mut self.state) >> 11) as f64 / (1_u64 << 53) as f64;
        self.at -= (1.0 - uniform).ln() / self.rate;
        Some(Duration::from_secs_f64(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times: Vec<f64> = Arrivals::new(1000.0).take(100_000).map(|t| t.as_secs_f64()).collect();
        assert!((times[99_999] - 100.0).abs() < 1.0, "100,000 at 1,000 a second: {}", times[99_999]);
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let long = gaps.iter().filter(|g| **g > 0.001).count() as f64 / gaps.len() as f64;
        assert!((long - (-1.0_f64).exp()).abs() < 0.01, "gaps longer than the mean: {long}");
        assert!(gaps.iter().all(|g| *g >= 0.0));
    }
}
