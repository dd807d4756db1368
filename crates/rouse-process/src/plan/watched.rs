//! Memory of which pages may be absent: nobody may touch it before the pager watches it.

use rouse_pool::uffd::USERFAULTFD_IOC_NEW;
use rouse_restorer::op::Op;

use super::Context;

/// The message that brings the node an instance's userfaultfd.
pub const WATCH_ME: u64 = u64::from_le_bytes(*b"rswatch\0");

impl Context<'_> {
    /// Constraints:
    /// - after all mappings: what is registered later would not be watched;
    /// - before the first touch: an absent page reads as zeros until then;
    /// - the descriptor must be made by the process whose memory it watches, but may be set up by another: only the
    ///   pager has the rights to follow forks;
    /// - no copy of it stays here: with it a function could answer its own faults.
    pub(super) fn have_memory_watched(&mut self, list: &mut Vec<Op>) {
        const CMSG_LEN: u64 = 20;
        let control = self.fds.control();
        let device = self
            .fds
            .file(self.files.len() + self.snapshot.parents.len());
        // struct cmsghdr { length, level | type << 32 }, then the descriptor.
        let level_and_type = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        let ancillary = self.builder.words(&[CMSG_LEN, level_and_type, 0]);
        let descriptor = ancillary + 16;
        let message = self.builder.words(&[WATCH_ME]);
        let vector = self.builder.words(&[message, 8]);
        // name, namelen, iov, iovlen, control, controllen, flags
        let header = self
            .builder
            .words(&[0, 0, vector, 1, ancillary, CMSG_LEN, 0]);
        let answer = self.builder.words(&[0]);
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        list.push(
            Op::syscall(libc::SYS_ioctl, &[device, USERFAULTFD_IOC_NEW, flags]).store(descriptor),
        );
        list.push(Op::syscall(libc::SYS_sendmsg, &[control, header, 0]).exact(8));
        list.push(Op::syscall(libc::SYS_close, &[descriptor]).indirect(0));
        list.push(Op::syscall(libc::SYS_read, &[control, answer, 1]).exact(1));
    }
}
