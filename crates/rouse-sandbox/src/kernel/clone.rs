//! `clone3(2)` for processes that go on in a copy of the caller's memory.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::sandbox::Process;

/// Stack of a process that borrows the caller's memory, bytes. A copy of it goes on in whatever that process makes.
const BORROWER_STACK: usize = 256 * 1024;

/// Which side of a [`clone3`] this is.
#[derive(Debug)]
pub enum Side {
    /// The caller, with the new process.
    Parent(Process),
    /// The new process.
    Child,
}

/// What the new process gets besides a copy of the caller.
#[derive(Debug, Default)]
pub struct CloneRequest {
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// Its pid in its own pid namespace, chosen by the kernel if `None`.
    pub pid: Option<i32>,
    /// It is a child of the caller's parent, and reports its end as the caller does.
    pub sibling: bool,
}

/// Makes a new process, a child of the caller, that reports its end by `SIGCHLD`.
///
/// # Safety
/// The caller is single-threaded, or all others that use its memory wait: the child goes on with a copy of one thread, and locks that other threads held
/// (the allocator's, for instance) would never be released in it.
pub unsafe fn clone3(request: &CloneRequest) -> io::Result<Side> {
    let mut pidfd: libc::c_int = -1;
    let set_tid = [request.pid.unwrap_or(0)];
    let arguments = libc::clone_args {
        flags: request.namespaces
            | libc::CLONE_PIDFD as u64
            | if request.sibling {
                libc::CLONE_PARENT as u64
            } else {
                0
            },
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        // A sibling inherits the caller's signal, and the kernel refuses another.
        exit_signal: if request.sibling {
            0
        } else {
            libc::SIGCHLD as u64
        },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if request.pid.is_some() {
            set_tid.as_ptr() as u64
        } else {
            0
        },
        set_tid_size: u64::from(request.pid.is_some()),
        cgroup: 0,
    };
    // SAFETY: the structure is complete and its pointers are to live locals. Without CLONE_VM the child has its own
    // copy of the stack; the caller vouches for being single-threaded.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel has stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent(Process {
                pid: pid as i32,
                pidfd,
            }))
        }
    }
}

/// Memory for the stack of processes made by [`borrow_memory`].
#[derive(Debug)]
pub struct BorrowerStack(Vec<u8>);

impl BorrowerStack {
    /// A new one, to be used again and again.
    pub fn new() -> BorrowerStack {
        BorrowerStack(vec![0; BORROWER_STACK])
    }
}

struct Errand<'a, T> {
    body: &'a mut dyn FnMut() -> T,
    outcome: Option<T>,
}

extern "C" fn run_errand<T>(errand: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `borrow_memory` passes its `Errand`, which outlives this process, and does not touch it meanwhile.
    let errand = unsafe { &mut *errand.cast::<Errand<'_, T>>() };
    let body = std::panic::AssertUnwindSafe(|| (errand.body)());
    errand.outcome = std::panic::catch_unwind(body).ok();
    0
}

/// Runs `body` in a process of its own that uses the caller's memory and descriptors, while the caller waits (as with
/// `vfork`), and returns what it returned; `None` if it ended otherwise.
///
/// What it changes about itself (namespaces, users, control groups) ends with it; what it opens is the caller's; what
/// it makes as siblings are the caller's children. The kernel never chooses such a process when memory is short.
///
/// # Safety
/// The caller is single-threaded. `body` does not end the process.
pub unsafe fn borrow_memory<T>(
    stack: &mut BorrowerStack,
    mut body: impl FnMut() -> T,
) -> io::Result<Option<T>> {
    let mut errand = Errand {
        body: &mut body,
        outcome: None,
    };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    let top = stack.0.as_mut_ptr_range().end as usize & !15;
    // SAFETY: the stack is large enough, aligned, and used by nobody else; the function gets the structure that it
    // expects; both stay valid, because the kernel holds the caller until the new process has ended.
    let pid = unsafe {
        libc::clone(
            run_errand::<T>,
            top as *mut libc::c_void,
            flags,
            (&raw mut errand).cast(),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waits for that process and stores nothing.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    Ok(errand.outcome)
}
