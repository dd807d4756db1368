//! What things cost on this host: measured at the start, and again while there is nothing to do.
//!
//! A first start is often a busy moment: everything else on the host starts as well. So what was measured then is not kept for
//! good, but the best of a few measurements is (`MEASUREMENTS`), at later starts or in quiet minutes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rouse_pool::cost::{CostInputs, Measured, measure_far};
use serde::Serialize;

use crate::node::Node;

/// Between two measurements of one node.
pub(super) const BETWEEN: Duration = Duration::from_secs(120);
/// Percent of the last ten seconds in which somebody on the host waited for a processor: more is not quiet.
const QUIET: f64 = 5.0;

/// How the inputs of the cost model are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MeasuredAt {
    /// When they were last measured, seconds since 1970.
    pub at_s: u64,
    /// The best of how many measurements they are. 0: they are defaults, in part.
    pub times: u32,
}

#[derive(Debug, Default)]
struct Known {
    inputs: Arc<CostInputs>,
    measured: Option<MeasuredAt>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Costs(Mutex<Known>);

impl Costs {
    pub(super) fn inputs(&self) -> Arc<CostInputs> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&known.inputs)
    }

    /// `None` until something was measured.
    pub(super) fn measured(&self) -> Option<MeasuredAt> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .measured
    }
}

/// Finds out what things cost on this host. Takes a fraction of a second of one processor, unless it is known well. What was known
/// before is used until then.
pub(super) async fn learn(node: &Arc<Node>) {
    let state = node.config.state_dir.clone();
    if node.residency.costs.measured().is_none() {
        let state = state.clone();
        // Cancelled only when the node ends.
        if let Ok(Some(kept)) = tokio::task::spawn_blocking(move || Measured::kept(&state)).await {
            take(node, kept);
        }
    }
    let far = node.residency.far.memory();
    let task = tokio::task::spawn_blocking(move || {
        let mut measured = Measured::load_or_measure(&state);
        measured.inputs.far = far.and_then(|far| measure_far(&far).ok());
        measured
    });
    if let Ok(measured) = task.await {
        take(node, measured);
    }
}

/// From now on everything is decided by this.
fn take(node: &Node, measured: Measured) {
    node.boot.set_costs(&measured.inputs);
    let costs = &node.residency.costs.0;
    *costs.lock().unwrap_or_else(PoisonError::into_inner) = Known {
        inputs: Arc::new(measured.inputs),
        measured: Some(MeasuredAt {
            at_s: measured.at_s,
            times: measured.times,
        }),
    };
}

/// Measures once more if that may help, nothing runs here, and the host is quiet as far as it tells.
pub(super) async fn learn_when_idle(node: &Arc<Node>) {
    let times = node.residency.costs.measured().map_or(0, |m| m.times);
    if times >= rouse_pool::cost::MEASUREMENTS {
        return;
    }
    let is_busy = node.all().iter().any(|function| {
        function.counters.instances.load(Ordering::Relaxed) > function.idle_count()
    });
    let pressure = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    if !is_busy && is_quiet(&pressure) {
        learn(node).await;
    }
}

/// `some avg10=0.12 avg60=...`. A kernel that does not tell is taken to be quiet: the best of all measurements counts.
fn is_quiet(pressure: &str) -> bool {
    let some = pressure
        .lines()
        .find_map(|line| line.strip_prefix("some avg10="));
    let percent = some.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    percent.is_none_or(|percent| percent < QUIET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_host_is_not_quiet() {
        assert!(is_quiet(
            "some avg10=0.00 avg60=90.00 avg300=90.00 total=1\nfull avg10=99.00"
        ));
        assert!(!is_quiet("some avg10=50.12 avg60=0.00 avg300=0.00 total=1"));
        assert!(is_quiet(""));
        assert!(is_quiet("some avg10=much"));
    }
}
