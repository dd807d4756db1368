//! The registers by which a guest's driver finds out about a device and sets it up ("virtio over MMIO", version 2).

mod saved;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_mmio as mmio;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::interrupt::{self, Interrupt};
use super::{Event, GuestQueue, Violation, Violations, VirtioDevice, Work};
use crate::devices::{SavedDevice, StateError};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Of the registers: the one without a legacy.
const VERSION: u32 = 2;
/// "ROUS", little-endian; drivers do not care.
const VENDOR: u32 = 0x5355_4f52;
/// What all devices offer.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// How far driver and device have come with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Reset,
    Acknowledged,
    Driver,
    /// Features are agreed on; the driver sets up the queues.
    Features,
    /// The queues are in use.
    Running,
    /// The driver gave up.
    Failed,
    /// The driver broke the rules while it ran.
    Broken,
}

impl Phase {
    fn status(self) -> u32 {
        const SET_UP: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::Features => SET_UP,
            Self::Running => SET_UP | DRIVER_OK,
            Self::Failed => FAILED,
            Self::Broken => SET_UP | DRIVER_OK | NEEDS_RESET,
        }
    }
}

/// What a bus knows of a device of any kind.
pub trait Slot: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]) -> Kick;
    fn serve(&mut self, event: Event) -> Work;
    fn source(&self) -> Option<std::os::fd::RawFd>;
    fn save(&self, number: u16) -> SavedDevice;
    fn restore(&mut self, all: &[SavedDevice], number: u16) -> Result<(), StateError>;
    fn violations(&self) -> Violations;
}

/// What a write to a register asks for beside itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// Nothing.
    None,
    /// That all queues are looked at: the driver may have filled them before the device ran.
    All,
}

/// A device behind its registers.
pub struct Transport<D> {
    device: D,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    queues: Vec<GuestQueue>,
    registers: Registers,
    violations: Violations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    phase: Phase,
    device_features_half: u32,
    driver_features_half: u32,
    driver_features: u64,
    queue: u32,
}

impl Registers {
    const NEW: Self = Self {
        phase: Phase::Reset,
        device_features_half: 0,
        driver_features_half: 0,
        driver_features: 0,
        queue: 0,
    };
}

impl<D: VirtioDevice> Transport<D> {
    pub fn new(device: D, memory: GuestMemoryMmap, interrupt: Arc<Interrupt>) -> Self {
        Self {
            device,
            memory,
            interrupt,
            queues: queues::<D>(),
            registers: Registers::NEW,
            violations: Violations::of(D::NAME),
        }
    }

    fn features(&self) -> u64 {
        FEATURES | self.device.features()
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        match offset {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => VERSION,
            mmio::VIRTIO_MMIO_DEVICE_ID => D::KIND,
            mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.features(), self.registers.device_features_half)
            }
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.queue().map_or(0, |queue| queue.max_size().into())
            }
            mmio::VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| queue.ready().into()),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.reasons(),
            mmio::VIRTIO_MMIO_STATUS => self.registers.phase.status(),
            // The configuration of no device changes in a way that could be seen half.
            mmio::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // There is no shared memory: its length reads as this.
            _ => u32::MAX,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Kick {
        match offset {
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_half = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_half = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES if self.registers.phase == Phase::Driver => {
                let features = &mut self.registers.driver_features;
                match self.registers.driver_features_half {
                    0 => *features = *features & !0xffff_ffff | u64::from(value),
                    1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
                    _ => self.violations.note(&"features beyond bit 63"),
                }
            }
            mmio::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue = value,
            mmio::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            mmio::VIRTIO_MMIO_STATUS => return self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
        Kick::None
    }

    /// The registers of the chosen queue.
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let phase = self.registers.phase;
        let Some(queue) = self.queue() else {
            return self.violations.note(&"a queue that is not there");
        };
        if phase != Phase::Features {
            // A driver that lets go of a device says that its queues are not ready any more.
            if !(offset == mmio::VIRTIO_MMIO_QUEUE_READY && value == 0) {
                self.violations.note(&format_args!(
                    "register {offset:#x} written at the wrong time"
                ));
            }
            return;
        }
        match offset {
            // A size that cannot be is ignored by the queue, as are addresses that are not aligned.
            mmio::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            mmio::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => self
                .violations
                .note(&format_args!("register {offset:#x} cannot be written")),
        }
    }

    fn write_status(&mut self, value: u32) -> Kick {
        let phase = self.registers.phase;
        if value == 0 {
            self.reset();
            return Kick::None;
        }
        if value & FAILED != 0 {
            self.device.reset();
            self.registers.phase = Phase::Failed;
            return Kick::None;
        }
        self.registers.phase = match (phase, value) {
            (Phase::Reset, ACKNOWLEDGE) => Phase::Acknowledged,
            (Phase::Acknowledged, value) if value == Phase::Driver.status() => Phase::Driver,
            (Phase::Driver, value) if value == Phase::Features.status() => {
                let asked = self.registers.driver_features;
                let offered = self.features();
                if asked & !offered == 0 && asked & 1 << VIRTIO_F_VERSION_1 != 0 {
                    Phase::Features
                } else {
                    // The driver reads the status back, and sees that it was refused.
                    Phase::Driver
                }
            }
            (Phase::Features, value) if value == Phase::Running.status() => return self.start(),
            (phase, value) if value == phase.status() => phase,
            (phase, value) => {
                self.violations.note(&format_args!(
                    "status {value:#x} after {:#x}",
                    phase.status()
                ));
                phase
            }
        };
        Kick::None
    }

    fn start(&mut self) -> Kick {
        self.registers.phase = Phase::Running;
        for (number, queue) in self.queues.iter_mut().enumerate() {
            if queue.ring().ready() && !queue.usable(&self.memory) {
                self.break_down(&Violation::Place(number));
                return Kick::None;
            }
        }
        Kick::All
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues = queues::<D>();
        self.registers = Registers::NEW;
        self.interrupt.set(0);
    }

    fn break_down(&mut self, violation: &Violation) {
        self.violations.note(violation);
        self.device.reset();
        self.registers.phase = Phase::Broken;
        self.interrupt.raise(interrupt::CONFIG);
    }

    fn queue(&mut self) -> Option<&mut virtio_queue::Queue> {
        let number = usize::try_from(self.registers.queue).ok()?;
        self.queues.get_mut(number).map(GuestQueue::ring)
    }
}

fn queues<D: VirtioDevice>() -> Vec<GuestQueue> {
    D::QUEUES
        .iter()
        .map(|size| GuestQueue::new(*size))
        .collect()
}

/// A half of 64 features, as the driver asks for them.
#[expect(clippy::cast_possible_truncation, reason = "that is what is asked for")]
fn half(features: u64, number: u32) -> u32 {
    match number {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl<D: VirtioDevice> Slot for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let config = u64::from(mmio::VIRTIO_MMIO_CONFIG);
        if let Some(begin) = offset.checked_sub(config) {
            let begin = usize::try_from(begin).unwrap_or(usize::MAX);
            let bytes = self.device.config();
            for (byte, value) in data.iter_mut().zip(bytes.iter().skip(begin)) {
                *byte = *value;
            }
        } else if let (Ok(data), Ok(offset)) =
            (<&mut [u8; 4]>::try_from(data), u32::try_from(offset))
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Kick {
        let config = u64::from(mmio::VIRTIO_MMIO_CONFIG);
        if let Some(begin) = offset.checked_sub(config) {
            let begin = usize::try_from(begin).unwrap_or(usize::MAX);
            self.device.write_config(begin, data);
            return Kick::None;
        }
        match (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            (Ok(data), Ok(offset)) => self.write_register(offset, u32::from_le_bytes(data)),
            _ => {
                self.violations.note(&"a register written in part");
                Kick::None
            }
        }
    }

    fn serve(&mut self, event: Event) -> Work {
        if self.registers.phase != Phase::Running {
            return Work::Done;
        }
        let served = self
            .device
            .serve(event, &mut self.queues, &self.memory, &mut self.violations);
        let mut used = false;
        for queue in &mut self.queues {
            used |= queue.take_used();
        }
        if used {
            self.interrupt.raise(interrupt::USED);
        }
        served.unwrap_or_else(|violation| {
            self.break_down(&violation);
            Work::Done
        })
    }

    fn source(&self) -> Option<std::os::fd::RawFd> {
        self.device.source()
    }

    fn save(&self, number: u16) -> SavedDevice {
        SavedDevice::numbered(self, number)
    }

    fn restore(&mut self, all: &[SavedDevice], number: u16) -> Result<(), StateError> {
        SavedDevice::put_back_numbered(all, number, self)
    }

    fn violations(&self) -> Violations {
        self.violations.clone()
    }
}
