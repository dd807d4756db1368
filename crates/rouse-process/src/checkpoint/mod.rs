//! Checkpoint: stops a process and reads everything that a restore needs.
//!
//! The process is stopped with `ptrace`, its kernel state is read from `/proc`, from duplicates of its descriptors
//! and, for the rest, by a few system calls made inside of it. Its memory goes straight into a pool.
//!
//! Whatever cannot be brought back is an [`Obstacle`], named precisely; nothing is left out silently, but for what a
//! restored process must see anew (see [`CheckpointError`] and the comments on each kind).
//!
//! What becomes of the process is decided before ([`Afterwards`]). One that ends is never resumed: its sockets have been
//! emptied, and the caller kills it. One that goes on is only looked at: queues are copied and not taken, signals stay
//! where they are, interrupted system calls are made again. It goes on after an error, too.

pub(crate) mod address_space;
mod clocks;
mod delta;
mod descriptors;
pub(crate) mod error;
mod files;
mod fingerprint;
mod future_mappings;
pub(crate) mod inject;
pub(crate) mod kcmp;
pub(crate) mod mappings;
pub(crate) mod memory;
pub(crate) mod message_queues;
pub(crate) mod page_map;
mod pages;
pub(crate) mod proc_files;
mod process_state;
mod protection_keys;
pub(crate) mod ptrace;
mod registers;
mod shared_memory;
mod specimen;
pub(crate) mod system_v;
pub(crate) mod tasks;
pub(crate) mod threads;
mod timer_signals;
mod timers;
mod tmp_tree;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rouse_pool::Pool;
use rouse_pool::cost::MapOrCopy;
use rouse_snapshot::model::{FileId, HostFingerprint, ProcessSnapshot, ProcessState, Thread};

pub use self::error::{CheckpointError, Obstacle, Subject};
pub use self::fingerprint::fingerprint;

use self::address_space::AddressSpace;
use self::descriptors::DescriptorReader;
use self::files::FileTable;
use self::inject::Remote;
use self::mappings::Vma;
use self::memory::Memory;
use self::page_map::PageMap;
use self::pages::PageSaver;
use self::ptrace::SignalQueue;
use self::shared_memory::SharedObjects;
use self::specimen::Specimen;
use self::tasks::StoppedProcess;
use self::threads::Usual;
use crate::image::Image;

/// What becomes of a process once it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It is killed: all that is queued for it may be taken.
    Ends,
    /// It goes on and must not notice.
    GoesOn,
}

/// The process to checkpoint, and what the node knows about it.
pub struct CheckpointTarget<'a> {
    /// Id on the host of the function's process.
    pub pid: i32,
    /// Id on the host of the sandbox's first process, which is not part of the snapshot; 0 when there is none.
    pub init_pid: i32,
    /// The function's port of the connection to the runtime API on which its request is parked; 0 when it has none.
    pub api_client_port: u16,
    /// Inode of the log pipe (usually fds 1 and 2); 0 when there is none.
    pub log_inode: u64,
    /// From a path in the sandbox to the same file's path on the host; `None` for what the host does not have.
    pub host_path: &'a dyn Fn(&[u8]) -> Option<PathBuf>,
    /// Resource limits of a new sandbox: (resource, soft, hard).
    pub baseline_rlimits: &'a [(u32, u64, u64)],
    /// The image that the process was started from and those that it descends from. What the process has not written
    /// of their pools is left there: the snapshot is a delta.
    pub lineage: &'a [Arc<Image>],
    /// Another descendant of the same template, whose pages need not be saved once more.
    pub specimen: Option<&'a Arc<Image>>,
    /// By which it is decided what is saved along with its neighbours.
    pub costs: MapOrCopy,
    /// What becomes of it.
    pub afterwards: Afterwards,
}

impl fmt::Debug for CheckpointTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointTarget")
            .field("pid", &self.pid)
            .field("init_pid", &self.init_pid)
            .field("api_client_port", &self.api_client_port)
            .field("log_inode", &self.log_inode)
            .finish_non_exhaustive()
    }
}

/// A process as it was when it was stopped.
#[derive(Debug)]
pub struct Checkpoint {
    /// Everything but the pages.
    pub snapshot: ProcessSnapshot,
    /// The pages.
    pub pool: Pool,
    /// How long the process stood still until all was read, microseconds.
    pub pause_us: u64,
    /// Its resident memory, bytes.
    pub resident_bytes: u64,
}

/// Stops the process and reads everything. Does not kill it: it is left stopped, also after an error, unless it is to go
/// on.
///
/// All of it happens on the calling thread, which must be an OS thread that may wait: `ptrace` belongs to a thread.
///
/// # Errors
/// [`CheckpointError::Obstacle`] when the process holds something that cannot be brought back; [`CheckpointError::Stuck`] when one
/// that is to go on cannot, and has to be killed.
pub fn checkpoint(target: &CheckpointTarget<'_>) -> Result<Checkpoint, CheckpointError> {
    let pid = target.pid;
    // What does not need the process to stand still comes before it is stopped.
    let host = fingerprint()?;
    let page_saver = PageSaver::new(target.costs)?;

    let start = Instant::now();
    let stopped = StoppedProcess::stop(pid, target.afterwards)?;
    let read = read(target, &stopped, host, page_saver);
    match target.afterwards {
        Afterwards::Ends => drop(stopped),
        Afterwards::GoesOn => stopped
            .go_on()
            .map_err(|error| CheckpointError::Stuck(Box::new(error)))?,
    }
    let pause_us = start.elapsed().as_micros() as u64;
    let (snapshot, page_saver, resident_bytes) = read?;
    Ok(Checkpoint {
        snapshot,
        pool: page_saver.finish()?,
        pause_us,
        resident_bytes,
    })
}

/// Reads a stopped process. Returns its snapshot, the pages, and its resident memory in bytes.
fn read(
    target: &CheckpointTarget<'_>,
    stopped: &StoppedProcess,
    mut host: HostFingerprint,
    mut page_saver: PageSaver,
) -> Result<(ProcessSnapshot, PageSaver, u64), CheckpointError> {
    let pid = target.pid;
    let memory = &Memory::open(pid)?;
    let mut files = FileTable::new(target.host_path);
    let mut shared = SharedObjects::default();
    tasks::refuse_other_processes(pid, target.init_pid, stopped.tasks())?;
    tasks::refuse_separate_tables(stopped.tasks())?;
    let vmas = mappings::read(pid)?;
    let resident_bytes = resident_bytes(pid)?;
    refuse_other_vdso(&host.vdso, &fingerprint::vdso_hash(memory, &vmas)?, pid)?;

    // From outside first: system calls made inside leave traces in what is read here.
    let mut threads = Vec::with_capacity(stopped.tasks().len());
    for task in stopped.tasks() {
        threads.push(threads::read_outside(memory, task)?);
    }
    let exe_link = format!("/proc/{pid}/exe");
    let exe_path = proc_files::read_link(pid, "exe")?;
    let exe = files.identify(&exe_path, &exe_link).ok_or_else(|| {
        Obstacle::new(
            Subject::Path(exe_path),
            "the host does not have the executable",
        )
    })?;
    let stack_pointer = threads.first().map_or(0, |leader| leader.regs.rsp);
    let remote = Remote::new(memory, &vmas, stack_pointer)?;
    let process = read_inside(target, stopped, &remote, exe, &vmas, &mut threads);
    // Whatever has come of it: the process may go on.
    remote.finish()?;
    let process = process?;

    let reader = DescriptorReader::new(target, &mut files, &mut page_saver, &mut shared)?;
    let (descriptors, descriptions) = reader.read()?;
    let page_map = PageMap::open(pid)?;
    let mappings = AddressSpace {
        pid,
        memory,
        page_map,
        files: &mut files,
        pages: &mut page_saver,
        shared: &mut shared,
        lineage: target.lineage,
        // Numbered behind those that may be mapped.
        specimen: target
            .specimen
            .and_then(|image| Specimen::of(image, target.lineage.len() as u32 + 1)),
    }
    .save(&vmas)?;
    let tmp = tmp_tree::read(pid, &mut page_saver)?;

    if let Some(leader) = threads.first() {
        host.xsave_len = leader.xsave.len() as u32;
    }
    let pool_pages = page_saver.pages();
    // A process that has executed another program has left its parents behind.
    let runs = || mappings.iter().flat_map(|m| &m.saved);
    let lineage = match runs().any(|run| run.pool() != 0) {
        true => target.lineage,
        false => &[],
    };
    let has_specimen = runs().any(|run| run.pool() > target.lineage.len());
    let specimen = target.specimen.filter(|_| has_specimen);
    let parents = lineage.iter().chain(specimen);
    let snapshot = ProcessSnapshot {
        host,
        process,
        threads,
        mappings,
        files: files.into_files(),
        descriptions,
        descriptors,
        tmp,
        pool_pages,
        parents: parents.map(|image| image.as_parent()).collect(),
    };
    Ok((snapshot, page_saver, resident_bytes))
}

/// What only the process itself can tell: completes its threads.
fn read_inside(
    target: &CheckpointTarget<'_>,
    stopped: &StoppedProcess,
    remote: &Remote<'_>,
    exe: FileId,
    vmas: &[Vma],
    threads: &mut [Thread],
) -> Result<ProcessState, CheckpointError> {
    let pid = target.pid;
    let usual = Usual::read(if target.init_pid != 0 {
        target.init_pid
    } else {
        std::process::id() as i32
    })?;
    for (task, thread) in stopped.tasks().iter().zip(&mut *threads) {
        threads::read_inside(remote, task, thread)?;
        usual.read_differences(task, thread)?;
    }
    let ids: Vec<(i32, i32)> = stopped
        .tasks()
        .iter()
        .zip(&*threads)
        .map(|(task, thread)| (task.host_tid, thread.tid))
        .collect();
    let mut process = process_state::read(pid, remote, exe, vmas, &ids, target.baseline_rlimits)?;
    process.pending = ptrace::pending_signals(pid, SignalQueue::Process)?;
    for (index, (task, thread)) in stopped.tasks().iter().zip(threads).enumerate() {
        // Any thread may take what waits for the process; here the leader does.
        let of_process = (index == 0).then_some(&mut process.pending);
        threads::read_pending(remote, task, thread, of_process, target.afterwards)?;
    }
    Ok(process)
}

fn resident_bytes(pid: i32) -> Result<u64, CheckpointError> {
    let statm = proc_files::read_text(pid, "statm")?;
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.ok_or_else(|| CheckpointError::Format {
        path: format!("/proc/{pid}/statm"),
        what: "resident pages",
    })? * 4096)
}

/// The function may hold addresses into its vDSO; a restore gives it the node's.
fn refuse_other_vdso(own: &[u8; 32], its: &[u8; 32], pid: i32) -> Result<(), CheckpointError> {
    if own == its {
        return Ok(());
    }
    let name = String::from_utf8_lossy(&proc_files::name(pid)?).into_owned();
    Err(Obstacle::new(
        Subject::Process { pid, name },
        "has another vDSO than the node",
    )
    .into())
}
