//! The programs that speak the Lambda Runtime API inside sandboxes, and how they are started.
//!
//! A sandbox sees the folder that [`install`] fills as `/var/runtime`, and the function's code as `/var/task`. What runs
//! there for a function is decided by [`command`]: rouse's own clients for Python and Node, the official client when the
//! function's package brings one that can be snapshotted well, or the function's own `bootstrap`.
//!
//! docs/runtimes.md describes the protocol between a client and the node, the hooks around a snapshot, and what is made
//! unique in each instance.

mod command;
mod files;
mod runtime;

pub use command::{Interpreters, RuntimeCommand, command};
pub use files::{client_files, install};
pub use runtime::Runtime;
