//! Control groups for processes that the spawner has not made: VMMs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sandbox::MemoryView;
use crate::spawner::{Link, Request};

/// Control groups of the spawner's, until this is dropped. All processes in them must have ended then.
#[derive(Debug)]
pub struct LentGroup {
    pub(crate) id: u64,
    pub(crate) link: Arc<Link>,
    /// `cgroup.procs` of each hierarchy.
    pub(crate) procs: Vec<OwnedFd>,
    pub(crate) memory: MemoryView,
}

impl LentGroup {
    /// Moves a process there, with all of its threads.
    ///
    /// # Errors
    /// What the kernel says, for instance that it has ended.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        let pid = pid.to_string();
        for procs in &self.procs {
            rustix::io::write(procs, pid.as_bytes())?;
        }
        Ok(())
    }

    /// The most memory that their processes have had together, bytes; 0 if the kernel does not tell.
    pub fn memory_peak(&self) -> u64 {
        self.memory.peak()
    }

    /// Processes that were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.memory.oom_kills()
    }
}

impl Drop for LentGroup {
    fn drop(&mut self) {
        self.link.send(&Request::ReturnGroup { group: self.id });
    }
}
