//! A snapshot of a machine that is loaded, as the node knows it.

use std::any::Any;
use std::sync::Arc;

use rouse_pool::FarMemory;
use rouse_process::instance::{BootPath, LaunchSpec};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use tokio::runtime::Handle;

use super::Inner;
use super::image::MachineImage;
use super::kind::aside;
use super::live::Machine;
use crate::boot::{BootError, Booted, BoxFuture, ImageUse, LoadedImage, Snapshot};

/// An image, and what starts machines of it.
struct LoadedMachine {
    machines: Arc<Inner>,
    image: Arc<MachineImage>,
}

/// As the node knows it.
pub(super) fn loaded(machines: &Arc<Inner>, image: Arc<MachineImage>) -> LoadedImage {
    LoadedImage {
        parent_pages: image.template_pages(),
        pool_pages: image.snapshot.pool_pages,
        mapped_pages: image.snapshot.hardware.memory_pages,
        inner: Arc::new(LoadedMachine {
            machines: Arc::clone(machines),
            image,
        }),
        stays: Arc::default(),
    }
}

/// As machines know it.
pub(super) fn image_of(image: &LoadedImage) -> Result<Arc<MachineImage>, BootError> {
    let snapshot: &dyn Any = &*image.inner;
    let snapshot = snapshot.downcast_ref::<LoadedMachine>();
    let snapshot = snapshot
        .ok_or_else(|| BootError::new("the snapshot was loaded by another kind of sandbox"))?;
    Ok(Arc::clone(&snapshot.image))
}

impl LoadedMachine {
    fn copy<'a>(
        &'a self,
        spec: &'a LaunchSpec,
        path: BootPath,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (machines, image) = (Arc::clone(&self.machines), Arc::clone(&self.image));
        let (spec, tasks) = (spec.clone(), Handle::current());
        Box::pin(aside(move || machines.restore(&image, &spec, path, &tasks)))
    }

    /// Makes copies that wait, one after the other, as long as some are missing and all pages of the snapshot are in memory.
    fn park(&self, spec: &LaunchSpec) {
        // What is learnt of a machine changes where its pages are, and nothing of those that wait.
        if !self.image.is_resident() || !self.image.copies.begin(|_| true) {
            return;
        }
        let (machines, image) = (Arc::clone(&self.machines), Arc::downgrade(&self.image));
        let (spec, tasks) = (spec.clone(), Handle::current());
        tasks.clone().spawn_blocking(move || {
            while let Some(image) = image.upgrade() {
                if !image.is_resident() {
                    return image.copies.give_up();
                }
                if !image.copies.goes_on(|_| true) {
                    return;
                }
                match machines.restore(&image, &spec, BootPath::Parked, &tasks) {
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

/// A copy that waits no longer.
fn in_use(mut booted: Booted) -> Booted {
    let live: &mut dyn Any = &mut *booted.live;
    if let Some(machine) = live.downcast_mut::<Machine>() {
        machine.take_into_use();
    }
    booted
}

impl Snapshot for LoadedMachine {
    fn restore<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.copy(spec, BootPath::Restore)
    }

    fn fork<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.copy(spec, BootPath::Fork)
    }

    fn prefers_restore(&self) -> bool {
        self.image.is_to_be_observed()
    }

    fn parked<'a>(
        &'a self,
        spec: &'a LaunchSpec,
        make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async move {
            let taken = self.image.copies.take().map(in_use);
            self.park(spec);
            match taken {
                None if make => {
                    let made = self.copy(spec, BootPath::Parked).await;
                    made.map(|booted| Some(in_use(booted)))
                }
                taken => Ok(taken),
            }
        })
    }

    fn set_parked(&self, spec: &LaunchSpec, target: usize) {
        self.image.copies.set_target(target);
        self.park(spec);
    }

    fn parked_count(&self) -> usize {
        self.image.copies.parked()
    }

    fn rewound(&self, _spec: &LaunchSpec) -> Result<Option<Booted>, BootError> {
        Ok(self.image.copies.take_rewound().map(in_use))
    }

    fn rewound_count(&self) -> usize {
        self.image.copies.rewound()
    }

    fn end_rewound(&self) {
        self.image.copies.end_all_rewound();
    }

    fn working_set(&self) -> Option<WorkingSetReport> {
        Some(self.image.working_set())
    }

    fn memory(&self) -> Option<MemoryReport> {
        Some(self.image.memory_report())
    }

    fn image_use(&self) -> ImageUse {
        self.image.image_use()
    }

    fn problem(&self) -> Option<String> {
        self.image.problem()
    }

    fn is_stale(&self) -> bool {
        self.image.memory.current().is_stale()
    }

    fn is_resident(&self) -> bool {
        self.image.is_resident()
    }

    fn make_resident(&self, far: Option<FarMemory>) -> BoxFuture<'_, Result<(), BootError>> {
        let image = Arc::clone(&self.image);
        Box::pin(aside(move || image.place(far)))
    }

    fn release(&self, compressed: bool) -> BoxFuture<'_, Result<u64, BootError>> {
        let image = Arc::clone(&self.image);
        Box::pin(aside(move || image.release(compressed)))
    }

    fn far_problem(&self) -> Option<String> {
        self.image.far_problem()
    }
}
