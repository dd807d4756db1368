//! The stop of an instance that is made ahead of its request: all is there but its first own instruction.
//!
//! ```text
//!  node                                    instance
//!    program ------------------------------> maps, copies, makes descriptors and threads, gives up its rights
//!    <------------------- time stamps ------ waits (`read` on its control socket; its threads wait at the gate)
//!    (a request) one byte -----------------> sets its timers
//!    <-------- when that arrived, hang-up -- resumes
//! ```
//! Nothing that tells one copy from another has been handed out while it waits: random numbers, ids and times are asked
//! for by the function's own instructions, and its timers are started behind the stop.

use rouse_restorer::op::Op;

use super::Context;

/// Bytes of the message that a parked instance sends when it is resumed: one time stamp.
pub const RESUMED_LEN: usize = super::STAMP;

/// The one byte that resumes a parked instance.
pub const RESUME: u8 = b'g';

impl Context<'_> {
    /// Waits for the request. Constraints:
    /// - after the filter is on: what waits is as confined as what runs. So only calls that any function may make;
    /// - signals are blocked, so that the wait cannot be interrupted; when the node is gone the socket ends, the byte
    ///   does not come, and the instance ends;
    /// - before the first timer.
    pub(super) fn park(&mut self, list: &mut Vec<Op>) {
        let control = self.fds.control();
        let word = self.builder.words(&[0]);
        let stamp = self.builder.words(&[0, 0]);
        list.push(Op::syscall(libc::SYS_read, &[control, word, 1]).exact(1));
        let clock = [libc::CLOCK_MONOTONIC as u64, stamp];
        list.push(Op::syscall(libc::SYS_clock_gettime, &clock));
        let message = [control, stamp, RESUMED_LEN as u64];
        list.push(Op::syscall(libc::SYS_write, &message));
        list.append(&mut self.timer_descriptors);
    }
}
