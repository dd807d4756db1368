//! How long an instance that nobody uses is kept, and when one is made again before the next request.
//!
//! The histogram policy is that of "Serverless in the Wild" (Shahrad et al., ATC'20): the times between the end of one
//! invocation and the start of the next are counted in bins of a minute over four hours. From the histogram follow two
//! windows, counted from the end of the last invocation:
//!
//! ```text
//! end of the last          prewarm               prewarm + keep
//!      |------ no instance ----|------ an instance ------|---- no instance ----> idle time
//! ```
//! `prewarm` is the 5th percentile of the idle times less 10 %, the end of the second window the 99th plus 10 %. While
//! fewer than [`LEAST_SAMPLES`] times were counted, or when their counts say little (the bins' coefficient of variation is
//! below [`LEAST_VARIATION`]), or when most times were longer than four hours, the instance is kept for the whole range.
//!
//! Left out: the paper's forecast by ARIMA for functions whose idle times are mostly beyond the range. A snapshot makes a
//! request that comes that seldom cheap in any case.

use std::time::{Duration, Instant};

/// Width of a bin.
const BIN: Duration = Duration::from_secs(60);
/// Bins: four hours.
const BINS: usize = 240;
/// Below so many idle times nothing is concluded.
const LEAST_SAMPLES: u32 = 8;
/// Least coefficient of variation of the bins' counts that makes the histogram representative. As in the paper.
const LEAST_VARIATION: f64 = 2.0;
/// Share of idle times beyond the range above which the histogram is not used.
const MOST_BEYOND: f64 = 0.5;
/// Percentiles that bound the second window, and how much it is widened on both sides.
const HEAD: f64 = 0.05;
const TAIL: f64 = 0.99;
const MARGIN: f64 = 0.10;

/// When an instance is to exist, counted from the end of the last invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Before this time no instance is needed; zero where the one that has answered is kept.
    pub prewarm: Duration,
    /// From then on for so long one is.
    pub keep: Duration,
}

impl Windows {
    /// Keeps for so long, from the end on.
    pub fn fixed(keep: Duration) -> Self {
        Self {
            prewarm: Duration::ZERO,
            keep,
        }
    }

    /// Is an instance to exist after so much idle time?
    pub fn wants_instance(&self, idle: Duration) -> bool {
        idle >= self.prewarm && idle < self.prewarm + self.keep
    }
}

/// The idle times of one function.
#[derive(Debug, Clone)]
pub struct IdleTimes {
    bins: Box<[u32; BINS]>,
    /// All that were counted, those beyond the range too.
    count: u32,
    beyond: u32,
    /// Invocations that run.
    running: u32,
    /// When the last of them ended, if none runs.
    idle_since: Option<Instant>,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self {
            bins: Box::new([0; BINS]),
            count: 0,
            beyond: 0,
            running: 0,
            idle_since: None,
        }
    }
}

impl IdleTimes {
    /// An invocation begins.
    pub fn begin(&mut self, now: Instant) {
        if let Some(since) = self.idle_since.take() {
            self.note(now.saturating_duration_since(since));
        }
        self.running += 1;
    }

    /// An invocation is over.
    pub fn end(&mut self, now: Instant) {
        self.running = self.running.saturating_sub(1);
        if self.running == 0 {
            self.idle_since = Some(now);
        }
    }

    /// How long nothing has run; `None` while something does, or when nothing ever did.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        let since = self.idle_since?;
        Some(now.saturating_duration_since(since))
    }

    fn note(&mut self, idle: Duration) {
        // Halving keeps the shape, and makes the past count less.
        if self.count == u32::MAX / 2 {
            self.bins.iter_mut().for_each(|count| *count /= 2);
            self.beyond /= 2;
            self.count = self.bins.iter().sum::<u32>() + self.beyond;
        }
        let bin = usize::try_from(idle.as_secs() / BIN.as_secs()).unwrap_or(BINS);
        match self.bins.get_mut(bin) {
            Some(count) => *count += 1,
            None => self.beyond += 1,
        }
        self.count += 1;
    }

    /// What follows for the next pause.
    pub fn windows(&self) -> Windows {
        let whole = Windows::fixed(BIN * BINS as u32);
        let is_known = self.count >= LEAST_SAMPLES
            && f64::from(self.beyond) <= MOST_BEYOND * f64::from(self.count)
            && self.variation() >= LEAST_VARIATION;
        if !is_known {
            return whole;
        }
        // The paper rounds the head down and the tail up to bins.
        let head = BIN * self.percentile(HEAD);
        let tail = BIN * (self.percentile(TAIL) + 1);
        let prewarm = head.mul_f64(1.0 - MARGIN);
        let end = tail.mul_f64(1.0 + MARGIN).min(whole.keep);
        Windows {
            prewarm,
            keep: end.saturating_sub(prewarm),
        }
    }

    /// The bin in which this share of the times within the range is reached.
    fn percentile(&self, share: f64) -> u32 {
        let within = self.count - self.beyond;
        let wanted = (f64::from(within) * share).ceil().max(1.0);
        let mut seen = 0.0;
        for (bin, count) in (0..).zip(self.bins.iter()) {
            seen += f64::from(*count);
            if seen >= wanted {
                return bin;
            }
        }
        BINS as u32 - 1
    }

    /// Coefficient of variation of the bins' counts: the more the times gather in few bins, the greater.
    fn variation(&self) -> f64 {
        let mean = f64::from(self.count - self.beyond) / BINS as f64;
        if mean == 0.0 {
            return 0.0;
        }
        let squares = self.bins.iter().map(|count| {
            let difference = f64::from(*count) - mean;
            difference * difference
        });
        (squares.sum::<f64>() / BINS as f64).sqrt() / mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    fn seen(times: &[Duration]) -> IdleTimes {
        let mut idle = IdleTimes::default();
        let mut now = Instant::now();
        idle.begin(now);
        for time in times {
            idle.end(now);
            now += *time;
            idle.begin(now);
        }
        idle
    }

    #[test]
    fn a_function_that_comes_every_half_hour_is_made_ready_before() {
        let windows = seen(&[minutes(30); 20]).windows();
        assert_eq!(windows.prewarm, minutes(27));
        assert!(!windows.wants_instance(minutes(1)));
        assert!(windows.wants_instance(minutes(30)));
        assert!(!windows.wants_instance(minutes(40)));
    }

    #[test]
    fn one_that_comes_at_once_keeps_its_instance_for_a_short_time() {
        let windows = seen(&[Duration::from_secs(5); 20]).windows();
        assert_eq!(windows.prewarm, Duration::ZERO);
        assert!(windows.wants_instance(Duration::from_secs(59)));
        assert!(!windows.wants_instance(minutes(2)));
    }

    #[test]
    fn what_is_not_known_is_kept_for_the_whole_range() {
        let whole = Windows::fixed(minutes(240));
        assert_eq!(seen(&[]).windows(), whole);
        assert_eq!(seen(&[minutes(3); 5]).windows(), whole);
        assert_eq!(seen(&[minutes(300); 20]).windows(), whole);
        let anything: Vec<_> = (0..240).map(minutes).collect();
        assert_eq!(seen(&anything).windows(), whole);
    }

    #[test]
    fn pauses_begin_when_the_last_invocation_has_ended() {
        let mut idle = IdleTimes::default();
        let start = Instant::now();
        assert_eq!(idle.idle(start), None);
        idle.begin(start);
        idle.begin(start);
        idle.end(start);
        assert_eq!(idle.idle(start), None);
        idle.end(start);
        assert_eq!(idle.idle(start + minutes(1)), Some(minutes(1)));
        assert_eq!(idle.count, 0);
    }

    proptest! {
        /// Whenever the histogram is used, nearly all of the times it was made of fall into the window.
        #[test]
        fn most_of_the_past_is_within_the_windows(times in prop::collection::vec(0u64..200, 1..200)) {
            let times: Vec<_> = times.into_iter().map(minutes).collect();
            let windows = seen(&times).windows();
            let hit = times.iter().filter(|time| windows.wants_instance(**time)).count();
            prop_assert!(hit as f64 >= times.len() as f64 * (TAIL - HEAD) - 1.0);
            prop_assert!(windows.prewarm + windows.keep <= minutes(240));
        }
    }
}
