//! Messages between node and spawner: JSON in `SOCK_SEQPACKET` messages, with descriptors beside them.

use serde::{Deserialize, Serialize};

use crate::config::{Limits, SandboxKind};

/// From the node.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a sandbox; answered by `Created` or `Failed`.
    Create {
        request: u64,
        limits: Limits,
        kind: SandboxKind,
    },
    /// Make a template host; answered by `TemplateHost` or `Failed`.
    CreateTemplateHost { request: u64 },
    /// Kill a sandbox and take its resources back; answered by `Released` when nothing of it is left.
    Release { sandbox: u64 },
    /// Lend control groups to processes of the node's; answered by `Group` or `Failed`.
    LendGroup { request: u64, limits: Limits },
    /// Take them back. Nothing runs in them any more.
    ReturnGroup { group: u64 },
    /// Kill everything and end.
    Shutdown,
}

/// To the node.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The spawner is ready; with things that the host lacks.
    Started { warnings: Vec<String> },
    /// The spawner could not start.
    NotStarted { reason: String },
    /// A sandbox is ready. Descriptors: init's pidfd, listener, client, server, then what `extras` says.
    Created {
        request: u64,
        sandbox: u64,
        init: i32,
        blank: Option<i32>,
        extras: Vec<Extra>,
    },
    /// A template host runs. Descriptors: its pidfd, the node's end of its control socket.
    TemplateHost { request: u64, pid: i32 },
    /// Control groups are ready. Descriptors: what `extras` says.
    Group {
        request: u64,
        group: u64,
        extras: Vec<Extra>,
    },
    /// A request was refused.
    Failed { request: u64, reason: String },
    /// Nothing is left of a sandbox.
    Released { sandbox: u64 },
    /// A child has been reaped.
    Exit { pid: i32, status: i32 },
}

/// What a further descriptor of `Created` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// The blank's pidfd.
    BlankPidfd,
    /// The node's end of the blank's control socket.
    BlankControl,
    /// `cgroup.procs` of one hierarchy, for writing: of lent groups.
    CgroupProcs,
    /// Where a process of one thread writes `0` to enter the group of one hierarchy: of sandboxes.
    CgroupEntrance,
    /// File with the count of out-of-memory kills.
    MemoryEvents,
    /// File with the peak of memory.
    MemoryPeak,
}
