//! State that the threads of a process share, but for its memory and files.

use rouse_snapshot::model::{FileId, MmFields, MmLayout, ProcessState, SignalAction};

use super::clocks;
use super::error::{CheckpointError, Obstacle, Subject};
use super::future_mappings;
use super::inject::{Remote, RemoteThread};
use super::mappings::Vma;
use super::message_queues;
use super::proc_files::{self, Status};
use super::protection_keys;
use super::system_v;
use super::timers;

/// Number of resource limits, `RLIM_NLIMITS`.
const RLIMITS: u32 = 16;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;

/// Reads it. `threads` are pairs of thread ids, on the host and in the sandbox.
pub(super) fn read(
    pid: i32,
    remote: &Remote<'_>,
    exe: FileId,
    vmas: &[Vma],
    threads: &[(i32, i32)],
    baseline_rlimits: &[(u32, u64, u64)],
) -> Result<ProcessState, CheckpointError> {
    let status = Status::read(pid)?;
    let (monotonic_ns, boottime_ns) = clocks::now(pid)?;
    let leader = remote.on(pid)?;
    let mut fields = mm_fields(pid)?;
    fields.brk = leader.call("brk", libc::SYS_brk, &[0])?;
    let scratch = remote.scratch();
    leader.call(
        "prctl(PR_GET_CHILD_SUBREAPER)",
        libc::SYS_prctl,
        &[libc::PR_GET_CHILD_SUBREAPER as u64, scratch],
    )?;
    let child_subreaper = i32::from_le_bytes(remote.result()?) != 0;
    let dumpable = leader.call(
        "prctl(PR_GET_DUMPABLE)",
        libc::SYS_prctl,
        &[libc::PR_GET_DUMPABLE as u64],
    )?;
    refuse_tiles(pid, remote, &leader)?;
    system_v::refuse_objects(pid, remote, &leader)?;
    message_queues::refuse_queues(pid)?;
    future_mappings::refuse_locked(pid, &leader)?;
    Ok(ProcessState {
        exe,
        mm: MmLayout {
            fields,
            auxv: proc_files::read(pid, "auxv")?,
        },
        cwd: working_directory(pid)?,
        umask: status.number("Umask", 8)? as u32,
        signal_actions: signal_actions(&status, remote, &leader)?,
        // Later, as those of threads.
        pending: Vec::new(),
        interval_timers: timers::interval_timers(remote, &leader)?,
        posix_timers: timers::posix_timers(pid, remote, &leader, threads)?,
        rlimits: rlimits(pid, baseline_rlimits)?,
        child_subreaper,
        thp_disable: status.value("THP_enabled").is_ok_and(|value| value == "0"),
        // "2" (readable by root only) cannot be set, and says the same to the process itself as "0".
        dumpable: u32::from(dumpable == 1),
        protection_keys: protection_keys::allocated(&leader, vmas)?,
        // Kernels before 6.3 do not tell.
        membarrier: leader
            .call(
                "membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS)",
                libc::SYS_membarrier,
                &[MEMBARRIER_CMD_GET_REGISTRATIONS],
            )
            .unwrap_or(0) as u32,
        monotonic_ns,
        boottime_ns,
    })
}

/// AMX tiles need a permission that a process asks for once, and whose use cannot be taken back.
fn refuse_tiles(
    pid: i32,
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
) -> Result<(), CheckpointError> {
    const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
    const TILES: u64 = 0b11 << 17;
    let arguments = [ARCH_GET_XCOMP_PERM, remote.scratch()];
    // Kernels before 5.16 know neither the call nor tiles.
    let known = leader.call(
        "arch_prctl(ARCH_GET_XCOMP_PERM)",
        libc::SYS_arch_prctl,
        &arguments,
    );
    if known.is_ok() && u64::from_le_bytes(remote.result()?) & TILES != 0 {
        let name = String::from_utf8_lossy(&proc_files::name(pid)?).into_owned();
        let pid = Status::read(pid)?.innermost_id()?;
        return Err(Obstacle::new(Subject::Process { pid, name }, "uses AMX tiles").into());
    }
    Ok(())
}

/// The layout fields of `/proc/PID/stat`; `brk` is not among them.
fn mm_fields(pid: i32) -> Result<MmFields, CheckpointError> {
    let stat = proc_files::read_text(pid, "stat")?;
    let malformed = || CheckpointError::Format {
        path: format!("/proc/{pid}/stat"),
        what: "list of fields",
    };
    // The name, in parentheses, may hold anything; fields are counted from behind it, where number 3 begins.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .ok_or_else(malformed)?
        .1
        .split_whitespace()
        .collect();
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|field| field.parse().ok())
            .ok_or_else(malformed)
    };
    Ok(MmFields {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: 0,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
    })
}

fn working_directory(pid: i32) -> Result<Vec<u8>, CheckpointError> {
    let cwd = proc_files::read_link(pid, "cwd")?;
    if cwd.ends_with(b" (deleted)") || cwd.first() != Some(&b'/') {
        return Err(Obstacle::new(Subject::Path(cwd), "the working directory is gone").into());
    }
    Ok(cwd)
}

/// Only signals that are caught or ignored have an action worth saving, and `SIGCHLD`, whose flags matter by default too.
fn signal_actions(
    status: &Status,
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
) -> Result<Vec<SignalAction>, CheckpointError> {
    let set =
        status.number("SigCgt", 16)? | status.number("SigIgn", 16)? | 1 << (libc::SIGCHLD - 1);
    let mut actions = Vec::new();
    for signal in (1..=64).filter(|signal| set & 1 << (signal - 1) != 0) {
        leader.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[u64::from(signal), 0, remote.scratch(), 8],
        )?;
        // struct kernel_sigaction: handler, flags, restorer, mask.
        let raw = remote.result::<32>()?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| raw[at * 8 + index]));
        let action = SignalAction {
            signal,
            handler: word(0),
            flags: word(1),
            restorer: word(2),
            mask: word(3),
        };
        if action
            != (SignalAction {
                signal,
                handler: 0,
                flags: 0,
                restorer: 0,
                mask: 0,
            })
        {
            actions.push(action);
        }
    }
    Ok(actions)
}

fn rlimits(
    pid: i32,
    baseline: &[(u32, u64, u64)],
) -> Result<Vec<(u32, u64, u64)>, CheckpointError> {
    let mut differing = Vec::new();
    for resource in 0..RLIMITS {
        let mut limit = libc::rlimit64 {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: prlimit64 only reads limits when the new limit is null, and writes one structure.
        let result = unsafe { libc::prlimit64(pid, resource, std::ptr::null(), &raw mut limit) };
        if result < 0 {
            return Err(CheckpointError::kernel("prlimit64")(
                std::io::Error::last_os_error(),
            ));
        }
        let limit = (resource, limit.rlim_cur, limit.rlim_max);
        if !baseline.contains(&limit) {
            differing.push(limit);
        }
    }
    Ok(differing)
}
