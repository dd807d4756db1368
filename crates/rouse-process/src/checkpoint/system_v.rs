//! System V objects: they belong to an ipc namespace and outlive every process, so nothing of the
//! process leads to them. Only the kernel's own count tells that there are any.

use super::error::{CheckpointError, Obstacle, Subject};
use super::inject::{Remote, RemoteThread};
use super::proc_files;

const SHM_INFO: u64 = 14;
const MSG_INFO: u64 = 12;
const SEM_INFO: u64 = 19;

/// Fails when there are any in the ipc namespace of the process.
///
/// A process in the node's own namespace is no sandbox: what is there is the host's.
pub(crate) fn refuse_objects(
    pid: i32,
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
) -> Result<(), CheckpointError> {
    let namespace = proc_files::read_link(pid, "ns/ipc")?;
    if std::fs::read_link("/proc/self/ns/ipc")
        .is_ok_and(|own| own.as_os_str().as_encoded_bytes() == namespace)
    {
        return Ok(());
    }
    let buffer = remote.scratch();
    // `used_ids` of struct shm_info, `msgpool` of struct msginfo, `semusz` of struct seminfo: all
    // are counts of objects.
    let kinds = [
        (
            "shared memory",
            "shmctl(SHM_INFO)",
            libc::SYS_shmctl,
            [0, SHM_INFO, buffer, 0],
            0,
        ),
        (
            "message queues",
            "msgctl(MSG_INFO)",
            libc::SYS_msgctl,
            [0, MSG_INFO, buffer, 0],
            0,
        ),
        (
            "semaphores",
            "semctl(SEM_INFO)",
            libc::SYS_semctl,
            [0, 0, SEM_INFO, buffer],
            7,
        ),
    ];
    for (what, name, call, arguments, word) in kinds {
        leader.call(name, call, &arguments)?;
        let words = remote.result::<32>()?;
        let count = u32::from_ne_bytes(std::array::from_fn(|byte| words[word * 4 + byte]));
        if count > 0 {
            return Err(
                Obstacle::new(Subject::Namespace("ipc"), format!("System V {what}")).into(),
            );
        }
    }
    Ok(())
}
