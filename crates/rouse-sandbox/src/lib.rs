//! Process sandboxes: where a function's processes live, what they see, and how they end.
//!
//! The crate promises three things. A sandbox holds nothing of the host but a read-only view of its programs:
//! own pid, mount, network, ipc, uts, cgroup and user namespaces, limits, a system-call filter, no capabilities.
//! It ends as a whole: killing its init ends every process in it, and when the node dies, so does every sandbox.
//! It leaves nothing behind: no process, mount, control group, namespace or descriptor.
//!
//! [`Spawner`] is the entry: it is forked from the node while that is single-threaded, and makes every process of
//! every sandbox. `docs/sandbox.md` draws the process tree and lists what a function may do.

mod blank;
mod cgroup;
mod config;
pub mod exec;
mod home;
mod init;
mod kernel;
mod lent;
pub mod paths;
mod root;
mod sandbox;
pub mod seccomp;
mod spawner;
mod task_mount;

pub use config::{Limits, Network, SandboxConfig, SandboxKind};
pub use kernel::api_socket::ApiSockets;
pub use kernel::notification::{Answer, Notifications, WaitingCall};
pub use kernel::process::{BLANK_DESCRIPTORS, RESOURCE_LIMITS};
pub use lent::LentGroup;
pub use sandbox::{BlankContext, Exit, Exits, Process, Sandbox, SandboxError, SandboxHandle};
pub use spawner::{BlankMain, Spawner, SpawnerError};
pub use task_mount::{TaskLayers, attach_task_mount, open_task_mount};

/// The steps that confinement is made of, for processes that are not functions: VMMs.
pub mod confine {
    pub use crate::cgroup::{CgroupError, Cgroups, MemoryAccounts, SlotGroups};
    pub use crate::kernel::process::{
        become_user, clear_bounding_set, clear_capabilities, close_on_exec_from, forget_keys,
        is_single_threaded, limit_resource, reset_signals,
    };
    pub use crate::kernel::socket::{pair, receive, send};
}

/// The function's uid inside of its sandbox.
pub const UID: u32 = 993;
/// The function's gid inside of its sandbox.
pub const GID: u32 = 990;
/// Port of the runtime API on 127.0.0.1 inside of a sandbox.
pub const API_PORT: u16 = 9001;
/// Host name inside of a sandbox.
pub const HOSTNAME: &str = "sandbox";
