//! The console: a 16550A, which every kernel can drive from its first message on.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Output;

/// The first of its ports.
pub const PORT: u16 = 0x3f8;
/// How many it has.
pub const PORT_COUNT: u8 = 8;
/// The interrupt line that it has on every PC.
pub const GSI: u32 = 4;

/// The register at `port`, if it is one of this device's.
pub fn register(port: u16) -> Option<u8> {
    let offset = u8::try_from(port.checked_sub(PORT)?).ok()?;
    (offset < PORT_COUNT).then_some(offset)
}

/// Raises the device's interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The device. What the guest writes goes to the output as it comes.
pub struct Console {
    serial: Serial<Interrupt, NoEvents, Output>,
}

impl Console {
    pub fn new(output: Output) -> io::Result<Self> {
        let interrupt = Interrupt(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self {
            serial: Serial::new(interrupt, output),
        })
    }

    /// What raises its interrupt.
    pub fn interrupt(&self) -> &EventFd {
        &self.serial.interrupt_evt().0
    }

    pub fn read(&mut self, register: u8) -> u8 {
        self.serial.read(register)
    }

    pub fn write(&mut self, register: u8, value: u8) {
        // Text that nobody takes is lost, as on a wire without a listener; the guest goes on.
        drop(self.serial.write(register, value));
    }

    pub fn flush(&mut self) {
        drop(self.serial.writer_mut().flush());
    }
}
