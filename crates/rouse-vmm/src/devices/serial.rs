//! The console: a 16550A, which every kernel can drive from its first message on.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Output, State, StateError};

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
    serial: Serial<Interrupt, NoEvents, SharedOutput>,
}

impl Console {
    /// With its text going to `output`.
    ///
    /// # Errors
    /// If there is no descriptor for its interrupt.
    pub fn new(output: Output) -> io::Result<Self> {
        let interrupt = Interrupt(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self {
            serial: Serial::new(interrupt, SharedOutput(Arc::new(Mutex::new(output)))),
        })
    }

    /// What raises its interrupt.
    pub fn interrupt(&self) -> &EventFd {
        &self.serial.interrupt_evt().0
    }

    /// The guest reads a register.
    pub fn read(&mut self, register: u8) -> u8 {
        self.serial.read(register)
    }

    /// The guest writes a register.
    pub fn write(&mut self, register: u8, value: u8) {
        // Text that nobody takes is lost, as on a wire without a listener; the guest goes on.
        drop(self.serial.write(register, value));
    }

    /// Writes out what is held back.
    pub fn flush(&mut self) {
        drop(self.serial.writer_mut().flush());
    }
}

/// Where the text goes: a device that gets another state keeps it.
#[derive(Clone)]
struct SharedOutput(Arc<Mutex<Output>>);

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .flush()
    }
}

/// The registers, and what was typed and not yet read.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedConsole {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl State for Console {
    const NAME: &'static str = "console";
    const VERSION: u16 = 1;
    type Saved = SavedConsole;

    fn save(&self) -> SavedConsole {
        let state = self.serial.state();
        SavedConsole {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    fn restore(&mut self, saved: SavedConsole) -> Result<(), StateError> {
        let impossible = |reason: String| StateError::Impossible {
            name: Self::NAME,
            reason,
        };
        let state = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.input,
        };
        let interrupt = self
            .interrupt()
            .try_clone()
            .map_err(|error| impossible(format!("its interrupt is gone: {error}")))?;
        let output = self.serial.writer().clone();
        self.serial = Serial::from_state(&state, Interrupt(interrupt), NoEvents, output)
            .map_err(|error| impossible(error.to_string()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::SavedDevice;

    fn console() -> Console {
        Console::new(Box::new(io::sink())).expect("an eventfd can be made")
    }

    #[test]
    fn its_registers_come_back() {
        let mut before = console();
        // The scratch register, and the divisor behind the line control register.
        before.write(7, 0x5a);
        before.write(3, 0x80);
        before.write(0, 0x0c);
        let saved = [SavedDevice::of(&before)];
        let mut after = console();
        SavedDevice::put_back(&saved, &mut after).expect("it was saved");
        assert_eq!((after.read(7), after.read(0)), (0x5a, 0x0c));
        assert_eq!(saved, [SavedDevice::of(&after)]);
    }

    #[test]
    fn a_state_that_cannot_be_is_refused() {
        let mut saved = console().save();
        saved.input = vec![0; 100_000];
        let error = console().restore(saved).expect_err("it holds 64 bytes");
        assert!(matches!(error, StateError::Impossible { .. }));
        let error = SavedDevice::put_back(&[], &mut console()).expect_err("there is none");
        assert_eq!(error.to_string(), "the snapshot has no device console");
    }
}
