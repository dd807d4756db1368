//! How often a timer has expired while its signal was waiting.
//!
//! A timer queues one signal. What it would have queued meanwhile it counts, and the kernel puts
//! the count into the signal (`si_overrun`) when that is taken from its queue; a look at the queue
//! does not show it. So signals of timers are taken out, as `sigtimedwait(2)` does. The restored
//! signal says what it would have said. `timer_getoverrun(2)` asks the timer itself, which is a new
//! one: until its next signal, it says 0.

use std::collections::BTreeSet;

use super::error::CheckpointError;
use super::inject::Remote;
use super::ptrace::SIGINFO_SIZE;

const SI_TIMER: i32 = -2;
const SIGNAL_SET_LEN: u64 = 8;
/// Set of signals, then the time to wait.
const ARGUMENTS: usize = 8 + 16;

/// Completes the signals of timers in `queued`: all that wait for the thread `tid`, in the order in which it gets them.
pub(super) fn complete(
    remote: &Remote<'_>,
    tid: i32,
    queued: &mut [&mut Vec<u8>],
) -> Result<(), CheckpointError> {
    let of_timers: BTreeSet<i32> = queued
        .iter()
        .filter(|info| word(info, 8) == SI_TIMER)
        .map(|info| word(info, 0))
        .collect();
    if of_timers.is_empty() {
        return Ok(());
    }
    let thread = remote.on(tid)?;
    for signal in of_timers {
        for info in queued.iter_mut().filter(|info| word(info, 0) == signal) {
            // No time to wait, in the bytes behind the set.
            let mut arguments = [0; ARGUMENTS];
            arguments[..8].copy_from_slice(&(1u64 << (signal - 1)).to_ne_bytes());
            remote.set_scratch(&arguments)?;
            let (set, time) = (remote.scratch(), remote.scratch() + 8);
            let found = remote.scratch() + ARGUMENTS as u64;
            let call = thread.call(
                "rt_sigtimedwait",
                libc::SYS_rt_sigtimedwait,
                &[set, found, time, SIGNAL_SET_LEN],
            );
            match call {
                Ok(_) => {
                    let bytes = remote.result::<{ ARGUMENTS + SIGINFO_SIZE }>()?;
                    info.copy_from_slice(&bytes[ARGUMENTS..]);
                }
                // The timer was deleted, and its signal with it.
                Err(CheckpointError::Remote { source, .. })
                    if source.raw_os_error() == Some(libc::EAGAIN) =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A number of a raw `siginfo_t`: the signal at 0, the code at 8.
fn word(info: &[u8], at: usize) -> i32 {
    info.get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}
