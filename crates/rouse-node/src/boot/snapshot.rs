//! A snapshot that is loaded, of whatever kind of sandbox.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use rouse_pool::FarMemory;
use rouse_process::instance::LaunchSpec;
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use tokio::sync::RwLock;

use super::{BootError, Booted, BoxFuture};

/// A loaded snapshot, and what does not change of it. It is used as the [`Snapshot`] in it.
#[derive(Clone)]
pub struct LoadedImage {
    /// Of the kind of sandbox that loaded it.
    pub inner: Arc<dyn Snapshot>,
    /// Pages in the pool image.
    pub pool_pages: u64,
    /// Pages of address space that the snapshot maps.
    pub mapped_pages: u64,
    /// Of these, pages that are mapped from the snapshot that this one is a delta of.
    pub parent_pages: u64,
    /// Held for reading by whoever needs all of its pages to stay in memory, for writing while they leave it.
    pub stays: Arc<RwLock<()>>,
}

impl Deref for LoadedImage {
    type Target = dyn Snapshot;

    fn deref(&self) -> &Self::Target {
        &*self.inner
    }
}

/// What an image holds where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageUse {
    /// Pages of its own pool that are in memory.
    pub resident_pages: u64,
    /// Of these, pages that lie on far memory.
    pub far_pages: u64,
    /// Pages that lie in pages of 2 MiB.
    pub huge_pages: u64,
    /// Pages that stay as long as the image is loaded.
    pub wired_pages: u64,
    /// Pages that a call touches, as far as it is known.
    pub hot_pages: u64,
    /// Bytes of its pool on disk.
    pub stored_bytes: u64,
    /// Bytes of these that are in memory.
    pub compressed_bytes: u64,
}

/// A snapshot of which instances can be started.
pub trait Snapshot: Any + Send + Sync {
    /// Starts an instance in a blank sandbox.
    fn restore<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// The same, for invocations: what it touches may be watched.
    fn restore_to_invoke<'a>(
        &'a self,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.restore(spec)
    }
    /// Starts an instance that shares all its pages with others of its kind.
    fn fork<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// Is a restore to be preferred to a fork just now? Only in a restore can be seen which pages are really needed.
    fn prefers_restore(&self) -> bool {
        false
    }

    /// Takes an instance that was made ahead. Without one: makes it if `make` says so, else there is none.
    fn parked<'a>(
        &'a self,
        _spec: &'a LaunchSpec,
        _make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async { Ok(None) })
    }
    /// From now on has so many instances made ahead, as long as all pages are in memory.
    fn set_parked(&self, _spec: &LaunchSpec, _target: usize) {}
    /// Instances that were made ahead and wait.
    fn parked_count(&self) -> usize {
        0
    }

    /// Can instances be put back to it?
    fn can_rewind(&self) -> bool {
        true
    }
    /// Takes an instance that was rewound and kept, if there is one.
    ///
    /// # Errors
    /// Why none can be used.
    fn rewound(&self, _spec: &LaunchSpec) -> Result<Option<Booted>, BootError> {
        Ok(None)
    }
    /// Instances that were rewound and wait.
    fn rewound_count(&self) -> usize {
        0
    }
    /// Ends the instances that were rewound and wait.
    fn end_rewound(&self) {}

    /// What is made of this template from now on does not save pages that the specimen has, as long as that is loaded.
    fn share_specimen(&self, _specimen: &LoadedImage) {}

    /// How well the pages that an invocation touches are predicted.
    fn working_set(&self) -> Option<WorkingSetReport> {
        None
    }
    /// What its memory is made of. Blocks for a millisecond or so.
    fn memory(&self) -> Option<MemoryReport> {
        None
    }
    /// What it holds where. Looks only; takes some microseconds.
    fn image_use(&self) -> ImageUse {
        ImageUse::default()
    }
    /// What makes it useless, if something was found.
    fn problem(&self) -> Option<String> {
        None
    }
    /// Was it stored anew since it was loaded? Then it has to be loaded again before pages are let go of.
    fn is_stale(&self) -> bool {
        false
    }

    /// Are all pages in memory to stay, of it and of those that it descends from? Only then it can be forked.
    fn is_resident(&self) -> bool {
        true
    }
    /// Brings all pages into memory, to stay: to near memory, or to far memory but for those that calls touch.
    fn make_resident(&self, _far: Option<FarMemory>) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async { Ok(()) })
    }
    /// Lets pages go, as far as nobody relies on them, and returns how many are left. With `compressed`, what is on disk
    /// of them is kept in memory.
    fn release(&self, _compressed: bool) -> BoxFuture<'_, Result<u64, BootError>> {
        Box::pin(async { Ok(0) })
    }
    /// Why its pages had to leave far memory, the last time they had to.
    fn far_problem(&self) -> Option<String> {
        None
    }
}
