//! The `ptrace(2)` requests that a checkpoint needs, and `waitpid(2)` for their stops.
//!
//! A thread that was seized answers only to the OS thread that seized it, and must be stopped for
//! every request but `interrupt`.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ptr;

use rouse_snapshot::model::Rseq;

use super::error::CheckpointError;

/// Bytes of a `siginfo_t`.
pub(crate) const SIGINFO_SIZE: usize = 128;
/// Room for the largest XSAVE area: AMX tiles take it to about 11 KiB.
const XSAVE_ROOM: usize = 64 * 1024;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const PTRACE_EVENT_STOP: i32 = 128;

/// How a traced thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By `interrupt`, or together with its group by a stop signal.
    Event,
    /// At the entry to or exit from a system call.
    Syscall,
    /// With a signal that is about to be delivered and already taken from its queue.
    Signal,
    /// Not at all: it has ended.
    Ended,
}

fn request(
    number: libc::c_uint,
    name: &'static str,
    tid: i32,
    address: usize,
    data: usize,
) -> Result<i64, CheckpointError> {
    // SAFETY: each caller passes, for requests through which the kernel writes, pointers to memory that it owns and
    // that is as large as the request demands; the other requests only read plain numbers.
    let result = unsafe { libc::ptrace(number, tid, address, data) };
    if result < 0 {
        return Err(CheckpointError::Ptrace {
            request: name,
            tid,
            source: io::Error::last_os_error(),
        });
    }
    Ok(result)
}

/// Attaches to a thread without stopping it.
///
/// Seccomp is suspended for it while it is traced, so that injected system calls pass. A node that lives under a
/// filter itself may not ask for that; then they have to pass the function's filter.
pub(crate) fn seize(tid: i32) -> Result<(), CheckpointError> {
    let options = libc::PTRACE_O_TRACESYSGOOD as usize;
    let suspend = libc::PTRACE_O_SUSPEND_SECCOMP as usize;
    match request(libc::PTRACE_SEIZE, "SEIZE", tid, 0, options | suspend) {
        Err(CheckpointError::Ptrace { source, .. })
            if source.raw_os_error() == Some(libc::EPERM) =>
        {
            request(libc::PTRACE_SEIZE, "SEIZE", tid, 0, options).map(drop)
        }
        other => other.map(drop),
    }
}

/// Asks a seized thread to stop.
pub(crate) fn interrupt(tid: i32) -> Result<(), CheckpointError> {
    request(libc::PTRACE_INTERRUPT, "INTERRUPT", tid, 0, 0).map(drop)
}

/// Lets a thread run on, without the signal it may have stopped with.
pub(crate) fn resume(tid: i32) -> Result<(), CheckpointError> {
    request(libc::PTRACE_CONT, "CONT", tid, 0, 0).map(drop)
}

/// Lets a thread run on, with the signal that it has stopped with.
pub(crate) fn resume_with(tid: i32, signal: i32) -> Result<(), CheckpointError> {
    request(libc::PTRACE_CONT, "CONT", tid, 0, signal as usize).map(drop)
}

/// Lets a thread run to its next entry to or exit from a system call.
pub(crate) fn resume_to_syscall(tid: i32) -> Result<(), CheckpointError> {
    request(libc::PTRACE_SYSCALL, "SYSCALL", tid, 0, 0).map(drop)
}

/// Lets go of a thread.
pub(crate) fn detach(tid: i32) -> Result<(), CheckpointError> {
    request(libc::PTRACE_DETACH, "DETACH", tid, 0, 0).map(drop)
}

/// Waits for a thread to stop; `None` when it still runs and `block` is false.
pub(crate) fn wait(tid: i32, block: bool) -> Result<Option<Stop>, CheckpointError> {
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the one int that waitpid writes.
        let result = unsafe { libc::waitpid(tid, &raw mut status, flags) };
        if result == 0 {
            return Ok(None);
        }
        if result < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(Some(Stop::Ended)),
                _ => {
                    return Err(CheckpointError::Kernel {
                        call: "waitpid",
                        source: error,
                    });
                }
            }
        }
        return Ok(Some(if !libc::WIFSTOPPED(status) {
            Stop::Ended
        } else if status >> 16 == PTRACE_EVENT_STOP {
            Stop::Event
        } else if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
            Stop::Syscall
        } else {
            Stop::Signal
        }));
    }
}

/// General registers.
pub(crate) fn registers(tid: i32) -> Result<libc::user_regs_struct, CheckpointError> {
    let mut regs = MaybeUninit::<libc::user_regs_struct>::zeroed();
    let mut iov = libc::iovec {
        iov_base: regs.as_mut_ptr().cast(),
        iov_len: size_of::<libc::user_regs_struct>(),
    };
    request(
        libc::PTRACE_GETREGSET,
        "GETREGSET(PRSTATUS)",
        tid,
        NT_PRSTATUS,
        &raw mut iov as usize,
    )?;
    // SAFETY: the struct consists of integers only, for which zeroed memory is valid, and the kernel filled it.
    Ok(unsafe { regs.assume_init() })
}

/// Replaces the general registers.
pub(crate) fn set_registers(
    tid: i32,
    regs: &libc::user_regs_struct,
) -> Result<(), CheckpointError> {
    let mut iov = libc::iovec {
        iov_base: ptr::from_ref(regs).cast_mut().cast(),
        iov_len: size_of::<libc::user_regs_struct>(),
    };
    request(
        libc::PTRACE_SETREGSET,
        "SETREGSET(PRSTATUS)",
        tid,
        NT_PRSTATUS,
        &raw mut iov as usize,
    )
    .map(drop)
}

/// The XSAVE area in standard format.
pub(crate) fn xsave(tid: i32) -> Result<Vec<u8>, CheckpointError> {
    let mut area = vec![0u8; XSAVE_ROOM];
    let mut iov = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    request(
        libc::PTRACE_GETREGSET,
        "GETREGSET(X86_XSTATE)",
        tid,
        NT_X86_XSTATE,
        &raw mut iov as usize,
    )?;
    area.truncate(iov.iov_len);
    area.shrink_to_fit();
    Ok(area)
}

/// Blocked signals. Where a system call replaced the mask for its duration, this is the mask that it will put back.
pub(crate) fn signal_mask(tid: i32) -> Result<u64, CheckpointError> {
    let mut mask = 0u64;
    request(
        libc::PTRACE_GETSIGMASK as _,
        "GETSIGMASK",
        tid,
        size_of::<u64>(),
        &raw mut mask as usize,
    )?;
    Ok(mask)
}

/// Replaces the blocked signals.
pub(crate) fn set_signal_mask(tid: i32, mask: u64) -> Result<(), CheckpointError> {
    request(
        libc::PTRACE_SETSIGMASK as _,
        "SETSIGMASK",
        tid,
        size_of::<u64>(),
        &raw const mask as usize,
    )
    .map(drop)
}

/// The `siginfo_t` with which a thread is stopped.
pub(crate) fn stop_siginfo(tid: i32) -> Result<Vec<u8>, CheckpointError> {
    let mut info = vec![0u8; SIGINFO_SIZE];
    request(
        libc::PTRACE_GETSIGINFO,
        "GETSIGINFO",
        tid,
        0,
        info.as_mut_ptr() as usize,
    )?;
    Ok(info)
}

/// Which queue of pending signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalQueue {
    /// That of the thread.
    Thread,
    /// That of the whole process.
    Process,
}

/// Pending signals, without taking them from their queue.
pub(crate) fn pending_signals(
    tid: i32,
    queue: SignalQueue,
) -> Result<Vec<Vec<u8>>, CheckpointError> {
    const BATCH: usize = 16;
    #[repr(C)]
    struct PeekArguments {
        offset: u64,
        flags: u32,
        count: i32,
    }
    let flags = match queue {
        SignalQueue::Thread => 0,
        SignalQueue::Process => 1, // PTRACE_PEEKSIGINFO_SHARED
    };
    let mut signals = Vec::new();
    loop {
        let mut batch = [[0u8; SIGINFO_SIZE]; BATCH];
        let arguments = PeekArguments {
            offset: signals.len() as u64,
            flags,
            count: BATCH as i32,
        };
        let count = request(
            libc::PTRACE_PEEKSIGINFO as _,
            "PEEKSIGINFO",
            tid,
            &raw const arguments as usize,
            batch.as_mut_ptr() as usize,
        )?;
        signals.extend(batch.iter().take(count as usize).map(|info| info.to_vec()));
        if (count as usize) < BATCH {
            return Ok(signals);
        }
    }
}

/// The rseq area that a thread has registered.
pub(crate) fn rseq(tid: i32) -> Result<Option<Rseq>, CheckpointError> {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        address: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    let mut configuration = Configuration::default();
    request(
        PTRACE_GET_RSEQ_CONFIGURATION,
        "GET_RSEQ_CONFIGURATION",
        tid,
        size_of::<Configuration>(),
        &raw mut configuration as usize,
    )?;
    Ok((configuration.address != 0).then_some(Rseq {
        address: configuration.address,
        len: configuration.size,
        signature: configuration.signature,
        flags: configuration.flags,
    }))
}
