//! How many instances of each function wait, parked, for its next requests.
//!
//! A parked instance costs its write set in memory and answers as fast as a warm one. So the functions that are called
//! most get them first, as many as come while one is made, within a budget; and when the host is short of memory nobody
//! gets any.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rouse_snapshot::model::PAGE_SIZE;

use super::function::{Function, ReadySnapshot, Revision, SnapshotStatus};
use super::standby;
use crate::config::BootPolicy;
use crate::node::Node;
use crate::residency::heat::Reading;
use crate::serving::policy::Serving;

/// Between two looks at everything.
const PERIOD: Duration = Duration::from_millis(500);
/// Time in which a parked instance that was taken is replaced, on a node with other things to do.
const REFILL: Duration = Duration::from_millis(50);
/// Bytes that an instance costs beside the pages that it writes: page tables, the kernel's records, its init.
const OVERHEAD: u64 = 512 << 10;
/// Below this share of the host's memory that is available, nothing is parked.
const LEAST_AVAILABLE: f64 = 1.0 / 16.0;

/// How many instances of a function are to wait, were there memory enough. `ready` have been asked for, whatever the rate is.
pub fn wanted(boot: BootPolicy, serving: &Serving, heat: &Reading, ready: usize) -> usize {
    if boot != BootPolicy::Fresh {
        return 0;
    }
    let expected = match heat.is_called_again {
        true => 1 + (heat.rate * REFILL.as_secs_f64()).ceil() as usize,
        false => 0,
    };
    let (least, most) = (serving.parked_min as usize, serving.parked_max as usize);
    expected.clamp(least, most).max(ready)
}

/// Who asks, for how many, and what one costs in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    /// Calls per second; infinite where the function's owner has asked for instances.
    pub rate: f64,
    /// Instances.
    pub wanted: usize,
    /// Bytes of one.
    pub cost: u64,
}

/// What each gets of `budget` bytes, in the order of the wishes: the one that is called most is served first.
pub fn share(budget: u64, wishes: &[Wish]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by(|a, b| wishes[*b].rate.total_cmp(&wishes[*a].rate));
    let mut left = budget;
    let mut shares = vec![0; wishes.len()];
    for index in order {
        let wish = wishes[index];
        let affordable = usize::try_from(left / wish.cost.max(1)).unwrap_or(usize::MAX);
        shares[index] = wish.wanted.min(affordable);
        left -= wish.cost * shares[index] as u64;
    }
    shares
}

/// Looks again and again until the node is gone.
pub async fn run(node: Weak<Node>) {
    let mut before = false;
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(node) = node.upgrade() else { return };
        // A node that parks nothing does nothing.
        let any = step(&node, before);
        before = any;
    }
}

struct Parking {
    function: Arc<Function>,
    revision: Arc<Revision>,
    ready: Arc<ReadySnapshot>,
}

/// Looks at all functions once, and says whether anything is to be parked. With `before` something was.
fn step(node: &Arc<Node>, before: bool) -> bool {
    let now = std::time::Instant::now();
    let (mut all, mut wishes) = (Vec::new(), Vec::new());
    for function in node.all() {
        let Some(revision) = function.serving() else {
            continue;
        };
        let serving = node.serving(&function);
        let ready_wanted = node.ready_wanted(&function, &serving, now);
        if ready_wanted > 0 {
            standby::prepare(node, &function, &revision, ready_wanted);
        }
        if ready_wanted == 0 && serving.parked_max == 0 && !before {
            continue;
        }
        let SnapshotStatus::Ready(ready) = revision.snapshot() else {
            continue;
        };
        let heat = function.heat.read(now);
        // Idle instances answer as fast.
        let ready_wanted = match serving.isolation.reuses(true) {
            true => ready_wanted.saturating_sub(function.idle_count()),
            false => ready_wanted,
        };
        let written = ready.image.working_set();
        let pages = written.map_or(0, |report| report.predicted_written);
        wishes.push(Wish {
            rate: match ready_wanted {
                0 => heat.rate,
                _ => f64::INFINITY,
            },
            wanted: wanted(node.config.boot, &serving, &heat, ready_wanted),
            cost: pages * PAGE_SIZE + OVERHEAD,
        });
        all.push(Parking {
            function,
            revision,
            ready,
        });
    }
    let any = wishes.iter().any(|wish| wish.wanted > 0);
    if !any && !before {
        return false;
    }
    let budget = match is_memory_short() {
        true => 0,
        false => node.config.memory.parked_bytes,
    };
    for (one, target) in all.iter().zip(share(budget, &wishes)) {
        let spec = &one.revision.launches.snapshot;
        if one.ready.image.parked_count() > target {
            tracing::debug!(
                function = one.function.key,
                target,
                "fewer instances stay parked"
            );
        }
        one.ready.image.set_parked(spec, target);
    }
    any
}

/// Is hardly any memory of the host available? What cannot be read is not short.
fn is_memory_short() -> bool {
    memory_available() == Some(0)
}

/// Bytes of the host's memory that may be given to instances which nobody needs at once. `None` where that cannot be read.
pub(crate) fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().split(' ').next()?.parse().ok()
    };
    let spare = field("MemAvailable:")? - field("MemTotal:")? * LEAST_AVAILABLE;
    // Kibibytes; less than nothing is nothing.
    Some((spare * 1024.0) as u64)
}

impl Node {
    /// Ends all instances that wait for requests.
    pub(crate) fn end_parked(&self) {
        for function in self.all() {
            let Some(revision) = function.serving() else {
                continue;
            };
            if let SnapshotStatus::Ready(ready) = revision.snapshot() {
                let spec = &revision.launches.snapshot;
                ready.image.set_parked(spec, 0);
                ready.image.end_rewound();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::serving::policy::ServingPolicy;

    fn serving(parked_min: u32, parked_max: u32) -> Serving {
        let policy = ServingPolicy {
            parked_min: Some(parked_min),
            parked_max: Some(parked_max),
            ..ServingPolicy::default()
        };
        policy.on(&NodeConfig::default())
    }

    fn heat(rate: f64) -> Reading {
        Reading {
            rate,
            idle: Duration::from_secs(1),
            is_called_again: rate > 0.0,
        }
    }

    #[test]
    fn the_rate_decides_between_the_bounds() {
        let fresh =
            |serving: &Serving, rate, ready| wanted(BootPolicy::Fresh, serving, &heat(rate), ready);
        let bounded = serving(1, 5);
        assert_eq!(fresh(&bounded, 0.0, 0), 1);
        assert_eq!(fresh(&bounded, 0.5, 0), 2);
        assert_eq!(fresh(&bounded, 50.0, 0), 4);
        assert_eq!(fresh(&bounded, 5000.0, 0), 5);
        assert_eq!(fresh(&serving(0, 5), 0.0, 0), 0);
        assert_eq!(fresh(&serving(3, 0), 50.0, 0), 0);
        assert_eq!(wanted(BootPolicy::Restore, &bounded, &heat(50.0), 3), 0);
    }

    #[test]
    fn what_was_asked_for_does_not_depend_on_the_rate() {
        let fresh =
            |serving: &Serving, rate, ready| wanted(BootPolicy::Fresh, serving, &heat(rate), ready);
        assert_eq!(fresh(&serving(0, 0), 0.0, 7), 7);
        assert_eq!(fresh(&serving(0, 5), 5000.0, 2), 5);
    }

    #[test]
    fn the_hottest_are_served_first_and_the_budget_holds() {
        let wish = |rate, wanted| Wish {
            rate,
            wanted,
            cost: 10,
        };
        assert_eq!(share(100, &[wish(1.0, 2), wish(2.0, 3)]), [2, 3]);
        assert_eq!(share(45, &[wish(1.0, 2), wish(2.0, 3)]), [1, 3]);
        assert_eq!(share(0, &[wish(1.0, 2)]), [0]);
        assert_eq!(share(20, &[wish(9.0, 2), wish(f64::INFINITY, 1)]), [1, 1]);
    }
}
