//! The virtual machine monitor: runs a Linux kernel and `rouse-guest` in a virtual machine of KVM.
//!
//! It promises that whatever a guest does reaches this process only as one of the few accesses in [`devices`], and that a
//! machine ends in one of the ways that [`Ended`] names. [`kernel::import`] prepares what a machine boots, [`Machine`] boots
//! it, and [`host::usable`] tells in one sentence why a host cannot.
//!
//! What is there and what is not yet: docs/microvm.md.

pub mod agent;
mod boot;
pub mod devices;
mod given;
pub mod host;
mod identity;
pub mod image;
pub mod jail;
pub mod kernel;
mod layout;
mod machine;
pub mod memory;
mod pauser;
pub mod snapshot;
mod vcpu;
pub mod zygote;

pub use given::GivenFile;
pub use identity::IdentityError;
pub use layout::{MemorySize, MemorySizeError};
pub use machine::{BootError, Config, Ended, Machine, Outcome, RunError};
pub use pauser::Pauser;
pub use vcpu::state::{MsrError, VcpuStateError};
pub use vcpu::{VcpuCount, VcpuCountError};
