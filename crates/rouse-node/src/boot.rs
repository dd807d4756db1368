//! What the node needs from a kind of sandbox: start instances, take snapshots.
//!
//! The node knows instances only by these traits. [`rouse_process::launcher::Launcher`] is the kind for
//! processes (`process`); a kind for microVMs implements the same.

mod process;

use std::any::Any;
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::NumaNode;
use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::PagerStats;
use rouse_process::instance::{BootPath, ExitReason, Failure, LaunchSpec, MemoryUse, Stage};
use rouse_process::launcher::{CheckpointReport, Residency, StockCounts};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use tokio::sync::watch;

use crate::refusal::chain;

/// A boxed future: one allocation for a boot, which makes the trait usable as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why an instance could not be started, or a snapshot not be taken or loaded: the whole chain of causes.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BootError(pub String);

impl BootError {
    fn from_error(error: &dyn std::error::Error) -> Self {
        BootError(chain(error))
    }
}

/// A running instance. Dropping it kills the whole process tree and gives back the sandbox.
pub trait Live: Any + Send + Sync {
    /// Ends the whole process tree at once.
    fn kill(&self);
    /// Memory and faults of the function's first process.
    fn memory(&self) -> std::io::Result<MemoryUse>;
    /// Waits until what the instance says about its boot has been heard. It says that before its own code runs.
    fn told(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Stages of the boot that are over; complete once it has [`told`](Self::told).
    fn stages(&self) -> Vec<Stage>;
    /// What went wrong before the function's own code ran, if anything did.
    fn failure(&self) -> Option<Failure>;
    /// Peak memory, bytes. Much cheaper than [`memory`](Self::memory).
    fn memory_peak(&self) -> u64;
    /// Processor time of the function's first process so far.
    fn cpu_time(&self) -> std::io::Result<Duration>;
    /// Lets an instance run that was made ahead and stopped before its first own instruction.
    fn resume(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// Might the function's own instructions have run? To be asked once its end is known.
    fn has_run(&self) -> bool {
        true
    }
    /// Counts an answer, and says whether [`learn`](Self::learn) is to be called before the instance is killed.
    fn is_to_be_observed(&self) -> bool {
        false
    }
    /// Takes note of what a restored instance has touched until it answered, for later boots. Blocks for a millisecond
    /// or so.
    fn learn(&self) {}
}

/// An instance just started, and the node's ends of its channels.
pub struct Booted {
    /// The instance itself.
    pub live: Box<dyn Live>,
    /// How it was started.
    pub path: BootPath,
    /// The runtime API's listener in the sandbox.
    pub listener: Option<TcpListener>,
    /// For copies of a snapshot: the connection on which the parked request waits for its answer.
    pub parked: Option<TcpStream>,
    /// Reading end of the function's standard output and error.
    pub log: Option<OwnedFd>,
    /// Becomes `Some` when the function's first process has ended.
    pub exit: watch::Receiver<Option<ExitReason>>,
}

/// A loaded snapshot.
#[derive(Clone)]
pub struct LoadedImage {
    /// Known only to the kind of sandbox that loaded it.
    pub inner: Arc<dyn Any + Send + Sync>,
    /// Pages in the pool image.
    pub pool_pages: u64,
    /// Pages of address space that the snapshot maps.
    pub mapped_pages: u64,
    /// Of these, pages that are mapped from the snapshot that this one is a delta of.
    pub parent_pages: u64,
}

/// What an image holds where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageUse {
    /// Pages of its own pool that are in memory.
    pub resident_pages: u64,
    /// Of these, pages that lie on far memory.
    pub far_pages: u64,
    /// Pages that stay as long as the image is loaded.
    pub wired_pages: u64,
    /// Pages that a call touches, as far as it is known.
    pub hot_pages: u64,
    /// Bytes of its pool on disk.
    pub stored_bytes: u64,
    /// Bytes of these that are in memory.
    pub compressed_bytes: u64,
}

/// A kind of sandbox.
pub trait Boot: Send + Sync + 'static {
    /// Starts the runtime from nothing.
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// Starts an instance from the snapshot, in a blank process.
    fn restore<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// The same, for invocations: what it touches may be watched, and then no snapshot can be taken of it.
    fn restore_to_invoke<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.restore(image, spec)
    }
    /// Starts an instance as a clone of the image's parked template.
    fn fork<'a>(
        &'a self,
        image: &'a LoadedImage,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// Takes an instance that was made ahead. Without one: makes it if `make` says so, else there is none.
    fn parked<'a>(
        &'a self,
        _image: &'a LoadedImage,
        _spec: &'a LaunchSpec,
        _make: bool,
    ) -> BoxFuture<'a, Result<Option<Booted>, BootError>> {
        Box::pin(async { Ok(None) })
    }
    /// From now on has so many instances made ahead, as long as all pages of the image are in memory.
    fn set_parked(&self, _image: &LoadedImage, _spec: &LaunchSpec, _target: usize) {}
    /// Instances that were made ahead and wait.
    fn parked_count(&self, _image: &LoadedImage) -> usize {
        0
    }
    /// Puts an instance of a snapshot that has answered back to it, and keeps it for a later request: for `keep`, beside
    /// at most `most - 1` others. The node serves none of its channels any more. After an error it has been ended.
    fn rewind<'a>(
        &'a self,
        _live: Box<dyn Live>,
        _most: usize,
        _keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async { Err(BootError("this kind of sandbox cannot be rewound".into())) })
    }
    /// Takes an instance that was rewound and kept, if there is one.
    fn rewound(
        &self,
        _image: &LoadedImage,
        _spec: &LaunchSpec,
    ) -> Result<Option<Booted>, BootError> {
        Ok(None)
    }
    /// Instances that were rewound and wait.
    fn rewound_count(&self, _image: &LoadedImage) -> usize {
        0
    }
    /// Ends the instances that were rewound and wait.
    fn end_rewound(&self, _image: &LoadedImage) {}
    /// Stops the instance, writes its snapshot to `dir` (which must not exist), and ends it.
    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>>;
    /// Can processes be snapshotted that run no function yet?
    fn has_templates(&self) -> bool {
        false
    }
    /// As [`checkpoint`](Self::checkpoint), of an instance that has run no function's code: all tenants may share it.
    fn checkpoint_template<'a>(
        &'a self,
        _live: Box<dyn Live>,
        _parked_port: u16,
        _spec: &'a LaunchSpec,
        _dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async { Err(BootError("this kind of sandbox has no templates".into())) })
    }
    /// Is a restore of this image to be preferred to a fork just now? Only in a restore can be seen which pages are
    /// really needed.
    fn prefers_restore(&self, _image: &LoadedImage) -> bool {
        false
    }
    /// How well the pages that an invocation touches are predicted.
    fn working_set(&self, _image: &LoadedImage) -> Option<WorkingSetReport> {
        None
    }
    /// From now on decides by these costs.
    fn set_costs(&self, _costs: &CostInputs) {}
    /// What the snapshot holds where. Looks only; takes some microseconds.
    fn image_use(&self, _image: &LoadedImage) -> ImageUse {
        ImageUse::default()
    }
    /// Pages in memory of all images that can be emptied, whoever uses them.
    fn pages_held(&self) -> u64 {
        0
    }
    /// Are all pages in memory to stay, of this image and of those that it descends from? Only then it can be forked.
    fn is_resident(&self, _image: &LoadedImage) -> bool {
        true
    }
    /// Was the snapshot stored anew since it was loaded? Then it has to be loaded again before pages are let go of.
    fn is_stale(&self, _image: &LoadedImage) -> bool {
        false
    }
    /// Why no instance can be started any more, in sentences. Empty as long as all is well.
    fn problems(&self) -> Vec<&'static str> {
        Vec::new()
    }
    /// What became of the sandboxes that were made ahead.
    fn sandbox_counts(&self) -> StockCounts {
        StockCounts::default()
    }
    /// What the pager has done so far; `None` where there is none.
    fn pager_stats(&self) -> Option<PagerStats> {
        None
    }
    /// What makes the image useless, if something was found.
    fn problem(&self, _image: &LoadedImage) -> Option<String> {
        None
    }
    /// Ready with it as soon as something is found; never if nothing is.
    fn problem_found<'a>(&'a self, _image: &'a LoadedImage) -> BoxFuture<'a, String> {
        Box::pin(std::future::pending())
    }
    /// Brings all pages into memory, to stay: to near memory, or to that node but for those that calls touch.
    fn make_resident<'a>(
        &'a self,
        _image: &'a LoadedImage,
        _far: Option<NumaNode>,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async { Ok(()) })
    }
    /// Lets pages go, as far as nobody relies on them, and returns how many are left. With `compressed`, what is on disk
    /// of them is kept in memory.
    fn release<'a>(
        &'a self,
        _image: &'a LoadedImage,
        _compressed: bool,
    ) -> BoxFuture<'a, Result<u64, BootError>> {
        Box::pin(async { Ok(0) })
    }
    /// What the snapshot's memory is made of. Blocks for a millisecond or so.
    fn memory(&self, _image: &LoadedImage) -> Option<MemoryReport> {
        None
    }
    /// Gives back what removed snapshots have left. Waits for what is being written.
    fn collect(&self) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async { Ok(()) })
    }
    /// Loads and verifies a snapshot, which may be a delta of one of `ancestors`.
    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>>;
}
