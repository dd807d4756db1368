//! Virtio devices: what a guest's kernel finds by ACPI and drives through memory-mapped registers and queues in its memory.
//!
//! ```text
//!  guest ── registers ──> bus.rs ──> transport.rs ──> one of: block.rs, vsock, balloon.rs
//!    │                     (in the processor's thread)   ^
//!    └───── kick ─ eventfd ────────> worker.rs ──────────┘ serves its queues (in one thread for all devices)
//!    <───── interrupt ─ eventfd ────────────────────────────
//! ```
//!
//! A device is locked while it is served, and serves each request to its end: whoever stops the processors and then holds the
//! lock finds it at rest, with nothing on the way. So a snapshot needs no draining.
//!
//! What a guest does wrong stays in its device: that says so to the guest ("needs reset"), remembers what it was
//! ([`Violations`]), and does nothing until the guest has reset it.
//!
//! Event indices and packed rings are not offered: they save interrupts, but each is more state that a restored machine has to
//! agree with its guest about.

pub mod balloon;
pub mod block;
mod bus;
mod config;
mod interrupt;
mod queue;
#[cfg(test)]
mod tests;
mod transport;
mod violations;
pub mod vsock;
mod worker;

pub use bus::{Bus, BusError};
pub use config::{DeviceConfig, Disk, OpenDevices, OpenDisk, Vsock};
pub use queue::{Buffers, GuestQueue, Segment, Violation};
pub use violations::Violations;
pub use worker::{Worker, WorkerError};

/// Where the registers of the first device are, and from there the next ones in steps of [`SIZE`] bytes.
pub use crate::layout::VIRTIO as BASE;
/// Bytes of the registers of one device.
pub use crate::layout::VIRTIO_SIZE as SIZE;

use std::os::fd::RawFd;

use vm_memory::GuestMemoryMmap;

use super::{State, StateError};

/// Why a device is asked to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The guest put something into this queue.
    Queue(usize),
    /// Its descriptor has something.
    Source,
}

/// Whether a device is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Until the next event.
    Done,
    /// There is more to do, but others should come first.
    More,
}

/// What is special about a kind of device.
pub trait VirtioDevice: State + Send {
    /// Its number in the specification.
    const KIND: u32;
    /// Entries of each of its queues.
    const QUEUES: &'static [u16];

    /// The features of its own that it offers.
    fn features(&self) -> u64;

    /// Its configuration, as the guest reads it.
    fn config(&self) -> Vec<u8>;

    /// The guest writes `data` at `offset` of the configuration.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Serves `event`.
    ///
    /// # Errors
    /// If the guest broke the rules.
    fn serve(
        &mut self,
        event: Event,
        queues: &mut [GuestQueue],
        memory: &GuestMemoryMmap,
        notes: &mut Violations,
    ) -> Result<Work, Violation>;

    /// As [`State::restore`], of a device that no driver had: nobody knows what it was.
    ///
    /// # Errors
    /// As there.
    fn restore_unused(&mut self, saved: Self::Saved) -> Result<(), StateError> {
        self.restore(saved)
    }

    /// Forgets all that the guest did.
    fn reset(&mut self);

    /// A descriptor that becomes readable when [`Event::Source`] should be served.
    fn source(&self) -> Option<RawFd> {
        None
    }
}
