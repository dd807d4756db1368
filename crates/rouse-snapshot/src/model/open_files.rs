//! Descriptors, and what they refer to.

use super::{DescriptionId, FileId, PageRun};

/// A file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// `FD_CLOEXEC`.
    pub close_on_exec: bool,
    /// What it refers to.
    pub description: DescriptionId,
}

/// An open file description: what `dup` shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Status flags (`O_NONBLOCK`, `O_APPEND`, access mode...), as `fcntl(F_GETFL)` returns them.
    pub flags: u32,
    /// What kind of object it is.
    pub kind: DescriptionKind,
}

/// The kinds of open files that rouse can bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DescriptionKind {
    /// Standard output and error of the function: the pipe to the node's log.
    Log,
    /// The connection on which the runtime waits for work; the node answers on a fresh one.
    RuntimeApi {
        /// Socket options to set again.
        options: Vec<SocketOption>,
    },
    /// A connection whose peer is gone after a restore: the function sees it reset.
    ClosedConnection {
        /// `AF_*` of the socket.
        family: i32,
        /// `SOCK_*` type.
        kind: i32,
        /// What a UNIX peer had sent before it closed its end (one message for a stream).
        queue: Vec<Vec<u8>>,
    },
    /// A regular file, directory or harmless device, opened again by its path in the sandbox.
    Path {
        /// Path in the sandbox.
        path: Vec<u8>,
        /// File offset, bytes.
        offset: u64,
        /// Regular files outside of `/tmp` that must be unchanged; `None` for devices and directories.
        identity: Option<FileId>,
    },
    /// One end of a pipe.
    Pipe {
        /// Number of the pipe inside this snapshot; both ends carry the same.
        pipe: u32,
        /// Is it the end for writing?
        write_end: bool,
        /// Bytes in the pipe (on the reading end).
        content: Vec<u8>,
        /// Capacity in bytes.
        capacity: u32,
    },
    /// `eventfd`.
    EventFd {
        /// Counter.
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// `timerfd`.
    TimerFd {
        /// Clock, `CLOCK_*`.
        clock: i32,
        /// Time to next expiry (ns), 0 when disarmed.
        remaining_ns: u64,
        /// The next expiry as a time of the clock (ns), where the program asked for a time and not
        /// for a delay; 0 otherwise.
        expires_at_ns: u64,
        /// `TFD_TIMER_CANCEL_ON_SET`: a jump of the clock ends it.
        cancel_on_set: bool,
        /// Interval (ns).
        interval_ns: u64,
        /// Expirations not yet read.
        ticks: u64,
    },
    /// `signalfd`.
    SignalFd {
        /// Signals that it accepts.
        mask: u64,
    },
    /// `epoll`.
    Epoll {
        /// What it watches.
        watches: Vec<EpollWatch>,
    },
    /// `inotify`.
    Inotify {
        /// What it watches, sorted by watch descriptor.
        watches: Vec<InotifyWatch>,
    },
    /// One end of a `socketpair`.
    SocketPair {
        /// Number of the pair inside this snapshot; both ends carry the same.
        pair: u32,
        /// First or second end.
        second: bool,
        /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
        kind: i32,
        /// Messages waiting to be read at this end (one for a stream).
        queue: Vec<Vec<u8>>,
        /// Socket options to set again.
        options: Vec<SocketOption>,
    },
    /// A socket that is bound or not, listening or not, but not connected; or a datagram socket
    /// whose peer is only an address.
    Socket {
        /// `AF_*`.
        family: i32,
        /// `SOCK_*` type.
        kind: i32,
        /// Protocol.
        protocol: i32,
        /// Raw `sockaddr` it is bound to, if any.
        bound: Option<Vec<u8>>,
        /// Raw `sockaddr` that its datagrams go to, if any.
        peer: Option<Vec<u8>>,
        /// Backlog when it is listening.
        listen: Option<i32>,
        /// Socket options to set again.
        options: Vec<SocketOption>,
    },
    /// `memfd_create` that is open as a descriptor; contents by the pool object.
    MemFd {
        /// Number of the shared-memory object inside this snapshot.
        object: u32,
        /// Name.
        name: Vec<u8>,
        /// Size in bytes.
        size: u64,
        /// Seals (`F_SEAL_*`).
        seals: u32,
        /// File offset.
        offset: u64,
        /// Runs of saved pages; `address` is the offset inside the object.
        saved: Vec<PageRun>,
    },
}

/// A socket option to set again: level, name, raw value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOption {
    /// `SOL_*`.
    pub level: i32,
    /// `SO_*`, `TCP_*`.
    pub name: i32,
    /// Raw value.
    pub value: Vec<u8>,
}

/// One entry of an epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollWatch {
    /// Descriptor number under which it was added.
    pub fd: i32,
    /// Event mask.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// One inotify watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Path in the sandbox.
    pub path: Vec<u8>,
    /// Event mask.
    pub mask: u32,
}
