//! All kinds of sandboxes of a node as one, for whoever has an instance in hand and need not know its kind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::PagerStats;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency, StockCounts};
use tokio::sync::Notify;

use super::microvm::is_machine;
use super::{
    Boot, BootError, Booted, BoxFuture, Branch, BranchError, Live, LoadedImage, Purpose, Sandboxes,
};

/// The kinds.
#[derive(Debug, Clone)]
pub struct ByKind(pub Sandboxes);

impl ByKind {
    fn kind(&self, is_machine: bool) -> &dyn Boot {
        match &self.0.microvms {
            Ok(microvms) if is_machine => &**microvms,
            // Nothing of a kind exists that there is not.
            _ => &*self.0.processes,
        }
    }
}

/// What is about an instance goes to the kind that it is of; all else is about processes, or about what all kinds share.
impl Boot for ByKind {
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.0.processes.cold(spec)
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        self.kind(is_machine(&*live)).rewind(live, most, keep)
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        purpose: Purpose,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let kind = self.kind(is_machine(&*live));
        kind.checkpoint(live, purpose, parked_port, spec, dir)
    }

    fn branch<'a>(
        &'a self,
        live: &'a dyn Live,
        parked_port: u16,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        self.kind(is_machine(live)).branch(live, parked_port, spec)
    }

    fn has_templates(&self) -> bool {
        self.0.processes.has_templates()
    }

    fn set_costs(&self, costs: &CostInputs) {
        self.0.processes.set_costs(costs);
    }

    /// One pager has the pools of all.
    fn pages_held(&self) -> u64 {
        self.0.processes.pages_held()
    }

    fn problems(&self) -> Vec<&'static str> {
        self.0.processes.problems()
    }

    fn sandbox_counts(&self) -> StockCounts {
        self.0.processes.sandbox_counts()
    }

    fn pager_stats(&self) -> Option<PagerStats> {
        self.0.processes.pager_stats()
    }

    fn shortage(&self) -> Arc<Notify> {
        self.0.processes.shortage()
    }

    /// One store holds all.
    fn collect(&self) -> BoxFuture<'_, Result<(), BootError>> {
        self.0.processes.collect()
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        self.0.processes.load(dir, ancestors, residency)
    }
}
