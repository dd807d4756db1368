//! What registers and queues remember, with their device.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::{Phase, Registers, Transport};
use crate::devices::virtio::{GuestQueue, VirtioDevice};
use crate::devices::{State, StateError};

/// Registers, queues, and the device's own state.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedTransport<S> {
    registers: Registers,
    interrupt: u32,
    queues: Vec<SavedQueue>,
    device: S,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    next_avail: u16,
    next_used: u16,
    ready: bool,
    /// Descriptors, available ring, used ring: their addresses.
    places: [u64; 3],
}

impl<D: VirtioDevice> State for Transport<D> {
    const NAME: &'static str = D::NAME;
    // The upper half is that of this part.
    const VERSION: u16 = 1 << 8 | D::VERSION;
    type Saved = SavedTransport<D::Saved>;

    fn save(&self) -> Self::Saved {
        let queues = self.queues.iter().map(|queue| {
            let state = queue.state();
            SavedQueue {
                max_size: state.max_size,
                size: state.size,
                next_avail: state.next_avail,
                next_used: state.next_used,
                ready: state.ready,
                places: [state.desc_table, state.avail_ring, state.used_ring],
            }
        });
        SavedTransport {
            registers: self.registers,
            interrupt: self.interrupt.reasons(),
            queues: queues.collect(),
            device: self.device.save(),
        }
    }

    fn restore(&mut self, saved: Self::Saved) -> Result<(), StateError> {
        let impossible = |reason: String| StateError::Impossible {
            name: D::NAME,
            reason,
        };
        if saved.queues.len() != D::QUEUES.len() {
            return Err(impossible(format!("{} queues", saved.queues.len())));
        }
        if saved.registers.driver_features & !self.features() != 0 {
            return Err(impossible("features that it does not have".to_owned()));
        }
        let queues = saved.queues.iter().zip(D::QUEUES).map(|(saved, size)| {
            let state = QueueState {
                max_size: saved.max_size,
                next_avail: saved.next_avail,
                next_used: saved.next_used,
                event_idx_enabled: false,
                size: saved.size,
                ready: saved.ready,
                desc_table: saved.places[0],
                avail_ring: saved.places[1],
                used_ring: saved.places[2],
            };
            GuestQueue::with_state(state, *size, &self.memory)
        });
        self.queues = queues.collect::<Result<_, _>>().map_err(impossible)?;
        self.registers = saved.registers;
        match self.registers.phase {
            Phase::Reset | Phase::Acknowledged => self.device.restore_unused(saved.device)?,
            _ => self.device.restore(saved.device)?,
        }
        if self.registers.phase != Phase::Running {
            // Nobody would serve what it has.
            self.device.reset();
        }
        self.interrupt.set(saved.interrupt);
        Ok(())
    }
}
