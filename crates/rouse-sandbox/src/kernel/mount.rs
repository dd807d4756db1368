//! Mounts as descriptors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// With everything mounted below it.
    pub recursive: bool,
}

/// Read-only, set-user-id bits and device nodes without effect: what the host lends to sandboxes.
pub const LENT: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Makes a detached mount of the directory `path`, without what is mounted below it.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Changes a mount, given by a descriptor of it.
pub fn set_attributes(mount: impl AsFd, attributes: MountAttributes) -> io::Result<()> {
    let empty: &CStr = c"";
    let request = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let recursive = if attributes.recursive {
        libc::AT_RECURSIVE
    } else {
        0
    };
    // SAFETY: the path is a C string, the structure is complete and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Attaches a detached mount at `path`.
pub fn attach(mount: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        c"",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}
