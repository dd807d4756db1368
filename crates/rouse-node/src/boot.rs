//! What the node needs from a kind of sandbox: start instances, take snapshots.
//!
//! The node knows instances only by these traits: [`Boot`] is a kind of sandbox, [`Snapshot`] what it has loaded, and [`Live`] what
//! was started. [`rouse_process::launcher::Launcher`] is the kind for processes (`process`), [`microvm::MicroVms`] that for virtual
//! machines. A node has [`Sandboxes`].

mod by_kind;
pub mod microvm;
mod parked;
mod process;
mod sandboxes;
mod snapshot;

use std::any::Any;
use std::future::Future;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::{PageFault, PagerStats};
use rouse_process::instance::{BootPath, ExitReason, Failure, LaunchSpec, MemoryUse, Stage};
use rouse_process::launcher::{CheckpointReport, Residency, StockCounts};
use rouse_sandbox::Limits;
use tokio::sync::{Notify, mpsc, watch};

use crate::refusal::chain;

pub(crate) use by_kind::ByKind;
pub use parked::{Carried, ParkedStream};
pub use sandboxes::Sandboxes;
pub use snapshot::{ImageUse, LoadedImage, Snapshot};

/// A boxed future: one allocation for a boot, which makes the trait usable as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why an instance could not be started, or a snapshot not be taken or loaded: the whole chain of causes.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct BootError {
    /// In words.
    pub reason: String,
    /// Something that was needed was killed or short. That says nothing about the snapshot; another attempt may succeed.
    pub is_from_outside: bool,
}

impl BootError {
    /// Because of what was to be started, or nobody knows why.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_from_outside: false,
        }
    }

    /// Because of something else.
    pub fn from_outside(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_from_outside: true,
        }
    }

    fn from_error(error: &dyn std::error::Error) -> Self {
        Self::new(chain(error))
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
    /// Could pages of it not be filled, of which it may have ended or failed? To be asked when it has.
    fn page_fault(&self) -> BoxFuture<'_, Option<PageFault>> {
        Box::pin(std::future::ready(None))
    }
    /// Counts an answer, and says whether [`learn`](Self::learn) is to be called before the instance is killed.
    fn is_to_be_observed(&self) -> bool {
        false
    }
    /// Takes note of what a restored instance has touched until it answered, for later boots. Blocks for a millisecond
    /// or so.
    fn learn(&self) {}
    /// It was killed when it touched memory: was far memory to blame, and why? Then no other is started there any more.
    /// May take as long as reading all that it had mapped there.
    fn verify_far(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { None })
    }

    /// The same, of an instance that has run nobody's invocation, but a rehearsal of one: its snapshot's pages are stored in
    /// the order in which calls will most likely need them. Blocks for as long as storing takes.
    fn learn_rehearsed(&self) {}
}

/// Where the connections of an instance's runtime come from.
#[derive(Debug)]
pub enum ApiListener {
    /// A listener in the sandbox.
    Loopback(TcpListener),
    /// Whoever carries them there.
    Carried(mpsc::Receiver<Carried>),
}

/// An instance just started, and the node's ends of its channels.
pub struct Booted {
    /// The instance itself.
    pub live: Box<dyn Live>,
    /// How it was started.
    pub path: BootPath,
    /// Where its runtime connects to the API.
    pub listener: Option<ApiListener>,
    /// For copies of a snapshot: the connection on which the parked request waits for its answer.
    pub parked: Option<ParkedStream>,
    /// Reading end of the function's standard output and error.
    pub log: Option<OwnedFd>,
    /// Becomes `Some` when the function's first process has ended.
    pub exit: watch::Receiver<Option<ExitReason>>,
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A function's instances are started from it.
    Function,
    /// Functions of all tenants are made of it: it is of an instance that has run no function's code.
    Template,
    /// It holds what all functions of a template have: it is of an instance that was started of the template, without a function.
    Specimen,
}

/// What copies of a live instance are made of.
#[derive(Clone)]
pub struct Branch {
    /// Lives in memory, as long as an instance that was made of it.
    pub image: LoadedImage,
    /// What it took to take it.
    pub report: CheckpointReport,
}

/// Why copies of a live instance cannot be made.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BranchError {
    /// It goes on as if nothing had been.
    #[error("{0}")]
    Refused(String),
    /// It has ended, or cannot go on.
    #[error("{0}")]
    Ended(String),
}

/// A kind of sandbox.
pub trait Boot: Send + Sync + 'static {
    /// Why a function with so much memory cannot be run, if so.
    ///
    /// # Errors
    /// The reason.
    fn fits(&self, _memory_mib: u32) -> Result<(), BootError> {
        Ok(())
    }
    /// Starts the runtime from nothing.
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>>;
    /// Puts an instance of a snapshot that has answered back to it, and keeps it for a later request: for `keep`, beside
    /// at most `most - 1` others. The node serves none of its channels any more. After an error it has been ended.
    fn rewind<'a>(
        &'a self,
        _live: Box<dyn Live>,
        _most: usize,
        _keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async { Err(BootError::new("this kind of sandbox cannot be rewound")) })
    }
    /// Stops the instance, writes its snapshot to `dir` (which must not exist), and ends it.
    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        purpose: Purpose,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>>;
    /// Takes a snapshot in memory of an instance that waits for its next event on the connection from `parked_port`, and
    /// goes on.
    fn branch<'a>(
        &'a self,
        _live: &'a dyn Live,
        _parked_port: u16,
        _spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        let reason = "this kind of sandbox cannot be copied while it lives";
        Box::pin(async move { Err(BranchError::Refused(reason.into())) })
    }
    /// Can instances be snapshotted that run no function yet?
    fn has_templates(&self) -> bool {
        false
    }
    /// What else the memory of a template depends on than what is started in it, for functions with these limits. `None`: nothing,
    /// and the same template serves functions of all limits. May take as long as reading all that an instance is made of.
    ///
    /// # Errors
    /// If that cannot be read.
    fn template_ground(&self, _limits: &Limits) -> Result<Option<Vec<u8>>, BootError> {
        Ok(None)
    }
    /// As [`cold`](Self::cold), of what is to become a template: without a function's package.
    fn start_template<'a>(
        &'a self,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        self.cold(spec)
    }
    /// Loads and verifies a snapshot, which may be a delta of one of `ancestors`.
    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>>;
    /// From now on decides by these costs.
    fn set_costs(&self, _costs: &CostInputs) {}
    /// Pages in memory of all snapshots that can be emptied, whoever uses them.
    fn pages_held(&self) -> u64 {
        0
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
    /// Heard whenever there is no memory for a page that somebody waits for.
    fn shortage(&self) -> Arc<Notify> {
        Arc::default()
    }
    /// Gives back what removed snapshots have left. Waits for what is being written.
    fn collect(&self) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async { Ok(()) })
    }
}
