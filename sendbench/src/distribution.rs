// SPDX-License-Identifier: BSD-2-Clause
//! How long things took: recorded as they happen, and summed up for results.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Collects durations in nanoseconds, within one per cent; nothing at all is one too.
pub struct Recorder(Histogram<u64>);

impl Recorder {
    /// An empty one.
    pub fn new() -> Self {
        // An hour and two digits: no input can make this fail.
        Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 2).expect("valid bounds"))
    }

    /// One more.
    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// All those of another.
    pub fn add(&mut self, other: &Recorder) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// What results hold.
    pub fn distribution(&self) -> Distribution {
        let at = |quantile| if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) };
        Distribution {
            count: self.0.len(),
            mean: self.0.mean(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: if self.0.is_empty() { 0 } else { self.0.max() },
            buckets: self
                .0
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        }
    }
}

/// Durations in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// 999 of 1000 are not longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// (not longer than this, and longer than the one before; how many)
    pub buckets: Vec<(u64, u64)>,
}

impl Distribution {
    /// All in one.
    pub fn merged<'a>(all: impl IntoIterator<Item = &'a Distribution>) -> Distribution {
        let mut recorder = Recorder::new();
        for (value, count) in all.into_iter().flat_map(|one| &one.buckets) {
            recorder.0.saturating_record_n(*value, *count);
        }
        recorder.distribution()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_one_per_cent() {
        let mut recorder = Recorder::new();
        (1..=10_000).rev().for_each(|n| recorder.record(n * 1000));
        let d = recorder.distribution();
        let near = |got: u64, want: f64| ((got as f64 - want) / want).abs() < 0.01;
        assert_eq!(d.count, 10_000);
        assert!(near(d.p50, 5e6), "{}", d.p50);
        assert!(near(d.p99, 9.9e6), "{}", d.p99);
        assert!(near(d.p999, 9.99e6), "{}", d.p999);
        assert!(near(d.max, 1e7), "{}", d.max);
        assert_eq!(d.buckets.iter().map(|(_, count)| count).sum::<u64>(), 10_000);
        assert!(d.buckets.is_sorted());
    }

    #[test]
    fn one_long_call_among_a_thousand_is_the_maximum_only() {
        let mut recorder = Recorder::new();
        (0..999).for_each(|_| recorder.record(1000));
        recorder.record(30_000_000);
        let d = recorder.distribution();
        assert!(d.p999 < 1100 && d.max >= 30_000_000);
    }

    #[test]
    fn zeros_are_counted() {
        let mut recorder = Recorder::new();
        (0..995).for_each(|_| recorder.record(0));
        (0..5).for_each(|_| recorder.record(30_000_000));
        let d = recorder.distribution();
        assert_eq!((d.count, d.p50, d.p99), (1000, 0, 0));
        let near = |got: u64| (29_700_000..=30_300_000).contains(&got);
        assert!(near(d.p999) && near(d.max), "{d:?}");
        assert!((d.mean - 150_000.0).abs() < 1500.0, "{}", d.mean);
        assert_eq!(d.buckets[0], (0, 995));
        assert_eq!(Distribution::merged([&d]), d);
        let mut zeros = Recorder::new();
        zeros.record(0);
        let d = zeros.distribution();
        assert_eq!((d.count, d.mean, d.p999, d.max), (1, 0.0, 0, 0));
        assert_eq!(Distribution::merged([&d, &d]).buckets, [(0, 2)]);
    }

    #[test]
    fn empty_and_merged() {
        assert_eq!(Recorder::new().distribution(), Distribution::default());
        let (mut a, mut b, mut both) = (Recorder::new(), Recorder::new(), Recorder::new());
        for n in 1..500 {
            a.record(n * 7);
            b.record(n * 1000);
            both.record(n * 7);
            both.record(n * 1000);
        }
        let merged = Distribution::merged([&a.distribution(), &b.distribution()]);
        let d = both.distribution();
        assert_eq!((merged.count, merged.p50, merged.p99), (d.count, d.p50, d.p99));
        a.add(&b);
        assert_eq!(a.distribution().buckets, d.buckets);
    }
}
