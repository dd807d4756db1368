//! Starts instances on each boot path, and takes snapshots.
//!
//! | path | here | the rest of the way |
//! |---|---|---|
//! | `cold` | [`Launcher::cold`]: sandbox, order to its blank | `rouse_sandbox::exec` |
//! | `restore` | [`Launcher::restore`]: sandbox, order to its blank | `blank`, `rouse_restorer`, `plan` |
//! | `fork` | [`Launcher::fork`]: a porter of the image's template is told to go | `clones`, `plan::template` |
//! | `parked` | [`Launcher::parked`]: a `restore` done ahead, which stopped before its end | `launcher::parked`, `plan::parking` |
//! | `rewind` | [`Launcher::rewind`]: an instance that has answered, put back to its snapshot | `crate::rewind`, `plan::rewind` |
//!
//! Nothing here waits for the instance: an order is sent and the instance is handed to the
//! caller, who may already write the answer to its parked request.

mod branch;
mod copies;
mod dictionaries;
mod error;
mod observe;
mod others;
mod paging;
mod parked;
mod restow;
mod rewind;
mod snapshots;
mod touches;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use rouse_pool::SnapshotStore;
use rouse_pool::cost::CostInputs;
use rouse_pool::key::{NODE_KEY_FILE, NodeKey};
use rouse_pool::memory::{ImageMemory, hold_all};
use rouse_sandbox::exec::ExecRequest;
use rouse_sandbox::{
    GID, Limits, RESOURCE_LIMITS, Sandbox, SandboxConfig, SandboxError, SandboxKind, Spawner,
    SpawnerError, TaskLayers, UID, open_task_mount, seccomp,
};
use rustix::pipe::PipeFlags;

use crate::blank;
use crate::clock::FunctionClock;
use crate::clones::Clones;
use crate::image::registered::to_register;
use crate::image::{self, LoadedProgram};
pub use crate::image::{Image, ImageError};
use crate::instance::{BootPath, Instance, LaunchSpec, Origin, Stage};
use crate::memory_calls::{self, PoolIndex};
use crate::monitor::{Monitor, Sight, Subject};
use crate::order;
use crate::plan::{Environment, SpecialMappings, waiting_room};
use crate::reaper::Reaper;
use crate::stock::{Filler, Size, Stock};
use crate::working_set::WorkingSet;

pub use copies::{Copies, CopyId, Waits};
use paging::Paging;
pub use paging::PoolOwner;
pub(crate) use parked::Parked;
pub(crate) use touches::Touches;

pub use crate::stock::StockCounts;
pub use error::{LaunchError, SnapshotError, StartError};
pub use snapshots::{CheckpointReport, Residency};

/// How instances are started.
#[derive(Debug, Clone)]
pub struct LauncherConfig {
    /// How sandboxes are built. The launcher chooses the clock offset, and takes the memory calls.
    pub sandbox: SandboxConfig,
    /// Where the node remembers the latest time that a function has seen (see [`crate::clock`]).
    pub clock_file: PathBuf,
    /// Root of the snapshot store: the node's key, packs, and the snapshots below `snapshots/`.
    pub store: PathBuf,
    /// Sandboxes kept ready for each set of limits in use, at least.
    pub ready_sandboxes: usize,
    /// The same at most; in between as many as were lately taken at a time.
    pub most_ready_sandboxes: usize,
    /// Clones kept ready for each template.
    pub ready_clones: usize,
    /// Is the order in which pages are first touched recorded, in instances for which nothing is prepared and whose touches are
    /// seen exactly?
    pub record_order: bool,
    /// Whether pools that are in near memory as a whole get pages of 2 MiB.
    pub huge_pages: bool,
}

/// Limits of the sandbox that is made for trial at the start.
const TRIAL_LIMITS: Limits = Limits {
    memory: 64 << 20,
    pids: 16,
    cpu_millis: 1000,
    tmp: 1 << 20,
    network: rouse_sandbox::Network::None,
};

/// Starts instances. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    inner: Arc<Inner>,
}

type Sandboxes = Arc<Stock<Sandbox, SandboxError>>;

#[derive(Debug)]
struct Inner {
    config: LauncherConfig,
    /// A directory with nothing in it.
    empty: PathBuf,
    clock: FunctionClock,
    store: SnapshotStore,
    spawner: Arc<Spawner>,
    environment: Environment,
    /// Where blanks and template hosts wait for their program.
    room: Arc<LoadedProgram>,
    reaper: Reaper,
    /// Whose memory calls are answered.
    pools: Arc<PoolIndex>,
    /// Fills pools when they are needed; `None` where the host cannot do that.
    paging: Option<Paging>,
    filler: Filler,
    /// By what is decided how pages are stored.
    costs: RwLock<CostInputs>,
    /// What helps to store them in less room.
    dictionaries: dictionaries::TrainedDictionaries,
    sandboxes: Mutex<HashMap<Limits, Sandboxes>>,
    /// Whose turn it is to make an instance ahead.
    parking: tokio::sync::Semaphore,
    next_id: AtomicU64,
}

impl Launcher {
    /// Starts the spawner and the launcher. Call it while the process has one thread, before any async runtime.
    pub fn start(mut config: LauncherConfig) -> Result<Self, StartError> {
        let clock = FunctionClock::open(&config.clock_file)
            .map_err(|e| StartError::Clock(config.clock_file.clone(), e))?;
        let key = NodeKey::load_or_create(&config.store.join(NODE_KEY_FILE))?;
        let store = SnapshotStore::open(&config.store, key)?;
        config.sandbox.clock_offset = clock.offset();
        config.sandbox.hand_over_memory_calls = true;
        // Forked while there is one thread, as the spawner is; its own comes after.
        let keeper = paging::start_keeper();
        let spawner = Spawner::start(config.sandbox.clone(), blank::main, blank::main)?;
        let exits = spawner.exits().ok_or(SpawnerError::Died)?;
        let pools = Arc::new(PoolIndex::default());
        let calls = spawner.memory_calls().ok_or(SpawnerError::Died)?;
        memory_calls::start(calls, pools.clone()).map_err(StartError::Thread)?;
        // A host on which no sandbox can be made is found out now, not by the first request.
        let trial = spawner.create(TRIAL_LIMITS, SandboxKind::ForkTarget)?;
        let filter = seccomp::program().map_err(|e| StartError::Seccomp(e.to_string()))?;
        let (room, parked) = waiting_room::compile(&SpecialMappings::of_this_process()?)?;
        let environment = Environment {
            special: parked,
            seccomp: filter
                .iter()
                .map(|i| crate::kernel::filter_bytes(i.code, i.jt, i.jf, i.k))
                .collect(),
            ids: (UID, GID),
            rlimits: RESOURCE_LIMITS
                .iter()
                .map(|(resource, value)| (*resource, *value, *value))
                .collect(),
            cgroups: trial.cgroup_entrances.len(),
        };
        trial.destroy();
        let empty = config.store.join("empty");
        std::fs::create_dir_all(&empty).map_err(StartError::Empty)?;
        let inner = Inner {
            config,
            empty,
            clock,
            store,
            spawner: Arc::new(spawner),
            environment,
            room: Arc::new(image::load(room)?),
            reaper: Reaper::start(exits).map_err(StartError::Thread)?,
            pools,
            paging: keeper
                .map(Paging::connect)
                .transpose()
                .map_err(StartError::Thread)?,
            filler: Filler::start().map_err(StartError::Thread)?,
            costs: RwLock::default(),
            dictionaries: dictionaries::TrainedDictionaries::default(),
            sandboxes: Mutex::new(HashMap::new()),
            parking: tokio::sync::Semaphore::new(1),
            next_id: AtomicU64::new(1),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Pid of the spawner, which ends when the last clone of this launcher and everything started by it is gone.
    pub fn spawner_pid(&self) -> i32 {
        self.inner.spawner.pid()
    }

    /// Starts the runtime from nothing.
    pub async fn cold(&self, spec: &LaunchSpec) -> Result<Instance, LaunchError> {
        let begin = Instant::now();
        let (inner, limits) = (self.inner.clone(), spec.limits);
        let made =
            tokio::task::spawn_blocking(move || inner.spawner.create(limits, SandboxKind::Blank));
        let sandbox = made.await.map_err(|_| LaunchError::Cancelled)??;
        let stage = Stage {
            name: "sandbox",
            us: micros(begin),
        };
        let task = self.inner.lend(&spec.task_dir)?;
        let (log, log_end) = log_pipe()?;
        let request = ExecRequest {
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
        };
        let started = Instant::now();
        let (parts, control) = Parts::of(sandbox)?;
        order::send_exec(control.as_fd(), &request, log_end.as_fd(), task.as_fd())
            .map_err(unreachable_blank)?;
        let subject = parts.subject(control, started, vec![stage]);
        Ok(self.instance(BootPath::Cold, parts, subject, log, None))
    }

    /// Starts an instance from the snapshot, in a blank process.
    pub async fn restore(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Instance, LaunchError> {
        self.restore_as(image, spec, false).await
    }

    /// As [`restore`](Self::restore), for invocations: of some instances it is seen exactly which pages they touch.
    pub async fn restore_to_invoke(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Instance, LaunchError> {
        self.restore_as(image, spec, true).await
    }

    async fn restore_as(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        may_be_exact: bool,
    ) -> Result<Instance, LaunchError> {
        let begin = Instant::now();
        let memories = image.memories();
        let holds = hold_all(&memories);
        if let Some(paging) = self.paging_for(&holds, false) {
            paging.begin(&holds, image.programs().copied_from());
        }
        image.verify_files()?;
        let verified = Instant::now();
        let sandbox = self.sandbox(spec.limits).await?;
        let taken = Instant::now();
        let task = self.inner.lend(&spec.task_dir)?;
        let (log, log_end) = log_pipe()?;
        let (parts, control) = Parts::of(sandbox)?;
        let (programs, wants_exact) = image.programs_to_restore();
        let exact = may_be_exact && wants_exact;
        let paging = self.paging_for(&holds, exact);
        let program = match paging {
            Some(_) => programs.watched(image, &self.inner.environment)?,
            None => programs.restore(image, &self.inner.environment)?,
        };
        let mut fds: Vec<BorrowedFd<'_>> =
            vec![log_end.as_fd(), parts.client.as_fd(), task.as_fd()];
        fds.extend(image.descriptors(&memories));
        fds.extend(paging.map(Paging::device));
        parts.handle.keep_until_gone(holds.clone());
        let started = Instant::now();
        order::send_program(control.as_fd(), program, &fds).map_err(unreachable_blank)?;
        let mut subject =
            parts.subject(control, started, stages([begin, verified, taken], started));
        subject.program = Some(program.program.clone());
        let prepared = programs.prepared(BootPath::Restore);
        let mut touches = None;
        if let Some(paging) = paging {
            let copying = programs.copying();
            // What is prepared is touched before the function runs, in an order of its own.
            let sight = match (exact, self.inner.config.record_order && prepared.is_empty()) {
                (false, _) => Sight::Blurred,
                (true, false) => Sight::Exact,
                (true, true) => {
                    let mappings = to_register(image.snapshot(), &holds, true, &copying);
                    let touches = touches.insert(Touches::of(mappings).map_err(no_record)?);
                    Sight::Ordered(touches.record.clone())
                }
            };
            subject.watch = Some(paging.watch(image.snapshot(), &copying, &holds, sight));
        }
        let exact = exact && paging.is_some();
        let watched = paging.is_some();
        let mut origin = self.origin(image, spec, prepared, exact, memories);
        origin.watched = watched;
        origin.touches = touches.map(Arc::new);
        Ok(self.instance(BootPath::Restore, parts, subject, log, Some(origin)))
    }

    /// Starts an instance as a clone of the image's parked template (made when first asked for).
    pub async fn fork(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Instance, LaunchError> {
        let begin = Instant::now();
        image.verify_files()?;
        if !image.is_resident() {
            return Err(LaunchError::NotResident);
        }
        let verified = Instant::now();
        let clones = self.clones(image, spec).await?;
        let prepared = match clones.stock.take() {
            Some(prepared) => prepared,
            None => {
                let stock = clones.stock.clone();
                tokio::task::spawn_blocking(move || stock.make())
                    .await
                    .map_err(|_| LaunchError::Cancelled)??
            }
        };
        let taken = Instant::now();
        let started = Instant::now();
        prepared
            .go()
            .map_err(|e| LaunchError::Channel("the porter cannot be reached", e))?;
        let control = prepared.control;
        let log = prepared.log;
        let parts = Parts::without_blank(prepared.sandbox);
        let mut subject =
            parts.subject(control, started, stages([begin, verified, taken], started));
        subject.program = Some(clones.program.clone());
        let prepared = clones.programs.prepared(BootPath::Fork);
        let origin = self.origin(image, spec, prepared, false, clones.memories.clone());
        Ok(self.instance(BootPath::Fork, parts, subject, log, Some(origin)))
    }

    /// Sandboxes whose blanks are in the waiting room.
    fn sandboxes(&self, limits: Limits) -> Sandboxes {
        let mut all = self
            .inner
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let (spawner, room) = (self.inner.spawner.clone(), self.inner.room.clone());
            Stock::new(
                &self.inner.filler,
                Size {
                    floor: self.inner.config.ready_sandboxes,
                    ceiling: self.inner.config.most_ready_sandboxes,
                },
                move || {
                    let sandbox = spawner.create(limits, SandboxKind::Blank)?;
                    if let Some((_, control)) = &sandbox.blank {
                        order::send_wait(control.as_fd(), &room).map_err(SandboxError::Send)?;
                    }
                    Ok(sandbox)
                },
            )
        };
        all.entry(limits).or_insert_with(make).clone()
    }

    /// Makes a sandbox in a slot that was used before, and ends it: to measure what that costs.
    pub fn cycle_sandbox(&self) -> Result<(), LaunchError> {
        let sandbox = self
            .inner
            .spawner
            .create(TRIAL_LIMITS, SandboxKind::Blank)?;
        sandbox.destroy();
        Ok(())
    }

    async fn sandbox(&self, limits: Limits) -> Result<Sandbox, LaunchError> {
        let stock = self.sandboxes(limits);
        if let Some(sandbox) = stock.take() {
            return Ok(sandbox);
        }
        let made = tokio::task::spawn_blocking(move || stock.make())
            .await
            .map_err(|_| LaunchError::Cancelled)?;
        Ok(made?)
    }

    async fn clones(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Arc<Clones>, LaunchError> {
        match image.clones() {
            Some(clones) => Ok(clones),
            None => self.start_clones(image, spec).await,
        }
    }

    async fn start_clones(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Arc<Clones>, LaunchError> {
        let (inner, image) = (self.inner.clone(), image.clone());
        let sandbox = (spec.limits, inner.layers(&spec.task_dir));
        let task = tokio::task::spawn_blocking(move || {
            let target = inner.config.ready_clones;
            let clones = Clones::start(
                &inner.spawner,
                &inner.room,
                &inner.filler,
                &image,
                &inner.environment,
                sandbox,
                target,
            )?;
            Ok(image.set_clones(clones))
        });
        task.await.map_err(|_| LaunchError::Cancelled)?
    }

    fn origin(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        prepared: Arc<WorkingSet>,
        exact: bool,
        memories: Vec<Arc<ImageMemory>>,
    ) -> Origin {
        Origin {
            prepared,
            exact,
            touches: None,
            watched: false,
            memories,
            launcher: self.clone(),
            image: image.clone(),
            spec: spec.clone(),
        }
    }

    fn instance(
        &self,
        path: BootPath,
        parts: Parts,
        subject: Subject,
        log: OwnedFd,
        origin: Option<Origin>,
    ) -> Instance {
        let (monitor, exit) = Monitor::start(subject, &self.inner.reaper);
        // A pipe that cannot be recognised only makes a checkpoint fail, with its name.
        let log_inode = rustix::fs::fstat(&log).map_or(0, |stat| stat.st_ino);
        Instance {
            id: self.inner.next_id.fetch_add(1, Ordering::Relaxed),
            path,
            listener: Some(parts.listener),
            parked: (path != BootPath::Cold).then_some(parts.server),
            log: Some(log),
            exit,
            log_inode,
            init_pid: parts.init_pid,
            monitor,
            sandbox: parts.handle,
            resume: None,
            origin,
        }
    }
}

/// A sandbox taken apart.
struct Parts {
    pid: Option<i32>,
    /// Of its blank process.
    pidfd: Option<OwnedFd>,
    init_pid: i32,
    listener: std::net::TcpListener,
    client: OwnedFd,
    server: std::net::TcpStream,
    handle: Arc<rouse_sandbox::SandboxHandle>,
}

impl Parts {
    /// With the control socket of its blank process.
    fn of(mut sandbox: Sandbox) -> Result<(Self, OwnedFd), LaunchError> {
        let Some((process, control)) = sandbox.blank.take() else {
            return Err(LaunchError::Channel(
                "the sandbox has no blank process",
                io::ErrorKind::NotFound.into(),
            ));
        };
        let parts = Self {
            pid: Some(process.pid),
            pidfd: Some(process.pidfd),
            ..Self::without_blank(sandbox)
        };
        Ok((parts, control))
    }

    fn without_blank(sandbox: Sandbox) -> Self {
        Self {
            pid: None,
            pidfd: None,
            init_pid: sandbox.init.pid,
            listener: sandbox.listener,
            client: sandbox.client,
            server: sandbox.server,
            handle: Arc::new(sandbox.handle),
        }
    }

    fn subject(&self, control: OwnedFd, started: Instant, stages: Vec<Stage>) -> Subject {
        Subject {
            pid: self.pid,
            stages,
            control,
            started,
            program: None,
            up: None,
            sandbox: self.handle.clone(),
            watch: None,
        }
    }
}

impl Inner {
    fn layers(&self, task_dir: &Path) -> TaskLayers {
        TaskLayers {
            code: task_dir.to_path_buf(),
            empty: self.empty.clone(),
        }
    }

    /// The function's code as a file system of one sandbox.
    fn lend(&self, task_dir: &Path) -> Result<OwnedFd, LaunchError> {
        open_task_mount(&self.layers(task_dir))
            .map_err(|e| LaunchError::Channel("the function's code cannot be lent to a sandbox", e))
    }
}

fn log_pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|e| LaunchError::Channel("no pipe for the log", e.into()))
}

fn no_record(error: io::Error) -> LaunchError {
    LaunchError::Channel("there is nowhere to record touches", error)
}

fn unreachable_blank(error: io::Error) -> LaunchError {
    LaunchError::Channel("the blank process cannot be reached", error)
}

/// What a boot from a snapshot took until its order was sent, which is now; it was begun at `started`. Before that it was
/// begun, its files were verified, and a sandbox was taken.
fn stages([begin, verified, taken]: [Instant; 3], started: Instant) -> Vec<Stage> {
    let stage = |name, time: std::time::Duration| Stage {
        name,
        us: time.as_micros() as u64,
    };
    vec![
        stage("verify", verified - begin),
        stage("sandbox", taken - verified),
        stage("order", started.elapsed()),
    ]
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}
