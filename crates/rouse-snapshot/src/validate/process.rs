//! The host, the process as a whole, and its threads.

use super::{ADDRESS_END, Check, Invalid, all_unique, check_file_id, check_path, ensure};
use crate::model::{HostFingerprint, MmFields, ProcessSnapshot, ProcessState, Thread};

const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
const SIGNALS: u32 = 64;
const SIGINFO_LEN: usize = 128;
const SIGEV_THREAD_ID: i32 = 4;
/// `RLIM_NLIMITS`.
const RLIMITS: u32 = 16;
/// `TASK_COMM_LEN` without the NUL.
const NAME_MAX: usize = 15;
/// Bytes of a set of all CPUs that a kernel can be built for.
const AFFINITY_MAX: usize = 1024;
/// One entry of the auxiliary vector: a type and a value.
const AUXV_ENTRY: usize = 16;

pub(super) fn check_host(host: &HostFingerprint) -> Check {
    ensure(!host.kernel.is_empty(), "the kernel version is empty")
}

pub(super) fn check_process(snapshot: &ProcessSnapshot) -> Check {
    let process = &snapshot.process;
    check_file_id(snapshot, process.exe)?;
    check_path(&process.cwd)?;
    check_mm(&process.mm.fields)?;
    ensure(
        process.mm.auxv.len().is_multiple_of(AUXV_ENTRY),
        "the auxiliary vector is cut off",
    )?;
    ensure(
        process.umask <= 0o777,
        "the umask has bits that are no permissions",
    )?;
    ensure(
        process.dumpable <= 1,
        "the dumpable flag is neither 0 nor 1",
    )?;
    ensure(
        process.protection_keys & 1 == 0,
        "protection key 0 cannot be given out",
    )?;
    check_signals(process)?;
    check_pending(&process.pending)?;
    check_timers(snapshot)?;
    check_rlimits(process)
}

/// What the kernel demands of `PR_SET_MM_MAP`, but for what depends on the mappings.
fn check_mm(fields: &MmFields) -> Check {
    let MmFields {
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        arg_start,
        arg_end,
        env_start,
        env_end,
    } = *fields;
    for (start, end) in [
        (start_code, end_code),
        (start_data, end_data),
        (start_brk, brk),
        (start_stack, start_stack),
        (arg_start, arg_end),
        (env_start, env_end),
    ] {
        ensure(
            start <= end,
            "a field of the memory layout ends before it starts",
        )?;
        ensure(
            end < ADDRESS_END,
            "a field of the memory layout is not a user address",
        )?;
    }
    Ok(())
}

fn check_signals(process: &ProcessState) -> Check {
    for action in &process.signal_actions {
        ensure(
            (1..=SIGNALS).contains(&action.signal),
            "a signal action has no such signal",
        )?;
        ensure(
            action.signal != SIGKILL && action.signal != SIGSTOP,
            "SIGKILL and SIGSTOP cannot have an action",
        )?;
    }
    let signals = process.signal_actions.iter().map(|action| action.signal);
    ensure(all_unique(signals), "a signal has two actions")
}

fn check_pending(pending: &[Vec<u8>]) -> Check {
    ensure(
        pending.iter().all(|info| info.len() == SIGINFO_LEN),
        "a pending signal is not a siginfo_t of 128 bytes",
    )
}

fn check_timers(snapshot: &ProcessSnapshot) -> Check {
    let timers = &snapshot.process.posix_timers;
    for timer in timers {
        ensure(timer.id >= 0, "a POSIX timer has a negative id")?;
        ensure(
            u32::try_from(timer.signal).is_ok_and(|signal| signal <= SIGNALS),
            "a POSIX timer has no such signal",
        )?;
        let target = timer.notify_tid;
        ensure(
            timer.notify & SIGEV_THREAD_ID == 0 || has_thread(snapshot, target),
            "a POSIX timer notifies a thread that is not there",
        )?;
    }
    ensure(
        all_unique(timers.iter().map(|timer| timer.id)),
        "two POSIX timers have the same id",
    )
}

fn check_rlimits(process: &ProcessState) -> Check {
    for (resource, soft, hard) in &process.rlimits {
        ensure(*resource < RLIMITS, "there is no such resource limit")?;
        ensure(soft <= hard, "a soft resource limit is above the hard one")?;
    }
    let resources = process.rlimits.iter().map(|(resource, ..)| *resource);
    ensure(all_unique(resources), "a resource has two limits")
}

fn has_thread(snapshot: &ProcessSnapshot, tid: i32) -> bool {
    snapshot.threads.iter().any(|thread| thread.tid == tid)
}

pub(super) fn check_threads(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    let threads = &snapshot.threads;
    let list = |why| Invalid::Thread { tid: 0, why };
    ensure(!threads.is_empty(), "there are no threads").map_err(list)?;
    for thread in threads {
        check_thread(thread, &snapshot.host).map_err(|why| Invalid::Thread {
            tid: thread.tid,
            why,
        })?;
    }
    ensure(
        all_unique(threads.iter().map(|thread| thread.tid)),
        "two threads have the same id",
    )
    .map_err(list)
}

fn check_thread(thread: &Thread, host: &HostFingerprint) -> Check {
    ensure(thread.tid > 0, "its id is not positive")?;
    ensure(
        thread.xsave.len() as u64 == u64::from(host.xsave_len),
        "its XSAVE area does not have the host's length",
    )?;
    ensure(
        thread.name.len() <= NAME_MAX,
        "its name is longer than 15 bytes",
    )?;
    ensure(!thread.name.contains(&0), "its name holds a NUL")?;
    ensure(
        u32::try_from(thread.parent_death_signal).is_ok_and(|signal| signal <= SIGNALS),
        "its parent-death signal does not exist",
    )?;
    if let Some(rseq) = &thread.rseq {
        let end = rseq.address.checked_add(u64::from(rseq.len));
        ensure(
            rseq.address != 0 && end.is_some_and(|end| end <= ADDRESS_END),
            "its rseq area is not at a user address",
        )?;
    }
    ensure(
        thread.affinity.len() <= AFFINITY_MAX && thread.affinity.len().is_multiple_of(8),
        "its set of CPUs is not a list of words",
    )?;
    check_pending(&thread.pending)
}
