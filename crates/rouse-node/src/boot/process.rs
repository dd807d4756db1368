//! Sandboxes of processes: each method of the traits is one of the launcher's, or of its instances and images.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::FarMemory;
use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::{PageFault, PagerStats};
use rouse_process::instance::{Failure, Instance, LaunchSpec, MemoryUse, Stage};
use rouse_process::launcher::{
    CheckpointReport, Image, LaunchError, Launcher, Residency, StockCounts,
};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;

use tokio::sync::Notify;

use super::{
    ApiListener, Boot, BootError, Booted, BoxFuture, Branch, BranchError, ImageUse, Live,
    LoadedImage,
};
use crate::refusal::chain;

impl Live for Instance {
    fn kill(&self) {
        Instance::kill(self);
    }

    fn memory(&self) -> std::io::Result<MemoryUse> {
        Instance::memory(self)
    }

    fn told(&self) -> BoxFuture<'_, ()> {
        Box::pin(Instance::told(self))
    }

    fn stages(&self) -> Vec<Stage> {
        Instance::stages(self)
    }

    fn failure(&self) -> Option<Failure> {
        Instance::failure(self)
    }

    fn memory_peak(&self) -> u64 {
        Instance::memory_peak(self)
    }

    fn cpu_time(&self) -> std::io::Result<Duration> {
        Instance::cpu_time(self)
    }

    fn resume(&self) -> std::io::Result<()> {
        Instance::resume(self)
    }

    fn has_run(&self) -> bool {
        Instance::has_run(self)
    }

    fn page_fault(&self) -> BoxFuture<'_, Option<PageFault>> {
        Box::pin(Instance::page_fault(self))
    }

    fn is_to_be_observed(&self) -> bool {
        Instance::is_to_be_observed(self)
    }

    fn learn(&self) {
        Instance::learn(self);
    }

    fn verify_far(&self) -> BoxFuture<'_, Option<String>> {
        let verify = self.far_verifier();
        Box::pin(async move {
            // Cancelled only when the node ends.
            tokio::task::spawn_blocking(verify?).await.ok()?
        })
    }

    fn learn_rehearsed(&self) {
        Instance::learn_rehearsed(self);
    }
}

impl From<Instance> for Booted {
    fn from(mut instance: Instance) -> Self {
        Booted {
            path: instance.path,
            listener: instance.listener.take().map(ApiListener::Loopback),
            parked: instance.parked.take().map(Into::into),
            log: instance.log.take(),
            exit: instance.exit.clone(),
            live: Box::new(instance),
        }
    }
}

fn image_of(image: &LoadedImage) -> Result<Arc<Image>, BootError> {
    Arc::clone(&image.inner)
        .downcast::<Image>()
        .map_err(|_| BootError::new("the snapshot was loaded by another kind of sandbox"))
}

fn instance_of(live: Box<dyn Live>) -> Result<Instance, BootError> {
    let live: Box<dyn Any> = live;
    let instance = live.downcast::<Instance>();
    let instance = instance
        .map_err(|_| BootError::new("the instance was started by another kind of sandbox"))?;
    Ok(*instance)
}

/// What a launcher made, as the engine knows it.
fn booted(launched: Result<Instance, LaunchError>) -> Result<Booted, BootError> {
    launched.map(Booted::from).map_err(|error| BootError {
        is_from_outside: error.is_from_outside(),
        ..BootError::from_error(&error)
    })
}

impl Boot for Launcher {
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async move { booted(Launcher::cold(self, spec).await) })
    }

    fn restore<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            booted(Launcher::restore(self, &image, spec).await)
        })
    }

    fn restore_to_invoke<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            booted(Launcher::restore_to_invoke(self, &image, spec).await)
        })
    }

    fn fork<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            booted(Launcher::fork(self, &image, spec).await)
        })
    }

    fn parked<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
        make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            Launcher::parked(self, &image, spec, make)
                .await
                .map(|instance| instance.map(Booted::from))
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn set_parked(&self, image: &LoadedImage, spec: &LaunchSpec, target: usize) {
        if let Ok(image) = image_of(image) {
            Launcher::set_parked(self, &image, spec, target);
        }
    }

    fn parked_count(&self, image: &LoadedImage) -> usize {
        let image = image.inner.downcast_ref::<Image>();
        image.map_or(0, Image::parked_count)
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            Launcher::rewind_and_keep(self, instance, most, keep)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn rewound(&self, image: &LoadedImage, spec: &LaunchSpec) -> Result<Option<Booted>, BootError> {
        let image = image_of(image)?;
        Launcher::take_rewound(self, &image, spec)
            .map(|instance| instance.map(Booted::from))
            .map_err(|e| BootError::from_error(&e))
    }

    fn rewound_count(&self, image: &LoadedImage) -> usize {
        let image = image.inner.downcast_ref::<Image>();
        image.map_or(0, Image::rewound_count)
    }

    fn end_rewound(&self, image: &LoadedImage) {
        if let Some(image) = image.inner.downcast_ref::<Image>() {
            image.end_rewound();
        }
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            Launcher::checkpoint(self, instance, parked_port, spec, dir)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn has_templates(&self) -> bool {
        true
    }

    fn checkpoint_template<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            Launcher::checkpoint_template(self, instance, parked_port, spec, dir)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn checkpoint_specimen<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            Launcher::checkpoint_specimen(self, instance, parked_port, spec, dir)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn share_specimen(&self, template: &LoadedImage, specimen: &LoadedImage) {
        if let (Ok(template), Ok(specimen)) = (image_of(template), image_of(specimen)) {
            Launcher::share_specimen(self, &template, &specimen);
        }
    }

    fn prefers_restore(&self, image: &LoadedImage) -> bool {
        let image = image.inner.downcast_ref::<Image>();
        image.is_some_and(Image::wants_blind_boot)
    }

    fn working_set(&self, image: &LoadedImage) -> Option<WorkingSetReport> {
        let image = image.inner.downcast_ref::<Image>();
        image.map(Image::working_set_report)
    }

    fn memory(&self, image: &LoadedImage) -> Option<MemoryReport> {
        let image = image.inner.downcast_ref::<Image>();
        image.map(Image::memory_report)
    }

    fn image_use(&self, image: &LoadedImage) -> ImageUse {
        let Some(image) = image.inner.downcast_ref::<Image>() else {
            return ImageUse::default();
        };
        ImageUse {
            resident_pages: image.resident_pages().unwrap_or(0),
            far_pages: image.far_pages(),
            huge_pages: image.huge_pages(),
            wired_pages: image.wired_pages(),
            hot_pages: image.expected_pages(),
            stored_bytes: image.stored_bytes(),
            compressed_bytes: image.compressed_bytes(),
        }
    }

    fn set_costs(&self, costs: &CostInputs) {
        Launcher::set_costs(self, costs.clone());
    }

    fn pages_held(&self) -> u64 {
        self.resident_pages()
    }

    fn is_resident(&self, image: &LoadedImage) -> bool {
        let image = image.inner.downcast_ref::<Image>();
        image.is_some_and(Image::is_resident)
    }

    fn is_stale(&self, image: &LoadedImage) -> bool {
        let image = image.inner.downcast_ref::<Image>();
        image.is_some_and(Image::is_stale)
    }

    fn problems(&self) -> Vec<&'static str> {
        Launcher::problems(self)
    }

    fn sandbox_counts(&self) -> StockCounts {
        Launcher::sandbox_counts(self)
    }

    fn pager_stats(&self) -> Option<PagerStats> {
        Launcher::pager_stats(self)
    }

    fn shortage(&self) -> Arc<Notify> {
        Launcher::shortage(self)
    }

    fn problem(&self, image: &LoadedImage) -> Option<String> {
        image.inner.downcast_ref::<Image>().and_then(Image::problem)
    }

    fn make_resident<'a>(
        &'a self,
        image: &'a LoadedImage,
        far: Option<FarMemory>,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            Launcher::place(self, &image, far)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn far_problem(&self, image: &LoadedImage) -> Option<String> {
        let image = image.inner.downcast_ref::<Image>();
        image.and_then(Image::far_problem)
    }

    fn release<'a>(
        &'a self,
        image: &'a LoadedImage,
        compressed: bool,
    ) -> BoxFuture<'a, Result<u64, BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            Launcher::hold_compressed(self, &image, compressed)
                .await
                .map_err(|e| BootError::from_error(&e))?;
            Launcher::release(self, &image)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn collect(&self) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async {
            let report = Launcher::collect(self)
                .await
                .map_err(|e| BootError::from_error(&e))?;
            tracing::debug!(%report, "snapshots were collected");
            Ok(())
        })
    }

    fn branch<'a>(
        &'a self,
        live: &'a dyn Live,
        parked_port: u16,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        Box::pin(async move {
            let live: &dyn Any = live;
            let instance = live.downcast_ref::<Instance>().ok_or_else(|| {
                BranchError::Refused("it was started by another kind of sandbox".into())
            })?;
            match Launcher::branch(self, instance, parked_port, spec).await {
                Ok((image, report)) => Ok(Branch {
                    image: loaded(image),
                    report,
                }),
                Err(error) if error.is_fatal() => Err(BranchError::Ended(chain(&error))),
                Err(error) => Err(BranchError::Refused(chain(&error))),
            }
        })
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        Box::pin(async move {
            let ancestors = ancestors
                .iter()
                .map(image_of)
                .collect::<Result<Vec<_>, _>>()?;
            let image = Launcher::load(self, dir, &ancestors, residency)
                .await
                .map_err(|e| BootError::from_error(&e))?;
            Ok(loaded(image))
        })
    }
}

fn loaded(image: Arc<Image>) -> LoadedImage {
    let snapshot = image.snapshot();
    let mapped: u64 = snapshot
        .mappings
        .iter()
        .map(|m| m.range.end - m.range.start)
        .sum();
    let saved = snapshot.mappings.iter().flat_map(|m| &m.saved);
    let of_parents = saved.filter(|run| run.pool() != 0);
    LoadedImage {
        parent_pages: of_parents.map(|run| run.pages).sum(),
        pool_pages: snapshot.pool_pages,
        mapped_pages: mapped / rouse_snapshot::model::PAGE_SIZE,
        inner: image,
        stays: Arc::default(),
    }
}
