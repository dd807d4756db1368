//! The node itself: what it owns, and how it starts from its state directory.
//!
//! ```text
//! meta.redb                          functions, snapshots, asynchronous invocations
//! packages/<sha256>.zip              as uploaded
//! code/<sha256>/                     unpacked
//! snapshots/<function>/<revision>/   one snapshot
//! snapshots/@templates/<template>/   a language template
//! no-package/                        empty: the package of a template
//! specimen-package/                  two lines: the package of what its functions have in common
//! packs/, dictionaries/              the pages of all snapshots
//! node.key                           signs manifests, names pages
//! logs/<function>.log                what functions print
//! queues/<queue>/                    messages to queues, until somebody removes them
//! ```
//! Whatever the metadata does not name is left over from a crash and is removed at the start.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::boot::{Boot, BootError, ByKind, Sandboxes};
use crate::config::{ConfigError, NodeConfig};
use crate::engine::admission::Gate;
use crate::engine::build::{self, Occasion};
use crate::engine::environment::launches;
use crate::engine::function::StoredSnapshot;
use crate::engine::function::{Function, Revision, SnapshotStatus, snapshot_directories};
use crate::engine::parking;
use crate::events::{self, EventSender};
use crate::function::arn::{FunctionRef, LATEST, function_arn};
use crate::function::record::{FunctionRecord, SnapshotRecord, State, directory_name, key};
use crate::instances::Roster;
use crate::logs::files::LogFiles;
use crate::logs::limit::RateLimit;
use crate::metrics::Metrics;
use crate::package::{CodePin, PackageStore, UnpackLimits};
use crate::refusal::Refusal;
use crate::residency::{self, ResidencyPolicy};
use crate::serving::keep_alive::Windows;
use crate::serving::policy::KeepAlive;
use crate::store::{Store, StoreError};
use crate::templates::specimen::specimen_name;
use crate::templates::{FOLDER, Templates};
use crate::traces::Traces;
use crate::versions::history::History;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is not possible.
    #[error("the configuration is not valid")]
    Config(#[from] ConfigError),
    /// The metadata cannot be used.
    #[error("the metadata in {path} cannot be used")]
    Store {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: StoreError,
    },
    /// Traces cannot be sent anywhere.
    #[error("traces cannot be sent")]
    Traces(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used")]
    StateDir {
        /// The directory, or what is in it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A node. All methods can be called from many tasks at once.
pub struct Node {
    pub(crate) config: NodeConfig,
    /// Processes: the kind that keeps snapshots.
    pub(crate) boot: Arc<dyn Boot>,
    /// All kinds.
    pub(crate) sandboxes: Sandboxes,
    pub(crate) store: Arc<Store>,
    pub(crate) packages: Arc<PackageStore>,
    pub(crate) logs: LogFiles,
    functions: RwLock<HashMap<String, Arc<Function>>>,
    /// Held by whoever changes functions, from the check until the change is stored. Invocations never take it.
    pub(crate) changes: Mutex<()>,
    /// Instances that can be named.
    pub(crate) instances: Arc<Roster>,
    /// Held by whoever makes instances that are held.
    pub(crate) holding: Mutex<()>,
    /// Lets invocations in.
    pub(crate) gate: Gate,
    /// One for each snapshot that is being taken or loaded.
    pub(crate) builds: Semaphore,
    pub(crate) templates: Templates,
    /// Which functions' memory is in DRAM.
    pub(crate) residency: ResidencyPolicy,
    pub(crate) events: EventSender,
    /// Lets events in to be delivered, fair between functions.
    pub(crate) event_gate: Gate,
    /// Events that were accepted and are not done.
    pub(crate) pending_events: AtomicUsize,
    pub(crate) metrics: Metrics,
    /// Where traces go, if they do.
    pub(crate) traces: Option<Traces>,
    /// How often it is logged that something ended a function.
    pub(crate) ended_log: RateLimit,
    /// No more requests should be sent here.
    pub(crate) is_draining: AtomicBool,
    /// Wakes whoever gives back what removed snapshots have left.
    garbage: mpsc::Sender<()>,
}

/// Between the removal of a snapshot and the collection of its pages.
const COLLECTION_DELAY: Duration = Duration::from_secs(1);

/// Invocations a second of which the log says at `info` that something ended them.
const ENDED_LOG_RATE: u32 = 10;

impl Node {
    /// Opens the state directory and starts the background work. Must be called inside a Tokio runtime.
    pub fn start(
        config: NodeConfig,
        sandboxes: impl Into<Sandboxes>,
    ) -> Result<Arc<Self>, NodeError> {
        let sandboxes = sandboxes.into();
        config.validate()?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| NodeError::StateDir { path, source }
        };
        let state = config.state_dir.clone();
        fs::create_dir_all(&state).map_err(failed(&state))?;
        let meta = state.join("meta.redb");
        let from_store = |source| NodeError::Store {
            path: meta.clone(),
            source,
        };
        let store = Store::open(&meta).map_err(from_store)?;
        let records = store.functions().map_err(from_store)?;
        let snapshots = store.snapshots().map_err(from_store)?;
        let histories = store.histories().map_err(from_store)?;
        let events = store.events().map_err(from_store)?;

        let used: HashSet<String> = records
            .iter()
            .map(|record| record.code.sha256_hex.clone())
            .collect();
        let limits = UnpackLimits {
            bytes: config.max_unzipped_bytes,
            entries: config.max_entries,
        };
        let (packages, unpinned) = PackageStore::open(&state, config.max_zip_bytes, limits, &used)
            .map_err(failed(&state.join("code")))?;
        let snapshot_root = state.join("snapshots");
        fs::create_dir_all(&snapshot_root).map_err(failed(&snapshot_root))?;
        let log_root = state.join("logs");
        let logs = LogFiles::start(
            log_root.clone(),
            config.log_file_bytes,
            config.log_rate_bytes,
        )
        .map_err(failed(&log_root))?;

        let traces = (config.traces.as_ref()).map(|settings| Traces::start(settings, &config));
        let traces = traces.transpose().map_err(NodeError::Traces)?;
        let (garbage, garbage_receiver) = mpsc::channel(1);
        let (event_sender, event_receiver) = mpsc::unbounded_channel();
        let node = Arc::new(Node {
            boot: Arc::new(ByKind(sandboxes.clone())),
            sandboxes,
            store: Arc::new(store),
            packages: Arc::new(packages),
            logs,
            functions: RwLock::default(),
            changes: Mutex::new(()),
            instances: Arc::default(),
            holding: Mutex::new(()),
            gate: Gate::new(config.capacity()),
            builds: Semaphore::new(config.max_builds),
            templates: Templates::default(),
            residency: ResidencyPolicy::new(&config.memory),
            events: event_sender,
            event_gate: Gate::new(config.event_capacity()),
            pending_events: AtomicUsize::new(0),
            metrics: Metrics::new(config.metrics_functions),
            traces,
            ended_log: RateLimit::new(ENDED_LOG_RATE),
            is_draining: AtomicBool::new(false),
            garbage,
            config,
        });
        let kept = histories.iter().flat_map(|(key, history)| {
            let kept = history.kept.iter();
            kept.map(move |record| (key.as_str(), record))
        });
        let current = snapshots.iter().map(|(key, record)| (key.as_str(), record));
        let mut known = snapshot_directories(current.chain(kept));
        let templates = records.iter().filter_map(|r| node.template_name(r));
        known.extend(templates.flat_map(|name| {
            let specimen = specimen_name(&name);
            [name, specimen].map(|name| format!("{FOLDER}/{name}"))
        }));
        clean_snapshots(&snapshot_root, &known).map_err(failed(&snapshot_root))?;
        node.find_again(
            records,
            snapshots.into_iter().collect(),
            histories.into_iter().collect(),
        );
        for (id, event) in events {
            events::delivery::resume(&node, id, event);
        }
        tokio::spawn(events::delivery::run(Arc::downgrade(&node), event_receiver));
        tokio::spawn(collect_packages(Arc::downgrade(&node), unpinned));
        tokio::spawn(collect_snapshots(Arc::downgrade(&node), garbage_receiver));
        node.collect_snapshots();
        tokio::spawn(end_idle(Arc::downgrade(&node)));
        tokio::spawn(Arc::clone(&node).check_all());
        tokio::spawn(residency::run(Arc::downgrade(&node)));
        tokio::spawn(parking::run(Arc::downgrade(&node)));
        Ok(node)
    }

    /// What starts a function's instances from nothing.
    pub(crate) fn boot_of(&self, function: &Function) -> Result<&dyn Boot, BootError> {
        let boot = self.sandboxes.of(function.record().serving.sandbox());
        boot.map(|boot| &**boot).map_err(Clone::clone)
    }

    /// The settings that the node runs with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Functions as the store has them: served cold at once, their snapshots loaded when they are called, or rebuilt.
    fn find_again(
        self: &Arc<Self>,
        records: Vec<FunctionRecord>,
        mut snapshots: HashMap<String, SnapshotRecord>,
        mut histories: HashMap<String, History>,
    ) {
        for record in records {
            let record = Arc::new(record);
            let function = self.add(Arc::clone(&record));
            let pin = self.packages.pin(&record.code.sha256_hex);
            let Some(revision) = self.revision(&record, pin) else {
                tracing::error!(
                    function = function.key,
                    runtime = record.settings.runtime,
                    "this version of rouse does not know the runtime"
                );
                continue;
            };
            let revision = Arc::new(revision);
            let snapshot = snapshots
                .remove(&function.key)
                .filter(|s| s.revision_id == record.revision_id);
            let history = histories
                .remove(&function.key)
                .filter(|history| history.revision_id == record.revision_id)
                .or_else(|| snapshot.as_ref().map(History::of));
            if let Some(history) = history {
                revision.with_history(|now| *now = history);
            }
            self.plan_trial(&function, &revision);
            let busy = record.state == State::Busy || record.last_update == State::Busy;
            if record.state != State::Busy {
                function.serve(Arc::clone(&revision));
            }
            match snapshot {
                Some(snapshot) if !busy => {
                    let stored = StoredSnapshot::unchecked(snapshot, None);
                    revision.set_snapshot(SnapshotStatus::Stored(Arc::new(stored)));
                }
                _ if busy => build::spawn(self, function, revision, Occasion::Change),
                _ => build::spawn(
                    self,
                    function,
                    revision,
                    Occasion::Restart { problem: None },
                ),
            }
        }
    }

    /// Puts a stored function among those that can be found.
    pub(crate) fn add(&self, record: Arc<FunctionRecord>) -> Arc<Function> {
        let log = Arc::new(self.logs.function(&record.name));
        let function = Arc::new(Function::new(record, log, self.metrics.counters()));
        let replaced = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(function.key.clone(), Arc::clone(&function));
        if let Some(replaced) = replaced {
            self.metrics.retire(&replaced.counters);
        }
        self.configure_flow(&function);
        function
    }

    /// Takes functions out; what still runs ends by itself.
    pub(crate) fn remove(&self, keys: &[String]) -> Vec<Arc<Function>> {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let removed: Vec<_> = keys
            .iter()
            .filter_map(|key| functions.remove(key))
            .collect();
        for function in &removed {
            self.metrics.retire(&function.counters);
            self.instances.end_of(&function.key);
            let record = function.record();
            if record.version == LATEST {
                self.gate.retire(&record.name);
                self.event_gate.retire(&record.name);
            }
        }
        removed
    }

    /// A revision of a function's settings and code; `None` when the runtime is unknown.
    pub(crate) fn revision(&self, record: &Arc<FunctionRecord>, pin: CodePin) -> Option<Revision> {
        let launches = launches(&self.config, record, pin.directory())?;
        Some(Revision::new(Arc::clone(record), launches, pin))
    }

    /// The function that a request names; Lambda's error when there is none.
    pub(crate) fn find(&self, target: &FunctionRef) -> Result<Arc<Function>, Refusal> {
        let here = target
            .account
            .as_ref()
            .is_none_or(|account| *account == self.config.account)
            && target
                .region
                .as_ref()
                .is_none_or(|region| *region == self.config.region);
        let version = target.qualifier.as_deref().unwrap_or(LATEST);
        let found = if here {
            self.get_by_key(&key(&target.name, version))
        } else {
            None
        };
        found.ok_or_else(|| self.not_found(target))
    }

    /// 404 for a function, in Lambda's words.
    pub(crate) fn not_found(&self, target: &FunctionRef) -> Refusal {
        let region = target.region.as_deref().unwrap_or(&self.config.region);
        let account = target.account.as_deref().unwrap_or(&self.config.account);
        Refusal::ResourceNotFound(format!(
            "Function not found: {}",
            function_arn(region, account, &target.name, target.qualifier.as_deref())
        ))
    }

    /// By name and version.
    pub(crate) fn get_by_key(&self, key: &str) -> Option<Arc<Function>> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    /// All functions, all versions, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Is this still the function, with this revision, that the name stands for?
    pub(crate) fn is_current(&self, function: &Arc<Function>, record: &FunctionRecord) -> bool {
        self.get_by_key(&function.key).is_some_and(|now| {
            Arc::ptr_eq(&now, function) && now.record().revision_id == record.revision_id
        })
    }

    /// Where the versions of a function's snapshots are.
    pub(crate) fn snapshots_of(&self, record: &FunctionRecord) -> PathBuf {
        self.config.state_dir.join("snapshots").join(&record.name)
    }

    /// Where a version of a revision's snapshot is.
    pub(crate) fn snapshot_directory(&self, record: &FunctionRecord, version: u64) -> PathBuf {
        self.snapshots_of(record)
            .join(directory_name(&record.revision_id, version))
    }

    /// Gives back, soon, what removed snapshots have left.
    pub(crate) fn collect_snapshots(&self) {
        // When it is full, somebody has asked already.
        let _ = self.garbage.try_send(());
    }

    /// Path of a package's zip, if there is such a package. `sha256` may be anything.
    pub fn package(&self, sha256: &str) -> Option<PathBuf> {
        let plausible = sha256.len() == 64
            && sha256
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        let path = self.packages.zip_path(sha256);
        (plausible && path.exists()).then_some(path)
    }

    /// The last lines of a function's log, one JSON object a line.
    pub async fn logs(&self, target: &FunctionRef, lines: usize) -> Result<Vec<u8>, Refusal> {
        let function = self.find(target)?;
        let name = function.record().name.clone();
        self.logs
            .tail(&name, lines)
            .await
            .map_err(|error| Refusal::Service(format!("The log could not be read: {error}")))
    }

    /// The node is going to end: nothing new runs, neither requests nor events. Who waits is refused, and goes elsewhere; events
    /// stay on disk.
    pub fn close(&self) {
        self.event_gate.close();
        self.gate.close();
    }

    /// Waits until nothing runs any more, if the node is closed.
    pub async fn drained(&self) {
        if self.gate.is_closed() {
            self.event_gate.quiet().await;
            self.gate.quiet().await;
        }
    }

    /// Ends the instances of a function that have waited for requests long enough.
    fn end_idle_of(&self, function: &Function) {
        let serving = self.serving(function);
        let keep_alive = match serving.keep_alive {
            KeepAlive::Fixed(seconds) => Duration::from_secs(seconds),
            // Where the next request is far, one is made again before it.
            KeepAlive::Histogram => match function.with_idle_times(|times| times.windows()) {
                Windows { prewarm, .. } if !prewarm.is_zero() => Duration::ZERO,
                Windows { keep, .. } => keep,
            },
        };
        let least = self.ready_wanted(function, &serving, Instant::now());
        function.end_idle(keep_alive, least, least.max(self.config.max_idle));
    }

    /// Waits until the traces of all invocations that are over have been sent, or given up.
    pub async fn flush_traces(&self) {
        if let Some(traces) = &self.traces {
            traces.flush().await;
        }
    }

    /// Ends the instances that nobody uses. For the end of a graceful shutdown.
    pub fn end_instances(&self) {
        for function in self.all() {
            function.clear_idle();
        }
        self.instances.clear();
        self.end_parked();
    }
}

/// Removes snapshots that the metadata does not name, half-written ones included.
fn clean_snapshots(root: &Path, used: &HashSet<String>) -> io::Result<()> {
    for function in fs::read_dir(root)? {
        let function = function?;
        if !function.file_type()?.is_dir() {
            fs::remove_file(function.path())?;
            continue;
        }
        let mut left = false;
        for revision in fs::read_dir(function.path())? {
            let revision = revision?;
            let name = format!(
                "{}/{}",
                function.file_name().to_string_lossy(),
                revision.file_name().to_string_lossy()
            );
            if used.contains(&name) {
                left = true;
            } else if revision.file_type()?.is_dir() {
                fs::remove_dir_all(revision.path())?;
            } else {
                fs::remove_file(revision.path())?;
            }
        }
        if !left {
            fs::remove_dir(function.path())?;
        }
    }
    Ok(())
}

async fn collect_snapshots(node: Weak<Node>, mut wanted: mpsc::Receiver<()>) {
    while wanted.recv().await.is_some() {
        // Several snapshots that go at the same time are one collection.
        tokio::time::sleep(COLLECTION_DELAY).await;
        let Some(node) = node.upgrade() else { return };
        let boot = Arc::clone(&node.boot);
        drop(node);
        if let Err(error) = boot.collect().await {
            tracing::warn!(%error, "cannot collect what removed snapshots have left");
        }
    }
}

async fn collect_packages(node: Weak<Node>, mut unpinned: mpsc::UnboundedReceiver<String>) {
    while let Some(sha256) = unpinned.recv().await {
        let Some(node) = node.upgrade() else { return };
        let packages = Arc::clone(&node.packages);
        drop(node);
        let removed = tokio::task::spawn_blocking(move || packages.collect(&sha256)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "cannot remove a package");
        }
    }
}

async fn end_idle(node: Weak<Node>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(node) = node.upgrade() else { return };
        for function in node.all() {
            node.end_idle_of(&function);
        }
        node.instances.expire();
    }
}
