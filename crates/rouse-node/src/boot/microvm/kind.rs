//! MicroVMs as a kind of sandbox: what the node asks of it.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::FarMemory;
use rouse_pool::memory::ImageMemory;
use rouse_process::instance::{BootPath, LaunchSpec};
use rouse_process::launcher::{CheckpointReport, PoolOwner, Residency};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use rouse_sandbox::Limits;
use tokio::runtime::Handle;

use super::branch::Original;
use super::image::MachineImage;
use super::live::Machine;
use super::{MicroVms, memory, supervisor};
use crate::boot::{
    Boot, BootError, Booted, BoxFuture, Branch, BranchError, ImageUse, Live, LoadedImage,
};

/// Is it a machine's?
pub(in crate::boot) fn is_machine_image(image: &LoadedImage) -> bool {
    image.inner.is::<MachineImage>()
}

/// Is it a machine?
pub(in crate::boot) fn is_machine(live: &dyn Live) -> bool {
    let live: &dyn Any = live;
    live.is::<Machine>()
}

fn image_of(image: &LoadedImage) -> Result<Arc<MachineImage>, BootError> {
    let image = Arc::clone(&image.inner).downcast();
    image.map_err(|_| BootError::new("the snapshot was loaded by another kind of sandbox"))
}

fn machine_of(live: Box<dyn Live>) -> Result<Box<Machine>, BootError> {
    let live: Box<dyn Any> = live;
    let machine = live.downcast();
    machine.map_err(|_| BootError::new("the instance was started by another kind of sandbox"))
}

/// A copy that waits no longer.
fn in_use(mut booted: Booted) -> Booted {
    let live: &mut dyn Any = &mut *booted.live;
    if let Some(machine) = live.downcast_mut::<Machine>() {
        machine.take_into_use();
    }
    booted
}

/// What blocks runs elsewhere.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BootError> + Send + 'static,
) -> Result<T, BootError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| BootError::new(error.to_string()))?
}

/// Has a machine written down, for as long as that may take.
async fn written(
    live: Box<dyn Live>,
    write: impl FnOnce(Machine) -> Result<CheckpointReport, BootError> + Send + 'static,
) -> Result<CheckpointReport, BootError> {
    let machine = machine_of(live)?;
    let state = machine.state();
    match tokio::time::timeout(supervisor::PATIENCE, aside(move || write(*machine))).await {
        Ok(written) => written,
        Err(_) => {
            // Ends whoever waits for it, too.
            state.kill();
            Err(BootError::new("the machine was not written down in time"))
        }
    }
}

impl MicroVms {
    /// Starts a copy.
    fn copy<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
        path: BootPath,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (inner, spec, tasks) = (Arc::clone(&self.0), spec.clone(), Handle::current());
        let image = image_of(image);
        Box::pin(async move {
            let image = image?;
            aside(move || inner.restore(&image, &spec, path, &tasks)).await
        })
    }

    /// Makes copies that wait, one after the other, as long as some are missing and all pages of the snapshot are in memory.
    fn park(&self, image: &Arc<MachineImage>, spec: &LaunchSpec) {
        // What is learnt of a machine changes where its pages are, and nothing of those that wait.
        if !image.is_resident() || !image.copies.begin(|_| true) {
            return;
        }
        let (kind, spec, tasks) = (self.clone(), spec.clone(), Handle::current());
        let weak = Arc::downgrade(image);
        tasks.clone().spawn_blocking(move || {
            while let Some(image) = weak.upgrade() {
                if !image.is_resident() {
                    return image.copies.give_up();
                }
                if !image.copies.goes_on(|_| true) {
                    return;
                }
                match kind.0.restore(&image, &spec, BootPath::Parked, &tasks) {
                    Ok(booted) => drop(image.copies.put(booted, |_| true)),
                    Err(error) => {
                        tracing::warn!(%error, "no machine could be kept parked");
                        image.copies.failed();
                    }
                }
            }
        });
    }
}

impl Boot for MicroVms {
    fn fits(&self, memory_mib: u32) -> Result<(), BootError> {
        memory(memory_mib).map(drop)
    }

    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (inner, spec, tasks) = (Arc::clone(&self.0), spec.clone(), Handle::current());
        Box::pin(aside(move || inner.boot(&spec, false, &tasks)))
    }

    fn has_templates(&self) -> bool {
        true
    }

    fn template_ground(&self, limits: &Limits) -> Result<Option<Vec<u8>>, BootError> {
        self.0.template_ground(limits).map(Some)
    }

    fn start_template<'a>(
        &'a self,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (inner, spec, tasks) = (Arc::clone(&self.0), spec.clone(), Handle::current());
        Box::pin(aside(move || inner.boot(&spec, true, &tasks)))
    }

    fn checkpoint_template<'a>(
        &'a self,
        live: Box<dyn Live>,
        _parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let (inner, spec, dir) = (Arc::clone(&self.0), spec.clone(), dir.to_owned());
        Box::pin(written(live, move |machine| {
            inner.checkpoint_template(machine, &spec, &dir)
        }))
    }

    fn restore<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.copy(image, spec, BootPath::Restore)
    }

    fn fork<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.copy(image, spec, BootPath::Fork)
    }

    fn parked<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
        make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async move {
            let machine = image_of(image)?;
            let taken = machine.copies.take().map(in_use);
            self.park(&machine, spec);
            match taken {
                None if make => self.copy(image, spec, BootPath::Parked).await.map(Some),
                taken => Ok(taken),
            }
        })
    }

    fn set_parked(&self, image: &LoadedImage, spec: &LaunchSpec, target: usize) {
        if let Ok(image) = image_of(image) {
            image.copies.set_target(target);
            self.park(&image, spec);
        }
    }

    fn parked_count(&self, image: &LoadedImage) -> usize {
        image_of(image).map_or(0, |image| image.copies.parked())
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let machine = machine_of(live)?;
            let (image, booted) = aside(move || inner.rewind(*machine)).await?;
            let mut exit = booted.exit.clone();
            let id = image.copies.put_rewound(booted, most);
            let image = Arc::downgrade(&image);
            tokio::spawn(async move {
                let ended = exit.wait_for(Option::is_some);
                // Ended or not used: it goes in both cases.
                drop(tokio::time::timeout(keep, ended).await);
                if let Some(image) = image.upgrade() {
                    image.copies.end_rewound(id);
                }
            });
            Ok(())
        })
    }

    fn rewound(
        &self,
        image: &LoadedImage,
        _spec: &LaunchSpec,
    ) -> Result<Option<Booted>, BootError> {
        Ok(image_of(image)?.copies.take_rewound().map(in_use))
    }

    fn rewound_count(&self, image: &LoadedImage) -> usize {
        image_of(image).map_or(0, |image| image.copies.rewound())
    }

    fn end_rewound(&self, image: &LoadedImage) {
        if let Ok(image) = image_of(image) {
            image.copies.end_all_rewound();
        }
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        _parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let (inner, spec, dir) = (Arc::clone(&self.0), spec.clone(), dir.to_owned());
        Box::pin(written(live, move |machine| {
            inner.checkpoint(machine, &spec, &dir)
        }))
    }

    fn branch<'a>(
        &'a self,
        live: &'a dyn Live,
        _parked_port: u16,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        let (inner, spec) = (Arc::clone(&self.0), spec.clone());
        let any: &dyn Any = live;
        let original = any.downcast_ref().map(Original::of);
        Box::pin(async move {
            let original = original.ok_or_else(|| {
                BranchError::Refused("it was started by another kind of sandbox".to_owned())
            })?;
            let task = tokio::task::spawn_blocking(move || inner.branch(&original, &spec));
            task.await
                .unwrap_or_else(|error| Err(BranchError::Ended(error.to_string())))
        })
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        let (inner, dir) = (Arc::clone(&self.0), dir.to_owned());
        let ancestors: Result<Vec<_>, _> = ancestors.iter().map(image_of).collect();
        Box::pin(async move {
            let ancestors = ancestors?;
            aside(move || inner.load(&dir, &ancestors, residency)).await
        })
    }

    fn prefers_restore(&self, image: &LoadedImage) -> bool {
        image_of(image).is_ok_and(|image| image.is_to_be_observed())
    }

    fn memory(&self, image: &LoadedImage) -> Option<MemoryReport> {
        image.inner.downcast_ref().map(MachineImage::memory_report)
    }

    fn problem(&self, image: &LoadedImage) -> Option<String> {
        image.inner.downcast_ref().and_then(MachineImage::problem)
    }

    fn image_use(&self, image: &LoadedImage) -> ImageUse {
        let image = image.inner.downcast_ref();
        image.map(MachineImage::image_use).unwrap_or_default()
    }

    fn working_set(&self, image: &LoadedImage) -> Option<WorkingSetReport> {
        image.inner.downcast_ref().map(MachineImage::working_set)
    }

    fn is_resident(&self, image: &LoadedImage) -> bool {
        image_of(image).is_ok_and(|image| image.is_resident())
    }

    fn is_stale(&self, image: &LoadedImage) -> bool {
        memory_of(image).is_ok_and(|memory| memory.is_stale())
    }

    fn far_problem(&self, image: &LoadedImage) -> Option<String> {
        let image: Option<&MachineImage> = image.inner.downcast_ref();
        image.and_then(MachineImage::far_problem)
    }

    fn make_resident<'a>(
        &'a self,
        image: &'a LoadedImage,
        far: Option<FarMemory>,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        let image = image_of(image);
        Box::pin(async move {
            let image = image?;
            aside(move || image.place(far)).await
        })
    }

    fn release<'a>(
        &'a self,
        image: &'a LoadedImage,
        compressed: bool,
    ) -> BoxFuture<'a, Result<u64, BootError>> {
        let image = image_of(image);
        Box::pin(async move {
            let image = image?;
            aside(move || image.release(compressed)).await
        })
    }
}

fn memory_of(image: &LoadedImage) -> Result<Arc<ImageMemory>, BootError> {
    image_of(image).map(|image| image.memory())
}
