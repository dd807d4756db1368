//! What a node says about itself; counts are from its start.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A node at one moment.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeView {
    pub version: String,
    pub uptime_s: f64,
    /// Upper bounds of the buckets of durations, seconds; the last bucket has none.
    pub bounds_s: Vec<f64>,
    pub functions: Vec<FunctionView>,
    pub requests: RequestsView,
    pub events_pending: u64,
    pub tiers: BTreeMap<String, TierView>,
    pub sandboxes: SandboxView,
    pub pager: Option<PagerView>,
    pub process: ProcessView,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct FunctionView {
    pub name: String,
    pub version: String,
    pub invocations: u64,
    pub throttles: u64,
    pub boots: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
    pub duration: DurationView,
    pub instances: InstancesView,
    /// Of all versions, with `$LATEST` only.
    pub requests: Option<FlowView>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct DurationView {
    pub counts: Vec<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, serde::Serialize)]
pub struct InstancesView {
    pub busy: u64,
    pub idle: u64,
    pub parked: u64,
    #[serde(default)]
    pub held: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct FlowView {
    pub waiting: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, serde::Serialize)]
pub struct RequestsView {
    pub waiting: u64,
    pub running: u64,
    pub starting: u64,
    pub limit: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, serde::Serialize)]
pub struct TierView {
    pub budget: Option<u64>,
    pub used: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct SandboxView {
    pub ready: u64,
    pub taken: u64,
    pub missed: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct PagerView {
    pub faults: u64,
    pub demanded_pages: u64,
    pub prefetched_pages: u64,
    pub read_bytes: u64,
    pub evicted_pages: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct ProcessView {
    pub cpu_s: f64,
    pub resident_bytes: u64,
}
