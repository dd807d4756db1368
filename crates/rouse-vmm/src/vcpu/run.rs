//! Runs one processor until its machine ends.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::devices::{Devices, Request};

/// Why a processor came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The machine was told to stop.
    Asked,
    /// The guest asked for something that ends it.
    Guest(Request),
    /// A fault in the handler of a fault in the handler of a fault: what a real processor answers with a reset.
    TripleFault,
}

/// KVM cannot go on with a processor.
#[derive(Debug, thiserror::Error)]
pub enum VcpuFailure {
    /// The call failed.
    #[error("KVM cannot run a processor")]
    Run(#[source] kvm_ioctls::Error),
    /// The processor refuses to enter the guest.
    #[error("the host's processor refuses to enter the guest (reason {0:#x})")]
    Entry(u64),
    /// KVM met an instruction that it cannot emulate, or the like.
    #[error("KVM could not emulate what the guest did")]
    Emulation,
    /// Something that this machine never asks KVM for.
    #[error("KVM left the guest for a reason that is not expected: {0}")]
    Unexpected(String),
}

/// Runs `vcpu` until the guest ends the machine, or `stop` is set and this thread is kicked.
///
/// Whether to stop is looked at only when KVM was interrupted. What a guest has asked of a device is complete, and its
/// registers are consistent, only after KVM was entered again; KVM first completes it and then sees the kick.
pub fn run(vcpu: &mut VcpuFd, devices: &Devices, stop: &AtomicBool) -> Result<Stop, VcpuFailure> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => devices.port_in(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(request) = devices.port_out(port, data) {
                    return Ok(Stop::Guest(request));
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => devices.memory_in(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => devices.memory_out(address, data),
            Ok(VcpuExit::Intr) if stop.load(Ordering::Acquire) => return Ok(Stop::Asked),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return Ok(Stop::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _)) => return Err(VcpuFailure::Entry(reason)),
            Ok(VcpuExit::InternalError) => return Err(VcpuFailure::Emulation),
            Ok(other) => return Err(VcpuFailure::Unexpected(format!("{other:?}"))),
            // A kick, or a processor that waits to be started by another one.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                // Set before the kick, which the next entry sees at the latest.
                if stop.load(Ordering::Acquire) {
                    return Ok(Stop::Asked);
                }
            }
            Err(error) => return Err(VcpuFailure::Run(error)),
        }
    }
}
