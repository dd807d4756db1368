//! POSIX message queues. One that is open has a descriptor and is found there. One that is not
//! belongs to the ipc namespace alone, like System V objects; every sandbox gets a fresh one, so
//! its messages would be lost. Only a mount of the namespace's `mqueue` file system shows them.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{CheckpointError, Obstacle, Subject};
use super::proc_files;

/// Fails when there is a queue in the ipc namespace of the process.
///
/// A process in the node's own namespace is no sandbox: what is there is the host's.
pub(crate) fn refuse_queues(pid: i32) -> Result<(), CheckpointError> {
    let namespace = proc_files::read_link(pid, "ns/ipc")?;
    if std::fs::read_link("/proc/self/ns/ipc")
        .is_ok_and(|own| own.as_os_str().as_encoded_bytes() == namespace)
    {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/ipc");
    let file =
        std::fs::File::open(&path).map_err(|source| CheckpointError::Read { path, source })?;
    // A thread of its own enters the namespace, and ends there.
    let name = std::thread::scope(|scope| {
        scope
            .spawn(|| first_queue(&file.into()))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    match name {
        Some(name) => {
            let reason = format!("POSIX message queue /{name}");
            Err(Obstacle::new(Subject::Namespace("ipc"), reason).into())
        }
        None => Ok(()),
    }
}

fn first_queue(namespace: &OwnedFd) -> Result<Option<String>, CheckpointError> {
    let ipc = Some(LinkNameSpaceType::InterProcessCommunication);
    move_into_link_name_space(namespace.as_fd(), ipc).map_err(CheckpointError::kernel("setns"))?;
    let file_system = match rustix::mount::fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        // The kernel has no such queues.
        Err(rustix::io::Errno::NODEV) => return Ok(None),
        other => other.map_err(CheckpointError::kernel("fsopen"))?,
    };
    rustix::mount::fsconfig_create(&file_system).map_err(CheckpointError::kernel("fsconfig"))?;
    // Attached nowhere: it is gone when it is closed.
    let mount = rustix::mount::fsmount(
        &file_system,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(CheckpointError::kernel("fsmount"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(&mount, ".", flags, Mode::empty())
        .map_err(CheckpointError::kernel("openat"))?;
    for entry in Dir::new(root).map_err(CheckpointError::kernel("getdents64"))? {
        let entry = entry.map_err(CheckpointError::kernel("getdents64"))?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}
