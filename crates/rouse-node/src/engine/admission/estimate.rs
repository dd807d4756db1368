//! What one request of a function takes of the host, as far as earlier ones have shown it.

use std::time::Duration;

/// An observation counts for so much of the new average: 1/4.
const WEIGHT: u64 = 4;

/// With each observation the fastest one becomes longer by 1/256: after some 180 it counts as half as long again.
const FORGET: u64 = 256;

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
    /// Thousandths of one processor, as long as it does not have to wait for one.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// What the fastest of late has taken, from which `cpu_milli` is, microseconds. 0 when there was none.
    fastest_us: u64,
}

impl Default for Estimate {
    /// Of a function that has not run: less than most take, so that its first burst is not held back for nothing, and not
    /// nothing, so that the burst has an end.
    fn default() -> Self {
        Self {
            time_us: 10_000,
            cpu_milli: 250,
            memory: 16 << 20,
            fastest_us: 0,
        }
    }
}

impl Estimate {
    /// Takes an observation in. Time and memory are moving averages, of which the first one is the start.
    ///
    /// Processors are those of the fastest request of late. While many run, each waits for a processor most of its time: that
    /// makes it long, and its share of a processor small, so that an average would let in more, the more there are already.
    /// The fastest one has waited least. One that sleeps or waits for others does so in the fastest case, too.
    pub fn learn(&mut self, observed: &Observed) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let time_us = us(observed.time).max(1);
        let is_first = self.fastest_us == 0;
        let average = |old: u64, new: u64| match is_first {
            false => (old.saturating_mul(WEIGHT - 1).saturating_add(new)) / WEIGHT,
            true => new,
        };
        // Forgotten bit by bit: requests may have become longer.
        let forgotten = (self.fastest_us / FORGET + 1).saturating_add(self.fastest_us);
        let is_fastest = is_first || time_us <= forgotten;
        *self = Self {
            time_us: average(self.time_us, time_us).max(1),
            cpu_milli: match is_fastest {
                true => us(observed.cpu).saturating_mul(1000) / time_us,
                false => self.cpu_milli,
            },
            memory: average(self.memory, observed.memory),
            fastest_us: if is_fastest { time_us } else { forgotten },
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
            (125_000, 500, 5120),
            "a longer one may have waited for a processor"
        );
        for _ in 0..50 {
            estimate.learn(&observed(0, 0, 0));
        }
        assert_eq!(estimate.cpu_milli, 0);
        assert!(estimate.time_us >= 1);
    }

    #[test]
    fn waiting_for_a_processor_does_not_look_like_sleep() {
        let mut estimate = Estimate::default();
        let ms = Duration::from_millis;
        let observed = |time, cpu| Observed {
            time,
            cpu,
            memory: 0,
        };
        estimate.learn(&observed(ms(10), ms(10)));
        // Ten times as many as there are processors.
        for _ in 0..100 {
            estimate.learn(&observed(ms(100), ms(10)));
        }
        assert_eq!(estimate.cpu_milli, 1000);
        // It has become another function.
        for _ in 0..2000 {
            estimate.learn(&observed(ms(100), ms(10)));
        }
        assert_eq!(estimate.cpu_milli, 100);
        estimate.learn(&observed(ms(50), ms(25)));
        assert_eq!(estimate.cpu_milli, 500);
    }
}
