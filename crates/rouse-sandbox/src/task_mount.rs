//! The function's code, lent to its sandbox.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::kernel::mount::{self, LENT, MountAttributes};

/// Where a function sees its code.
const TASK: &str = "/var/task";

/// Makes a detached, read-only mount of the directory `dir`, to be attached in a sandbox by [`attach_task_mount`].
///
/// It belongs to the host's user namespace, so nobody in the sandbox can change its attributes.
pub fn open_task_mount(dir: &Path) -> io::Result<OwnedFd> {
    let mount = mount::clone_tree(dir)?;
    mount::set_attributes(
        &mount,
        MountAttributes {
            set: LENT,
            recursive: false,
        },
    )?;
    Ok(mount)
}

/// Attaches such a mount at `/var/task` of the caller's sandbox.
///
/// Needs `CAP_SYS_ADMIN` in the sandbox's user namespace: runs in a blank process before it drops its rights.
/// The same by hand: `move_mount(mount, "", AT_FDCWD, "/var/task", MOVE_MOUNT_F_EMPTY_PATH)`.
pub fn attach_task_mount(mount: impl AsFd) -> io::Result<()> {
    mount::attach(mount, Path::new(TASK))
}
