//! A sandbox as the node holds it.

use std::any::Any;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::process::Signal;

use crate::spawner::Link;

/// What a blank process or a template host starts with.
#[derive(Debug)]
pub struct BlankContext {
    /// `SOCK_SEQPACKET` socket to the node. The only descriptor above 2 that is open.
    pub control: OwnedFd,
}

/// A process and its pidfd. Pids are those of the host.
#[derive(Debug)]
pub struct Process {
    /// Pid in the node's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// A child of the spawner has ended and been reaped.
///
/// Pids are reused by the kernel: the exit of an older process with the same pid may still be on its way when a new
/// one is reported. Where that matters, the pidfd decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its pid in the node's pid namespace.
    pub pid: i32,
    /// Raw wait status.
    pub status: i32,
}

/// Exits of all children of the spawner: inits, blank processes (and what became of them), template hosts, fork clones.
pub type Exits = Receiver<Exit>;

/// Why no sandbox was made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The spawner has ended, and with it every sandbox.
    #[error("the spawner has ended")]
    SpawnerGone,
    /// The spawner could not make it.
    #[error("the sandbox could not be made: {0}")]
    Refused(String),
    /// The request could not be sent to the spawner.
    #[error("the spawner cannot be reached")]
    Send(#[source] std::io::Error),
}

/// A sandbox, ready for an instance.
///
/// Its parts may be taken out one by one; the sandbox itself lives as long as its `handle`.
#[derive(Debug)]
pub struct Sandbox {
    /// Number of the sandbox, unique for the life of the node.
    pub id: u64,
    /// Pid 1 of the sandbox. When it dies, everything in the sandbox dies.
    pub init: Process,
    /// The blank process, for `SandboxKind::Blank`: (process, the node's end of its control socket).
    pub blank: Option<(Process, OwnedFd)>,
    /// Listens on 127.0.0.1:9001 inside of the sandbox.
    pub listener: TcpListener,
    /// The function's end of a connection to `listener`, made ahead.
    pub client: OwnedFd,
    /// The node's end of that connection.
    pub server: TcpStream,
    /// Of each hierarchy, open for writing: where a process of one thread writes `0` to enter the sandbox's group.
    pub cgroup_entrances: Vec<OwnedFd>,
    /// Ends the sandbox when dropped.
    pub handle: SandboxHandle,
}

impl Sandbox {
    /// Kills everything in the sandbox at once. Its resources are given back by [`Sandbox::destroy`] or by dropping it.
    pub fn kill(&self) {
        self.handle.kill();
    }

    /// Kills everything in the sandbox and waits until nothing of it is left (about a millisecond).
    /// Dropping the sandbox does the same in the background.
    pub fn destroy(self) {
        let Sandbox {
            listener,
            client,
            server,
            handle,
            ..
        } = self;
        // While a socket is open, the network namespace is not clean for another sandbox.
        drop((client, server, listener));
        handle.destroy();
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.handle.oom_kills()
    }

    /// Most memory that it has used at one time, bytes; 0 where the host cannot tell.
    pub fn memory_peak(&self) -> u64 {
        self.handle.memory_peak()
    }
}

/// Holds a sandbox alive. Dropping it kills everything in the sandbox and gives its resources back in the background.
#[derive(Debug)]
pub struct SandboxHandle {
    pub(crate) id: u64,
    pub(crate) init: OwnedFd,
    pub(crate) link: Arc<Link>,
    pub(crate) memory: MemoryView,
    pub(crate) released: bool,
}

/// What the node reads about a sandbox's memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryView {
    pub events: Option<File>,
    pub peak: Option<File>,
    /// Kills counted before this sandbox used the slot.
    pub kills_before: u64,
}

impl MemoryView {
    pub(crate) fn new(events: Option<OwnedFd>, peak: Option<OwnedFd>) -> MemoryView {
        let mut view = MemoryView {
            events: events.map(File::from),
            peak: peak.map(File::from),
            kills_before: 0,
        };
        view.kills_before = view.kills();
        view
    }

    /// Processes that were killed for want of memory since this view was made.
    pub fn oom_kills(&self) -> u64 {
        self.kills().saturating_sub(self.kills_before)
    }

    /// Most memory so far, bytes; 0 if the kernel does not tell.
    pub fn peak(&self) -> u64 {
        read(self.peak.as_ref()).trim().parse().unwrap_or(0)
    }

    fn kills(&self) -> u64 {
        let text = read(self.events.as_ref());
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }
}

fn read(file: Option<&File>) -> String {
    let mut buffer = [0; 1024];
    let length = file
        .and_then(|file| file.read_at(&mut buffer, 0).ok())
        .unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

impl SandboxHandle {
    /// See [`Sandbox::kill`].
    pub fn kill(&self) {
        // Fails only if it has ended already.
        let _ = rustix::process::pidfd_send_signal(self.init.as_fd(), Signal::KILL);
    }

    /// See [`Sandbox::destroy`].
    pub fn destroy(mut self) {
        self.kill();
        self.released = true;
        self.link.release_and_wait(self.id);
    }

    /// Drops `what` when nothing of the sandbox is left: for what its processes rely on until they are gone, which is
    /// some time after they were killed.
    pub fn keep_until_gone(&self, what: impl Any + Send) {
        self.link.keep_until_gone(self.id, Box::new(what));
    }

    /// See [`Sandbox::oom_kills`].
    pub fn oom_kills(&self) -> u64 {
        self.memory.oom_kills()
    }

    /// See [`Sandbox::memory_peak`].
    pub fn memory_peak(&self) -> u64 {
        self.memory.peak()
    }
}

impl Drop for SandboxHandle {
    fn drop(&mut self) {
        if !self.released {
            self.kill();
            self.link.release(self.id);
        }
    }
}
