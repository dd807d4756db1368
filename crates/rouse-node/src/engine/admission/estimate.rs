//! What one request of a function takes of the host, as far as earlier ones have shown it.

use std::time::Duration;

/// An observation counts for so much of the new average: 1/4.
const WEIGHT: u64 = 4;

/// What one request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// From its admission to its answer.
    pub time: Duration,
    /// Processor time of the function's process in it.
    pub cpu: Duration,
    /// Peak memory of its instance, bytes.
    pub memory: u64,
}

/// What the next request is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Time, microseconds.
    pub time_us: u64,
    /// Thousandths of one processor, on average over that time.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    is_observed: bool,
}

impl Default for Estimate {
    /// Of a function that has not run: less than most take, so that its first burst is not held back for nothing, and not
    /// nothing, so that the burst has an end.
    fn default() -> Self {
        Self {
            time_us: 10_000,
            cpu_milli: 250,
            memory: 16 << 20,
            is_observed: false,
        }
    }
}

impl Estimate {
    /// Takes an observation in: a moving average, of which the first one is the start.
    pub fn learn(&mut self, observed: &Observed) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let time_us = us(observed.time).max(1);
        let cpu_milli = us(observed.cpu).saturating_mul(1000) / time_us;
        let average = |old: u64, new: u64| match self.is_observed {
            true => (old.saturating_mul(WEIGHT - 1).saturating_add(new)) / WEIGHT,
            false => new,
        };
        *self = Self {
            time_us: average(self.time_us, time_us).max(1),
            cpu_milli: average(self.cpu_milli, cpu_milli),
            memory: average(self.memory, observed.memory),
            is_observed: true,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_observation_counts_and_the_others_move_it() {
        let observed = |ms, cpu, memory| Observed {
            time: Duration::from_millis(ms),
            cpu: Duration::from_millis(cpu),
            memory,
        };
        let mut estimate = Estimate::default();
        estimate.learn(&observed(100, 50, 4096));
        assert_eq!(
            (estimate.time_us, estimate.cpu_milli, estimate.memory),
            (100_000, 500, 4096)
        );
        estimate.learn(&observed(200, 0, 8192));
        assert_eq!(
            (estimate.time_us, estimate.cpu_milli, estimate.memory),
            (125_000, 375, 5120)
        );
        for _ in 0..50 {
            estimate.learn(&observed(0, 0, 0));
        }
        assert_eq!(estimate.cpu_milli, 0);
        assert!(estimate.time_us >= 1);
    }
}
