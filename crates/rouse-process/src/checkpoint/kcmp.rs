//! `kcmp(2)`: do two descriptors, or two threads, share a kernel object?

use std::cmp::Ordering;
use std::io;

use super::error::CheckpointError;

const KCMP_FILE: i32 = 0;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_EPOLL_TFD: i32 = 7;

fn kcmp(first: i32, second: i32, what: i32, a: u64, b: u64) -> Result<Ordering, CheckpointError> {
    // SAFETY: kcmp reads numbers only, but for KCMP_EPOLL_TFD, whose caller passes the address of a live structure.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, first, second, what, a, b) };
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(CheckpointError::kernel("kcmp")(io::Error::last_os_error())),
    }
}

/// A total order of the open file descriptions behind descriptors of a process.
pub(crate) fn descriptions(pid: i32, a: i32, b: i32) -> Result<Ordering, CheckpointError> {
    kcmp(pid, pid, KCMP_FILE, a as u64, b as u64)
}

/// Do two threads have one table of descriptors?
pub(crate) fn same_descriptors(a: i32, b: i32) -> Result<bool, CheckpointError> {
    Ok(kcmp(a, b, KCMP_FILES, 0, 0)? == Ordering::Equal)
}

/// Do two threads have one working directory and umask?
pub(crate) fn same_directory(a: i32, b: i32) -> Result<bool, CheckpointError> {
    Ok(kcmp(a, b, KCMP_FS, 0, 0)? == Ordering::Equal)
}

/// Does `fd` refer to what the epoll set at `epoll` watches as its `nth` entry under the number `fd`?
pub(crate) fn is_watched(pid: i32, epoll: i32, fd: i32, nth: u32) -> bool {
    #[repr(C)]
    struct Slot {
        epoll: u32,
        target: u32,
        nth: u32,
    }
    let slot = Slot {
        epoll: epoll as u32,
        target: fd as u32,
        nth,
    };
    // An error says that the descriptor is closed.
    kcmp(pid, pid, KCMP_EPOLL_TFD, fd as u64, &raw const slot as u64).is_ok_and(Ordering::is_eq)
}
