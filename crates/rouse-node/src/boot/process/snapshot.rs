//! A snapshot of a process that is loaded.

use std::any::Any;
use std::sync::Arc;

use rouse_pool::FarMemory;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{Image, Launcher};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use rouse_snapshot::model::PAGE_SIZE;

use super::booted;
use crate::boot::{BootError, Booted, BoxFuture, ImageUse, LoadedImage, Snapshot};

/// An image, and the launcher that has loaded it.
struct ProcessSnapshot {
    launcher: Launcher,
    image: Arc<Image>,
}

/// As the node knows it.
pub(super) fn loaded(launcher: &Launcher, image: Arc<Image>) -> LoadedImage {
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
        mapped_pages: mapped / PAGE_SIZE,
        inner: Arc::new(ProcessSnapshot {
            launcher: launcher.clone(),
            image,
        }),
        stays: Arc::default(),
    }
}

/// As the launcher knows it.
pub(super) fn image_of(image: &LoadedImage) -> Result<&Arc<Image>, BootError> {
    let snapshot: &dyn Any = &*image.inner;
    let snapshot = snapshot.downcast_ref::<ProcessSnapshot>();
    let snapshot = snapshot
        .ok_or_else(|| BootError::new("the snapshot was loaded by another kind of sandbox"))?;
    Ok(&snapshot.image)
}

impl Snapshot for ProcessSnapshot {
    fn restore<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async { booted(self.launcher.restore(&self.image, spec).await) })
    }

    fn restore_to_invoke<'a>(
        &'a self,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async { booted(self.launcher.restore_to_invoke(&self.image, spec).await) })
    }

    fn fork<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async { booted(self.launcher.fork(&self.image, spec).await) })
    }

    fn prefers_restore(&self) -> bool {
        self.image.wants_blind_boot()
    }

    fn parked<'a>(
        &'a self,
        spec: &'a LaunchSpec,
        make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async move {
            let parked = self.launcher.parked(&self.image, spec, make).await;
            parked
                .map(|instance| instance.map(Booted::from))
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn set_parked(&self, spec: &LaunchSpec, target: usize) {
        self.launcher.set_parked(&self.image, spec, target);
    }

    fn parked_count(&self) -> usize {
        self.image.parked_count()
    }

    fn rewound(&self, spec: &LaunchSpec) -> Result<Option<Booted>, BootError> {
        self.launcher
            .take_rewound(&self.image, spec)
            .map(|instance| instance.map(Booted::from))
            .map_err(|e| BootError::from_error(&e))
    }

    fn rewound_count(&self) -> usize {
        self.image.rewound_count()
    }

    fn end_rewound(&self) {
        self.image.end_rewound();
    }

    fn share_specimen(&self, specimen: &LoadedImage) {
        if let Ok(specimen) = image_of(specimen) {
            self.launcher.share_specimen(&self.image, specimen);
        }
    }

    fn working_set(&self) -> Option<WorkingSetReport> {
        Some(self.image.working_set_report())
    }

    fn memory(&self) -> Option<MemoryReport> {
        Some(self.image.memory_report())
    }

    fn image_use(&self) -> ImageUse {
        let image = &self.image;
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

    fn problem(&self) -> Option<String> {
        self.image.problem()
    }

    fn is_stale(&self) -> bool {
        self.image.is_stale()
    }

    fn is_resident(&self) -> bool {
        self.image.is_resident()
    }

    fn make_resident(&self, far: Option<FarMemory>) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async {
            let placed = self.launcher.place(&self.image, far).await;
            placed.map_err(|e| BootError::from_error(&e))
        })
    }

    fn release(&self, compressed: bool) -> BoxFuture<'_, Result<u64, BootError>> {
        Box::pin(async move {
            let held = self.launcher.hold_compressed(&self.image, compressed).await;
            held.map_err(|e| BootError::from_error(&e))?;
            let left = self.launcher.release(&self.image).await;
            left.map_err(|e| BootError::from_error(&e))
        })
    }

    fn far_problem(&self) -> Option<String> {
        self.image.far_problem()
    }
}
