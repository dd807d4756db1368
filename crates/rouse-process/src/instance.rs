//! An instance of a function: one process tree in its own sandbox, and the node's ends of its channels.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::keeper::PageFault;
use rouse_pool::memory::ImageMemory;
use rouse_sandbox::{Limits, SandboxHandle};
use tokio::sync::watch;

use crate::launcher::{Image, Launcher, Touches};
use crate::monitor::Monitor;
use crate::plan::RESUME;
use crate::working_set::WorkingSet;

/// What to start for `cold`, and the sandbox it needs.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// Program and arguments, paths in the sandbox.
    pub argv: Vec<String>,
    /// Whole environment.
    pub env: Vec<(String, String)>,
    /// Host directory that the function sees as `/var/task`, read-only.
    pub task_dir: PathBuf,
    /// Working directory in the sandbox.
    pub cwd: String,
    /// Limits of the sandbox.
    pub limits: Limits,
}

/// How an instance came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BootPath {
    /// The runtime's own start and init.
    Cold,
    /// From the snapshot, in a blank process.
    Restore,
    /// As a clone of the function's parked template.
    Fork,
    /// Restored ahead of its request, and resumed by it.
    Parked,
    /// Has answered before, and was put back to its snapshot.
    Rewind,
    /// Reused as it was.
    Warm,
}

impl BootPath {
    /// All of them, in the order in which they are declared.
    pub const ALL: [BootPath; 6] = [
        BootPath::Cold,
        BootPath::Restore,
        BootPath::Fork,
        BootPath::Parked,
        BootPath::Rewind,
        BootPath::Warm,
    ];

    /// Name in headers, reports and configuration.
    pub fn name(self) -> &'static str {
        match self {
            BootPath::Cold => "cold",
            BootPath::Restore => "restore",
            BootPath::Fork => "fork",
            BootPath::Parked => "parked",
            BootPath::Rewind => "rewind",
            BootPath::Warm => "warm",
        }
    }
}

/// One stage of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Name, for instance `sandbox`, `map`, `threads`.
    pub name: &'static str,
    /// Duration, microseconds.
    pub us: u64,
}

/// Why an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// `exit(code)`.
    Code(i32),
    /// Killed by a signal.
    Signal(i32),
    /// Killed by the kernel for exceeding its memory limit.
    OutOfMemory,
    /// Its machine ended; how, in words.
    Machine(String),
}

/// Why the function's own code never ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its program is missing or may not be run: the function's own fault.
    Program(String),
    /// The platform could not bring it up.
    Platform(String),
    /// It was ended from outside, or what it needed was, before it was up. That says nothing about what it was made from.
    Lost(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Program(reason) | Self::Platform(reason) | Self::Lost(reason)) = self;
        f.write_str(reason)
    }
}

/// Memory of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Proportional set size, KiB.
    pub pss_kib: u64,
    /// Unique set size (private pages), KiB.
    pub uss_kib: u64,
    /// Resident set size, KiB.
    pub rss_kib: u64,
    /// Pages mapped from pool or files and not copied.
    pub shared_pages: u64,
    /// Pages private to the instance.
    pub private_pages: u64,
    /// Minor faults since it started.
    pub minor_faults: u64,
    /// Major faults since it started.
    pub major_faults: u64,
    /// Peak memory of its cgroup, bytes.
    pub peak_bytes: u64,
}

/// A running instance. Dropping it kills the whole process tree and gives back the sandbox.
#[derive(Debug)]
pub struct Instance {
    /// Unique for the life of the node.
    pub id: u64,
    /// How it was started.
    pub path: BootPath,
    /// The runtime API's listener in the sandbox (127.0.0.1:9001). Taken once, by the node.
    pub listener: Option<TcpListener>,
    /// For instances that come from a snapshot: the connection on which the parked request waits for its answer.
    pub parked: Option<TcpStream>,
    /// Reading end of the function's standard output and error.
    pub log: Option<OwnedFd>,
    /// Becomes `Some` when the function's first process has ended.
    pub exit: watch::Receiver<Option<ExitReason>>,
    pub(crate) log_inode: u64,
    pub(crate) init_pid: i32,
    pub(crate) monitor: Monitor,
    pub(crate) sandbox: Arc<SandboxHandle>,
    /// For `parked` and `rewind`: its control socket, on which it is told to go on.
    pub(crate) resume: Option<OwnedFd>,
    /// For instances that come from a snapshot.
    pub(crate) origin: Option<Origin>,
}

/// Where a restored instance comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub launcher: Launcher,
    pub image: Arc<Image>,
    pub spec: LaunchSpec,
    /// What was made ready before it started.
    pub prepared: Arc<WorkingSet>,
    /// Do its page tables say exactly which pages of the pool it has read?
    pub exact: bool,
    /// In which order does it touch pages of pools, if that is recorded?
    pub touches: Option<Arc<Touches>>,
    /// Is its memory watched by the pager?
    pub watched: bool,
    /// The pools that it maps.
    pub memories: Vec<Arc<ImageMemory>>,
}

impl Instance {
    /// Ends the whole process tree at once.
    pub fn kill(&self) {
        self.sandbox.kill();
    }

    /// Lets a parked instance run; the others run already.
    pub fn resume(&self) -> io::Result<()> {
        let Some(control) = &self.resume else {
            return Ok(());
        };
        self.monitor.resuming();
        rustix::io::write(control, &[RESUME])?;
        Ok(())
    }

    /// Might its own instructions have run? Of one that was parked this is certain once its end is known.
    pub fn has_run(&self) -> bool {
        self.resume.is_none() || self.monitor.went_on()
    }

    /// Host pid of the function's first process. `None` while a clone has not reported yet.
    pub fn pid(&self) -> Option<i32> {
        self.monitor.pid()
    }

    /// Waits until what the instance says about its boot has been heard: [`pid`](Self::pid) and [`stages`](Self::stages)
    /// are complete then. It says that before its own code runs, so of one that has answered this takes no time to speak of.
    pub async fn told(&self) {
        self.monitor.told().await;
    }

    /// Stages of the boot that are over.
    pub fn stages(&self) -> Vec<Stage> {
        self.monitor.stages()
    }

    /// What went wrong before the function's own code ran, if anything did.
    pub fn failure(&self) -> Option<Failure> {
        self.monitor.failure()
    }

    /// Peak memory of the instance's cgroup, bytes: one small file, where [`memory`](Self::memory) walks all mappings.
    pub fn memory_peak(&self) -> u64 {
        self.sandbox.memory_peak()
    }

    /// Processor time of the function's first process so far, all its threads together.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let pid = self.pid().ok_or(io::ErrorKind::NotFound)?;
        crate::cpu_clock::cpu_time(pid)
    }

    /// Could pages of it not be filled, of which it may have ended or failed? To be asked when it has. Exact: waits until the
    /// pager has said what it knows.
    pub async fn page_fault(&self) -> Option<PageFault> {
        let origin = self.origin.clone()?;
        let token = self.monitor.token()?;
        let task = tokio::task::spawn_blocking(move || origin.launcher.fault_of(token, &origin));
        // Cancelled only when the node ends.
        task.await.ok().flatten()
    }

    /// Counts an answer, and says whether [`learn`](Self::learn) is to be called before the instance is killed.
    pub fn is_to_be_observed(&self) -> bool {
        let origin = self.origin.as_ref();
        origin.is_some_and(|origin| origin.image.answered(&origin.prepared))
    }

    /// Takes note of what this instance has touched, so that later boots make it ready ahead.
    ///
    /// Blocks for a millisecond or so: it reads page tables, may compile programs, and writes a file.
    pub fn learn(&self) {
        if let (Some(origin), Some(pid)) = (&self.origin, self.pid()) {
            origin.launcher.learn(origin, pid);
        }
    }

    /// Looks whether its end is to be blamed on far memory that it had mapped, and says why. For another thread: it may take
    /// as long as reading all of that. `None` if it had mapped nothing there.
    pub fn far_verifier(&self) -> Option<impl FnOnce() -> Option<String> + Send + 'static> {
        let origin = self.origin.as_ref()?;
        let pairs = origin.image.lineage().into_iter().zip(&origin.memories);
        let far: Vec<_> = pairs
            .filter(|(_, memory)| memory.far_file().is_some())
            .map(|(image, memory)| (image, memory.clone()))
            .collect();
        (!far.is_empty()).then_some(move || {
            far.iter()
                .find_map(|(image, memory)| image.verify_far(memory))
        })
    }

    /// As [`learn`](Self::learn), of an instance that has answered a rehearsal: the first set that is known, before the first
    /// invocation. The snapshot's pages are stored anew in the order in which boots need them.
    ///
    /// Blocks for as long as reading and writing the snapshot takes.
    pub fn learn_rehearsed(&self) {
        if let (Some(origin), Some(pid)) = (&self.origin, self.pid()) {
            origin.launcher.learn_rehearsed(origin, pid);
        }
    }

    /// Memory and faults of the function's first process.
    pub fn memory(&self) -> io::Result<MemoryUse> {
        let pid = self.pid().ok_or(io::ErrorKind::NotFound)?;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |names: &[&str]| -> u64 {
            rollup
                .lines()
                .filter_map(|line| line.split_once(':'))
                .filter(|(name, _)| names.contains(name))
                .filter_map(|(_, value)| value.trim().split(' ').next()?.parse::<u64>().ok())
                .sum()
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Fields after the name, which may hold spaces: state is field 3, minflt 10, majflt 12.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let field = |number: usize| {
            fields
                .get(number - 3)
                .and_then(|f| f.parse().ok())
                .unwrap_or(0)
        };
        let (rss_kib, uss_kib) = (kib(&["Rss"]), kib(&["Private_Clean", "Private_Dirty"]));
        // `Private` alone would count a shared page that only this instance happens to map.
        let private_pages = kib(&["Anonymous"]) / 4;
        Ok(MemoryUse {
            pss_kib: kib(&["Pss"]),
            uss_kib,
            rss_kib,
            shared_pages: rss_kib / 4 - private_pages,
            private_pages,
            minor_faults: field(10),
            major_faults: field(12),
            peak_bytes: self.sandbox.memory_peak(),
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}
