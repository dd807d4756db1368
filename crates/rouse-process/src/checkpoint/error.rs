//! Why a process could not be checkpointed.

use std::fmt;
use std::io;
use std::ops::Range;

/// What an obstacle is found at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A file descriptor of the process.
    Descriptor(i32),
    /// A process, by its id in the sandbox.
    Process {
        /// Process id in the sandbox.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// A thread, by its id in the sandbox.
    Thread {
        /// Thread id in the sandbox.
        tid: i32,
        /// Its name.
        name: String,
    },
    /// A memory mapping, by its addresses.
    Mapping(Range<u64>),
    /// A POSIX timer, by its kernel id.
    Timer(i32),
    /// A file, by its path in the sandbox.
    Path(Vec<u8>),
    /// A namespace of the sandbox, by its kind.
    Namespace(&'static str),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor(fd) => write!(f, "fd {fd}"),
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Thread { tid, name } => write!(f, "thread {tid} ({name})"),
            Self::Mapping(range) => write!(f, "mapping {:x}-{:x}", range.start, range.end),
            Self::Timer(id) => write!(f, "POSIX timer {id}"),
            Self::Namespace(kind) => write!(f, "{kind} namespace"),
            Self::Path(path) => f.write_str(&String::from_utf8_lossy(path)),
        }
    }
}

/// Something that a process holds and that cannot be brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Where it is.
    pub subject: Subject,
    /// What it is.
    pub reason: String,
}

impl Obstacle {
    pub(crate) fn new(subject: Subject, reason: impl Into<String>) -> Self {
        Self {
            subject,
            reason: reason.into(),
        }
    }

    pub(crate) fn descriptor(fd: i32, reason: impl Into<String>) -> Self {
        Self::new(Subject::Descriptor(fd), reason)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// Why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The process holds something that cannot be brought back.
    #[error("{0}")]
    Obstacle(Obstacle),
    /// The process ended before it was stopped.
    #[error("the process ended before it was stopped")]
    Gone,
    /// A thread sleeps where it cannot be stopped.
    #[error("thread {tid} did not stop within {waited_ms} ms")]
    NotStopped {
        /// Thread id on the host.
        tid: i32,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A request to a stopped thread failed.
    #[error("ptrace request {request} failed for thread {tid}")]
    Ptrace {
        /// Name of the request.
        request: &'static str,
        /// Thread id on the host.
        tid: i32,
        /// Why.
        source: io::Error,
    },
    /// A system call that was made inside of the stopped process failed.
    #[error("{call} failed inside of the stopped process")]
    Remote {
        /// Name of the system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A system call of the node failed.
    #[error("{call} failed")]
    Kernel {
        /// Name of the system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file, usually below `/proc`.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file below `/proc` says something unexpected.
    #[error("{path}: no valid {what}")]
    Format {
        /// The file.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// Memory of the process could not be read.
    #[error("cannot read the memory of the process at {address:#x}")]
    Memory {
        /// Where.
        address: u64,
        /// Why.
        source: io::Error,
    },
    /// The pool could not be written.
    #[error("cannot write the pool image")]
    Pool(#[source] io::Error),
    /// The pool of the snapshot that the process was started from could not be read.
    #[error("cannot read the parent's pool")]
    ParentPool(#[source] io::Error),
    /// A process that was to go on cannot.
    #[error("the process could not be let go on")]
    Stuck(#[source] Box<CheckpointError>),
    /// The runtime's connection is not open.
    #[error("no connection from port {port} to the runtime API is open")]
    NoApiConnection {
        /// The function's port.
        port: u16,
    },
}

impl From<Obstacle> for CheckpointError {
    fn from(obstacle: Obstacle) -> Self {
        Self::Obstacle(obstacle)
    }
}

impl CheckpointError {
    /// For `map_err` on a call of the node itself.
    pub(crate) fn kernel<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel {
            call,
            source: source.into(),
        }
    }
}
