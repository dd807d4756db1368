//! Which functions' memory is in DRAM: kept under a budget, by measured heat, while instances run.
//!
//! ```text
//!                 first call                 called again, and there is room
//!     stored  ----------------->  loaded  -------------------------------------> resident
//!  (disk only)                  (pages come,                                   (all pages, forks)
//!     ^                          and may go) <------------------------------------  |
//!     |                            |             over the budget: the coldest first |
//!     `----------------------------+-------------- not called for long -------------'
//! ```
//! [`heat`] says how often a function is called, [`plan`] what follows from it (by the cost model of
//! [`rouse_pool::cost`]), [`load`] moves snapshots between disk and memory. `docs/tiers.md` says why.

mod heap;
pub mod heat;
pub mod load;
pub mod plan;
pub mod report;

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rouse_pool::NumaNode;
use rouse_pool::cost::{Budgets, CostInputs, Tier, measure_far};
use rouse_snapshot::model::PAGE_SIZE;

use crate::engine::function::{Function, ReadySnapshot, Revision, SnapshotStatus};
use crate::node::Node;
use plan::{Action, Candidate, Decision};

/// Between two looks at everything.
const PERIOD: Duration = Duration::from_millis(500);
/// Looks in a row that find something to unload, after which free memory is given back in any case.
const UNLOADING: u32 = 20;

/// Pages that running instances of a function have brought in stay at least for so long. Otherwise an instance that touches
/// more than there is room for would spend its time waiting for the same pages.
const RELEASE_PAUSE: Duration = Duration::from_secs(5);

/// What the policy knows between two looks.
#[derive(Debug)]
pub struct ResidencyPolicy {
    budgets: Budgets,
    idle_limit: Duration,
    inputs: Mutex<Arc<CostInputs>>,
    /// The node of the far tier.
    far: Option<NumaNode>,
    /// It is there no more.
    is_far_lost: AtomicBool,
}

/// One loaded snapshot, and whose it is.
struct Loaded {
    function: Arc<Function>,
    revision: Arc<Revision>,
    ready: Arc<ReadySnapshot>,
    candidate: Candidate,
}

impl ResidencyPolicy {
    /// With settings of the node. A DRAM budget of 0 is a quarter of the host's memory.
    pub fn new(settings: &crate::config::MemorySettings) -> Self {
        let far = settings.far_node.map(NumaNode).filter(|node| {
            let is_there = node.has_memory();
            if !is_there {
                let node = node.0;
                tracing::warn!(node, "there is no such far memory: functions stay in DRAM");
            }
            is_there
        });
        Self {
            far,
            is_far_lost: AtomicBool::new(false),
            budgets: Budgets {
                dram: match settings.dram_bytes {
                    0 => host_memory() / 4,
                    bytes => bytes,
                },
                far: match (far, settings.far_bytes) {
                    (None, _) => 0,
                    (Some(node), 0) => node.bytes() / 4 * 3,
                    (Some(_), bytes) => bytes,
                },
                compressed: settings.compressed_bytes,
            },
            idle_limit: Duration::from_secs(settings.idle_s),
            inputs: Mutex::new(Arc::default()),
        }
    }

    /// What tiers may hold.
    pub fn budgets(&self) -> Budgets {
        match self.is_far_lost.load(Ordering::Relaxed) {
            true => Budgets {
                far: 0,
                ..self.budgets
            },
            false => self.budgets,
        }
    }

    /// The far tier cannot be used: what would be there goes elsewhere until the node starts anew.
    fn lose_far(&self) {
        if !self.is_far_lost.swap(true, Ordering::Relaxed) {
            tracing::warn!("the far memory is not used any more");
        }
    }

    /// What things cost.
    pub fn inputs(&self) -> Arc<CostInputs> {
        self.inputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Finds out what things cost on this host. Takes a fraction of a second of one processor, the first time.
async fn learn_costs(node: &Arc<Node>) {
    let state = node.config.state_dir.clone();
    let far = node.residency.far;
    let task = tokio::task::spawn_blocking(move || {
        let mut inputs = CostInputs::load_or_measure(&state);
        inputs.far = far.and_then(|node| measure_far(node).ok());
        inputs
    });
    // Cancelled only when the node ends.
    let Ok(inputs) = task.await else { return };
    node.boot.set_costs(&inputs);
    let mut known = node
        .residency
        .inputs
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *known = Arc::new(inputs);
}

/// Keeps the node under its budgets until it ends.
pub(crate) async fn run(node: Weak<Node>) {
    heap::keep_small();
    if let Some(node) = node.upgrade() {
        learn_costs(&node).await;
    }
    let mut unloading = 0;
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(node) = node.upgrade() else { return };
        if !node.config.memory.managed {
            return;
        }
        // When the last one is gone, or, if there always is another one, from time to time.
        unloading = match step(&node).await {
            true => unloading + 1,
            false if unloading > 0 => UNLOADING,
            false => 0,
        };
        if unloading >= UNLOADING {
            unloading = 0;
            // Cancelled only when the node ends.
            let _ = tokio::task::spawn_blocking(heap::give_back).await;
        }
    }
}

/// Looks at everything once. Returns whether a function was unloaded.
async fn step(node: &Arc<Node>) -> bool {
    let (loaded, others) = {
        let node = Arc::clone(node);
        let found = tokio::task::spawn_blocking(move || gather(&node)).await;
        let Ok(found) = found else { return false };
        found
    };
    for one in &loaded {
        if let Some(problem) = node.boot.problem(&one.ready.image) {
            node.condemn(&one.function, &one.revision, &one.ready, problem);
        }
    }
    let decisions = decide(node, &loaded, others);
    // First what makes room.
    let takes_room =
        |decision: &Decision| matches!(decision.action, Action::Promote | Action::PlaceFar);
    for second in [false, true] {
        for (one, decision) in loaded.iter().zip(&decisions) {
            if takes_room(decision) == second {
                act(node, one, decision.action).await;
            }
        }
    }
    decisions.iter().any(|d| d.action == Action::Unload)
}

fn decide(node: &Node, loaded: &[Loaded], others: u64) -> Vec<Decision> {
    let policy = &node.residency;
    // What templates and snapshots on trial hold, and what ends soon, is not to be had.
    let budgets = Budgets {
        dram: policy.budgets.dram.saturating_sub(others * PAGE_SIZE),
        ..policy.budgets()
    };
    let candidates: Vec<Candidate> = loaded.iter().map(|one| one.candidate).collect();
    plan::plan(&policy.inputs(), &budgets, policy.idle_limit, &candidates)
}

/// All loaded snapshots of functions, and the pages that everything else holds.
fn gather(node: &Node) -> (Vec<Loaded>, u64) {
    let now = Instant::now();
    let mut loaded = Vec::new();
    let mut held = 0;
    for function in node.all() {
        let Some(revision) = function.serving() else {
            continue;
        };
        let SnapshotStatus::Ready(ready) = revision.snapshot() else {
            continue;
        };
        let usage = node.boot.image_use(&ready.image);
        let near_pages = usage.resident_pages.saturating_sub(usage.far_pages);
        held += near_pages;
        let candidate = Candidate {
            heat: node.heat_of(&function, now),
            is_resident: node.boot.is_resident(&ready.image),
            is_in_use: function.counters.instances.load(Ordering::Relaxed) > function.idle_count()
                && revision.was_released_within(RELEASE_PAUSE),
            is_compressed: usage.compressed_bytes > 0,
            is_far: usage.far_pages > 0,
            is_stale: node.boot.is_stale(&ready.image),
            resident_pages: usage.resident_pages,
            wired_pages: usage.wired_pages,
            pool_pages: ready.image.pool_pages,
            hot_pages: usage.hot_pages,
            stored_bytes: usage.stored_bytes,
        };
        loaded.push(Loaded {
            function,
            revision,
            ready,
            candidate,
        });
    }
    (loaded, node.boot.pages_held().saturating_sub(held))
}

async fn act(node: &Arc<Node>, one: &Loaded, action: Action) {
    let key = &one.function.key;
    let image = &one.ready.image;
    let result = match action {
        Action::Keep => return,
        Action::Unload => {
            tracing::debug!(function = key, "idle: its snapshot stays on disk");
            return node.unload(&one.revision, &one.ready);
        }
        Action::Release | Action::Compress => {
            tracing::debug!(function = key, ?action, "its pages leave the memory");
            let compress = action == Action::Compress;
            one.revision.note_release();
            node.boot.release(image, compress).await.map(drop)
        }
        Action::Promote => {
            tracing::debug!(function = key, "all its pages come into memory");
            node.boot.make_resident(image, None).await
        }
        Action::PlaceFar => {
            tracing::debug!(function = key, "its pages come to far memory");
            let placed = node.boot.make_resident(image, node.residency.far).await;
            if placed.is_err() {
                node.residency.lose_far();
            }
            placed
        }
    };
    if let Err(error) = result {
        tracing::warn!(function = key, ?action, %error, "its memory could not be moved");
    }
}

/// The tier in which a snapshot's pages lie now, by name.
pub(crate) fn tier_now(candidate: &Candidate) -> Tier {
    match candidate {
        c if c.is_resident && c.is_far => Tier::Far,
        c if c.is_resident => Tier::Dram,
        c if c.is_compressed => Tier::Compressed,
        _ => Tier::Disk,
    }
}

/// Bytes of memory of the host, or of the control group that we are in if that is less.
pub(crate) fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limit = limits
        .iter()
        .filter_map(|path| {
            std::fs::read_to_string(path)
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .min();
    // Without /proc/meminfo: little enough for any host.
    let total = total.map_or(1 << 30, |kib| kib * 1024);
    total.min(limit.unwrap_or(u64::MAX))
}
