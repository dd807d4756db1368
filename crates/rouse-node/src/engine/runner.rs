//! One instance, its runtime API and its output.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rouse_pool::keeper::PageFault;
use rouse_process::instance::{BootPath, ExitReason, MemoryUse, Stage};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::function::Revision;
use super::lifecycle::{State, Step};
use crate::boot::{Live, LoadedImage};
use crate::instances::Badge;
use crate::logs::capture::Capture;
use crate::runtime_api::session::{Event, RuntimeAnswer, Session};
use crate::serving::policy::SandboxChoice;

mod ending;
mod start;
mod waiting;

pub use ending::Ended;
pub(crate) use start::answer_parked;

/// An instance. Dropping it ends the process tree and everything that serves it.
pub struct Runner {
    /// What it runs.
    pub revision: Arc<Revision>,
    /// How it came to be.
    pub path: BootPath,
    /// In which kind of sandbox it runs.
    pub sandbox: SandboxChoice,
    /// What it is a copy of.
    pub image: Option<LoadedImage>,
    /// By what it can be named, if it can.
    pub badge: Option<Badge>,
    state: Arc<Mutex<State>>,
    /// Its runtime API.
    pub session: Arc<Session>,
    /// Its output.
    pub capture: Arc<Capture>,
    exit: watch::Receiver<Option<ExitReason>>,
    is_followed: bool,
    // Before `live`: nobody serves a process that is gone.
    tasks: JoinSet<()>,
    live: Box<dyn Live>,
    _gauge: Gauge,
}

/// Counts an instance while it exists.
struct Gauge(Arc<AtomicUsize>);

impl Gauge {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Gauge(Arc::clone(count))
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runner {
    /// Notes in which kind of sandbox it runs, if not in a process's.
    pub fn in_sandbox(mut self, kind: SandboxChoice) -> Self {
        self.sandbox = kind;
        self
    }

    /// Gives the runtime an event, now or when it asks.
    pub fn begin(&self, event: Event, version: &str) -> oneshot::Receiver<RuntimeAnswer> {
        self.step(Step::Begin);
        self.capture.begin(&event.request_id, version);
        self.session.begin(event)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for who wants to know it while the instance is used.
    pub fn shared_state(&self) -> Arc<Mutex<State>> {
        Arc::clone(&self.state)
    }

    /// Takes a step. One that is not possible is a mistake of the engine, which must not go on with this instance.
    fn step(&self, step: Step) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.after(step) {
            Ok(next) => *state = next,
            Err(illegal) => {
                *state = State::Poisoned;
                drop(state);
                panic!("{illegal}");
            }
        }
    }

    /// Becomes `Some` when its first process has ended.
    pub fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.clone()
    }

    /// The same, when it is asked for the first time: for whoever follows the instance until its end.
    pub fn exit_once(&mut self) -> Option<watch::Receiver<Option<ExitReason>>> {
        (!std::mem::replace(&mut self.is_followed, true)).then(|| self.exit())
    }

    /// Does its first process run?
    pub fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Why the process ended or could not start, if so.
    pub fn problem(&self) -> Option<String> {
        if let Some(failure) = self.live.failure() {
            return Some(failure.to_string());
        }
        self.exit.borrow().as_ref().map(super::report::exit_text)
    }

    /// Stages of its boot.
    pub fn stages(&self) -> Vec<Stage> {
        self.live.stages()
    }

    /// Waits until all is known that the instance says about its boot.
    pub async fn told(&self) {
        self.live.told().await;
    }

    /// Memory of its first process.
    pub fn memory(&self) -> io::Result<MemoryUse> {
        self.live.memory()
    }

    /// Peak memory, bytes.
    pub fn memory_peak(&self) -> u64 {
        self.live.memory_peak()
    }

    /// Processor time of its first process so far; none where it cannot be told.
    pub fn cpu_time(&self) -> Duration {
        self.live.cpu_time().unwrap_or_default()
    }

    /// Takes note of what the instance has touched, for later boots, if that is wanted. It must have answered, and
    /// still lives afterwards.
    pub async fn observed(self) -> Option<Self> {
        if !self.live.is_to_be_observed() {
            return Some(self);
        }
        let task = tokio::task::spawn_blocking(move || {
            self.live.learn();
            self
        });
        // Cancelled only when the node ends, and the instance with it.
        task.await.ok()
    }

    /// Is its end to be blamed on far memory that it had mapped, and why?
    pub async fn verify_far(&self) -> Option<String> {
        self.live.verify_far().await
    }

    /// Could pages of it not be filled, of which it may have ended or failed? To be asked when it has.
    pub async fn page_fault(&self) -> Option<PageFault> {
        self.live.page_fault().await
    }

    /// Takes note of what the instance has touched in a rehearsal. It must have answered; it ends with this.
    pub async fn rehearsed(self) {
        let task = tokio::task::spawn_blocking(move || self.live.learn_rehearsed());
        // Cancelled only when the node ends, and the instance with it.
        let _ = task.await;
    }

    /// Lets an instance run that was made ahead.
    pub fn resume(&self) -> io::Result<()> {
        self.live.resume()
    }

    /// Might its own instructions have run? To be asked once its end is known.
    pub fn has_run(&self) -> bool {
        self.live.has_run()
    }

    /// Ends the process tree at once.
    pub fn kill(&self) {
        self.live.kill();
    }

    /// For a checkpoint, which wants the instance itself. The output and the connections stay until it is done.
    pub fn into_parts(self) -> (Box<dyn Live>, JoinSet<()>, Arc<Capture>) {
        (self.live, self.tasks, self.capture)
    }
}
