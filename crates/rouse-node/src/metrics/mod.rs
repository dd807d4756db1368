//! What a node tells its operator: `docs/observability.md` lists all of it.
//!
//! [`counters`] and [`stages`] are written while requests run, and are atomic numbers. All else is read when somebody asks:
//! [`report`] gathers it, [`prometheus`] writes it in the text format, [`readiness`] says whether the node can work.

pub mod counters;
pub mod histogram;
pub mod process;
pub mod prometheus;
pub mod readiness;
pub mod report;
pub mod stages;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::metrics::counters::{Counters, Tally};
use crate::metrics::stages::StageTimes;
use crate::refusal::Refusal;

/// What is counted of the node as a whole.
#[derive(Debug)]
pub struct Metrics {
    /// Durations of the stages of invocations.
    pub stages: StageTimes,
    /// Functions that have no series of their own, together; also those that are gone.
    pub other: Arc<Tally>,
    /// Since when the node runs.
    pub started: Instant,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    /// Functions that have series of their own, and how many may.
    labelled: AtomicUsize,
    most_labelled: usize,
    /// Largest values that were told of counts that live elsewhere.
    told: Mutex<BTreeMap<&'static str, u64>>,
}

impl Metrics {
    /// Nothing was counted yet. So many functions have series of their own at most.
    pub fn new(most_labelled: usize) -> Self {
        Self {
            stages: StageTimes::default(),
            other: Arc::default(),
            started: Instant::now(),
            refusals: Mutex::default(),
            labelled: AtomicUsize::new(0),
            most_labelled,
            told: Mutex::default(),
        }
    }

    /// Counters for a function that is new. Gets series of its own as long as there are not too many.
    pub fn counters(&self) -> Counters {
        let room = self
            .labelled
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |labelled| {
                (labelled < self.most_labelled).then_some(labelled + 1)
            });
        match room {
            Ok(_) => Counters::default(),
            Err(_) => Counters::along(Arc::clone(&self.other)),
        }
    }

    /// A function is gone, and with it its series.
    pub fn retire(&self, counters: &Counters) {
        if counters.is_labelled() {
            self.labelled.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A request was refused. Not on the way of those that are served.
    pub fn refused(&self, refusal: &Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(refusal.error_type()).or_default() += 1;
    }

    /// Refused requests, by Lambda's name of the error.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.clone()
    }

    /// A count that is the sum of several, read one after the other, as something that never goes back.
    fn growing(&self, name: &'static str, value: u64) -> u64 {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let most = told.entry(name).or_default();
        *most = value.max(*most);
        *most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_beyond_the_limit_have_no_series_until_others_go() {
        let metrics = Metrics::new(1);
        let (first, second) = (metrics.counters(), metrics.counters());
        assert!(first.is_labelled() && !second.is_labelled());
        metrics.retire(&second);
        assert!(!metrics.counters().is_labelled());
        metrics.retire(&first);
        assert!(metrics.counters().is_labelled());
    }

    #[test]
    fn a_sum_of_several_never_goes_back() {
        let metrics = Metrics::new(1);
        assert_eq!(metrics.growing("a", 5), 5);
        assert_eq!(metrics.growing("a", 3), 5);
        assert_eq!(metrics.growing("b", 3), 3);
        assert_eq!(metrics.growing("a", 7), 7);
    }
}
