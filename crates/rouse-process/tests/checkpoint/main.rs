//! Checkpoints of real Python programs that hold one thing of each kind.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

mod descriptors;
mod memory;
mod process;
mod sandboxed;
mod subject;
mod threads;
