//! Finding the paths that an inotify instance watches: the kernel names them by file handles.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use rouse_snapshot::model::{DescriptionKind, InotifyWatch};

use super::fdinfo::{FdInfo, RawInotifyWatch};
use crate::checkpoint::error::{CheckpointError, Obstacle};
use crate::checkpoint::files::as_path;

/// Where the file systems of a sandbox are mounted.
const MOUNTS: [&str; 5] = ["root", "root/tmp", "root/var/task", "root/dev/shm", "cwd"];
/// Where the overlays of a sandbox are mounted; the root is the first.
const OVERLAYS: [&[u8]; 3] = [b"", b"/var/task", b"/var/runtime"];
/// `MAX_HANDLE_SZ`.
const HANDLE_MAX: usize = 128;

/// Reads the watches of the inotify instance at `fd`, of which `instance` is a duplicate.
pub(super) fn identify(
    pid: i32,
    fd: i32,
    info: &FdInfo,
    instance: &OwnedFd,
) -> Result<DescriptionKind, CheckpointError> {
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a variable of that type.
    if unsafe { libc::ioctl(instance.as_raw_fd(), libc::FIONREAD, &raw mut unread) } < 0 {
        return Err(CheckpointError::kernel("ioctl(FIONREAD)")(
            io::Error::last_os_error(),
        ));
    }
    if unread > 0 {
        return Err(Obstacle::descriptor(fd, "inotify instance with unread events").into());
    }
    let mut watches = Vec::new();
    for watch in info.inotify_watches()? {
        let path = find(pid, &watch).ok_or_else(|| {
            Obstacle::descriptor(
                fd,
                format!(
                    "inotify watch {} of an unknown file (inode {})",
                    watch.wd, watch.inode
                ),
            )
        })?;
        watches.push(InotifyWatch {
            wd: watch.wd,
            path,
            mask: watch.mask,
        });
    }
    Ok(DescriptionKind::Inotify { watches })
}

/// The path of a watched file as the process sees it.
fn find(pid: i32, watch: &RawInotifyWatch) -> Option<Vec<u8>> {
    let own = MOUNTS.iter().find_map(|mount| {
        let mount = File::open(format!("/proc/{pid}/{mount}")).ok()?;
        if encoded(mount.metadata().ok()?.dev()) != watch.device {
            return None;
        }
        let path = path_by_handle(&mount, watch.handle_type, &watch.handle)?;
        is_watched(pid, &path, watch).then_some(path)
    });
    own.or_else(|| find_behind_overlay(pid, watch))
}

/// An overlay cannot open its own handles, but they hold those of the layer that the file lies on. Where that layer
/// begins on the host is not known here: of the path there, the part that leads to the same file in the sandbox is it.
fn find_behind_overlay(pid: i32, watch: &RawInotifyWatch) -> Option<Vec<u8>> {
    let (kind, handle) = behind_overlay(watch.handle_type, &watch.handle)?;
    let on_host = path_by_handle(&File::open("/").ok()?, kind, handle)?;
    let ends = (0..on_host.len()).filter(|at| on_host[*at] == b'/');
    // The directory itself, where a layer begins.
    let suffixes = ends.map(|at| &on_host[at..]).chain([&b""[..]]);
    let path = |suffix: &[u8]| OVERLAYS.map(|mount| [mount, suffix].concat());
    // An overlay reports other device numbers for its files than its own, so handles are compared instead.
    suffixes.flat_map(path).find(|path| {
        let found = handle_of(&in_sandbox(pid, path));
        found.is_some_and(|(kind, handle)| {
            (kind, handle.as_slice()) == (watch.handle_type, &watch.handle)
        })
    })
}

/// The handle inside of a handle: three bytes of padding, then the kernel's `struct ovl_fb`.
fn behind_overlay(kind: i32, handle: &[u8]) -> Option<(i32, &[u8])> {
    const OVL_FILEID_V1: i32 = 0xf8;
    const PADDING: usize = 3;
    /// Version, magic, length, flags, type, UUID of the layer's file system.
    const HEADER: usize = 5 + 16;
    let inner = handle.get(PADDING..)?;
    let (header, rest) = inner.split_at_checked(HEADER)?;
    let is_known = kind == OVL_FILEID_V1
        && header[0] == 0
        && header[1] == 0xfb
        && usize::from(header[2]) == inner.len();
    is_known.then_some((i32::from(header[4]), rest))
}

/// A device number as the kernel shows it in `fdinfo`.
fn encoded(device: u64) -> u64 {
    u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device))
}

/// Does this path lead to the watched file? It may be that of a mount which something else covers, or be gone.
fn is_watched(pid: i32, path: &[u8], watch: &RawInotifyWatch) -> bool {
    let found = std::fs::symlink_metadata(as_path(&in_sandbox(pid, path)));
    path.first() == Some(&b'/')
        && found
            .is_ok_and(|found| (encoded(found.dev()), found.ino()) == (watch.device, watch.inode))
}

/// A path of the sandbox as the node reaches it.
fn in_sandbox(pid: i32, path: &[u8]) -> Vec<u8> {
    let mut whole = format!("/proc/{pid}/root").into_bytes();
    whole.extend_from_slice(path);
    whole
}

fn path_by_handle(mount: &File, kind: i32, handle: &[u8]) -> Option<Vec<u8>> {
    let file = open_by_handle(mount, kind, handle).ok()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    Some(path.as_os_str().as_bytes().to_vec())
}

/// `struct file_handle` with room for any.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_MAX],
}

/// The handle of a file, as inotify shows it: one that may not be fit to open the file again.
fn handle_of(path: &[u8]) -> Option<(i32, Vec<u8>)> {
    const AT_HANDLE_FID: i32 = 0x200;
    let path = CString::new(path).ok()?;
    let mut handle = Handle {
        bytes: HANDLE_MAX as u32,
        kind: 0,
        handle: [0; HANDLE_MAX],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the path ends in a zero; the structure has room for as many bytes as it announces; `mount` is an int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            AT_HANDLE_FID,
        )
    };
    let bytes = handle.handle.get(..handle.bytes as usize)?;
    (result == 0).then(|| (handle.kind, bytes.to_vec()))
}

fn open_by_handle(mount: &File, kind: i32, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut handle = Handle {
        bytes: bytes.len() as u32,
        kind,
        handle: [0; HANDLE_MAX],
    };
    handle
        .handle
        .get_mut(..bytes.len())
        .ok_or(io::ErrorKind::InvalidData)?
        .copy_from_slice(bytes);
    // SAFETY: the structure begins as `struct file_handle` does and has room for the bytes that it announces.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_handle_of_a_layer() {
        let mut handle = vec![0, 0, 0, 0, 0xfb, 0x1d, 0, 1];
        handle.extend_from_slice(&[0; 16]);
        handle.extend_from_slice(&[0x16, 0xeb, 3, 0, 0, 0, 0, 0]);
        let inner = [0x16u8, 0xeb, 3, 0, 0, 0, 0, 0];
        assert_eq!(behind_overlay(0xf8, &handle), Some((1, inner.as_slice())));
        assert_eq!(behind_overlay(1, &handle), None);
        handle.pop();
        assert_eq!(behind_overlay(0xf8, &handle), None, "another length");
        assert_eq!(behind_overlay(0xf8, &[0; 10]), None);
    }
}
