//! The virtual machine monitor: runs a Linux kernel and `rouse-guest` in a virtual machine of KVM.
//!
//! It promises that whatever a guest does reaches this process only as one of the few accesses in [`devices`], and that a
//! machine ends in one of the ways that [`Ended`] names. [`kernel::import`] prepares what a machine boots, [`Machine`] boots
//! it, and [`host::usable`] tells in one sentence why a host cannot.
//!
//! What is there and what is not yet: docs/microvm.md.

mod boot;
mod devices;
pub mod host;
pub mod kernel;
mod layout;
mod machine;
mod vcpu;

pub use layout::{MemorySize, MemorySizeError};
pub use machine::{BootError, Config, Ended, Machine, RunError};
pub use vcpu::{VcpuCount, VcpuCountError};
