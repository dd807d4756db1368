//! Whether this host can run microVMs.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

/// What a machine needs of KVM beyond its oldest version.
const CAPABILITIES: [(Cap, &str); 5] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::UserMemory, "memory of a process"),
    (Cap::ExtCpuid, "a choice of processor features"),
    (Cap::ImmediateExit, "a way to interrupt a processor"),
];

/// Why it cannot. Each is one sentence for the operator, which names the way out.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// PVM gives a `/dev/kvm` that ordinary kernels cannot boot on.
    #[error(
        "/dev/kvm of this host is PVM (KVM without hardware virtualisation), on which an ordinary kernel does not boot: use `process` sandboxes"
    )]
    Pvm,
    /// There is no `/dev/kvm`.
    #[error(
        "this host has no /dev/kvm (no hardware virtualisation, or its kernel module is not loaded): use `process` sandboxes"
    )]
    Absent,
    /// It may not be opened.
    #[error(
        "/dev/kvm of this host cannot be opened: use `process` sandboxes, or give rouse access to it"
    )]
    Closed(#[source] io::Error),
    /// It is too old or something else.
    #[error("KVM of this host lacks {0}: use `process` sandboxes")]
    Lacks(&'static str),
}

/// `/dev/kvm`, if ordinary guests can be run with it.
///
/// # Errors
/// A sentence that says why not.
pub fn usable() -> Result<Kvm, Unusable> {
    // It is a module, or was built in; its directory is there in both cases.
    if Path::new("/sys/module/kvm_pvm").exists() {
        return Err(Unusable::Pvm);
    }
    let kvm = Kvm::new().map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::NotFound => Unusable::Absent,
        // The node is there, but no driver.
        error if error.raw_os_error() == Some(libc::ENODEV) => Unusable::Absent,
        error if error.raw_os_error() == Some(libc::ENXIO) => Unusable::Absent,
        error => Unusable::Closed(error),
    })?;
    if kvm.get_api_version() != 12 {
        return Err(Unusable::Lacks("the interface of version 12"));
    }
    match CAPABILITIES
        .iter()
        .find(|(cap, _)| !kvm.check_extension(*cap))
    {
        Some((_, what)) => Err(Unusable::Lacks(what)),
        None => Ok(kvm),
    }
}
