//! Where everything lies now, and what the cost model knows: `rouse tiers`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rouse_pool::cost::{CopyChoices, CostInputs, MapOrCopy, Tier};
use rouse_snapshot::model::PAGE_SIZE;
use serde::Serialize;

use super::costs::MeasuredAt;
use super::plan::{Candidate, Decision};
use super::{decide, gather, tier_now};
use crate::boot::LoadedImage;
use crate::engine::function::SnapshotStatus;
use crate::node::Node;
use crate::refusal::Refusal;

/// The tiers of a node.
#[derive(Debug, Clone, Serialize)]
pub struct TiersReport {
    /// What things cost on this host.
    pub inputs: CostInputs,
    /// When and how often it was measured; `None` while it is for the first time.
    pub measured: Option<MeasuredAt>,
    /// What follows from that for pages that a boot may map or copy.
    pub choices: CopyChoices,
    /// Why far memory that was asked for is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub far_problem: Option<String>,
    /// Each tier.
    pub tiers: BTreeMap<&'static str, TierUse>,
    /// Each function that has a snapshot, by name.
    pub functions: Vec<FunctionPlace>,
    /// Each language template that is in memory or was.
    pub templates: Vec<FunctionPlace>,
}

/// What a tier holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TierUse {
    /// Bytes that it may hold; `None` where there is no bound.
    pub budget: Option<u64>,
    /// Bytes that it holds: of functions, language templates and snapshots on trial.
    pub used: u64,
    /// Functions whose pages belong to it.
    pub functions: u64,
}

/// Where a function's pages lie.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FunctionPlace {
    /// Name, and version if it is a published one.
    pub name: String,
    /// `stored`, `loaded` or `resident`.
    pub residency: &'static str,
    /// Where its pages are now: all of them in `dram` or `far`; in the others, except for those that were touched.
    pub tier: &'static str,
    /// Where they belong by its heat.
    pub target: &'static str,
    /// Calls per second, decayed.
    pub heat: f64,
    /// Seconds since the last call.
    pub idle_s: f64,
    /// Pages of its pool.
    pub pages: u64,
    /// Of these, in memory.
    pub resident_pages: u64,
    /// Pages that a call touches, as far as it is known.
    pub hot_pages: u64,
    /// Bytes in DRAM.
    pub dram_bytes: u64,
    /// Of these, bytes in pages of 2 MiB.
    pub huge_bytes: u64,
    /// Bytes in far memory.
    pub far_bytes: u64,
    /// Bytes of stored pieces in memory.
    pub compressed_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// What its memory takes of a boot from each tier, expected, microseconds.
    pub boot_us: BTreeMap<&'static str, f64>,
}

impl Node {
    /// Where everything lies, and why.
    ///
    /// # Errors
    /// None but the end of the node.
    pub async fn tiers(self: &Arc<Self>) -> Result<TiersReport, Refusal> {
        let node = Arc::clone(self);
        let report = tokio::task::spawn_blocking(move || tiers_report(&node)).await;
        report.map_err(|_| Refusal::Service("The node is ending.".into()))
    }
}

/// As [`Node::tiers`], in a thread that may block.
pub(crate) fn tiers_report(node: &Node) -> TiersReport {
    let found = gather(node);
    let (decisions, of_templates) = decide(node, &found);
    let inputs = node.residency.inputs();
    let budgets = node.residency.budgets();
    let mut tiers: BTreeMap<&'static str, TierUse> = BTreeMap::new();
    for (tier, budget) in [
        (Tier::Dram, Some(budgets.dram)),
        (Tier::Far, Some(budgets.far)),
        (Tier::Compressed, Some(budgets.compressed)),
        (Tier::Disk, None),
    ] {
        let used = TierUse {
            budget,
            ..TierUse::default()
        };
        tiers.insert(tier.name(), used);
    }
    let mut functions = Vec::new();
    for (one, decision) in found.functions.iter().zip(&decisions) {
        let (name, image) = (&one.function.key, &one.ready.image);
        let place = place_of(node, name, image, &one.candidate, decision);
        count(&mut tiers, &place);
        functions.push(place);
    }
    let mut templates = Vec::new();
    for (one, decision) in found.templates.iter().zip(&of_templates) {
        let (name, image) = (&one.template.name, &one.template.image);
        let place = place_of(node, name, image, &one.candidate, decision);
        count_bytes(&mut tiers, &place);
        templates.push(place);
    }
    if let Some(dram) = tiers.get_mut(Tier::Dram.name()) {
        dram.used += found.other_pages * PAGE_SIZE;
    }
    for place in stored(node) {
        // It was loaded a moment ago.
        if functions.iter().any(|known| known.name == place.name) {
            continue;
        }
        count(&mut tiers, &place);
        functions.push(place);
    }
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    TiersReport {
        inputs: CostInputs::clone(&inputs),
        measured: node.residency.costs.measured(),
        choices: MapOrCopy::new(&inputs).choices(),
        far_problem: node.residency.far.problem(),
        tiers,
        functions,
        templates,
    }
}

/// Where a loaded snapshot is, and where it belongs.
fn place_of(
    node: &Node,
    name: &str,
    image: &LoadedImage,
    candidate: &Candidate,
    decision: &Decision,
) -> FunctionPlace {
    let usage = image.image_use();
    let inputs = node.residency.inputs();
    let subject = super::plan::subject_of(candidate);
    FunctionPlace {
        name: name.to_owned(),
        residency: match candidate.is_resident {
            true => "resident",
            false => "loaded",
        },
        tier: tier_now(candidate).name(),
        target: decision.tier.name(),
        heat: candidate.heat.rate,
        idle_s: candidate.heat.idle.as_secs_f64(),
        pages: candidate.pool_pages,
        resident_pages: candidate.resident_pages,
        hot_pages: candidate.hot_pages,
        dram_bytes: candidate.resident_pages.saturating_sub(usage.far_pages) * PAGE_SIZE,
        huge_bytes: usage.huge_pages * PAGE_SIZE,
        far_bytes: usage.far_pages * PAGE_SIZE,
        compressed_bytes: usage.compressed_bytes,
        disk_bytes: usage.stored_bytes,
        boot_us: Tier::ALL
            .into_iter()
            .filter(|tier| *tier != Tier::Far || inputs.far.is_some())
            .map(|tier| (tier.name(), inputs.boot_ns(tier, &subject) / 1000.0))
            .collect(),
    }
}

fn count(tiers: &mut BTreeMap<&'static str, TierUse>, place: &FunctionPlace) {
    count_bytes(tiers, place);
    tiers.entry(place.tier).or_default().functions += 1;
}

fn count_bytes(tiers: &mut BTreeMap<&'static str, TierUse>, place: &FunctionPlace) {
    for (tier, bytes) in [
        (Tier::Dram, place.dram_bytes),
        (Tier::Far, place.far_bytes),
        (Tier::Compressed, place.compressed_bytes),
        (Tier::Disk, place.disk_bytes),
    ] {
        tiers.entry(tier.name()).or_default().used += bytes;
    }
}

/// Functions of which nothing is in memory.
fn stored(node: &Node) -> Vec<FunctionPlace> {
    let now = std::time::Instant::now();
    let functions = node.all();
    let places = functions.iter().filter_map(|function| {
        let SnapshotStatus::Stored(stored) = function.serving()?.snapshot() else {
            return None;
        };
        let heat = function.heat.read(now);
        Some(FunctionPlace {
            name: function.key.clone(),
            residency: "stored",
            tier: Tier::Disk.name(),
            target: Tier::Disk.name(),
            heat: heat.rate,
            idle_s: heat.idle.as_secs_f64(),
            pages: stored.record.saved_pages,
            resident_pages: 0,
            hot_pages: 0,
            dram_bytes: 0,
            huge_bytes: 0,
            far_bytes: 0,
            compressed_bytes: 0,
            disk_bytes: stored.record.disk_bytes,
            boot_us: BTreeMap::new(),
        })
    });
    places.collect()
}
