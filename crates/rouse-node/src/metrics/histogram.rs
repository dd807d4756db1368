//! A histogram of durations that any number of threads write at the same time, without a lock.
//!
//! The histogram of `prometheus-client` takes a lock for each value; on the way of a request nobody waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Ten bounds for each power of ten, about a quarter apart: Renard's series R10.
const STEPS: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];
/// Powers of ten that are covered, from 10 us on.
const DECADES: usize = 7;
/// The last bucket, without a bound, included.
const BUCKETS: usize = STEPS.len() * DECADES + 1;

/// Upper bounds of all buckets but the last, nanoseconds, the value itself included.
const BOUNDS_NS: [u64; BUCKETS - 1] = bounds();

const fn bounds() -> [u64; BUCKETS - 1] {
    let mut bounds = [0; BUCKETS - 1];
    let mut unit = 100;
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = STEPS[at % STEPS.len()] * unit;
        at += 1;
        if at.is_multiple_of(STEPS.len()) {
            unit *= 10;
        }
    }
    bounds
}

/// Durations, counted.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was counted until now.
    pub fn read(&self) -> Distribution {
        Distribution {
            counts: self
                .buckets
                .iter()
                .map(|bucket| bucket.load(Ordering::Relaxed))
                .collect(),
            sum_s: self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

/// Durations that were counted.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Distribution {
    /// For each bound of [`bounds_s`] the durations up to it, and those beyond the last; not cumulated.
    pub counts: Vec<u64>,
    /// All durations together, seconds.
    pub sum_s: f64,
}

impl Distribution {
    /// Durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The same in fewer buckets, of which three make a power of ten: upper bounds in seconds, the last one infinite, and
    /// counts, not cumulated.
    pub fn coarse(&self) -> Vec<(f64, u64)> {
        let mut coarse = Vec::new();
        let mut sum = 0;
        for (at, count) in self.counts.iter().enumerate() {
            sum += count;
            let bound = BOUNDS_NS.get(at);
            let is_kept = matches!(STEPS[at % STEPS.len()], 100 | 250 | 500);
            if bound.is_none() || is_kept {
                let bound = bound.map_or(f64::INFINITY, |ns| *ns as f64 / 1e9);
                coarse.push((bound, std::mem::take(&mut sum)));
            }
        }
        coarse
    }
}

/// Upper bounds of all buckets but the last, seconds.
pub fn bounds_s() -> Vec<f64> {
    BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_from_ten_microseconds_to_eighty_seconds() {
        assert!(BOUNDS_NS.is_sorted_by(|a, b| a < b));
        assert_eq!(BOUNDS_NS.first(), Some(&10_000));
        assert_eq!(BOUNDS_NS.last(), Some(&80_000_000_000));
    }

    #[test]
    fn each_duration_is_in_the_bucket_of_the_first_bound_that_is_not_less() {
        for (ns, bucket) in [
            (0, 0),
            (10_000, 0),
            (10_001, 1),
            (1_000_000, 20),
            (1_000_001, 21),
            (u64::MAX, BUCKETS - 1),
        ] {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(ns));
            let read = histogram.read();
            assert_eq!(read.counts[bucket], 1, "{ns}");
            assert_eq!(read.count(), 1);
        }
    }

    #[test]
    fn the_coarse_form_loses_nothing() {
        let histogram = Histogram::default();
        for us in (0..200_000_000).step_by(999_983) {
            histogram.observe(Duration::from_micros(us));
        }
        let read = histogram.read();
        let coarse = read.coarse();
        assert_eq!(coarse.len(), 3 * DECADES + 1);
        assert!(coarse.iter().any(|(bound, _)| *bound == 0.0025));
        assert_eq!(
            coarse.iter().map(|(_, count)| count).sum::<u64>(),
            read.count()
        );
        let up_to = |limit: f64| -> u64 {
            let within = coarse.iter().filter(|(bound, _)| *bound <= limit);
            within.map(|(_, count)| count).sum()
        };
        // 0 s, then one for each 0.999983 s.
        assert_eq!(up_to(1.0), 2);
        assert_eq!(up_to(10.0), 11);
    }
}
