//! What happened between two looks at a node.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::view::{FunctionView, InstancesView, NodeView, RequestsView, TierView};

/// A node over an interval.
#[derive(Debug, Clone, Serialize)]
pub struct Rates {
    /// Of rouse.
    pub version: String,
    /// Seconds since the node started.
    pub uptime_s: f64,
    /// Length of the interval, seconds.
    pub interval_s: f64,
    /// All functions together.
    pub calls_per_s: f64,
    /// Function errors of all functions.
    pub errors_per_s: f64,
    /// Requests that are in the node.
    pub requests: RequestsView,
    /// Asynchronous invocations that are not delivered yet.
    pub events_pending: u64,
    /// Each tier.
    pub tiers: BTreeMap<String, TierView>,
    /// The pool of sandboxes.
    pub sandboxes: SandboxRates,
    /// The pager, if there is one.
    pub pager: Option<PagerRates>,
    /// Processors that the node's own process kept busy.
    pub cpus: f64,
    /// Its memory, bytes.
    pub resident_bytes: u64,
    /// Each function and version: the busiest first.
    pub functions: Vec<FunctionRates>,
}

/// A function over an interval.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionRates {
    pub name: String,
    pub version: String,
    /// Invocations that were answered.
    pub calls_per_s: f64,
    pub errors_per_s: f64,
    pub throttles_per_s: f64,
    /// From request to answer, milliseconds; `None` when nothing was answered.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub instances: InstancesView,
    /// In the queue, of all versions; `None` for versions.
    pub waiting: Option<u64>,
    /// Boot paths that were taken, as shares of 1.
    pub paths: BTreeMap<String, f64>,
    /// Invocations since the node started.
    pub invocations: u64,
}

/// The pool of sandboxes over an interval.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SandboxRates {
    pub ready: u64,
    pub taken_per_s: f64,
    pub misses_per_s: f64,
}

/// The pager over an interval.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PagerRates {
    pub faults_per_s: f64,
    /// Pages brought in, for whatever reason.
    pub filled_pages_per_s: f64,
    pub read_bytes_per_s: f64,
    pub evicted_pages_per_s: f64,
}

impl Rates {
    /// What happened from `before` to `now`. A node that was started anew counts from its start.
    pub fn between(before: &NodeView, now: &NodeView) -> Self {
        let nothing = NodeView::default();
        let before = match before.uptime_s <= now.uptime_s {
            true => before,
            false => &nothing,
        };
        let interval_s = (now.uptime_s - before.uptime_s).max(1e-3);
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / interval_s;
        let known: HashMap<(&str, &str), &FunctionView> = before
            .functions
            .iter()
            .map(|one| ((one.name.as_str(), one.version.as_str()), one))
            .collect();
        let unknown = FunctionView::default();
        let mut functions: Vec<FunctionRates> = now
            .functions
            .iter()
            .map(|one| {
                let known = known.get(&(one.name.as_str(), one.version.as_str()));
                // One of the same name that is new counts from nothing.
                let before = known.filter(|known| known.invocations <= one.invocations);
                function(before.unwrap_or(&&unknown), one, &now.bounds_s, interval_s)
            })
            .collect();
        functions.sort_by(|a, b| {
            let names = (&a.name, &a.version).cmp(&(&b.name, &b.version));
            b.calls_per_s.total_cmp(&a.calls_per_s).then(names)
        });
        Self {
            version: now.version.clone(),
            uptime_s: now.uptime_s,
            interval_s,
            calls_per_s: functions.iter().map(|one| one.calls_per_s).sum(),
            errors_per_s: functions.iter().map(|one| one.errors_per_s).sum(),
            requests: now.requests,
            events_pending: now.events_pending,
            tiers: now.tiers.clone(),
            sandboxes: SandboxRates {
                ready: now.sandboxes.ready,
                taken_per_s: rate(before.sandboxes.taken, now.sandboxes.taken),
                misses_per_s: rate(before.sandboxes.missed, now.sandboxes.missed),
            },
            pager: now.pager.map(|now| {
                let before = before.pager.unwrap_or_default();
                PagerRates {
                    faults_per_s: rate(before.faults, now.faults),
                    filled_pages_per_s: rate(
                        before.demanded_pages + before.prefetched_pages,
                        now.demanded_pages + now.prefetched_pages,
                    ),
                    read_bytes_per_s: rate(before.read_bytes, now.read_bytes),
                    evicted_pages_per_s: rate(before.evicted_pages, now.evicted_pages),
                }
            }),
            cpus: (now.process.cpu_s - before.process.cpu_s).max(0.0) / interval_s,
            resident_bytes: now.process.resident_bytes,
            functions,
        }
    }
}

fn function(
    before: &FunctionView,
    now: &FunctionView,
    bounds_s: &[f64],
    interval_s: f64,
) -> FunctionRates {
    let rate = |count: u64| count as f64 / interval_s;
    let boots = difference(&before.boots, &now.boots);
    let answered: u64 = boots.values().sum();
    let counts: Vec<u64> = now
        .duration
        .counts
        .iter()
        .enumerate()
        .map(|(at, count)| {
            let before = before.duration.counts.get(at).copied().unwrap_or(0);
            count.saturating_sub(before)
        })
        .collect();
    let milliseconds = |share| quantile(&counts, bounds_s, share).map(|seconds| seconds * 1e3);
    FunctionRates {
        name: now.name.clone(),
        version: now.version.clone(),
        calls_per_s: rate(answered),
        errors_per_s: rate(difference(&before.errors, &now.errors).values().sum()),
        throttles_per_s: rate(now.throttles.saturating_sub(before.throttles)),
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        instances: now.instances,
        waiting: now.requests.map(|flow| flow.waiting),
        paths: boots
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(path, count)| (path, count as f64 / answered as f64))
            .collect(),
        invocations: now.invocations,
    }
}

fn difference(
    before: &BTreeMap<String, u64>,
    now: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    now.iter()
        .map(|(name, count)| {
            let before = before.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(before))
        })
        .collect()
}

/// The value that `share` of all values do not exceed, as if values lay evenly in each bucket. `counts` has one bucket more than
/// there are bounds; what lies in it counts as the last bound.
fn quantile(counts: &[u64], bounds: &[f64], share: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    let wanted = share * all as f64;
    let mut below = 0.0;
    for (at, count) in counts.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && below + count >= wanted {
            let Some(upper) = bounds.get(at) else { break };
            let lower = match at {
                0 => 0.0,
                at => bounds[at - 1],
            };
            return Some(lower + (upper - lower) * (wanted - below) / count);
        }
        below += count;
    }
    bounds.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::view::{DurationView, PagerView};

    fn view(uptime_s: f64, calls: u64, errors: u64) -> NodeView {
        let count = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
        NodeView {
            uptime_s,
            bounds_s: vec![0.001, 0.002],
            functions: vec![FunctionView {
                name: "f".into(),
                version: "$LATEST".into(),
                invocations: calls,
                boots: count("fork", calls),
                errors: count("handler", errors),
                duration: DurationView {
                    counts: vec![0, calls, 0],
                },
                ..FunctionView::default()
            }],
            pager: Some(PagerView {
                faults: calls * 10,
                ..PagerView::default()
            }),
            ..NodeView::default()
        }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let rates = Rates::between(&view(10.0, 100, 1), &view(12.0, 150, 3));
        let one = &rates.functions[0];
        assert_eq!(
            (rates.interval_s, rates.calls_per_s, one.calls_per_s),
            (2.0, 25.0, 25.0)
        );
        assert_eq!((one.errors_per_s, rates.errors_per_s), (1.0, 1.0));
        assert_eq!(one.paths, BTreeMap::from([("fork".to_owned(), 1.0)]));
        assert_eq!((one.p50_ms, one.invocations), (Some(1.5), 150));
        assert_eq!(rates.pager.map(|pager| pager.faults_per_s), Some(250.0));
    }

    #[test]
    fn what_is_new_counts_from_nothing() {
        // The function was made again.
        let rates = Rates::between(&view(10.0, 100, 1), &view(11.0, 5, 0));
        assert_eq!(rates.functions[0].calls_per_s, 5.0);
        // The node was started again.
        let rates = Rates::between(&view(10.0, 1, 1), &view(5.0, 10, 0));
        assert_eq!((rates.interval_s, rates.calls_per_s), (5.0, 2.0));
        let idle = Rates::between(&view(10.0, 7, 0), &view(11.0, 7, 0));
        assert_eq!((idle.calls_per_s, idle.functions[0].p99_ms), (0.0, None));
        assert!(idle.functions[0].paths.is_empty());
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let bounds = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&[0, 0, 0, 0], &bounds, 0.5), None);
        assert_eq!(quantile(&[10, 0, 0, 0], &bounds, 0.5), Some(0.5));
        assert_eq!(quantile(&[1, 0, 2, 0], &bounds, 0.5), Some(2.5));
        assert_eq!(quantile(&[0, 0, 0, 3], &bounds, 0.5), Some(4.0));
    }
}
