//! Numbers that were measured, by name, with their spread over the runs. Knows no measurement.

use std::collections::BTreeMap;
use std::fmt;

/// The median of several runs, the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Figure {
    /// Of one run or more; zeros for none.
    pub(crate) fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or_default();
        let half = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { f64::midpoint(at(half.saturating_sub(1)), at(half)) } else { at(half) };
        Self { median, least: at(0), greatest: at(sorted.len().saturating_sub(1)) }
    }
}

/// Three figures are enough of any measurement, and thousands are easier to read in groups.
pub(crate) fn number(n: f64) -> String {
    let decimals = match n.abs() {
        a if a >= 100.0 || a == 0.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{n:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let digits = whole.trim_start_matches('-');
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    let sign = if whole.starts_with('-') { "-" } else { "" };
    format!("{sign}{}{rest}", groups.join(","))
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} – {})", number(self.median), number(self.least), number(self.greatest))
    }
}

/// What was measured, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    runs: BTreeMap<String, Vec<f64>>,
    /// What failed: where, and why.
    pub(crate) failures: Vec<(String, String)>,
}

impl Figures {
    /// Keeps the runs of a measurement.
    pub(crate) fn put(&mut self, name: impl Into<String>, runs: &[f64]) -> Figure {
        self.runs.insert(name.into(), runs.to_vec());
        Figure::of(runs)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Figure> {
        self.runs.get(name).map(|runs| Figure::of(runs))
    }

    /// What was measured.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.runs.keys().map(String::as_str)
    }

    /// One measurement by another: run by run where both have the same number of runs (they were made in turn),
    /// by the medians otherwise.
    pub(crate) fn ratio(&self, over: &str, under: &str) -> Option<Figure> {
        let (a, b) = (self.runs.get(over)?, self.runs.get(under)?);
        if a.len() == b.len() {
            return Some(Figure::of(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>()));
        }
        Some(Figure::of(&[self.get(over)?.median / self.get(under)?.median]))
    }

    /// Notes that something could not be measured, and says so at once.
    pub(crate) fn failed(&mut self, place: impl Into<String>, why: impl fmt::Display) {
        let (place, why) = (place.into(), why.to_string());
        println!("!! {place}: {why}");
        self.failures.push((place, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_runs_and_a_ratio_is_taken_run_by_run() {
        assert_eq!(Figure::of(&[3.0, 1.0, 2.0]), Figure { median: 2.0, least: 1.0, greatest: 3.0 });
        assert!((Figure::of(&[4.0, 1.0]).median - 2.5).abs() < 1e-9);
        assert_eq!(Figure::of(&[]), Figure { median: 0.0, least: 0.0, greatest: 0.0 });
        let mut figures = Figures::default();
        figures.put("a", &[1.0, 10.0, 30.0]);
        figures.put("b", &[2.0, 20.0, 40.0]);
        figures.put("c", &[5.0]);
        let paired = figures.ratio("a", "b").expect("both are there");
        assert_eq!((paired.median, paired.greatest), (0.5, 0.75));
        assert_eq!(figures.ratio("a", "c").map(|r| r.median), Some(2.0));
        assert_eq!(figures.ratio("a", "none"), None);
    }

    #[test]
    fn numbers_are_short() {
        for (n, wanted) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.5, "1.50"),
            (12.34, "12.3"),
            (1_234_567.8, "1,234,568"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(n), wanted);
        }
    }
}
