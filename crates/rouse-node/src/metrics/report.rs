//! All that a node tells about itself, gathered at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rouse_process::launcher::StockCounts;
use serde::Serialize;

use super::counters::Tally;
use super::histogram::{Distribution, bounds_s};
use super::process::ProcessUse;
use crate::describe::Instances;
use crate::engine::function::{Function, SnapshotStatus};
use crate::function::arn::LATEST;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::residency::report::{TierUse, tiers_report};

/// A node at one moment. Counts grow from the start of the node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// Of rouse.
    pub version: &'static str,
    /// Seconds since the node started, by a clock that only goes forward.
    pub uptime_s: f64,
    /// Upper bounds of the buckets of all durations but the last bucket, seconds.
    pub bounds_s: Vec<f64>,
    /// Each function, by name and version.
    pub functions: Vec<FunctionReport>,
    /// Functions without series of their own, together; `None` if there were none.
    #[serde(skip)]
    pub other: Option<TallyReport>,
    /// Functions that have a snapshot, by how much of it is in memory; and those that have none, or none yet.
    pub snapshots: BTreeMap<&'static str, u64>,
    /// Stages of invocations: path, stage, durations.
    #[serde(skip)]
    pub stages: Vec<(&'static str, &'static str, Distribution)>,
    /// Refused requests, by the name of the error.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Requests that are in the node.
    pub requests: RequestsReport,
    /// Asynchronous invocations that are not delivered yet.
    pub events_pending: u64,
    /// What each tier holds.
    pub tiers: BTreeMap<&'static str, TierUse>,
    /// Sandboxes made ahead.
    pub sandboxes: SandboxReport,
    /// What the pager did, if there is one.
    pub pager: Option<PagerReport>,
    /// Invocations that were traced.
    pub traces: TraceReport,
    /// The node's own process.
    pub process: ProcessUse,
}

/// A function at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionReport {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Does it have series of its own?
    #[serde(skip)]
    pub is_labelled: bool,
    /// What was counted.
    #[serde(flatten)]
    pub tally: TallyReport,
    /// Instances that exist.
    pub instances: Instances,
    /// Requests that wait and that run, of all versions together; with `$LATEST` only.
    pub requests: Option<FlowReport>,
}

/// What was counted of a function, or of several.
#[derive(Debug, Clone, Serialize)]
pub struct TallyReport {
    /// Invocations that began.
    pub invocations: u64,
    /// Requests answered 429.
    pub throttles: u64,
    /// Answered invocations by path.
    pub boots: BTreeMap<&'static str, u64>,
    /// Function errors by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// From request to answer.
    pub duration: Distribution,
}

/// Requests of one function.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct FlowReport {
    /// In the queue.
    pub waiting: u64,
    /// Starting or running.
    pub running: u64,
}

/// Requests of all functions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RequestsReport {
    /// In the queues.
    pub waiting: u64,
    /// Starting or running.
    pub running: u64,
    /// Of these, starting.
    pub starting: u64,
    /// That may run at the same time.
    pub limit: u64,
}

/// Sandboxes made ahead, of all limits together.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SandboxReport {
    /// Ready now.
    pub ready: u64,
    /// Made in the background.
    pub made: u64,
    /// Taken by instances.
    pub taken: u64,
    /// Times that none was ready, so that one was made while somebody waited.
    pub missed: u64,
}

/// What became of traced invocations.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct TraceReport {
    /// A collector has taken their spans.
    pub sent: u64,
    /// Their spans were lost.
    pub dropped: u64,
}

/// What the pagers of the node did.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PagerReport {
    /// Pagers that have died and were started again.
    pub restarts: u64,
    /// Processes whose memory is watched now.
    pub watched: u64,
    /// Faults taken.
    pub faults: u64,
    /// Pages filled because somebody waited.
    pub demanded_pages: u64,
    /// Pages filled ahead.
    pub prefetched_pages: u64,
    /// Of both, pages for which nothing was read.
    pub synthesized_pages: u64,
    /// Bytes read from packs.
    pub read_bytes: u64,
    /// Pages taken out of memory.
    pub evicted_pages: u64,
    /// Pieces that could not be read or verified.
    pub damaged_pieces: u64,
    /// Pages made unusable in an instance because they could not be filled.
    pub poisoned_pages: u64,
    /// Times that there was no memory for a page that somebody waits for.
    pub shortages: u64,
}

impl From<&Tally> for TallyReport {
    fn from(tally: &Tally) -> Self {
        Self {
            invocations: tally.invocations(),
            throttles: tally.throttles(),
            boots: tally.boots(),
            errors: tally.errors(),
            duration: tally.duration(),
        }
    }
}

impl Node {
    /// The node at this moment.
    ///
    /// # Errors
    /// None but the end of the node.
    pub async fn report(self: &Arc<Self>) -> Result<NodeReport, Refusal> {
        let node = Arc::clone(self);
        let report = tokio::task::spawn_blocking(move || report(&node)).await;
        report.map_err(|_| Refusal::Service("The node is ending.".into()))
    }
}

fn report(node: &Node) -> NodeReport {
    let mut all = node.all();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    let functions: Vec<FunctionReport> = all.iter().map(|one| function(node, one)).collect();
    let mut snapshots: BTreeMap<&'static str, u64> = SNAPSHOT_STATES
        .into_iter()
        .map(|state| (state, 0))
        .collect();
    for one in &all {
        *snapshots.entry(snapshot_state(one)).or_default() += 1;
    }
    let has_other = functions.iter().any(|one| !one.is_labelled);
    let other = TallyReport::from(&*node.metrics.other);
    let (waiting, starting, running) = node.gate.totals();
    let metrics = &node.metrics;
    NodeReport {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: metrics.started.elapsed().as_secs_f64(),
        bounds_s: bounds_s(),
        other: (has_other || other.invocations > 0).then_some(other),
        functions,
        snapshots,
        stages: metrics.stages.read(),
        refusals: metrics.refusals(),
        requests: RequestsReport {
            waiting: waiting.into(),
            running: running.into(),
            starting: starting.into(),
            limit: node.config.max_concurrency as u64,
        },
        events_pending: node.pending_events.load(Ordering::Relaxed) as u64,
        tiers: tiers_report(node).tiers,
        sandboxes: sandboxes(node.boot.sandbox_counts()),
        pager: pager(node),
        traces: node
            .traces
            .as_ref()
            .map_or_else(TraceReport::default, |traces| {
                let counts = &traces.counts;
                TraceReport {
                    sent: counts.sent(),
                    dropped: counts.dropped(),
                }
            }),
        process: ProcessUse::read(),
    }
}

fn function(node: &Node, function: &Arc<Function>) -> FunctionReport {
    let record = function.record();
    let (waiting, running) = node.gate.counts(&record.name);
    FunctionReport {
        name: record.name.clone(),
        version: record.version.clone(),
        is_labelled: function.counters.is_labelled(),
        tally: function.counters.own().into(),
        instances: node.instances_of(function),
        requests: (record.version == LATEST).then_some(FlowReport {
            waiting: waiting as u64,
            running: running.into(),
        }),
    }
}

/// What [`snapshot_state`] says.
const SNAPSHOT_STATES: [&str; 5] = ["pending", "stored", "loaded", "resident", "failed"];

fn snapshot_state(function: &Function) -> &'static str {
    match function.serving().map(|revision| revision.snapshot()) {
        None | Some(SnapshotStatus::Pending { .. }) => "pending",
        Some(SnapshotStatus::Stored(_)) => "stored",
        Some(SnapshotStatus::Ready(ready)) => match ready.image.is_resident() {
            true => "resident",
            false => "loaded",
        },
        Some(SnapshotStatus::Failed { .. }) => "failed",
    }
}

fn sandboxes(counts: StockCounts) -> SandboxReport {
    SandboxReport {
        ready: counts.ready,
        made: counts.made,
        taken: counts.taken,
        missed: counts.missed,
    }
}

fn pager(node: &Node) -> Option<PagerReport> {
    let stats = node.boot.pager_stats()?;
    let pools = stats.total();
    let growing = |name, value| node.metrics.growing(name, value);
    Some(PagerReport {
        restarts: stats.generation.saturating_sub(1),
        watched: stats.watched,
        faults: stats.faults,
        poisoned_pages: stats.poisoned_pages,
        shortages: stats.shortages,
        demanded_pages: growing("demanded_pages", pools.demanded_pages),
        prefetched_pages: growing("prefetched_pages", pools.prefetched_pages),
        synthesized_pages: growing("synthesized_pages", pools.synthesized_pages),
        read_bytes: growing("read_bytes", pools.read_bytes),
        evicted_pages: growing("evicted_pages", pools.evicted_pages),
        damaged_pieces: growing("damaged_pieces", pools.damaged_pieces),
    })
}
