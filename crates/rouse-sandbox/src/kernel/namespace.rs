//! Entering namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Enters namespaces (`CLONE_NEW*` flags) through a pidfd, or one through a namespace descriptor.
pub fn enter(target: impl AsFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags only. Single-threadedness, where a namespace needs it, is checked by the kernel.
    if unsafe { libc::setns(target.as_fd().as_raw_fd(), flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leaves shared namespaces (`CLONE_NEW*` flags) for new ones.
pub fn leave(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes flags only; none of CLONE_NEW* shares or unshares memory or descriptors.
    if unsafe { libc::unshare(flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
