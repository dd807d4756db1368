//! What the node knows about one version of a function while it runs.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rouse_process::instance::{BootPath, ExitReason};
use rouse_process::working_set::WorkingSetReport;
use tokio::sync::watch;

use super::environment::Launches;
use super::runner::Runner;
use super::standby::Standby;
use crate::boot::LoadedImage;
use crate::function::record::{FunctionRecord, SnapshotRecord};
use crate::instances::InstanceId;
use crate::logs::files::FunctionLog;
use crate::metrics::counters::Counters;
use crate::package::CodePin;
use crate::residency::heat::Heat;
use crate::serving::keep_alive::IdleTimes;
use crate::versions::history::History;

/// Restores, or forks, that may fail in a row before a snapshot's path is given up.
const MAX_FAILURES: usize = 3;

/// How long an idle instance waits for work although there are enough of them.
const SURPLUS: Duration = Duration::from_secs(1);

/// One version of a function.
pub struct Function {
    /// Name, and `:version` when published.
    pub key: String,
    /// As stored; the newest settings, which a build may still be working on.
    record: RwLock<Arc<FunctionRecord>>,
    /// What invocations run.
    serving: RwLock<Option<Arc<Revision>>>,
    /// Idle instances, the freshest last.
    idle: Mutex<Vec<Idle>>,
    /// How often it is called.
    pub heat: Heat,
    /// How long it is not.
    idle_times: Mutex<IdleTimes>,
    /// What is being made ready for requests to come.
    pub standby: Standby,
    /// Counters and gauges.
    pub counters: Counters,
    /// Where its output goes.
    pub log: Arc<FunctionLog>,
}

struct Idle {
    runner: Runner,
    since: Instant,
}

/// Code and settings that instances run, and their snapshot.
pub struct Revision {
    /// The settings.
    pub record: Arc<FunctionRecord>,
    /// How its instances are launched.
    pub launches: Launches,
    /// Keeps the code on disk.
    pub pin: CodePin,
    snapshot: RwLock<SnapshotStatus>,
    fork_failures: AtomicUsize,
    restore_failures: AtomicUsize,
    fork_problem: Mutex<Option<String>>,
    released: Mutex<Option<Instant>>,
    /// Held while the snapshot is being loaded, or another version takes its place.
    pub loading: tokio::sync::Mutex<()>,
    /// Its other versions.
    pub history: Mutex<History>,
    /// Invocations that were answered since the node started.
    calls: AtomicU64,
    /// After so many of them a later snapshot is tried.
    trial_at: AtomicU64,
}

/// Whether there is a snapshot.
#[derive(Clone)]
pub enum SnapshotStatus {
    /// It is being taken or loaded.
    Pending {
        /// For people.
        reason: String,
    },
    /// On disk only: the next call loads it.
    Stored(Arc<StoredSnapshot>),
    /// Ready for use.
    Ready(Arc<ReadySnapshot>),
    /// There is none.
    Failed {
        /// For people.
        reason: String,
    },
}

/// A snapshot of which nothing is in memory.
#[derive(Clone)]
pub struct StoredSnapshot {
    /// As stored.
    pub record: SnapshotRecord,
    /// As in [`ReadySnapshot`].
    pub rebuilt_because: Option<String>,
    /// As in [`LoadedImage`], if it was loaded before.
    pub mapped_pages: Option<u64>,
    /// As in [`LoadedImage`].
    pub parent_pages: u64,
    /// How well the pages that an invocation touches were predicted when it was last looked at.
    pub working_set: Option<WorkingSetReport>,
    /// Has it been found to fit to this host since the node started?
    pub is_checked: bool,
}

/// A snapshot in use.
pub struct ReadySnapshot {
    /// Loaded.
    pub image: LoadedImage,
    /// As stored.
    pub record: SnapshotRecord,
    /// Why the one before it could not be used any more, if that is why this one was taken.
    pub rebuilt_because: Option<String>,
}

impl SnapshotStatus {
    /// What is stored of the snapshot, if there is one.
    pub fn record(&self) -> Option<&SnapshotRecord> {
        match self {
            SnapshotStatus::Ready(ready) => Some(&ready.record),
            SnapshotStatus::Stored(stored) => Some(&stored.record),
            SnapshotStatus::Pending { .. } | SnapshotStatus::Failed { .. } => None,
        }
    }
}

impl StoredSnapshot {
    /// One of which nothing is known but what is stored.
    pub fn unchecked(record: SnapshotRecord, rebuilt_because: Option<String>) -> Self {
        StoredSnapshot {
            record,
            rebuilt_because,
            mapped_pages: None,
            parent_pages: 0,
            working_set: None,
            is_checked: false,
        }
    }
}

impl Function {
    /// A function with its stored record.
    pub fn new(record: Arc<FunctionRecord>, log: Arc<FunctionLog>, counters: Counters) -> Self {
        Function {
            key: record.key(),
            record: RwLock::new(record),
            serving: RwLock::new(None),
            idle: Mutex::new(Vec::new()),
            heat: Heat::new(),
            idle_times: Mutex::default(),
            standby: Standby::default(),
            counters,
            log,
        }
    }

    /// The stored record.
    pub fn record(&self) -> Arc<FunctionRecord> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the record, which must already be stored.
    pub fn set_record(&self, record: Arc<FunctionRecord>) {
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record;
    }

    /// What invocations run, if the first build is over.
    pub fn serving(&self) -> Option<Arc<Revision>> {
        self.serving
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Lets invocations run `revision` from now on. Idle instances of older ones end.
    pub fn serve(&self, revision: Arc<Revision>) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Some(revision);
        self.clear_idle();
    }

    /// Keeps an instance for later, unless it is of an old revision.
    pub fn keep(self: &Arc<Self>, mut runner: Runner) {
        if !runner.state().is_reusable() {
            let state = runner.state();
            tracing::error!(function = self.key, %state, "an instance that cannot be used again was to be kept");
            return;
        }
        let current = self.serving().is_some_and(|serving| {
            serving.record.revision_id == runner.revision.record.revision_id
        });
        if !current || runner.sandbox != self.record().serving.sandbox() {
            return;
        }
        if let Some(exit) = runner.exit_once() {
            self.watch(exit);
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(Idle {
            runner,
            since: Instant::now(),
        });
    }

    /// Has an instance that dies while it is idle be seen at once.
    fn watch(self: &Arc<Self>, mut exit: watch::Receiver<Option<ExitReason>>) {
        let function = Arc::downgrade(self);
        tokio::spawn(async move {
            // An error means that the instance was dropped: we have ended it.
            if exit.wait_for(Option::is_some).await.is_ok()
                && let Some(function) = function.upgrade()
            {
                function.bury();
            }
        });
    }

    /// Takes out idle instances that have ended.
    fn bury(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, dead): (Vec<Idle>, Vec<Idle>) =
            idle.drain(..).partition(|one| one.runner.is_running());
        *idle = kept;
        drop(idle);
        for one in dead {
            if let Some(reason) = &*one.runner.exit().borrow() {
                self.counters.died(reason);
            }
            tracing::info!(
                function = self.key,
                reason = one.runner.problem(),
                "an idle instance has ended"
            );
        }
    }

    /// The idle instance that was used last and still runs.
    pub fn take_idle(&self, revision: &Revision) -> Option<Runner> {
        loop {
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()?;
            if idle.runner.is_running()
                && idle.runner.sandbox == self.record().serving.sandbox()
                && idle.runner.revision.record.revision_id == revision.record.revision_id
            {
                return Some(idle.runner);
            }
        }
    }

    /// The idle instance with this name.
    pub fn take_idle_named(&self, id: InstanceId) -> Option<Runner> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |one: &Idle| {
            one.runner
                .badge
                .as_ref()
                .is_some_and(|badge| badge.card.id == id)
        };
        let at = idle.iter().position(named)?;
        Some(idle.remove(at).runner)
    }

    /// Ends instances that were idle for longer than `keep_alive`, but leaves `least`; and those beyond `most` that were idle for
    /// a moment. Not when they come back: with many requests at once each would end, and the next request start another.
    pub fn end_idle(&self, keep_alive: Duration, least: usize, most: usize) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have been idle for longest come first.
        let idle_for = |age: Duration, one: &Idle| one.since.elapsed() >= age;
        let old = idle.iter().take_while(|one| idle_for(keep_alive, one));
        let old = old.take(idle.len().saturating_sub(least)).count();
        let many = idle.iter().take_while(|one| idle_for(SURPLUS, one));
        let many = many.take(idle.len().saturating_sub(most)).count();
        let ended: Vec<Idle> = idle.drain(..old.max(many)).collect();
        drop(idle);
        drop(ended);
    }

    /// Ends all idle instances.
    pub fn clear_idle(&self) {
        let ended = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        drop(ended);
    }

    /// Reads or changes what is known of the pauses between its invocations.
    pub fn with_idle_times<T>(&self, task: impl FnOnce(&mut IdleTimes) -> T) -> T {
        task(
            &mut self
                .idle_times
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// An invocation runs until what this returns is dropped.
    pub fn activity(self: &Arc<Self>) -> Activity {
        self.with_idle_times(|times| times.begin(Instant::now()));
        Activity(Arc::clone(self))
    }

    /// Instances that start, answer or end now.
    pub fn busy_count(&self) -> usize {
        let all = self.counters.instances.load(Ordering::Relaxed);
        all.saturating_sub(self.idle_count())
    }

    /// Idle instances now.
    pub fn idle_count(&self) -> usize {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The function is deleted: nothing new starts.
    pub fn retire(&self) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.clear_idle();
    }
}

/// An invocation that runs.
pub struct Activity(Arc<Function>);

impl Drop for Activity {
    fn drop(&mut self) {
        self.0.with_idle_times(|times| times.end(Instant::now()));
    }
}

impl Revision {
    /// A revision without snapshot.
    pub fn new(record: Arc<FunctionRecord>, launches: Launches, pin: CodePin) -> Self {
        Revision {
            history: Mutex::new(History::new(&record.revision_id)),
            calls: AtomicU64::new(0),
            trial_at: AtomicU64::new(u64::MAX),
            record,
            launches,
            pin,
            snapshot: RwLock::new(SnapshotStatus::Pending {
                reason: "The snapshot is not taken yet.".into(),
            }),
            fork_failures: AtomicUsize::new(0),
            restore_failures: AtomicUsize::new(0),
            fork_problem: Mutex::new(None),
            released: Mutex::new(None),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    /// Reads or changes what is known of other versions.
    pub fn with_history<T>(&self, task: impl FnOnce(&mut History) -> T) -> T {
        task(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An invocation was answered. Is it time to try a later snapshot? Says so once.
    pub fn note_call(&self) -> bool {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let at = self.trial_at.load(Ordering::Relaxed);
        calls >= at
            && self
                .trial_at
                .compare_exchange(at, u64::MAX, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// A later snapshot is to be tried after so many more invocations, or not at all.
    pub fn try_after(&self, calls: Option<u64>) {
        let now = self.calls.load(Ordering::Relaxed);
        let at = calls.map_or(u64::MAX, |calls| now.saturating_add(calls));
        self.trial_at.store(at, Ordering::Relaxed);
    }

    /// Whether there is a snapshot.
    pub fn snapshot(&self) -> SnapshotStatus {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the status.
    pub fn set_snapshot(&self, status: SnapshotStatus) {
        self.fork_failures.store(0, Ordering::Relaxed);
        self.restore_failures.store(0, Ordering::Relaxed);
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Another version takes the snapshot's place. Instances that run go on with the one that they were made of.
    pub fn switch_snapshot(&self, status: SnapshotStatus, fork_problem: Option<String>) {
        self.set_snapshot(status);
        *self
            .fork_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = fork_problem;
    }

    /// Changes the status if it still is that snapshot, and says whether it was.
    pub fn replace_ready(&self, ready: &Arc<ReadySnapshot>, status: SnapshotStatus) -> bool {
        let mut now = self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let is_it = matches!(&*now, SnapshotStatus::Ready(current) if Arc::ptr_eq(current, ready));
        if is_it {
            *now = status;
        }
        is_it
    }

    /// Pages of the snapshot are let go of.
    pub fn note_release(&self) {
        let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        *released = Some(Instant::now());
    }

    /// Was that done so short a time ago?
    pub fn was_released_within(&self, time: Duration) -> bool {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.is_some_and(|at| at.elapsed() < time)
    }

    /// Why forks are not used, if so.
    pub fn fork_problem(&self) -> Option<String> {
        self.fork_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// An instance came up on `path`.
    pub fn succeeded(&self, path: BootPath) {
        match path {
            BootPath::Fork if self.fork_failures.load(Ordering::Relaxed) > 0 => {
                self.fork_failures.store(0, Ordering::Relaxed)
            }
            BootPath::Restore if self.restore_failures.load(Ordering::Relaxed) > 0 => {
                self.restore_failures.store(0, Ordering::Relaxed)
            }
            _ => {}
        }
    }

    /// No instance came up on `path`. After a few in a row the path is given up for this revision.
    pub fn failed(&self, path: BootPath, reason: &str) {
        match path {
            BootPath::Fork => {
                if self.fork_failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES {
                    self.give_up_fork(reason);
                }
            }
            BootPath::Restore => {
                if self.restore_failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES {
                    let reason = format!(
                        "Restores failed {MAX_FAILURES} times in a row, the last one because: {reason}"
                    );
                    *self
                        .snapshot
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) =
                        SnapshotStatus::Failed { reason };
                }
            }
            // Who makes them ahead sees to it.
            BootPath::Parked | BootPath::Rewind => {}
            BootPath::Cold | BootPath::Warm => {}
        }
    }

    /// Forks are not used any more.
    pub fn give_up_fork(&self, reason: &str) {
        *self
            .fork_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

/// Names of the directories below `snapshots/` that are in use.
pub fn snapshot_directories<'a>(
    records: impl Iterator<Item = (&'a str, &'a SnapshotRecord)>,
) -> HashSet<String> {
    records
        .map(|(key, record)| format!("{}/{}", function_of(key), record.directory_name()))
        .collect()
}

/// The name in a key.
pub fn function_of(key: &str) -> &str {
    key.split(':').next().unwrap_or(key)
}
