//! All kinds of sandboxes of a node as one, for whoever has a snapshot or an instance in hand and need not know its kind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::FarMemory;
use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::PagerStats;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency, StockCounts};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use tokio::sync::Notify;

use super::microvm::{is_machine, is_machine_image};
use super::{
    Boot, BootError, Booted, BoxFuture, Branch, BranchError, ImageUse, Live, LoadedImage, Sandboxes,
};

/// The kinds.
#[derive(Debug, Clone)]
pub struct ByKind(pub Sandboxes);

impl ByKind {
    /// The kind that has loaded a snapshot.
    fn with(&self, image: &LoadedImage) -> &dyn Boot {
        self.kind(is_machine_image(image))
    }

    fn kind(&self, is_machine: bool) -> &dyn Boot {
        match &self.0.microvms {
            Ok(microvms) if is_machine => &**microvms,
            // Nothing of a kind exists that there is not.
            _ => &*self.0.processes,
        }
    }
}

/// What is about an image or an instance goes to the kind that it is of; all else is about processes.
impl Boot for ByKind {
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.0.processes.cold(spec)
    }

    fn restore<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.with(image).restore(image, spec)
    }

    fn restore_to_invoke<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.with(image).restore_to_invoke(image, spec)
    }

    fn fork<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.with(image).fork(image, spec)
    }

    fn parked<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
        make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        self.with(image).parked(image, spec, make)
    }

    fn set_parked(&self, image: &LoadedImage, spec: &LaunchSpec, target: usize) {
        self.with(image).set_parked(image, spec, target);
    }

    fn parked_count(&self, image: &LoadedImage) -> usize {
        self.with(image).parked_count(image)
    }

    fn can_rewind(&self, image: &LoadedImage) -> bool {
        self.with(image).can_rewind(image)
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        self.kind(is_machine(&*live)).rewind(live, most, keep)
    }

    fn rewound(&self, image: &LoadedImage, spec: &LaunchSpec) -> Result<Option<Booted>, BootError> {
        self.with(image).rewound(image, spec)
    }

    fn rewound_count(&self, image: &LoadedImage) -> usize {
        self.with(image).rewound_count(image)
    }

    fn end_rewound(&self, image: &LoadedImage) {
        self.with(image).end_rewound(image);
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let kind = self.kind(is_machine(&*live));
        kind.checkpoint(live, parked_port, spec, dir)
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

    fn checkpoint_template<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let kind = self.kind(is_machine(&*live));
        kind.checkpoint_template(live, parked_port, spec, dir)
    }

    fn checkpoint_specimen<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        (self.0.processes).checkpoint_specimen(live, parked_port, spec, dir)
    }

    /// Only processes have any.
    fn share_specimen(&self, template: &LoadedImage, specimen: &LoadedImage) {
        self.0.processes.share_specimen(template, specimen);
    }

    fn prefers_restore(&self, image: &LoadedImage) -> bool {
        self.with(image).prefers_restore(image)
    }

    fn working_set(&self, image: &LoadedImage) -> Option<WorkingSetReport> {
        self.with(image).working_set(image)
    }

    fn set_costs(&self, costs: &CostInputs) {
        self.0.processes.set_costs(costs);
    }

    fn image_use(&self, image: &LoadedImage) -> ImageUse {
        self.with(image).image_use(image)
    }

    /// One pager has the pools of all.
    fn pages_held(&self) -> u64 {
        self.0.processes.pages_held()
    }

    fn is_resident(&self, image: &LoadedImage) -> bool {
        self.with(image).is_resident(image)
    }

    fn is_stale(&self, image: &LoadedImage) -> bool {
        self.with(image).is_stale(image)
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

    fn problem(&self, image: &LoadedImage) -> Option<String> {
        self.with(image).problem(image)
    }

    fn make_resident<'a>(
        &'a self,
        image: &'a LoadedImage,
        far: Option<FarMemory>,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        self.with(image).make_resident(image, far)
    }

    fn release<'a>(
        &'a self,
        image: &'a LoadedImage,
        compressed: bool,
    ) -> BoxFuture<'a, Result<u64, BootError>> {
        self.with(image).release(image, compressed)
    }

    fn far_problem(&self, image: &LoadedImage) -> Option<String> {
        self.with(image).far_problem(image)
    }

    fn memory(&self, image: &LoadedImage) -> Option<MemoryReport> {
        self.with(image).memory(image)
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
