//! The keeper: a process that does nothing but own descriptors and start the pager again.
//!
//! ```text
//!  daemon                                     memory files, userfaultfds, control socket
//!   |  control socket                               |
//!   `------------------ keeper ----- one table of descriptors
//!                         |                         |
//!                         `- pager (clone, CLONE_FILES)      <- dies, and is started again
//! ```
//!
//! When the last copy of a userfaultfd is closed, absent pages become readable as zeros. The pager
//! decodes, reads disks and follows events, so it is what may die; the keeper only waits, so that
//! it does not.
//!
//! | dies | then |
//! |---|---|
//! | pager | The keeper starts another. Faults wait meanwhile. |
//! | keeper | The pager goes on and says so ([`PagerEvent::KeeperLost`]). The daemon should end all instances and start anew. |
//! | keeper and pager | Memory registered by the daemon waits for ever, because [`Registration`] has a copy of its descriptor; the daemon must end all instances ([`PagerEvent::Gone`]). Memory of processes that instances forked reads zeros where it is absent. |
//! | daemon | Its instances end with it; they are served until they have, then pager and keeper end. |
//! | instance | The pager notices when it is told ([`Registration::unregister`]), and of forked processes by itself. |

mod error;
mod events;
mod handle;
mod link;
mod news;
mod process;

pub use error::{KeeperError, PagerError};
pub use events::{DamageReason, PagerEvent};
pub use handle::{PagerHandle, PagerStats, PoolMapping, PoolStats, Registration};
pub use news::PageFault;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::Receiver;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::pager::arena::Arena;

/// A keeper that was started, and to which nobody talks yet.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    arena: &'static Arena,
    pid: Pid,
}

/// Forks the keeper, which starts the pager.
///
/// Must be called while the process has a single thread: keeper and pagers go on in copies of its
/// memory, in which locks that other threads held would never be released. Starts no thread
/// itself, so that other processes can be forked afterwards; [`Keeper::connect`] does.
///
/// # Errors
/// See [`KeeperError`].
pub fn start() -> Result<Keeper, KeeperError> {
    if !process::is_single_threaded().map_err(KeeperError::Fork)? {
        return Err(KeeperError::Threads);
    }
    let device = crate::uffd::Device::open().map_err(KeeperError::Device)?;
    let arena = Arena::new().map_err(KeeperError::Fork)?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| KeeperError::Fork(error.into()))?;
    let keep = [theirs.as_raw_fd(), device.as_fd().as_raw_fd()];
    // SAFETY: the process has a single thread, so that the child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(KeeperError::Fork(io::Error::last_os_error())),
        0 => process::run(arena, keep),
        pid => Ok(Keeper {
            socket: ours,
            arena,
            pid: Pid::from_raw(pid)
                .ok_or_else(|| KeeperError::Fork(io::ErrorKind::Other.into()))?,
        }),
    }
}

impl Keeper {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Starts the thread that talks to the pager, and allows this process as many descriptors as it may have. Returns the daemon's hold on it, and what it
    /// reports.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn connect(self) -> io::Result<(PagerHandle, Receiver<PagerEvent>)> {
        process::raise_descriptor_limit();
        PagerHandle::connect(self.socket, self.arena, self.pid)
    }
}
