//! State of each thread.

use std::mem::size_of;

use rouse_snapshot::model::{AltStack, Sched, Thread};

use super::Afterwards;
use super::error::{CheckpointError, Obstacle, Subject};
use super::inject::Remote;
use super::memory::Memory;
use super::proc_files::{self, Status};
use super::ptrace::{self, SignalQueue};
use super::registers;
use super::tasks::Task;
use super::timer_signals;

/// `init_task`'s slack, which everything inherits.
const DEFAULT_TIMER_SLACK_NS: u64 = 50_000;
const SS_AUTODISARM: i32 = 1 << 31;
/// In `struct sched_attr`, and beside the policy for `sched_setscheduler(2)`.
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;

/// What can be told from outside. The rest of the thread is filled in by [`read_inside`].
pub(crate) fn read_outside(memory: &Memory, task: &Task) -> Result<Thread, CheckpointError> {
    let host_tid = task.host_tid;
    let tid = Status::read(host_tid)?.innermost_id()?;
    let name = proc_files::name(host_tid)?;
    let obstacle = |reason: String| {
        Obstacle::new(
            Subject::Thread {
                tid,
                name: String::from_utf8_lossy(&name).into_owned(),
            },
            reason,
        )
    };
    let rseq = ptrace::rseq(host_tid)?;
    let regs = registers::resumable(memory, &ptrace::registers(host_tid)?, rseq.as_ref())?
        .map_err(obstacle)?;
    let sched = scheduling(host_tid)?;
    if sched.policy == libc::SCHED_DEADLINE as u32 {
        return Err(obstacle("deadline scheduling".to_owned()).into());
    }
    Ok(Thread {
        tid,
        regs,
        xsave: ptrace::xsave(host_tid)?,
        signal_mask: ptrace::signal_mask(host_tid)?,
        alt_stack: AltStack::default(),
        pending: Vec::new(),
        robust_list: robust_list(host_tid)?,
        rseq,
        clear_child_tid: 0,
        sched,
        parent_death_signal: 0,
        timer_slack_ns: timer_slack(host_tid)?,
        io_priority: 0,
        affinity: Vec::new(),
        name,
    })
}

/// What only the thread itself can tell.
pub(crate) fn read_inside(
    remote: &Remote<'_>,
    task: &Task,
    thread: &mut Thread,
) -> Result<(), CheckpointError> {
    let inside = remote.on(task.host_tid)?;
    let scratch = remote.scratch();
    inside.call("sigaltstack", libc::SYS_sigaltstack, &[0, scratch])?;
    let stack = remote.result::<24>()?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| stack[at + index]));
    // SS_ONSTACK only says where the stack pointer is now; it cannot be set.
    let flags = (word(8) as u32 as i32) & (libc::SS_DISABLE | SS_AUTODISARM);
    thread.alt_stack = AltStack {
        sp: word(0),
        flags,
        size: word(16),
    };
    inside.call(
        "prctl(PR_GET_TID_ADDRESS)",
        libc::SYS_prctl,
        &[libc::PR_GET_TID_ADDRESS as u64, scratch],
    )?;
    thread.clear_child_tid = u64::from_le_bytes(remote.result()?);
    inside.call(
        "prctl(PR_GET_PDEATHSIG)",
        libc::SYS_prctl,
        &[libc::PR_GET_PDEATHSIG as u64, scratch],
    )?;
    thread.parent_death_signal = i32::from_le_bytes(remote.result()?);
    Ok(())
}

/// Signals that wait for this thread, and more about those `of_process`. Read when the process makes no more calls: timers go on while
/// it is stopped, and one that rings after its signal was looked for would be forgotten.
pub(crate) fn read_pending(
    remote: &Remote<'_>,
    task: &Task,
    thread: &mut Thread,
    of_process: Option<&mut Vec<Vec<u8>>>,
    afterwards: Afterwards,
) -> Result<(), CheckpointError> {
    thread.pending.clone_from(&task.taken_signals);
    let mut queue = ptrace::pending_signals(task.host_tid, SignalQueue::Thread)?;
    // A thread gets its own signals first.
    let mut in_order: Vec<&mut Vec<u8>> = queue
        .iter_mut()
        .chain(of_process.into_iter().flatten())
        .collect();
    // It would take them, which a process that goes on still wants.
    if afterwards == Afterwards::Ends {
        timer_signals::complete(remote, task.host_tid, &mut in_order)?;
    }
    thread.pending.extend(queue);
    Ok(())
}

/// What threads of a new sandbox have, which need not be saved.
#[derive(Debug)]
pub(crate) struct Usual {
    pub(crate) io_priority: u32,
    pub(crate) affinity: Vec<u8>,
}

impl Usual {
    /// Those of a process that has never changed them.
    pub(crate) fn read(pid: i32) -> Result<Self, CheckpointError> {
        Ok(Self {
            io_priority: io_priority(pid)?,
            affinity: affinity(pid)?,
        })
    }

    /// Adds what this thread has otherwise.
    pub(crate) fn read_differences(
        &self,
        task: &Task,
        thread: &mut Thread,
    ) -> Result<(), CheckpointError> {
        let (priority, affinity) = (io_priority(task.host_tid)?, affinity(task.host_tid)?);
        if priority != self.io_priority {
            thread.io_priority = priority;
        }
        if affinity != self.affinity {
            thread.affinity = affinity;
        }
        Ok(())
    }
}

pub(crate) fn io_priority(tid: i32) -> Result<u32, CheckpointError> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: ioprio_get takes plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    u32::try_from(result)
        .map_err(|_| CheckpointError::kernel("ioprio_get")(std::io::Error::last_os_error()))
}

/// The set of CPUs, in words; CPUs that nobody can have are no part of it.
fn affinity(tid: i32) -> Result<Vec<u8>, CheckpointError> {
    let mut set = vec![0u8; 1024];
    // SAFETY: sched_getaffinity writes at most as many bytes as it is told that the buffer has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid,
            set.len(),
            set.as_mut_ptr(),
        )
    };
    let len = usize::try_from(result).map_err(|_| {
        CheckpointError::kernel("sched_getaffinity")(std::io::Error::last_os_error())
    })?;
    set.truncate(len);
    Ok(set)
}

fn robust_list(tid: i32) -> Result<(u64, u64), CheckpointError> {
    let (mut head, mut len) = (0u64, 0usize);
    // SAFETY: get_robust_list writes one pointer and one size_t, to two variables of that size.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if result < 0 {
        return Err(CheckpointError::kernel("get_robust_list")(
            std::io::Error::last_os_error(),
        ));
    }
    Ok(if head == 0 {
        (0, 0)
    } else {
        (head, len as u64)
    })
}

fn scheduling(tid: i32) -> Result<Sched, CheckpointError> {
    /// The first version of `struct sched_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        deadline: [u64; 3],
    }
    let mut attributes = Attributes::default();
    // SAFETY: sched_getattr writes at most `size` bytes, that of the structure it is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            &raw mut attributes,
            size_of::<Attributes>(),
            0,
        )
    };
    if result < 0 {
        return Err(CheckpointError::kernel("sched_getattr")(
            std::io::Error::last_os_error(),
        ));
    }
    let reset_on_fork = if attributes.flags & SCHED_FLAG_RESET_ON_FORK != 0 {
        SCHED_RESET_ON_FORK
    } else {
        0
    };
    Ok(Sched {
        policy: attributes.policy | reset_on_fork,
        nice: attributes.nice,
        priority: attributes.priority,
    })
}

fn timer_slack(tid: i32) -> Result<u64, CheckpointError> {
    let text = proc_files::read_text(tid, "timerslack_ns")?;
    let slack = text.trim().parse().map_err(|_| CheckpointError::Format {
        path: format!("/proc/{tid}/timerslack_ns"),
        what: "number",
    })?;
    Ok(if slack == DEFAULT_TIMER_SLACK_NS {
        0
    } else {
        slack
    })
}
