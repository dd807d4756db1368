//! The function's code, lent to its sandbox.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::kernel::mount;

/// Where a function sees its code.
const TASK: &str = "/var/task";

/// Directories of the host that a sandbox's view of a function's code is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLayers {
    /// The code.
    pub code: PathBuf,
    /// One with nothing in it: an overlay without an upper layer has at least two lower ones.
    pub empty: PathBuf,
}

/// Makes a detached, read-only file system that shows a function's code, to be attached in a sandbox by
/// [`attach_task_mount`].
///
/// It belongs to the host's user namespace, so nobody in the sandbox can change it. It is an overlay, so that locks and watches on
/// the code are seen by no other instance.
pub fn open_task_mount(layers: &TaskLayers) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut list = escaped(&layers.code);
    list.push(b':');
    list.extend(escaped(&layers.empty));
    rustix::mount::fsconfig_set_string(context.as_fd(), "lowerdir", list)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), flags, attributes)?)
}

/// A path in a list of layers, which colons separate.
fn escaped(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    let escape = |byte: &u8| match byte {
        b':' | b'\\' => vec![b'\\', *byte],
        _ => vec![*byte],
    };
    bytes.flat_map(escape).collect()
}

/// Attaches such a mount at `/var/task` of the caller's sandbox.
///
/// Needs `CAP_SYS_ADMIN` in the sandbox's user namespace: runs in a blank process before it drops its rights.
/// The same by hand: `move_mount(mount, "", AT_FDCWD, "/var/task", MOVE_MOUNT_F_EMPTY_PATH)`.
pub fn attach_task_mount(mount: impl AsFd) -> io::Result<()> {
    mount::attach(mount, Path::new(TASK))
}
