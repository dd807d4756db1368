//! The node's end of the conversation with the spawner: requests from any thread, one thread that reads the answers.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::protocol::{Event, Extra, Request};
use crate::config::{Limits, SandboxKind};
use crate::kernel::socket;
use crate::lent::LentGroup;
use crate::sandbox::{Exit, Exits, MemoryView, Process, Sandbox, SandboxError, SandboxHandle};

type Answer = (Event, Vec<OwnedFd>);

/// Who waits for what.
#[derive(Debug, Default)]
struct Waiting {
    /// Set when the spawner has ended: nobody may start to wait.
    closed: bool,
    requests: HashMap<u64, Sender<Answer>>,
    releases: HashMap<u64, Sender<Answer>>,
    /// What must live until nothing of a sandbox is left.
    kept: HashMap<u64, Vec<Box<dyn Any + Send>>>,
}

/// The node's end.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    next_request: AtomicU64,
    waiting: Mutex<Waiting>,
}

impl Link {
    /// Starts the reading thread.
    pub fn open(socket: OwnedFd) -> io::Result<(Arc<Link>, Exits, JoinHandle<()>)> {
        let link = Arc::new(Link {
            socket,
            next_request: AtomicU64::new(0),
            waiting: Mutex::default(),
        });
        let (sender, exits) = channel();
        let reading = Arc::clone(&link);
        let reader = std::thread::Builder::new()
            .name("spawner-link".into())
            .spawn(move || reading.read(&sender))?;
        Ok((link, exits, reader))
    }

    fn read(&self, exits: &Sender<Exit>) {
        while let Ok(Some((bytes, descriptors))) = socket::receive(&self.socket) {
            let Ok(event) = serde_json::from_slice::<Event>(&bytes) else {
                tracing::error!("unreadable message from the spawner");
                continue;
            };
            let mut outlived = None;
            let waiter = match &event {
                Event::Created { request, .. }
                | Event::TemplateHost { request, .. }
                | Event::Group { request, .. }
                | Event::Failed { request, .. } => self.waiting().requests.remove(request),
                Event::Released { sandbox } => {
                    let mut waiting = self.waiting();
                    outlived = waiting.kept.remove(sandbox);
                    waiting.releases.remove(sandbox)
                }
                Event::Exit { pid, status } => {
                    // Nobody listens if the receiver was dropped.
                    let _ = exits.send(Exit {
                        pid: *pid,
                        status: *status,
                    });
                    None
                }
                Event::Started { .. } | Event::NotStarted { .. } => None,
            };
            // Not under the lock: what is dropped may do anything.
            drop(outlived);
            if let Some(waiter) = waiter {
                let _ = waiter.send((event, descriptors));
            }
        }
        let closed = Waiting {
            closed: true,
            ..Waiting::default()
        };
        // Dropping the senders wakes everybody who waits.
        let rest = std::mem::replace(&mut *self.waiting(), closed);
        drop(rest);
    }

    /// Has the spawner ended?
    pub fn is_closed(&self) -> bool {
        self.waiting().closed
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request that nobody waits for; a spawner that has ended needs no telling.
    pub fn send(&self, request: &Request) {
        if let Ok(bytes) = serde_json::to_vec(request) {
            let _ = socket::send(&self.socket, &bytes, &[]);
        }
    }

    fn ask(&self, make: impl FnOnce(u64) -> Request) -> Result<Answer, SandboxError> {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let bytes =
            serde_json::to_vec(&make(id)).map_err(|error| SandboxError::Send(error.into()))?;
        let (sender, answer) = channel();
        {
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(SandboxError::SpawnerGone);
            }
            waiting.requests.insert(id, sender);
        }
        if let Err(error) = socket::send(&self.socket, &bytes, &[]) {
            self.waiting().requests.remove(&id);
            return Err(if error.kind() == io::ErrorKind::BrokenPipe {
                SandboxError::SpawnerGone
            } else {
                SandboxError::Send(error)
            });
        }
        match answer.recv() {
            Ok((Event::Failed { reason, .. }, _)) => Err(SandboxError::Refused(reason)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(SandboxError::SpawnerGone),
        }
    }

    /// See [`crate::Spawner::create`].
    pub fn create(
        self: &Arc<Self>,
        limits: Limits,
        kind: SandboxKind,
    ) -> Result<Sandbox, SandboxError> {
        let (event, descriptors) = self.ask(|request| Request::Create {
            request,
            limits,
            kind,
        })?;
        self.assemble(event, descriptors)
            .ok_or_else(|| SandboxError::Refused("the spawner's answer is incomplete".into()))
    }

    fn assemble(self: &Arc<Self>, event: Event, descriptors: Vec<OwnedFd>) -> Option<Sandbox> {
        let Event::Created {
            sandbox: id,
            init,
            blank,
            extras,
            ..
        } = event
        else {
            return None;
        };
        let mut descriptors = descriptors.into_iter();
        let pidfd = descriptors.next()?;
        let mut handle = SandboxHandle {
            id,
            init: pidfd.try_clone().ok()?,
            link: Arc::clone(self),
            memory: MemoryView::default(),
            released: false,
        };
        let listener = TcpListener::from(descriptors.next()?);
        let client = descriptors.next()?;
        let server = TcpStream::from(descriptors.next()?);
        let (mut cgroup_entrances, mut blank_pidfd, mut control, mut events, mut peak) =
            (Vec::new(), None, None, None, None);
        for (extra, descriptor) in extras.into_iter().zip(descriptors) {
            match extra {
                Extra::BlankPidfd => blank_pidfd = Some(descriptor),
                Extra::BlankControl => control = Some(descriptor),
                Extra::CgroupEntrance => cgroup_entrances.push(descriptor),
                Extra::CgroupProcs => {}
                Extra::MemoryEvents => events = Some(descriptor),
                Extra::MemoryPeak => peak = Some(descriptor),
            }
        }
        let blank = match blank {
            Some(pid) => Some((
                Process {
                    pid,
                    pidfd: blank_pidfd?,
                },
                control?,
            )),
            None => None,
        };
        handle.memory = MemoryView::new(events, peak);
        let init = Process { pid: init, pidfd };
        Some(Sandbox {
            id,
            init,
            blank,
            listener,
            client,
            server,
            cgroup_entrances,
            handle,
        })
    }

    /// See [`crate::Spawner::create_template_host`].
    pub fn create_template_host(&self) -> Result<(Process, OwnedFd), SandboxError> {
        let (event, descriptors) = self.ask(|request| Request::CreateTemplateHost { request })?;
        let mut descriptors = descriptors.into_iter();
        match (event, descriptors.next(), descriptors.next()) {
            (Event::TemplateHost { pid, .. }, Some(pidfd), Some(control)) => {
                Ok((Process { pid, pidfd }, control))
            }
            _ => Err(SandboxError::Refused(
                "the spawner's answer is incomplete".into(),
            )),
        }
    }

    /// See [`crate::Spawner::lend_group`].
    pub fn lend_group(self: &Arc<Self>, limits: Limits) -> Result<LentGroup, SandboxError> {
        let (event, descriptors) = self.ask(|request| Request::LendGroup { request, limits })?;
        let Event::Group { group, extras, .. } = event else {
            let reason = "the spawner's answer is incomplete".into();
            return Err(SandboxError::Refused(reason));
        };
        let (mut procs, mut events, mut peak) = (Vec::new(), None, None);
        for (extra, descriptor) in extras.into_iter().zip(descriptors) {
            match extra {
                Extra::CgroupProcs => procs.push(descriptor),
                Extra::MemoryEvents => events = Some(descriptor),
                Extra::MemoryPeak => peak = Some(descriptor),
                Extra::BlankPidfd | Extra::BlankControl | Extra::CgroupEntrance => {}
            }
        }
        Ok(LentGroup {
            id: group,
            link: Arc::clone(self),
            procs,
            memory: MemoryView::new(events, peak),
        })
    }

    /// See [`SandboxHandle::keep_until_gone`].
    pub fn keep_until_gone(&self, sandbox: u64, what: Box<dyn Any + Send>) {
        let mut waiting = self.waiting();
        // All sandboxes end with the spawner.
        if !waiting.closed {
            waiting.kept.entry(sandbox).or_default().push(what);
        }
    }

    /// Gives a sandbox back without waiting.
    pub fn release(&self, sandbox: u64) {
        self.send(&Request::Release { sandbox });
    }

    /// Gives a sandbox back and waits until nothing of it is left.
    pub fn release_and_wait(&self, sandbox: u64) {
        let (sender, answer) = channel();
        {
            let mut waiting = self.waiting();
            if waiting.closed {
                return;
            }
            waiting.releases.insert(sandbox, sender);
        }
        self.release(sandbox);
        // An error means that the spawner has ended: then nothing of the sandbox is left either.
        let _ = answer.recv();
    }
}
