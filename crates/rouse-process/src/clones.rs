//! A template host and its clones in waiting: the `fork` path.
//!
//! See `plan::template` for the processes. Here is the node's side: it starts the host, has
//! porters enter sandboxes ahead of requests, and tells one of them to make its clone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rouse_pool::memory::{Hold, ImageMemory, hold_all};
use rouse_restorer::program::Program;
use rouse_sandbox::{
    Limits, Process, Sandbox, SandboxError, SandboxKind, Spawner, TaskLayers, open_task_mount,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use crate::credentials;
use crate::image::{Image, ImageError, LoadedProgram, Programs};
use crate::order;
use crate::plan::{Environment, READY};
use crate::stock::{Filler, Size, Stock};

/// How long a template host or a porter may take to be ready. They need milliseconds; but whoever waits for one that
/// hangs keeps others waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why no clone could be made.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// No sandbox or template host.
    #[error("no place for a clone")]
    Sandbox(#[from] SandboxError),
    /// A template needs all pages of its image in memory.
    #[error("the snapshot is not in memory")]
    NotResident,
    /// The program of the template host.
    #[error("no operation list for the template host")]
    Program(#[from] ImageError),
    /// A channel could not be made or used.
    #[error("{0}")]
    Channel(&'static str, #[source] io::Error),
    /// The template host or a porter has ended.
    #[error("the {who} has ended")]
    Ended {
        /// `template host` or `porter`.
        who: &'static str,
    },
    /// The template host or a porter said something else than that it is ready.
    #[error("{who} failed: {what}")]
    NotReady {
        /// `template host` or `porter`.
        who: &'static str,
        /// What it said.
        what: String,
    },
}

/// A clone that needs one byte to come into being.
#[derive(Debug)]
pub struct Prepared {
    /// Its sandbox. Its `client` has already been handed over.
    pub sandbox: Sandbox,
    /// The node's end of the porter's control socket.
    pub control: OwnedFd,
    /// Reading end of its log.
    pub log: OwnedFd,
}

/// The template host of an image, and clones of it that wait in their sandboxes.
#[derive(Debug)]
pub struct Clones {
    pub(crate) stock: Arc<Stock<Prepared, CloneError>>,
    /// What they were made with.
    pub(crate) programs: Arc<Programs>,
    /// The pools that it maps.
    pub(crate) memories: Vec<Arc<ImageMemory>>,
    /// What the host runs.
    pub(crate) program: Arc<Program>,
}

#[derive(Debug)]
struct Host {
    process: Process,
    /// Orders must not be mixed up with the answers to others.
    control: Mutex<OwnedFd>,
    spawner: Arc<Spawner>,
    room: Arc<LoadedProgram>,
    limits: Limits,
    task: TaskLayers,
    /// What its memory relies on, and that of porters and clones.
    holds: Vec<Hold>,
}

impl Clones {
    /// Starts a template host for `image` and prepares `target` clones in the background.
    pub fn start(
        spawner: &Arc<Spawner>,
        room: &Arc<LoadedProgram>,
        filler: &Filler,
        image: &Image,
        environment: &Environment,
        (limits, task): (Limits, TaskLayers),
        target: usize,
    ) -> Result<Self, CloneError> {
        let memories = image.memories();
        let holds = hold_all(&memories);
        if holds.iter().any(|hold| matches!(hold, Hold::Absent(_))) {
            return Err(CloneError::NotResident);
        }
        let programs = image.programs();
        let loaded = programs.template(image, environment)?;
        let program = loaded.program.clone();
        let (process, control) = spawner.create_template_host()?;
        let host = Host {
            process,
            control: Mutex::new(control),
            spawner: spawner.clone(),
            room: room.clone(),
            limits,
            task,
            holds,
        };
        host.load(image, &memories, loaded)?;
        let stock = Stock::new(filler, Size::fixed(target), move || host.prepare());
        Ok(Self {
            stock,
            programs,
            memories,
            program,
        })
    }
}

impl Drop for Host {
    /// It waits for orders for ever; clones that exist do not need it. Whoever is just preparing one still holds it.
    fn drop(&mut self) {
        let host = &self.process.pidfd;
        let _ = rustix::process::pidfd_send_signal(host, rustix::process::Signal::KILL);
        // Until it is gone, its memory needs what it relies on. If nobody can wait for that, the pages stay.
        let holds = std::mem::take(&mut self.holds);
        let relied_on = holds.clone();
        let waits = host.try_clone().and_then(|host| {
            std::thread::Builder::new()
                .name("template-end".into())
                .spawn(move || {
                    let mut polled = [PollFd::new(&host, PollFlags::IN)];
                    while let Err(rustix::io::Errno::INTR) = poll(&mut polled, None) {}
                    drop(holds);
                })
        });
        if waits.is_err() {
            std::mem::forget(relied_on);
        }
    }
}

impl Host {
    fn load(
        &self,
        image: &Image,
        memories: &[Arc<ImageMemory>],
        program: &LoadedProgram,
    ) -> Result<(), CloneError> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let null = std::fs::File::open("/dev/null")
            .map_err(|e| CloneError::Channel("/dev/null cannot be opened", e))?;
        // A template has no log, no connection and no task mount of its own: they come with each clone.
        let mut fds: Vec<BorrowedFd<'_>> = vec![null.as_fd(); 3];
        fds.extend(image.descriptors(memories));
        let sent = order::send_wait(control.as_fd(), &self.room)
            .and_then(|()| order::send_program(control.as_fd(), program, &fds));
        sent.map_err(|e| CloneError::Channel("the template host cannot be reached", e))?;
        ready(control.as_fd(), "template host", |op| {
            program.program.describe(op)
        })
    }

    fn prepare(&self) -> Result<Prepared, CloneError> {
        let sandbox = self.spawner.create(self.limits, SandboxKind::ForkTarget)?;
        sandbox.handle.keep_until_gone(self.holds.clone());
        let channel = |what| move |e: io::Error| CloneError::Channel(what, e);
        let (log, log_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| CloneError::Channel("no pipe for the log", e.into()))?;
        let task =
            open_task_mount(&self.task).map_err(channel("the function's code cannot be lent"))?;
        let (control, porter_end) = control_pair().map_err(channel("no control socket"))?;
        let mut fds = vec![
            porter_end.as_fd(),
            log_end.as_fd(),
            sandbox.client.as_fd(),
            task.as_fd(),
            sandbox.init.pidfd.as_fd(),
        ];
        fds.extend(sandbox.cgroup_entrances.iter().map(|fd| fd.as_fd()));
        {
            let host = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            order::send(host.as_fd(), &[READY], &fds)
                .map_err(channel("the template host cannot be reached"))?;
        }
        drop(porter_end);
        ready(control.as_fd(), "porter", |op| {
            format!("operation at {op:#x}")
        })?;
        Ok(Prepared {
            sandbox,
            control,
            log,
        })
    }
}

impl Prepared {
    /// Tells the porter to make its clone.
    pub fn go(&self) -> io::Result<()> {
        order::send(self.control.as_fd(), &[READY], &[])
    }
}

fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (node, other) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    credentials::enable(node.as_fd())?;
    Ok((node, other))
}

/// Waits for the one byte that says ready.
fn ready(
    control: BorrowedFd<'_>,
    who: &'static str,
    describe: impl Fn(u64) -> String,
) -> Result<(), CloneError> {
    rustix::net::sockopt::set_socket_timeout(
        control,
        rustix::net::sockopt::Timeout::Recv,
        Some(PATIENCE),
    )
    .map_err(|e| CloneError::Channel("no time limit on the control socket", e.into()))?;
    let mut buffer = [0u8; 1024];
    let (_, len) = rustix::net::recv(control, &mut buffer[..], RecvFlags::empty())
        .map_err(|e| CloneError::Channel("no answer on the control socket", e.into()))?;
    match &buffer[..len] {
        [READY] => Ok(()),
        [] => Err(CloneError::NotReady {
            who,
            what: "it has ended".into(),
        }),
        other => {
            let words: Vec<u64> = other
                .chunks_exact(8)
                .filter_map(|w| w.first_chunk())
                .map(|w| u64::from_le_bytes(*w))
                .collect();
            if other.is_empty() {
                return Err(CloneError::Ended { who });
            }
            let what = match words[..] {
                [rouse_restorer::op::FAILURE_TAG, op, result] => {
                    format!(
                        "{}: {}",
                        describe(op),
                        io::Error::from_raw_os_error(-(result as i64) as i32)
                    )
                }
                _ => String::from_utf8_lossy(other).into_owned(),
            };
            Err(CloneError::NotReady { who, what })
        }
    }
}
