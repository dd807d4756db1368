//! The steps of a rewind. All of them belong to one OS thread, because `ptrace` does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rouse_restorer::op::FAILURE_TAG;
use rouse_restorer::program::{PAGE, Program};
use rouse_sandbox::ApiSockets;
use rouse_snapshot::model::{Backing, Thread};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::baseline::{Baseline, SETTINGS, function_areas, lasting, limit, settings};
use super::compare::differences;
use super::{RewindError, residue};
use crate::checkpoint::inject::{Remote, RemoteThread};
use crate::checkpoint::memory::Memory;
use crate::checkpoint::page_map::PageMap;
use crate::checkpoint::proc_files::{self, Status};
use crate::checkpoint::tasks::{self, StoppedProcess};
use crate::checkpoint::{Afterwards, CheckpointError};
use crate::checkpoint::{message_queues, ptrace, system_v};
use crate::image::{Image, load};
use crate::order;
use crate::plan::copied::CopyPolicy;
use crate::plan::rewind::{Changes, RewindProgram, compile, sort_pages};
use crate::plan::waiting_room::{MAX_FDS, TASK_SIZE};
use crate::plan::{Environment, RESTORE_STAGES};
use crate::working_set::WorkingSet;

/// How long a process may take to undo what it has done. It needs microseconds.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// Bytes of the message by which it says that it is done.
const REPORT: usize = 16 * (RESTORE_STAGES.len() + 1);

/// What is to be rewound.
pub(crate) struct Subject<'a> {
    /// Id on the host of the function's process.
    pub(crate) pid: i32,
    pub(crate) image: &'a Image,
    pub(crate) environment: &'a Environment,
    /// What the programs of the baseline are made with.
    pub(crate) working_set: &'a WorkingSet,
    pub(crate) copying: CopyPolicy,
    pub(crate) baseline: &'a Baseline,
    /// Where its output is to go.
    pub(crate) log: BorrowedFd<'a>,
}

/// A process that waits for its next request, and the node's ends of its channels.
#[derive(Debug)]
pub(crate) struct Rewound {
    pub(crate) control: OwnedFd,
    pub(crate) api: ApiSockets,
    pub(crate) pidfd: OwnedFd,
    pub(crate) program: Arc<Program>,
}

/// Rewinds a process. After an error it is stopped for ever, half of this and half of that: the caller ends it.
///
/// To be called on a thread of its own, which it leaves in the network namespace of the sandbox.
pub(crate) fn run(subject: &Subject<'_>) -> Result<Rewound, RewindError> {
    let pid = subject.pid;
    let snapshot = subject.image.snapshot();
    let mut stopped = StoppedProcess::stop(pid, Afterwards::Ends)?;
    tasks::refuse_company(pid)?;
    tasks::refuse_separate_tables(stopped.tasks())?;
    let threads = Threads::of(&stopped, &snapshot.threads)?;
    refuse_lasting(subject, &stopped)?;
    message_queues::refuse_queues(pid)?;

    widen_limits(subject)?;
    let settings = SETTINGS.iter().zip(settings(pid)?);
    for ((name, now), then) in settings.zip(&subject.baseline.settings) {
        if now != *then {
            std::fs::write(format!("/proc/{pid}/{name}"), then).map_err(RewindError::Files)?;
        }
    }
    let memory = Memory::open(pid)?;
    let (areas, old_program) = function_areas(pid)?;
    let stack_pointer = ptrace::registers(pid)?.rsp;
    let remote = Remote::new(&memory, &areas, stack_pointer)?;
    let leader = remote.on(pid)?;
    system_v::refuse_objects(pid, &remote, &leader)?;
    let pidfd = (Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput))
        .map_err(io::Error::from)
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
        .map_err(channel("its process cannot be named"))?;
    let (control, inside) = control_socket(&remote, &leader, &pidfd)?;

    let mut changes = Changes {
        timers: timers(pid)?,
        descriptors: proc_files::numeric_entries(pid, "fd")?,
        rseq: threads.restartable()?,
        ..Changes::default()
    };
    changes.descriptors.retain(|fd| *fd != inside);
    compare_memory(subject, &areas, &mut changes)?;
    residue::empty_directories(pid)?;
    let compiled = compile(
        snapshot,
        subject.environment,
        subject.working_set,
        subject.copying,
        &changes,
    )?;
    let program = hand_over(
        &remote,
        leader,
        (control.as_fd(), inside),
        &old_program,
        compiled,
    )?;
    memory
        .write(program.control, &inside.to_le_bytes())
        .map_err(channel("its program cannot be told its control socket"))?;

    for tid in &threads.surplus {
        go(*tid, &program.program, program.end)?;
        stopped.ended(*tid)?;
    }
    for (tid, thread) in &threads.kept {
        schedule(*tid, thread, subject.baseline)?;
        let list = match *tid == pid {
            true => program.program.entry,
            false => program.threads[&thread.tid],
        };
        go(*tid, &program.program, list)?;
    }
    let api = api_sockets(pid)?;
    let received = control.as_fd();
    send_descriptors(subject, received, &api, &pidfd)?;
    await_report(received, &program.program)?;
    // Now, because what it has just closed may have ended what the node had closed before.
    residue::refuse_old_connections(pid)?;
    stopped.release()?;
    Ok(Rewound {
        control,
        api,
        pidfd,
        program: Arc::new(program.program),
    })
}

/// The threads of a process, by host id.
struct Threads<'a> {
    /// Those that the snapshot has, too; the leader first.
    kept: Vec<(i32, &'a Thread)>,
    surplus: Vec<i32>,
}

impl<'a> Threads<'a> {
    fn of(stopped: &StoppedProcess, wanted: &'a [Thread]) -> Result<Self, RewindError> {
        let (mut kept, mut surplus) = (Vec::new(), Vec::new());
        for task in stopped.tasks() {
            let tid = Status::read(task.host_tid)?.innermost_id()?;
            match wanted.iter().find(|thread| thread.tid == tid) {
                Some(thread) => kept.push((task.host_tid, thread)),
                None => surplus.push(task.host_tid),
            }
        }
        // Nobody without rights may choose a thread's id.
        let is_kept = |thread: &&Thread| kept.iter().any(|(_, k)| k.tid == thread.tid);
        match wanted.iter().find(|thread| !is_kept(thread)) {
            Some(gone) => Err(RewindError::Lasting(format!(
                "thread {} ({}) of its snapshot has ended",
                gone.tid,
                String::from_utf8_lossy(&gone.name)
            ))),
            None => Ok(Self { kept, surplus }),
        }
    }

    fn restartable(&self) -> Result<BTreeMap<i32, rouse_snapshot::model::Rseq>, RewindError> {
        let mut found = BTreeMap::new();
        for (host_tid, thread) in &self.kept {
            if let Some(rseq) = ptrace::rseq(*host_tid)? {
                found.insert(thread.tid, rseq);
            }
        }
        Ok(found)
    }
}

fn refuse_lasting(subject: &Subject<'_>, stopped: &StoppedProcess) -> Result<(), RewindError> {
    let refuse = |what: &str| Err(RewindError::Lasting(what.into()));
    let baseline = subject.baseline;
    if proc_files::read_link(subject.pid, "exe")? != baseline.exe {
        return refuse("it has executed another program");
    }
    for task in stopped.tasks() {
        let now = lasting(task.host_tid)?;
        if let Some((now, then)) = now.iter().zip(&baseline.lasting).find(|(a, b)| a != b) {
            return refuse(&format!("{now} in the place of {then} cannot be undone"));
        }
    }
    let snapshot = subject.image.snapshot();
    if snapshot.process.protection_keys != 0 || snapshot.mappings.iter().any(|m| m.pkey != 0) {
        return refuse("its snapshot has memory under protection keys");
    }
    Ok(())
}

/// Gives a process the limits of a new sandbox. Its program lowers those that the function had lowered, when it needs no
/// more descriptors. A node that may not raise hard limits leaves those that are as low as the function had made them.
fn widen_limits(subject: &Subject<'_>) -> Result<(), RewindError> {
    let pid = subject.pid;
    for (resource, then) in (0..).zip(&subject.baseline.limits) {
        let of_sandbox = (subject.environment.rlimits.iter()).find(|(r, ..)| *r == resource);
        let wanted = of_sandbox.map_or(*then, |(_, soft, hard)| libc::rlimit64 {
            rlim_cur: *soft,
            rlim_max: *hard,
        });
        if limit(pid, resource, Some(&wanted)).is_ok() {
            continue;
        }
        let hard = limit(pid, resource, None)?.rlim_max;
        if hard < then.rlim_max {
            let what = format!("it has lowered resource limit {resource} for good");
            return Err(RewindError::Lasting(what));
        }
        let most = libc::rlimit64 {
            rlim_cur: wanted.rlim_cur.min(hard),
            rlim_max: hard,
        };
        limit(pid, resource, Some(&most))?;
    }
    Ok(())
}

/// A pair of connected sockets: the node's end, and the process's number of its own.
fn control_socket(
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
    pidfd: &OwnedFd,
) -> Result<(OwnedFd, i32), RewindError> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let args = [libc::AF_UNIX as u64, kind as u64, 0, remote.scratch()];
    leader.call("socketpair", libc::SYS_socketpair, &args)?;
    let numbers: [u8; 8] = remote.result()?;
    let number = |at: usize| i32::from_le_bytes(std::array::from_fn(|i| numbers[at + i]));
    let (inside, ours) = (number(0), number(4));
    let control = pidfd_getfd(pidfd, ours, PidfdGetfdFlags::empty())
        .map_err(|e| channel("its control socket cannot be had")(e.into()))?;
    crate::credentials::enable(control.as_fd())
        .map_err(channel("its control socket cannot be used"))?;
    Ok((control, inside))
}

/// Finds out what differs in memory. What the process has of its own in a mapping that was not exchanged is dropped or
/// copied; a mapping that was exchanged, or has guard pages, is made again.
fn compare_memory(
    subject: &Subject<'_>,
    now: &[crate::checkpoint::mappings::Vma],
    changes: &mut Changes,
) -> Result<(), RewindError> {
    let snapshot = subject.image.snapshot();
    changes.unmap = differences(&subject.baseline.areas, now);
    let pages = PageMap::open(subject.pid)?;
    let guards = pages.guard_pages(&(0..TASK_SIZE))?;
    let mut private = Vec::new();
    for area in now.iter().filter(|area| area.range.end <= TASK_SIZE) {
        private.extend(pages.private_pages(&area.range)?);
    }
    for (index, mapping) in snapshot.mappings.iter().enumerate() {
        let touches = |ranges: &[Range<u64>]| {
            let after = ranges.partition_point(|r| r.end <= mapping.range.start);
            ranges
                .get(after)
                .is_some_and(|r| r.start < mapping.range.end)
        };
        match mapping.backing {
            Backing::Vdso | Backing::Vvar { .. } => {
                if touches(&changes.unmap) {
                    return Err(RewindError::Lasting(
                        "a mapping of the kernel was moved or removed".into(),
                    ));
                }
            }
            Backing::SharedMemory { .. } => {}
            _ if touches(&changes.unmap) || touches(&guards) && !mapping.flags.guard => {
                changes.remake.push(index);
            }
            Backing::SharedFile { .. } => {}
            Backing::Anonymous | Backing::PrivateFile { .. } | Backing::Stack => {
                let from = private.partition_point(|r| r.end <= mapping.range.start);
                let own: Vec<_> = private[from..]
                    .iter()
                    .take_while(|r| r.start < mapping.range.end)
                    .map(|r| r.start.max(mapping.range.start)..r.end.min(mapping.range.end))
                    .collect();
                let prepared = (subject.working_set, &subject.copying);
                sort_pages(snapshot, prepared, mapping, &own, changes);
            }
        }
    }
    Ok(())
}

/// Maps the program in the process, in the place of the one that it came by.
fn hand_over(
    remote: &Remote<'_>,
    leader: RemoteThread<'_>,
    (control, inside): (BorrowedFd<'_>, i32),
    old: &[Range<u64>],
    compiled: RewindProgram,
) -> Result<RewindProgram, RewindError> {
    for range in old {
        let args = [range.start, range.end - range.start];
        leader.call("munmap", libc::SYS_munmap, &args)?;
    }
    let RewindProgram {
        program,
        control: cell,
        threads,
        end,
    } = compiled;
    let (base, len) = (program.base, program.image.len() as u64);
    let loaded = load(program)?;
    order::send(control, &[0], &[loaded.file.as_fd()])
        .map_err(channel("its program cannot be sent"))?;
    // struct msghdr, struct iovec, one byte, struct cmsghdr with one descriptor.
    let at = remote.scratch();
    let (vector, byte, ancillary) = (at + 56, at + 72, at + 80);
    let words = [0, 0, vector, 1, ancillary, 24, 0, byte, 1, 0, 0, 0, 0];
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word: &u64| word.to_le_bytes())
        .collect();
    remote.set_scratch(&bytes)?;
    let args = [inside as u64, at, libc::MSG_CMSG_CLOEXEC as u64];
    leader.call("recvmsg", libc::SYS_recvmsg, &args)?;
    let result: [u8; 104] = remote.result()?;
    let file = u32::from_le_bytes(std::array::from_fn(|i| result[96 + i]));
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
    let parts = [
        (base, PAGE, libc::PROT_READ | libc::PROT_EXEC, 0),
        (
            base + PAGE,
            len - PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            PAGE,
        ),
    ];
    for (address, len, prot, offset) in parts {
        let args = [address, len, prot as u64, flags, u64::from(file), offset];
        leader.call("mmap", libc::SYS_mmap, &args)?;
    }
    leader.abandon();
    Ok(RewindProgram {
        program: Arc::unwrap_or_clone(loaded.program),
        control: cell,
        threads,
        end,
    })
}

/// Has a stopped thread run a list of the program, with all signals blocked.
fn go(tid: i32, program: &Program, list: u64) -> Result<(), RewindError> {
    ptrace::set_signal_mask(tid, !0)?;
    let registers = libc::user_regs_struct {
        rip: program.base,
        rdi: list,
        rsi: program.base + PAGE,
        // Not in a system call: the kernel must not restart the one that the thread was stopped in.
        orig_rax: !0,
        ..ptrace::registers(tid)?
    };
    ptrace::set_registers(tid, &registers)?;
    Ok(ptrace::resume(tid)?)
}

/// Gives a thread the scheduling of its snapshot, which it may not give itself any more.
fn schedule(tid: i32, thread: &Thread, baseline: &Baseline) -> Result<(), RewindError> {
    let sched = &thread.sched;
    let priority = sched.priority as i32;
    let io_priority = match thread.io_priority {
        0 => baseline.usual.io_priority,
        priority => priority,
    };
    let affinity = match thread.affinity.is_empty() {
        true => &baseline.usual.affinity,
        false => &thread.affinity,
    };
    const IOPRIO_WHO_PROCESS: i32 = 1;
    let done = |call: &'static str, result: i64| match result {
        0.. => Ok(()),
        _ => Err(CheckpointError::kernel(call)(io::Error::last_os_error())),
    };
    // SAFETY: the calls read one int and a set of CPUs, both of the sizes that they are told, and plain numbers.
    unsafe {
        let policy = sched.policy;
        let result = libc::syscall(
            libc::SYS_sched_setscheduler,
            tid,
            policy,
            &raw const priority,
        );
        done("sched_setscheduler", result)?;
        let result = libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid, sched.nice);
        done("setpriority", result)?;
        let result = libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, io_priority);
        done("ioprio_set", result)?;
        // The sandbox may by now be confined to other CPUs.
        libc::syscall(
            libc::SYS_sched_setaffinity,
            tid,
            affinity.len(),
            affinity.as_ptr(),
        );
    }
    Ok(())
}

/// The runtime API's sockets in the sandbox. The ones before are closed by now.
fn api_sockets(pid: i32) -> Result<ApiSockets, RewindError> {
    let path = format!("/proc/{pid}/ns/net");
    let open = || {
        let namespace = File::open(&path)?;
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network)?;
        ApiSockets::open()
    };
    open().map_err(channel("no new connection to the runtime API can be made"))
}

/// Sends what a restore sends, behind a stand-in for the program, which is there already.
fn send_descriptors(
    subject: &Subject<'_>,
    control: BorrowedFd<'_>,
    api: &ApiSockets,
    unused: &OwnedFd,
) -> Result<(), RewindError> {
    let unused = unused.as_fd();
    let mut all = vec![unused, subject.log, api.client.as_fd(), unused];
    all.extend(subject.image.descriptors(&subject.baseline.memories));
    for part in all.chunks(MAX_FDS) {
        order::send(control, &[0], part).map_err(channel("its descriptors cannot be sent"))?;
    }
    Ok(())
}

/// Waits until the process says that it is done. What it says stays to be read by who follows it.
fn await_report(control: BorrowedFd<'_>, program: &Program) -> Result<(), RewindError> {
    let mut polled = [PollFd::new(&control, PollFlags::IN)];
    let ready =
        poll(&mut polled, Some(&PATIENCE)).map_err(|e| channel("it is silent")(e.into()))?;
    if ready == 0 {
        return Err(RewindError::Operation("it takes too long".into()));
    }
    let mut message = [0; 128];
    let flags = rustix::net::RecvFlags::PEEK;
    let (len, _) = rustix::net::recv(control, &mut message, flags)
        .map_err(|e| channel("it is silent")(e.into()))?;
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| message[i * 8 + b]));
    match len {
        REPORT => Ok(()),
        24 if word(0) == FAILURE_TAG => {
            let error = io::Error::from_raw_os_error(-(word(2) as i64) as i32);
            let what = program.describe(word(1));
            Err(RewindError::Operation(format!("{what}: {error}")))
        }
        _ => Err(RewindError::Operation("it ended".into())),
    }
}

/// Ids of its POSIX timers.
fn timers(pid: i32) -> Result<Vec<i32>, RewindError> {
    let text = proc_files::read_text(pid, "timers")?;
    let id = |line: &str| line.strip_prefix("ID:")?.trim().parse().ok();
    Ok(text.lines().filter_map(id).collect())
}

fn channel(what: &'static str) -> impl FnOnce(io::Error) -> RewindError {
    move |source| RewindError::Channel(what, source)
}
