//! Compiles a snapshot into the operation list of the restorer.
//!
//! This is the memory template of TrEnv for a whole process: everything that can be decided
//! ahead is decided once, here, and a restore only runs the list. Two programs come out of it:
//!
//! - the **restore** program, for a blank process in a sandbox:
//!   replace the address space, then make the rest of the process, then resume;
//! - the **template** program, for a template host: replace the address space, then wait and
//!   make clones, each of which makes the rest of the process, then resumes.
//!
//! A third kind is compiled for one process at a time: the **rewind** program puts an instance that has
//! served a request back to the snapshot, and does only what differs.
//!
//! | module | part of the list |
//! |---|---|
//! | [`address_space`] | vDSO, mappings, memory layout fields |
//! | [`shared_memory`] | shared anonymous memory and memfds, fresh for each instance |
//! | [`protection_keys`] | protection keys, and memory under them |
//! | [`descriptors`] | file descriptors |
//! | [`tmp`] | `/tmp` |
//! | [`watched`] | memory of which pages may be absent |
//! | [`threads`] | signals, timers, threads, privileges, resume |
//! | [`parking`] | the stop of an instance that is made ahead |
//! | [`rewind`] | what a rewind undoes in a process that has run |
//! | [`waiting_room`] | what a blank runs until its program arrives |
//! | [`template`] | the template host's loop and the way of a clone into its sandbox |

mod address_space;
pub(crate) mod copied;
mod descriptors;
mod parking;
mod protection_keys;
pub(crate) mod rewind;
mod shared_memory;
mod template;
mod threads;
mod tmp;
pub mod waiting_room;
mod watched;

use std::collections::BTreeMap;
use std::ops::Range;

use copied::{Copies, CopyPolicy};
use rouse_restorer::op::Op;
use rouse_restorer::program::{Builder, PAGE, Program};
use rouse_sandbox::BLANK_DESCRIPTORS;
use rouse_snapshot::model::{Backing, ProcessSnapshot};

use crate::working_set::WorkingSet;

pub use address_space::SpecialMappings;
pub use parking::{RESUME, RESUMED_LEN};
pub use template::READY;
pub use watched::WATCH_ME;

/// Why no list can be made for a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No address range is free for the restorer.
    #[error("no address range of {0} bytes is free for the restorer")]
    NoRoom(u64),
    /// The kernel's own mappings differ from those of the snapshot.
    #[error("the kernel maps {name} with {now} bytes, the snapshot has {then}")]
    SpecialMapping {
        /// `[vdso]` or `[vvar]`.
        name: &'static str,
        /// Bytes in this process.
        now: u64,
        /// Bytes in the snapshot.
        then: u64,
    },
    /// The function's descriptors and those that a restore needs beside them are too many.
    #[error("a restore needs {needed} descriptor numbers, a blank process has {limit}")]
    Descriptors {
        /// Numbers from 0 on.
        needed: u64,
        /// `RLIMIT_NOFILE` of a blank process.
        limit: u64,
    },
    /// The node's own `/proc/self/maps` could not be read.
    #[error("the node's own mappings could not be read")]
    OwnMappings(#[source] std::io::Error),
}

/// Numbers under which a program finds what the node has sent.
///
/// ```text
/// 0 ......... base-1 | base    | base+1  | base+2 | base+3 | base+4 | base+5 | base+6 ...
/// function's numbers | control | program | log    | client | task   | pool   | files, parents' pools, device
/// ```
/// All numbers below [`RECEIVE_BASE`] are occupied when messages arrive, so that the kernel, which
/// hands out the lowest free number, puts what is received right behind the control socket. A
/// function that itself has numbers that high gets a higher base: its program first moves all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FdLayout {
    base: u64,
}

/// The control socket of every blank process and template host while it waits.
pub const RECEIVE_BASE: i32 = 64;

impl FdLayout {
    fn for_snapshot(snapshot: &ProcessSnapshot) -> Self {
        let highest = snapshot.descriptors.last().map_or(0, |d| d.fd + 1);
        Self {
            base: highest.max(RECEIVE_BASE) as u64,
        }
    }

    fn control(self) -> u64 {
        self.base
    }

    fn log(self) -> u64 {
        self.base + 2
    }

    fn client(self) -> u64 {
        self.base + 3
    }

    fn task(self) -> u64 {
        self.base + 4
    }

    fn pool(self) -> u64 {
        self.base + 5
    }

    /// Where a template keeps the pool for its clones, while what orders bring comes and goes. The
    /// number may be one of the function's own: it gets that after the last use of the pool.
    fn kept_pool(self) -> u64 {
        self.base - 1
    }

    fn file(self, index: usize) -> u64 {
        self.base + 6 + index as u64
    }
}

/// What programs need to know of the node, besides the snapshot.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Where the kernel's own mappings are in a process that waits for its program.
    pub special: SpecialMappings,
    /// The seccomp filter, as raw `sock_filter` instructions.
    pub seccomp: Vec<[u8; 8]>,
    /// User and group id of a function in its sandbox.
    pub ids: (u32, u32),
    /// Limits that every instance gets: (resource, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Number of cgroup hierarchies that a clone must enter.
    pub cgroups: usize,
}

/// Names of the stages between the time stamps that an instance sends when it is up.
pub const RESTORE_STAGES: [&str; 5] = ["map", "copy", "descriptors", "threads", "privileges"];

/// Indices into `ProcessSnapshot::files` in the order in which a program finds them, if there is room for all descriptors.
pub fn files(snapshot: &ProcessSnapshot) -> Result<Vec<usize>, PlanError> {
    let fds = FdLayout::for_snapshot(snapshot);
    let files = mapped_files(snapshot);
    // One more for the device, in the watched program.
    let needed = fds.file(files.len() + snapshot.parents.len() + 1);
    match needed > BLANK_DESCRIPTORS {
        true => Err(PlanError::Descriptors {
            needed,
            limit: BLANK_DESCRIPTORS,
        }),
        false => Ok(files),
    }
}

/// Compiles a program. `working_set` may be empty: it only makes boots faster.
pub(crate) fn compile(
    snapshot: &ProcessSnapshot,
    environment: &Environment,
    working_set: &WorkingSet,
    copying: CopyPolicy,
    kind: Kind,
) -> Result<Program, PlanError> {
    let files = files(snapshot)?;
    Input::new(snapshot, environment, working_set, copying, &files).place(kind)
}

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A blank process.
    Restore,
    /// The same, whose pools may lack pages: it has its memory watched before it touches it. Behind the parents' pools it
    /// finds the device that makes userfaultfds.
    Watched,
    /// A template host.
    Template,
    /// A restore that is made ahead of its request: it has touched all that it is known to touch, and waits for one byte on
    /// its control socket before its first own instruction. All pages must be in the pools.
    Parked,
    /// The same, in a process that has run already.
    Rewind,
}

/// What both programs are made from.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    snapshot: &'a ProcessSnapshot,
    environment: &'a Environment,
    working_set: &'a WorkingSet,
    copying: CopyPolicy,
    fds: FdLayout,
    files: &'a [usize],
}

impl<'a> Input<'a> {
    fn new(
        snapshot: &'a ProcessSnapshot,
        environment: &'a Environment,
        working_set: &'a WorkingSet,
        copying: CopyPolicy,
        files: &'a [usize],
    ) -> Self {
        Self {
            snapshot,
            environment,
            working_set,
            copying,
            fds: FdLayout::for_snapshot(snapshot),
            files,
        }
    }
}

impl Input<'_> {
    /// Compiles a program for an address at which it fits.
    fn place(self, kind: Kind) -> Result<Program, PlanError> {
        // The length of a program does not depend on its address, so a trial run tells it.
        let length = build(self, PAGE, kind)?.image.len();
        build(self, free_base(self.snapshot, length as u64)?, kind)
    }
}

fn build(input: Input<'_>, base: u64, kind: Kind) -> Result<Program, PlanError> {
    let template = kind == Kind::Template;
    let mut context = Context::new(input, base, kind);
    let mut instance = Vec::new();
    context.stamp(&mut instance);
    if !template {
        context.move_descriptors(&mut instance);
        context.address_space(&mut instance)?;
    }
    context.stamp(&mut instance);
    if kind == Kind::Watched {
        context.have_memory_watched(&mut instance);
    }
    context.copy_written(&mut instance);
    if kind == Kind::Parked {
        context.map_read(&mut instance);
    }
    context.stamp(&mut instance);
    if !template {
        context.enter_task(&mut instance);
    }
    context.private_memory(&mut instance);
    context.tmp(&mut instance);
    context.descriptors(&mut instance);
    context.stamp(&mut instance);
    context.threads_and_resume(&mut instance);
    let mut entry = context.builder.list(&instance);
    if template {
        let mut list = Vec::new();
        context.move_descriptors(&mut list);
        context.address_space(&mut list)?;
        context.serve_clones(&mut list, entry);
        entry = context.builder.list(&list);
    }
    Ok(context.builder.finish(entry))
}

/// State of one compilation.
struct Context<'a> {
    snapshot: &'a ProcessSnapshot,
    environment: &'a Environment,
    working_set: &'a WorkingSet,
    fds: FdLayout,
    files: &'a [usize],
    /// The instance is made by a template's porter.
    is_clone: bool,
    /// Its memory may be absent.
    is_watched: bool,
    /// It is made ahead, and waits for its request.
    is_parked: bool,
    /// It has run before: what it has must be taken away, and its rights are gone.
    is_rewound: bool,
    /// How the lists of its threads begin, by thread id, when it is rewound.
    thread_heads: BTreeMap<i32, Vec<Op>>,
    /// Where these lists are.
    thread_lists: BTreeMap<i32, u64>,
    /// The cell that lets its threads go on once its memory is back.
    memory_gate: u64,
    /// Who copies pages where that saves mappings.
    copies: Copies,
    /// Which ones.
    copying: CopyPolicy,
    /// The system-call filter is on before this list begins (see `template`).
    filtered_ahead: bool,
    builder: Builder,
    /// Cells with the descriptors of shared-memory objects.
    object_cells: BTreeMap<u32, u64>,
    /// Address of the time stamps (`struct timespec` each).
    stamps: u64,
    stamped: usize,
    /// Timer descriptors of a parked instance: their clocks are set when it is resumed.
    timer_descriptors: Vec<Op>,
}

/// Bytes of a `struct timespec`.
const STAMP: usize = 16;

impl<'a> Context<'a> {
    fn new(input: Input<'a>, base: u64, kind: Kind) -> Self {
        let Input {
            snapshot,
            environment,
            working_set,
            copying,
            fds,
            files,
        } = input;
        let template = kind == Kind::Template;
        let mut builder = Builder::new(base, fds.base as i32);
        let stamps = builder.bytes(&[0u8; STAMP * (RESTORE_STAGES.len() + 1)], STAMP);
        Self {
            snapshot,
            environment,
            working_set,
            fds,
            files,
            is_clone: template,
            is_watched: kind == Kind::Watched,
            is_parked: matches!(kind, Kind::Parked | Kind::Rewind),
            is_rewound: kind == Kind::Rewind,
            thread_heads: BTreeMap::new(),
            thread_lists: BTreeMap::new(),
            memory_gate: 0,
            copying,
            copies: match kind {
                Kind::Restore | Kind::Parked | Kind::Rewind => Copies::Restore,
                Kind::Template => Copies::Host,
                Kind::Watched => Copies::Nothing,
            },
            filtered_ahead: template
                && snapshot.threads.len() == 1
                && snapshot.threads[0].tid == template::FIRST_PID,
            builder,
            object_cells: BTreeMap::new(),
            stamps,
            stamped: 0,
            timer_descriptors: Vec::new(),
        }
    }

    /// The pool, in an instance that is being made.
    fn pool_fd(&self) -> u64 {
        if self.is_clone {
            self.fds.kept_pool()
        } else {
            self.fds.pool()
        }
    }

    /// Takes a time stamp.
    fn stamp(&mut self, list: &mut Vec<Op>) {
        let at = self.stamps + (STAMP * self.stamped) as u64;
        self.stamped += 1;
        list.push(Op::syscall(
            libc::SYS_clock_gettime,
            &[libc::CLOCK_MONOTONIC as u64, at],
        ));
    }
}

/// Files that mappings or the executable need as descriptors, each once, in a fixed order.
fn mapped_files(snapshot: &ProcessSnapshot) -> Vec<usize> {
    let mut files = vec![snapshot.process.exe.0 as usize];
    for mapping in &snapshot.mappings {
        if let Backing::PrivateFile { file, .. } | Backing::SharedFile { file, .. } =
            mapping.backing
        {
            files.push(file.0 as usize);
        }
    }
    files.sort_unstable();
    files.dedup();
    files
}

/// An address range that is free in the snapshot, above the waiting room and below 4 GiB.
///
/// The bottom of the address space is best: hardly any program has anything there.
fn free_base(snapshot: &ProcessSnapshot, len: u64) -> Result<u64, PlanError> {
    const HIGHEST: u64 = 1 << 32;
    let mut candidate = waiting_room::END;
    for Range { start, end } in snapshot.mappings.iter().map(|m| m.range.clone()) {
        if candidate + len <= start {
            break;
        }
        // What lies above may be the heap, which grows upwards: keep away from it.
        candidate = candidate.max(end + 0x1000_0000);
    }
    if candidate + len > HIGHEST {
        return Err(PlanError::NoRoom(len));
    }
    Ok(candidate)
}
