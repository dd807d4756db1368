//! How many slots were needed at a time, lately.

use std::time::{Duration, Instant};

/// What was needed is remembered for one to two of these.
const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Demand {
    lent: usize,
    /// The most that were lent at a time, in this window and in the one before.
    peaks: [usize; 2],
    begun: Instant,
}

impl Demand {
    pub fn new(now: Instant) -> Self {
        Self {
            lent: 0,
            peaks: [0; 2],
            begun: now,
        }
    }

    pub fn take(&mut self) {
        self.lent += 1;
        self.peaks[0] = self.peaks[0].max(self.lent);
    }

    pub fn give(&mut self) {
        self.lent -= 1;
    }

    /// Slots that are worth keeping beside those that are lent.
    pub fn spare(&mut self, now: Instant) -> usize {
        if now.saturating_duration_since(self.begun) >= WINDOW {
            self.peaks = [self.lent, self.peaks[0]];
            self.begun = now;
        }
        self.peaks[0].max(self.peaks[1]) - self.lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_remembered_for_one_to_two_windows() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        (0..9).for_each(|_| demand.take());
        (0..7).for_each(|_| demand.give());
        assert_eq!(demand.spare(start), 7);
        assert_eq!(demand.spare(start + WINDOW), 7);
        demand.take();
        assert_eq!(demand.spare(start + WINDOW), 6);
        assert_eq!(demand.spare(start + 2 * WINDOW), 0);
        demand.give();
        assert_eq!(demand.spare(start + 2 * WINDOW), 1);
        assert_eq!(demand.spare(start + 4 * WINDOW), 1);
        assert_eq!(demand.spare(start + 5 * WINDOW), 0);
    }
}
