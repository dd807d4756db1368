//! The spawner: the one process of a node that makes processes.
//!
//! It is forked from the node while that has a single thread, so it may itself fork at any time, and its children may
//! do what programs do. It has its own mount namespace, in which the root of all sandboxes is built once.
//! This module is the node's side; [`server`] is the process.

mod demand;
mod link;
mod nursery;
mod outbound;
mod populate;
mod protocol;
mod server;
mod slots;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

pub(crate) use link::Link;
use protocol::Event;
pub(crate) use protocol::Request;
use server::chain;

use crate::cgroup::Cgroups;
use crate::config::{Limits, SandboxConfig, SandboxKind};
use crate::kernel::notification::Notifications;
use crate::kernel::{process, socket};
use crate::lent::LentGroup;
use crate::sandbox::{BlankContext, Exits, Process, Sandbox, SandboxError};

/// Runs in a blank process or in a template host.
pub type BlankMain = fn(BlankContext) -> !;

/// Why the spawner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// The process has threads already.
    #[error("the spawner must be started before any thread")]
    Threads,
    /// The process could not be made.
    #[error("cannot start the spawner process")]
    Fork(#[source] io::Error),
    /// It ended before it was ready.
    #[error("the spawner ended while it was starting")]
    Died,
    /// It could not set itself up.
    #[error("the spawner could not be set up: {0}")]
    Setup(String),
}

/// The node's hold on the spawner. Dropping it ends the spawner with all its sandboxes.
#[derive(Debug)]
pub struct Spawner {
    link: Arc<Link>,
    exits: Mutex<Option<Exits>>,
    pid: i32,
    /// Name of the control groups, which the spawner removes if it can.
    cgroup: String,
    warnings: Vec<String>,
    memory_calls: Mutex<Option<Notifications>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Spawner {
    /// Forks the spawner, which builds the sandboxes' root; returns when it is ready.
    ///
    /// Must be called while the process has a single thread; starts one thread in the calling process itself.
    /// `blank_main` runs in every blank process, `template_main` in every template host.
    pub fn start(
        config: SandboxConfig,
        blank_main: BlankMain,
        template_main: BlankMain,
    ) -> Result<Spawner, SpawnerError> {
        if !process::is_single_threaded().map_err(SpawnerError::Fork)? {
            return Err(SpawnerError::Threads);
        }
        let (ours, theirs) = socket::pair().map_err(SpawnerError::Fork)?;
        let cgroup = config.cgroup.clone();
        let node = rustix::process::getpid();
        // SAFETY: the process has a single thread, so the child may run any code.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(SpawnerError::Fork(io::Error::last_os_error())),
            0 => {
                drop(ours);
                process::run_child(|| server::run(theirs, node, config, blank_main, template_main))
            }
            pid => pid,
        };
        drop(theirs);
        match Self::wait_until_started(&ours) {
            Ok((warnings, memory_calls)) => {
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                let (link, exits, reader) = Link::open(ours).map_err(SpawnerError::Fork)?;
                Ok(Spawner {
                    link,
                    exits: Mutex::new(Some(exits)),
                    pid,
                    cgroup,
                    warnings,
                    memory_calls: Mutex::new(memory_calls.map(Notifications::new)),
                    reader: Some(reader),
                })
            }
            Err(error) => {
                drop(ours);
                reap(pid);
                Err(error)
            }
        }
    }

    fn wait_until_started(
        socket: &OwnedFd,
    ) -> Result<(Vec<String>, Option<OwnedFd>), SpawnerError> {
        let message = socket::receive(socket).map_err(SpawnerError::Fork)?;
        let event = message.and_then(|(bytes, descriptors)| {
            Some((serde_json::from_slice(&bytes).ok()?, descriptors))
        });
        match event {
            Some((Event::Started { warnings }, descriptors)) => {
                Ok((warnings, descriptors.into_iter().next()))
            }
            Some((Event::NotStarted { reason }, _)) => Err(SpawnerError::Setup(reason)),
            _ => Err(SpawnerError::Died),
        }
    }

    /// Makes a sandbox and waits for it (a few milliseconds). Any number of threads may call it at a time.
    pub fn create(&self, limits: Limits, kind: SandboxKind) -> Result<Sandbox, SandboxError> {
        self.link.create(limits, kind)
    }

    /// Makes a template host: a process outside of any sandbox, with the host's rights, that runs `template_main`.
    /// Returns it with the node's end of its control socket. It dies with the spawner.
    pub fn create_template_host(&self) -> Result<(Process, OwnedFd), SandboxError> {
        self.link.create_template_host()
    }

    /// Control groups with limits for processes that the node has made. The spawner removes them at its end, whatever becomes of
    /// the node. Waits for a millisecond or so.
    pub fn lend_group(&self, limits: Limits) -> Result<LentGroup, SandboxError> {
        self.link.lend_group(limits)
    }

    /// The exits of all children of the spawner. Can be taken once.
    pub fn exits(&self) -> Option<Exits> {
        self.exits
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    /// Where the memory calls of all sandboxes arrive, if they are handed over. Can be taken once. Somebody must answer
    /// them before the first request to the spawner, which itself waits for answers.
    pub fn memory_calls(&self) -> Option<Notifications> {
        self.memory_calls
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    /// What the host lacks for full isolation or speed, in sentences.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Has the spawner ended? Then no sandbox can be made any more.
    pub fn is_gone(&self) -> bool {
        self.link.is_closed()
    }

    /// Pid of the spawner.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends every sandbox and template host, removes the control groups, and waits until the spawner has ended.
    pub fn shutdown(self) {}
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.link.send(&Request::Shutdown);
        if !reap(self.pid) {
            tracing::warn!("the spawner did not end in order; its control groups are removed");
            match Cgroups::open(&self.cgroup) {
                Ok((groups, _)) => groups.remove(),
                Err(error) => tracing::warn!(error = chain(&error), "control groups are left"),
            }
        }
        if let Some(reader) = self.reader.take() {
            // Ends by itself: the spawner's end of the socket is closed. Panics there have been reported already.
            let _ = reader.join();
        }
    }
}

/// Waits for the spawner, and says whether it ended in order.
fn reap(pid: i32) -> bool {
    let mut status = -1;
    // SAFETY: waits for a child of this process and stores its status in a local.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    status == 0
}

/// Sends `event` with descriptors; a node that is gone is noticed elsewhere.
fn tell(socket: impl AsFd, event: &Event, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
    if let Ok(bytes) = serde_json::to_vec(event) {
        let _ = socket::send(socket, &bytes, descriptors);
    }
}
