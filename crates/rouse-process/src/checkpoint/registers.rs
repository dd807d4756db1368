//! Registers of a stopped thread, made ready to be resumed elsewhere.

use rouse_snapshot::model::{Registers, Rseq};

use super::error::CheckpointError;
use super::memory::Memory;

// What a system call returns inside of the kernel when a signal (or a tracer) interrupted it. Never seen by programs.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
/// Code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// Length of `syscall`, and of `int $0x80`.
const SYSCALL_LEN: u64 = 2;

const SYS_IO_PGETEVENTS: i64 = 333;

/// System calls that the kernel does not restart after an interruption although nothing happened: a tracer's stop is
/// enough to make them return `EINTR`. With a receive or send timeout, socket calls belong to them too.
const FAIL_WITH_EINTR: [i64; 19] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The registers with which the thread resumes.
///
/// A thread that was stopped inside of a system call is wound back to the `syscall` instruction, so that it makes the
/// call again after a restore. This is what the kernel itself does where no handler runs, with two differences:
/// - calls with a relative timeout start it anew, because their `restart_block` cannot be brought back: they may wait
///   longer, never shorter. (Where the program gave one structure for the requested and the remaining time, as
///   `sleep(3)` does, the kernel has already put the remaining time there.)
/// - calls that would fail with `EINTR` for the tracer's stop alone are made again. A signal with a handler that is
///   pending at the same time is pending after the restore too: its handler then runs before the call instead of
///   interrupting it, as if it had come a moment earlier.
///
/// A thread stopped inside of a restartable sequence continues at its abort handler.
///
/// # Errors
/// `Ok(Err(reason))` when the thread is somewhere it cannot be resumed.
pub(super) fn resumable(
    memory: &Memory,
    stopped: &libc::user_regs_struct,
    rseq: Option<&Rseq>,
) -> Result<Result<Registers, String>, CheckpointError> {
    if stopped.cs != USER_CS {
        return Ok(Err("runs 32-bit code".to_owned()));
    }
    let mut regs = Registers {
        r15: stopped.r15,
        r14: stopped.r14,
        r13: stopped.r13,
        r12: stopped.r12,
        rbp: stopped.rbp,
        rbx: stopped.rbx,
        r11: stopped.r11,
        r10: stopped.r10,
        r9: stopped.r9,
        r8: stopped.r8,
        rax: stopped.rax,
        rcx: stopped.rcx,
        rdx: stopped.rdx,
        rsi: stopped.rsi,
        rdi: stopped.rdi,
        rip: stopped.rip,
        eflags: stopped.eflags,
        rsp: stopped.rsp,
        fs_base: stopped.fs_base,
        gs_base: stopped.gs_base,
    };
    let call = stopped.orig_rax as i64;
    // Negative when the thread came into the kernel by an interrupt: it was computing.
    if call >= 0 {
        if let Some(number) = match interrupted_call(memory, stopped, call)? {
            Ok(number) => number,
            Err(reason) => return Ok(Err(reason)),
        } {
            regs.rip -= SYSCALL_LEN;
            regs.rax = number as u64;
        }
    } else if let Some(rseq) = rseq
        && let Some(abort) = abort_handler(memory, rseq, regs.rip)?
    {
        regs.rip = abort;
    }
    Ok(Ok(regs))
}

/// The number of the system call to make again, if it has not finished.
fn interrupted_call(
    memory: &Memory,
    stopped: &libc::user_regs_struct,
    call: i64,
) -> Result<Result<Option<i64>, String>, CheckpointError> {
    let error = (stopped.rax as i64).checked_neg().unwrap_or(0);
    let interrupted = match error {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK => true,
        _ => {
            error == i64::from(libc::EINTR)
                && (FAIL_WITH_EINTR.contains(&call) || call == libc::SYS_restart_syscall)
        }
    };
    if !interrupted {
        return Ok(Ok(None));
    }
    if call != libc::SYS_restart_syscall {
        return Ok(Ok(Some(call)));
    }
    // It was stopped before, and the kernel replaced the number when it ran on. Compilers load it right before the call.
    let mut code = [0; 5];
    let loads_number = memory
        .read(stopped.rip - SYSCALL_LEN - 5, &mut code)
        .is_ok()
        && code[0] == 0xb8;
    if !loads_number {
        return Ok(Err(
            "sleeps in a system call that was interrupted before and whose number is lost"
                .to_owned(),
        ));
    }
    Ok(Ok(Some(i64::from(i32::from_le_bytes([
        code[1], code[2], code[3], code[4],
    ])))))
}

/// For a thread that is to go on where it is: the registers with which it makes a call again that the kernel would let
/// fail with `EINTR` for the tracer's stop alone. `None` where the kernel does right by itself.
pub(super) fn made_again(
    memory: &Memory,
    stopped: &libc::user_regs_struct,
) -> Result<Option<libc::user_regs_struct>, CheckpointError> {
    let call = stopped.orig_rax as i64;
    if call < 0 || stopped.rax as i64 != -i64::from(libc::EINTR) {
        return Ok(None);
    }
    let number = interrupted_call(memory, stopped, call)?;
    Ok(number.ok().flatten().map(|number| libc::user_regs_struct {
        rip: stopped.rip - SYSCALL_LEN,
        rax: number as u64,
        // Not in a call: nothing for the kernel to make again.
        orig_rax: !0,
        ..*stopped
    }))
}

/// Where a thread goes on whose restartable sequence is interrupted at `rip`.
fn abort_handler(memory: &Memory, rseq: &Rseq, rip: u64) -> Result<Option<u64>, CheckpointError> {
    const RSEQ_CS_OFFSET: u64 = 8;
    let descriptor = memory.read_u64(rseq.address + RSEQ_CS_OFFSET)?;
    if descriptor == 0 {
        return Ok(None);
    }
    // struct rseq_cs: version u32, flags u32, start_ip, post_commit_offset, abort_ip.
    let start = memory.read_u64(descriptor + 8)?;
    let len = memory.read_u64(descriptor + 16)?;
    let abort = memory.read_u64(descriptor + 24)?;
    Ok((rip.wrapping_sub(start) < len).then_some(abort))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    /// Registers of a thread at `rip`, inside of the system call `call` that has returned `result` so far.
    fn stopped(rip: u64, call: i64, result: i64) -> libc::user_regs_struct {
        // SAFETY: the structure consists of integers only.
        let zero: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        libc::user_regs_struct {
            rip,
            rax: result as u64,
            orig_rax: call as u64,
            cs: USER_CS,
            ..zero
        }
    }

    fn own_memory() -> Memory {
        Memory::open(std::process::id() as i32).unwrap()
    }

    fn resumed(stopped: &libc::user_regs_struct, rseq: Option<&Rseq>) -> (u64, i64) {
        let regs = resumable(&own_memory(), stopped, rseq).unwrap().unwrap();
        (regs.rip, regs.rax as i64)
    }

    #[test]
    fn only_interrupted_calls_are_wound_back() {
        let at = 0x1000;
        for error in [512, 513, 514, 516] {
            assert_eq!(resumed(&stopped(at, 7, -error), None), (at - 2, 7));
        }
        let eintr = -i64::from(libc::EINTR);
        assert_eq!(
            resumed(&stopped(at, libc::SYS_epoll_wait, eintr), None),
            (at - 2, libc::SYS_epoll_wait)
        );
        assert_eq!(
            resumed(&stopped(at, libc::SYS_close, eintr), None),
            (at, eintr)
        );
        assert_eq!(resumed(&stopped(at, 7, 1), None), (at, 1));
        assert_eq!(
            resumed(&stopped(at, -1, -512), None),
            (at, -512),
            "a computing thread may hold any number"
        );
    }

    #[test]
    fn the_number_of_a_restarted_call_is_read_from_the_code() {
        let code = [0xb8u8, 230, 0, 0, 0, 0x0f, 0x05];
        let behind = code.as_ptr() as u64 + code.len() as u64;
        let restart = libc::SYS_restart_syscall;
        assert_eq!(
            resumed(&stopped(behind, restart, -516), None),
            (behind - 2, 230)
        );
        let other = [0x90u8; 16];
        let refused = resumable(
            &own_memory(),
            &stopped(other.as_ptr() as u64 + 16, restart, -516),
            None,
        );
        assert!(refused.unwrap().unwrap_err().contains("number is lost"));
    }

    #[test]
    fn a_restartable_sequence_is_aborted() {
        // struct rseq_cs: version and flags, start, length, abort handler.
        let section: [u64; 4] = [0, 0x4000, 0x20, 0x9000];
        let area: [u64; 4] = [0, section.as_ptr() as u64, 0, 0];
        let rseq = Rseq {
            address: area.as_ptr() as u64,
            len: 32,
            signature: 0,
            flags: 0,
        };
        let rip_after = |rip| resumed(&stopped(rip, -1, 0), Some(&rseq)).0;
        assert_eq!(rip_after(0x4000), 0x9000);
        assert_eq!(rip_after(0x401f), 0x9000);
        assert_eq!(rip_after(0x4020), 0x4020);
        assert_eq!(rip_after(0x3fff), 0x3fff);
    }

    #[test]
    fn other_code_segments_are_refused() {
        let mut regs = stopped(0x1000, -1, 0);
        regs.cs = 0x23;
        let refused = resumable(&own_memory(), &regs, None).unwrap();
        assert_eq!(refused.unwrap_err(), "runs 32-bit code");
    }
}
