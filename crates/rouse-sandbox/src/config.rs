//! What the sandboxes of a node have in common, and what one of them may use.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How all sandboxes of a node are built.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Directory that sandboxes see as `/`, read-only. `/` for the host's own root.
    pub root: PathBuf,
    /// Directory that sandboxes see as `/var/runtime`: the runtime clients.
    pub runtime_dir: PathBuf,
    /// Directories of the root that sandboxes see empty, besides a built-in list.
    pub hidden: Vec<PathBuf>,
    /// Name of the node's own cgroup below each hierarchy; anything left in it by an earlier run is removed.
    /// Two nodes that run at the same time need different names.
    pub cgroup: String,
    /// First host uid and gid of the range given to sandboxes; each live sandbox uses two of each.
    pub uid_base: u32,
    /// Added to the host's (monotonic, boottime) clocks, nanoseconds, in every sandbox and template host.
    pub clock_offset: Option<(i64, i64)>,
    /// Hand the system calls of [`seccomp::memory_calls`](crate::seccomp::memory_calls) to
    /// [`Spawner::memory_calls`](crate::Spawner::memory_calls), where somebody must answer them.
    pub hand_over_memory_calls: bool,
}

/// Limits of one sandbox; sandboxes with equal limits are interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, bytes. What lies in `/tmp` and `/dev/shm` counts.
    pub memory: u64,
    /// Processes and threads, the sandbox's own init included.
    pub pids: u32,
    /// CPU time, thousandths of one CPU.
    pub cpu_millis: u32,
    /// Size of `/tmp`, bytes.
    pub tmp: u64,
    /// What it can reach.
    pub network: Network,
}

/// What a sandbox can reach over the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// Nothing but itself.
    #[default]
    None,
    /// What the host can reach, by connections that the sandbox opens; the host's loopback addresses excepted.
    /// Needs the program `slirp4netns`.
    Outbound,
}

/// Whether a sandbox has a blank process in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SandboxKind {
    /// With a blank process (pid 2 in the sandbox) that waits for orders.
    Blank,
    /// Only its init: the target of a template fork.
    ForkTarget,
}
