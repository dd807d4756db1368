//! A slot's group in one hierarchy: opened once, used by one sandbox after the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::detect::{Controller, Version};
use super::group::write_file;
use crate::config::Limits;

/// Period over which CPU time is counted, microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;

/// One group, with what is needed again and again open.
#[derive(Debug)]
pub struct SlotGroup {
    version: Version,
    controllers: Vec<Controller>,
    dir: OwnedFd,
    procs: OwnedFd,
    /// `tasks`, v1.
    tasks: Option<OwnedFd>,
    memory: Option<MemoryFiles>,
}

/// Files that tell about the memory of a slot.
#[derive(Debug)]
struct MemoryFiles {
    /// Holds a line `oom_kill N` (`memory.oom_control` or `memory.events`).
    events: OwnedFd,
    /// Holds the peak in bytes, v1: a write resets it.
    peak: Option<OwnedFd>,
}

/// What the node gets to read about a sandbox's memory.
#[derive(Debug)]
pub struct MemoryAccounts<'a> {
    /// Holds a line `oom_kill N`.
    pub events: BorrowedFd<'a>,
    /// Holds the peak in bytes since the slot was prepared; absent before Linux 5.19 on v2.
    pub peak: Option<Peak<'a>>,
}

/// A file with a peak.
#[derive(Debug)]
pub enum Peak<'a> {
    /// One for all who read it.
    Shared(BorrowedFd<'a>),
    /// Counts since this descriptor was told to.
    Own(OwnedFd),
}

impl Peak<'_> {
    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Peak::Shared(peak) => *peak,
            Peak::Own(peak) => peak.as_fd(),
        }
    }
}

impl SlotGroup {
    /// Opens the group in `dir`.
    pub fn open(
        version: Version,
        controllers: &[Controller],
        dir: OwnedFd,
    ) -> io::Result<SlotGroup> {
        let open = |file: &str, access| {
            rustix::fs::openat(&dir, file, access | OFlags::CLOEXEC, Mode::empty())
        };
        let procs = open("cgroup.procs", OFlags::WRONLY)?;
        let tasks = match version {
            Version::V1 => Some(open("tasks", OFlags::WRONLY)?),
            Version::V2 => None,
        };
        let memory = match version {
            _ if !controllers.contains(&Controller::Memory) => None,
            Version::V1 => Some(MemoryFiles {
                events: open("memory.oom_control", OFlags::RDONLY)?,
                peak: Some(open("memory.max_usage_in_bytes", OFlags::RDWR)?),
            }),
            Version::V2 => Some(MemoryFiles {
                events: open("memory.events", OFlags::RDONLY)?,
                peak: None,
            }),
        };
        Ok(SlotGroup {
            version,
            controllers: controllers.to_vec(),
            dir,
            procs,
            tasks,
            memory,
        })
    }

    /// Sets the limits.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let dir = &self.dir;
        for controller in &self.controllers {
            match (controller, self.version) {
                (Controller::Memory, Version::V1) => {
                    // The limit with swap may never be below the one without: lift it, set both. Hosts without swap
                    // accounting do not have it.
                    let with_swap = "memory.memsw.limit_in_bytes";
                    let accounted = write_file(dir, with_swap, "-1").is_ok();
                    write_file(dir, "memory.limit_in_bytes", &limits.memory.to_string())?;
                    if accounted {
                        write_file(dir, with_swap, &limits.memory.to_string())?;
                    }
                }
                (Controller::Memory, Version::V2) => {
                    write_file(dir, "memory.max", &limits.memory.to_string())?;
                    // Absent on kernels without swap.
                    let _ = write_file(dir, "memory.swap.max", "0");
                }
                (Controller::Pids, _) => write_file(dir, "pids.max", &limits.pids.to_string())?,
                (Controller::Cpu, Version::V1) => {
                    write_file(dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                }
                // Its quota is set each time ([`reset`](Self::reset)).
                (Controller::Cpu, Version::V2) => {}
            }
        }
        Ok(())
    }

    /// Forgets the peak of earlier sandboxes, and what processor time they have had too much: the end of many processes is
    /// more than a quota allows, and the kernel takes it from who comes next. Setting a quota ends that.
    pub fn reset(&self, limits: &Limits) -> io::Result<()> {
        if self.controllers.contains(&Controller::Cpu) {
            let quota = quota(limits);
            match self.version {
                Version::V1 => write_file(&self.dir, "cpu.cfs_quota_us", &quota.to_string())?,
                Version::V2 => {
                    write_file(&self.dir, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
                }
            }
        }
        if let Some(MemoryFiles {
            peak: Some(peak), ..
        }) = &self.memory
        {
            rustix::io::pwrite(peak, b"0", 0)?;
        }
        Ok(())
    }

    /// `cgroup.procs`, open for writing.
    pub fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    /// Where a process of one thread writes `0` to move itself. With `tasks` the kernel need not keep other processes from forking
    /// and ending meanwhile (since Linux 5.5).
    pub fn entrance(&self) -> BorrowedFd<'_> {
        self.tasks.as_ref().unwrap_or(&self.procs).as_fd()
    }

    /// What tells about its memory.
    pub fn memory(&self) -> Option<MemoryAccounts<'_>> {
        let files = self.memory.as_ref()?;
        let peak = match &files.peak {
            Some(peak) => Some(Peak::Shared(peak.as_fd())),
            None => self.new_peak().map(Peak::Own),
        };
        Some(MemoryAccounts {
            events: files.events.as_fd(),
            peak,
        })
    }

    /// v2 counts a peak for each descriptor, from a write to it on (Linux 6.12), or for the group's whole life.
    fn new_peak(&self) -> Option<OwnedFd> {
        let open = |access| {
            rustix::fs::openat(
                &self.dir,
                "memory.peak",
                access | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let peak = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).ok()?;
        let _ = rustix::io::write(&peak, b"reset\n");
        Some(peak)
    }
}

fn quota(limits: &Limits) -> u64 {
    // The kernel refuses quotas below one millisecond.
    (u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000).max(1000)
}
