//! Keeps the pool invisible to the functions whose memory it is.
//!
//! Memory of a restored function is a private mapping of the pool, not anonymous memory, and two
//! system calls would show the difference. The kernel hands them to the node
//! (`rouse_sandbox::seccomp::memory_calls`), which answers as if the memory were anonymous:
//!
//! | call | the kernel alone would | the node's answer |
//! |---|---|---|
//! | `madvise(MADV_DONTNEED)` | bring back the snapshot's bytes | zeros (of a private file mapping: the file's bytes) |
//! | `madvise(MADV_FREE)` | refuse | done: the bytes may stay, as `madvise(2)` allows |
//! | `mremap` that grows | show other pages of the pool, or none (`SIGBUS`) | `ENOMEM`: C libraries allocate and copy |
//!
//! Calls about memory that is not the pool's, such as everything that was mapped after the
//! restore, are made by the kernel as they were asked.
//!
//! Zeros are written, so memory that is given back in this way stays charged to the function. It
//! is bounded by what was in its snapshot. Rejected: a `SIGSYS` handler in the process (threads
//! that are ending give back their stacks with all signals blocked, which would kill them);
//! userfaultfd (its event comes before the pages go, and the page table would be filled from the
//! pool again by the next touch); private copies instead of a mapping (nothing would be shared).

mod answer;
mod areas;
mod pools;

use std::io;
use std::sync::Arc;

use rouse_sandbox::Notifications;
use rustix::event::{PollFd, PollFlags, poll};

pub use pools::PoolIndex;

/// Threads that answer. More than one, so that a function that gives back a lot does not keep
/// its neighbours waiting.
const THREADS: usize = 2;

/// Starts to answer. The threads end when the last process that could ask has ended.
pub fn start(calls: Notifications, pools: Arc<PoolIndex>) -> io::Result<()> {
    let calls = Arc::new(calls);
    for _ in 0..THREADS {
        let (calls, pools) = (calls.clone(), pools.clone());
        std::thread::Builder::new()
            .name("memory-calls".into())
            .spawn(move || run(&calls, &pools))?;
    }
    Ok(())
}

fn run(calls: &Notifications, pools: &PoolIndex) {
    loop {
        let mut polled = [PollFd::new(calls, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) if polled[0].revents().contains(PollFlags::HUP) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "memory calls cannot be awaited"),
        }
        match calls.receive() {
            Ok(Some(call)) => {
                let answer = answer::find(&call, pools, || calls.still_waits(&call));
                calls.answer(&call, answer);
            }
            Ok(None) => {}
            Err(error) => return tracing::error!(%error, "memory calls cannot be received"),
        }
    }
}
