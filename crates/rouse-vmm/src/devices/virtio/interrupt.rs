//! How a device calls its guest.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Something is in a used ring.
pub const USED: u32 = 1;
/// The configuration has changed.
pub const CONFIG: u32 = 2;

/// Why a device has raised its interrupt, and the line on which it does.
///
/// It is apart from the device, so that a processor that looks at it does not wait for the device to finish its work.
pub struct Interrupt {
    reasons: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reasons: AtomicU32::new(0),
            line: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// For KVM.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    pub fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        // It fails when the counter is full, and then the interrupt is on its way.
        drop(self.line.write(1));
    }

    pub fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self, reasons: u32) {
        self.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// For a reset, or a restored device; what was raised is raised again.
    pub fn set(&self, reasons: u32) {
        self.reasons.store(reasons, Ordering::SeqCst);
        if reasons != 0 {
            self.raise(reasons);
        }
    }
}
