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

mod costs;
pub mod far;
mod heap;
pub mod heat;
pub mod load;
pub mod plan;
pub mod report;
mod shortage;
mod templates;

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rouse_pool::cost::{Budgets, CostInputs, Tier};
use rouse_snapshot::model::PAGE_SIZE;

use crate::boot::LoadedImage;
use crate::engine::function::{Function, ReadySnapshot, Revision, SnapshotStatus};
use crate::node::Node;
use far::FarTier;
use heat::Reading;
use plan::{Action, Candidate, Decision, Family};
use templates::LoadedTemplate;

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
    costs: costs::Costs,
    far: FarTier,
}

/// One loaded snapshot, and whose it is.
struct Loaded {
    function: Arc<Function>,
    revision: Arc<Revision>,
    ready: Arc<ReadySnapshot>,
    candidate: Candidate,
}

/// All that the policy decides about.
struct Everything {
    functions: Vec<Loaded>,
    templates: Vec<LoadedTemplate>,
    /// Pages in near memory that all else holds.
    other_pages: u64,
}

impl ResidencyPolicy {
    /// With settings of the node. A DRAM budget of 0 is a quarter of the host's memory.
    pub fn new(settings: &crate::config::MemorySettings) -> Self {
        Self {
            far: FarTier::new(settings),
            budgets: Budgets {
                dram: match settings.dram_bytes {
                    0 => host_memory() / 4,
                    bytes => bytes,
                },
                // As much as there is at each moment.
                far: 0,
                compressed: settings.compressed_bytes,
            },
            idle_limit: Duration::from_secs(settings.idle_s),
            costs: costs::Costs::default(),
        }
    }

    /// What tiers may hold.
    pub fn budgets(&self) -> Budgets {
        Budgets {
            far: self.far.budget(),
            ..self.budgets
        }
    }

    /// What things cost.
    pub fn inputs(&self) -> Arc<CostInputs> {
        self.costs.inputs()
    }
}

/// Keeps the node under its budgets until it ends.
pub(crate) async fn run(node: Weak<Node>) {
    heap::keep_small();
    if let Some(node) = node.upgrade() {
        costs::learn(&node).await;
    }
    let Some(shortage) = node.upgrade().map(|node| node.boot.shortage()) else {
        return;
    };
    let mut unloading = 0;
    let mut shortages = 0;
    let mut until_measured = costs::BETWEEN;
    loop {
        let is_short = tokio::select! {
            () = tokio::time::sleep(PERIOD) => false,
            () = shortage.notified() => true,
        };
        let Some(node) = node.upgrade() else { return };
        if !node.config.memory.managed {
            return;
        }
        // What is short of memory may have none to say so.
        let before = std::mem::replace(&mut shortages, shortage::count(&node));
        if is_short || shortages > before {
            shortage::make_room(&node).await;
            continue;
        }
        until_measured = until_measured.saturating_sub(PERIOD);
        if until_measured.is_zero() {
            until_measured = costs::BETWEEN;
            costs::learn_when_idle(&node).await;
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
    let found = {
        let node = Arc::clone(node);
        let found = tokio::task::spawn_blocking(move || gather(&node)).await;
        let Ok(found) = found else { return false };
        found
    };
    let loaded = &found.functions;
    for one in loaded {
        if let Some(problem) = one.ready.image.problem() {
            node.condemn(&one.function, &one.revision, &one.ready, problem);
        }
    }
    let (decisions, of_templates) = decide(node, &found);
    // First what makes room.
    let takes_room =
        |decision: &Decision| matches!(decision.action, Action::Promote | Action::PlaceFar);
    // A template is let go of after its functions, and brought in before them.
    for second in [false, true] {
        for (one, decision) in loaded.iter().zip(&decisions) {
            if !second && !takes_room(decision) {
                act(node, one, decision.action).await;
            }
        }
        for (one, decision) in found.templates.iter().zip(&of_templates) {
            if takes_room(decision) == second {
                templates::act(node, one, decision.action).await;
            }
        }
        for (one, decision) in loaded.iter().zip(&decisions) {
            if second && takes_room(decision) {
                act(node, one, decision.action).await;
            }
        }
    }
    decisions.iter().any(|d| d.action == Action::Unload)
}

/// For functions, then for templates.
fn decide(node: &Node, found: &Everything) -> (Vec<Decision>, Vec<Decision>) {
    let policy = &node.residency;
    // What snapshots on trial hold, and what ends soon, is not to be had.
    let others = found.other_pages * PAGE_SIZE;
    let budgets = Budgets {
        dram: policy.budgets.dram.saturating_sub(others),
        ..policy.budgets()
    };
    let functions = found.functions.iter().map(|one| one.candidate);
    let functions: Vec<Candidate> = functions.collect();
    let families: Vec<Family> = found.templates.iter().map(LoadedTemplate::family).collect();
    plan::plan_families(
        &policy.inputs(),
        &budgets,
        policy.idle_limit,
        &functions,
        &families,
    )
}

/// All loaded snapshots, and the pages that everything else holds.
fn gather(node: &Node) -> Everything {
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
        let heat = node.heat_of(&function, now);
        let is_in_use = function.counters.instances.load(Ordering::Relaxed) > function.idle_count()
            && revision.was_released_within(RELEASE_PAUSE);
        let (candidate, near_pages) = candidate(&ready.image, heat, is_in_use);
        held += near_pages;
        loaded.push(Loaded {
            function,
            revision,
            ready,
            candidate,
        });
    }
    let templates = templates::gather(node, &loaded);
    held += templates
        .iter()
        .map(LoadedTemplate::near_pages)
        .sum::<u64>();
    Everything {
        functions: loaded,
        templates,
        other_pages: node.boot.pages_held().saturating_sub(held),
    }
}

/// A snapshot as the policy sees it, and its pages in near memory.
fn candidate(image: &LoadedImage, heat: Reading, is_in_use: bool) -> (Candidate, u64) {
    let usage = image.image_use();
    let near_pages = usage.resident_pages.saturating_sub(usage.far_pages);
    let candidate = Candidate {
        heat,
        is_resident: image.is_resident(),
        is_in_use,
        is_compressed: usage.compressed_bytes > 0,
        is_far: usage.far_pages > 0,
        is_stale: image.is_stale(),
        resident_pages: usage.resident_pages,
        wired_pages: usage.wired_pages,
        left_behind: match usage.far_pages >= image.pool_pages {
            true => near_pages.saturating_sub(usage.wired_pages),
            false => 0,
        },
        pool_pages: image.pool_pages,
        hot_pages: usage.hot_pages,
        stored_bytes: usage.stored_bytes,
    };
    (candidate, near_pages)
}

async fn act(node: &Arc<Node>, one: &Loaded, action: Action) {
    match action {
        Action::Keep => {}
        Action::Unload => {
            let key = &one.function.key;
            tracing::debug!(function = key, "idle: its snapshot stays on disk");
            node.unload(&one.revision, &one.ready);
        }
        Action::Release | Action::Compress => {
            one.revision.note_release();
            move_pages(node, &one.function.key, &one.ready.image, action).await;
        }
        Action::Promote | Action::PlaceFar => {
            move_pages(node, &one.function.key, &one.ready.image, action).await;
        }
    }
}

/// Moves the pages of a function or a template, which is called `name`.
async fn move_pages(node: &Node, name: &str, image: &LoadedImage, action: Action) {
    let result = match action {
        Action::Keep | Action::Unload => return,
        Action::Release | Action::Compress => {
            let Ok(_leaving) = image.stays.try_write() else {
                // The next round finds it again, if nobody needs all of them then.
                return;
            };
            tracing::debug!(name, ?action, "its pages leave the memory");
            let compress = action == Action::Compress;
            image.release(compress).await.map(drop)
        }
        Action::Promote => {
            tracing::debug!(name, "all its pages come into memory");
            image.make_resident(None).await
        }
        Action::PlaceFar => {
            tracing::debug!(name, "its pages come to far memory");
            match node.residency.far.memory() {
                None => return,
                Some(far) => {
                    let placed = image.make_resident(Some(far)).await;
                    placed.inspect_err(|_| node.residency.far.has_failed())
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::warn!(name, ?action, %error, "its memory could not be moved");
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
