//! The end of the process that makes all sandboxes: waited for, or come upon.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long the spawner may take to end its sandboxes and remove their control groups.
const PATIENCE: Duration = Duration::from_secs(10);

/// The spawner of a node, which is reaped when the node's last hold on it is gone.
#[derive(Debug, Clone, Copy)]
pub struct SpawnerEnd {
    pid: i32,
}

impl SpawnerEnd {
    /// The end of this child.
    pub fn of(pid: i32) -> Self {
        Self { pid }
    }

    /// Ready when the spawner has ended though the node still runs. It cannot be replaced: a process with threads must not
    /// fork, and all sandboxes have ended with it.
    pub async fn come(self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: `OwnedFd` owns its descriptor and always names the same one.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        drop(pidfd.readable().await?);
        Ok(())
    }

    /// Waits until the spawner has ended, so that whoever sees this process end finds nothing left of it.
    ///
    /// Call it when the async runtime has been dropped. Dropping the launcher is not enough: a background thread may be
    /// making a sandbox at that moment, which keeps the spawner alive until it is made.
    pub fn wait(self) {
        let begin = Instant::now();
        // Its entry is there until it has been reaped.
        let entry = PathBuf::from(format!("/proc/{}", self.pid));
        while entry.exists() {
            if begin.elapsed() > PATIENCE {
                tracing::warn!(
                    pid = self.pid,
                    "the spawner has not ended yet; it ends with this process"
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
