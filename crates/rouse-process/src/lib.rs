//! Checkpoint, restore and template fork of processes.
//!
//! [`launcher::Launcher`] is the entry: it starts instances on each boot path and takes snapshots
//! of them. A snapshot is taken by [`checkpoint`] (ptrace, from outside), compiled by [`plan`]
//! into an operation list, and brought back by the interpreter of `rouse-restorer` inside of a
//! blank process: nothing is traced on the way up.

mod blank;
pub mod checkpoint;
pub mod clock;
mod clones;
mod cpu_clock;
mod credentials;
mod image;
pub mod instance;
mod kernel;
pub mod launcher;
mod memory_calls;
pub mod memory_report;
mod monitor;
mod order;
pub mod plan;
mod reaper;
pub mod rewind;
mod stock;
pub mod working_set;
