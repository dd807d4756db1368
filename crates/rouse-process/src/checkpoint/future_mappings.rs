//! `mlockall(MCL_FUTURE)`: a property of the address space that the kernel shows nowhere, but that
//! every new mapping has. So one is made, looked at, and taken away again.

use super::error::{CheckpointError, Obstacle, Subject};
use super::inject::RemoteThread;
use super::proc_files::{self, Status};

const PAGE: u64 = 4096;

/// Fails when the process locks whatever it will map.
///
/// A restore maps the whole process anew, most of it from the pool: under that promise every page
/// of it would have to be there at once.
pub(crate) fn refuse_locked(pid: i32, leader: &RemoteThread<'_>) -> Result<(), CheckpointError> {
    let before = locked(pid)?;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let arguments = [0, PAGE, libc::PROT_NONE as u64, flags, !0, 0];
    let is_locked = match leader.call("mmap", libc::SYS_mmap, &arguments) {
        Ok(address) => {
            let after = locked(pid)?;
            leader.call("munmap", libc::SYS_munmap, &[address, PAGE])?;
            after != before
        }
        // It would be locked, but no more memory may be.
        Err(CheckpointError::Remote { source, .. })
            if source.raw_os_error() == Some(libc::EAGAIN) =>
        {
            true
        }
        // A process that may map nothing more (RLIMIT_AS) can lock nothing more either.
        Err(CheckpointError::Remote { source, .. })
            if source.raw_os_error() == Some(libc::ENOMEM) =>
        {
            false
        }
        Err(error) => return Err(error),
    };
    if !is_locked {
        return Ok(());
    }
    let name = String::from_utf8_lossy(&proc_files::name(pid)?).into_owned();
    let pid = Status::read(pid)?.innermost_id()?;
    let reason = "locks all memory that it will map (mlockall)";
    Err(Obstacle::new(Subject::Process { pid, name }, reason).into())
}

/// Locked memory, as the kernel writes it.
fn locked(pid: i32) -> Result<String, CheckpointError> {
    Ok(Status::read(pid)?.value("VmLck")?.to_owned())
}
