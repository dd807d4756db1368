//! Seccomp user notification: system calls that wait for the node's answer (Linux 5.5).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{seccomp_notif, seccomp_notif_resp};

/// Where system calls of all sandboxes arrive that the node has to answer.
#[derive(Debug)]
pub struct Notifications(OwnedFd);

/// A system call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct WaitingCall {
    id: u64,
    /// The thread that waits, as this process sees it. It may be gone at any time, and its number be another's:
    /// ask [`Notifications::still_waits`] after the thread was looked up.
    pub tid: i32,
    /// Number of the system call.
    pub number: libc::c_long,
    /// Arguments.
    pub arguments: [u64; 6],
}

/// What a system call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes the call as it was asked.
    MakeIt,
    /// It is not made, and returns 0.
    Done,
    /// It is not made, and fails with this `errno`.
    Fails(i32),
}

impl Notifications {
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self(listener)
    }

    /// Waits for the next call. `None`: it was interrupted, or taken by another thread.
    ///
    /// # Errors
    /// When nobody can send calls any more, or the kernel refuses.
    pub fn receive(&self) -> io::Result<Option<WaitingCall>> {
        // SAFETY: all fields are integers, for which zeros are valid; the kernel asks for zeros.
        let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request is defined for this structure, which lives across the call.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut call,
            )
        };
        if result == 0 {
            return Ok(Some(WaitingCall {
                id: call.id,
                tid: call.pid as i32,
                number: libc::c_long::from(call.data.nr),
                arguments: call.data.args,
            }));
        }
        match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => Ok(None),
            error => Err(error),
        }
    }

    /// Does the thread still wait? If so, what was found under its number since [`receive`](Self::receive) is its own.
    pub fn still_waits(&self, call: &WaitingCall) -> bool {
        // SAFETY: the request is defined for a 64-bit number, which lives across the call.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
                &raw const call.id,
            )
        };
        result == 0
    }

    /// Answers a call. A thread that has ended meanwhile needs no answer.
    pub fn answer(&self, call: &WaitingCall, answer: Answer) {
        let (error, flags) = match answer {
            Answer::MakeIt => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Done => (0, 0),
            Answer::Fails(errno) => (-errno, 0),
        };
        let response = seccomp_notif_resp {
            id: call.id,
            val: 0,
            error,
            flags,
        };
        // SAFETY: the request is defined for this structure, which lives across the call. The only failure that a
        // valid response can have is that nobody waits any more.
        unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw const response,
            )
        };
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
