//! The machine's devices, as far as they are not in the kernel: what a guest's accesses to I/O ports and to addresses
//! without memory do.
//!
//! An access comes from the guest and may be anything: any address, any size, any value. What no device answers to reads as
//! ones, and is ignored when it is written, as on a PC.

pub mod power;
pub mod serial;
mod state;
pub mod virtio;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use power::Power;
use serial::Console;
pub use state::{SavedDevice, State, StateError};
use virtio::{Bus, Violations, Worker, WorkerError};

/// What an access asks of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To be switched off.
    Off,
    /// To be reset.
    Reset,
}

/// All devices. Clones are the same devices.
#[derive(Clone)]
pub struct Devices {
    console: Arc<Mutex<Console>>,
    bus: Arc<Bus>,
}

impl Devices {
    /// A console, and what is on the bus.
    #[must_use]
    pub fn new(console: Console, bus: Bus) -> Self {
        Self {
            console: Arc::new(Mutex::new(console)),
            bus: Arc::new(bus),
        }
    }

    /// A guest reads `data` from `port`.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        // All registers here have one byte.
        let [byte] = data else { return };
        if let Some(offset) = serial::register(port) {
            *byte = self.console().read(offset);
        } else if let Some(value) = Power::read(port) {
            *byte = value;
        }
    }

    /// A guest writes `data` to `port`.
    pub fn port_out(&self, port: u16, data: &[u8]) -> Option<Request> {
        let [byte] = *data else { return None };
        if let Some(offset) = serial::register(port) {
            self.console().write(offset, byte);
            return None;
        }
        Power::write(port, byte)
    }

    /// A guest reads `data` from an address without memory.
    pub fn memory_in(&self, address: u64, data: &mut [u8]) {
        self.bus.read(address, data);
    }

    /// A guest writes `data` to an address without memory.
    pub fn memory_out(&self, address: u64, data: &[u8]) {
        self.bus.write(address, data);
    }

    /// What the guest did wrong with each virtio device.
    #[must_use]
    pub fn violations(&self) -> Vec<Violations> {
        self.bus.violations()
    }

    /// What all devices remember, for a snapshot. The guest's processors must not run meanwhile.
    #[must_use]
    pub fn save(&self) -> Vec<SavedDevice> {
        let mut saved = self.bus.save();
        saved.push(SavedDevice::of(&*self.console()));
        saved
    }

    /// Puts all devices into the states of `saved`, before the guest runs.
    ///
    /// # Errors
    /// If a device is missing in `saved`, or its state cannot be.
    pub fn restore(&self, saved: &[SavedDevice]) -> Result<(), StateError> {
        SavedDevice::put_back(saved, &mut *self.console())?;
        self.bus.restore(saved)
    }

    /// How many virtio devices there are.
    #[must_use]
    pub fn virtio(&self) -> usize {
        self.bus.len()
    }

    /// Serves the virtio devices, until what is returned is dropped.
    ///
    /// # Errors
    /// If no thread can be started for it.
    pub fn serve(&self) -> Result<Worker, WorkerError> {
        Worker::start(&self.bus)
    }

    /// Writes out what the console still holds.
    pub fn flush(&self) {
        self.console().flush();
    }

    fn console(&self) -> std::sync::MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the console's text goes.
pub type Output = Box<dyn Write + Send>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn devices() -> Devices {
        let console = Console::new(Box::new(std::io::sink())).expect("an eventfd can be made");
        Devices::new(console, Bus::default())
    }

    proptest! {
        #[test]
        fn any_access_is_answered(
            accesses in prop::collection::vec((any::<u16>(), 0_usize..9, any::<u8>(), any::<bool>()), 0..200)
        ) {
            let devices = devices();
            for (port, size, value, write) in accesses {
                // Half of them go to a device.
                let port = if value & 1 == 0 { serial::PORT + port % 8 } else { port };
                let mut data = vec![value; size];
                if write {
                    let request = devices.port_out(port, &data);
                    let known = matches!(
                        port,
                        power::SLEEP_CONTROL | power::RESET | power::KEYBOARD
                    );
                    prop_assert!(request.is_none() || (known && size == 1));
                } else {
                    devices.port_in(port, &mut data);
                    prop_assert!(size == 1 || data.iter().all(|byte| *byte == 0xff));
                }
            }
        }
    }
}
