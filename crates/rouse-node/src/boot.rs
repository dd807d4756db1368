//! What the node needs from a kind of sandbox: start instances, take snapshots.
//!
//! The node knows instances only by these traits. [`rouse_process::launcher::Launcher`] is the kind for
//! processes; a kind for microVMs implements the same.

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
use rouse_process::instance::{
    BootPath, ExitReason, Failure, Instance, LaunchSpec, MemoryUse, Stage,
};
use rouse_process::launcher::{
    CheckpointReport, Image, LaunchError, Launcher, Residency, StockCounts,
};
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

    fn is_to_be_observed(&self) -> bool {
        Instance::is_to_be_observed(self)
    }

    fn learn(&self) {
        Instance::learn(self);
    }
}

impl From<Instance> for Booted {
    fn from(mut instance: Instance) -> Self {
        Booted {
            path: instance.path,
            listener: instance.listener.take(),
            parked: instance.parked.take(),
            log: instance.log.take(),
            exit: instance.exit.clone(),
            live: Box::new(instance),
        }
    }
}

fn image_of(image: &LoadedImage) -> Result<Arc<Image>, BootError> {
    Arc::clone(&image.inner)
        .downcast::<Image>()
        .map_err(|_| BootError("the snapshot was loaded by another kind of sandbox".into()))
}

fn instance_of(live: Box<dyn Live>) -> Result<Instance, BootError> {
    let live: Box<dyn Any> = live;
    let instance = live.downcast::<Instance>();
    let instance = instance
        .map_err(|_| BootError("the instance was started by another kind of sandbox".into()))?;
    Ok(*instance)
}

/// What a launcher made, as the engine knows it.
fn booted(launched: Result<Instance, LaunchError>) -> Result<Booted, BootError> {
    launched
        .map(Booted::from)
        .map_err(|error| BootError::from_error(&error))
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

    fn problem(&self, image: &LoadedImage) -> Option<String> {
        image.inner.downcast_ref::<Image>().and_then(Image::problem)
    }

    fn problem_found<'a>(&'a self, image: &'a LoadedImage) -> BoxFuture<'a, String> {
        Box::pin(async move {
            match image.inner.downcast_ref::<Image>() {
                Some(image) => image.problem_found().await,
                None => std::future::pending().await,
            }
        })
    }

    fn make_resident<'a>(
        &'a self,
        image: &'a LoadedImage,
        far: Option<NumaNode>,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async move {
            let image = image_of(image)?;
            Launcher::place(self, &image, far)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
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
            let snapshot = image.snapshot();
            let mapped: u64 = snapshot
                .mappings
                .iter()
                .map(|m| m.range.end - m.range.start)
                .sum();
            let saved = snapshot.mappings.iter().flat_map(|m| &m.saved);
            let of_parents = saved.filter(|run| run.pool() != 0);
            Ok(LoadedImage {
                parent_pages: of_parents.map(|run| run.pages).sum(),
                pool_pages: snapshot.pool_pages,
                mapped_pages: mapped / rouse_snapshot::model::PAGE_SIZE,
                inner: image,
            })
        })
    }
}
