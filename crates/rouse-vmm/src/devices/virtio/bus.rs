//! Where the devices are: addresses, interrupts, kicks.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::bindings::virtio_mmio as mmio;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::balloon::Balloon;
use super::block::{Block, DiskError};
use super::interrupt::Interrupt;
use super::transport::{Kick, Slot, Transport};
use super::vsock::{VsockDevice, VsockError};
use super::{DeviceConfig, Event, OpenDevices, OpenDisk, Violations, VirtioDevice, Work};
use crate::devices::{SavedDevice, StateError};
use crate::layout;

/// The devices of a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There are interrupts for only so many.
    #[error("a machine has at most {most} virtio devices, not {asked}", most = layout::VIRTIO_SLOTS)]
    Many {
        /// So many.
        asked: usize,
    },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The connections.
    #[error("cannot make the machine's connections")]
    Vsock(#[from] VsockError),
    /// What kicks a device, or raises its interrupt.
    #[error("cannot make a device's events")]
    Event(#[source] io::Error),
    /// KVM refuses to use that.
    #[error("KVM refuses a device's events")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// A device at its place.
pub struct Seat {
    slot: Arc<Mutex<dyn Slot>>,
    interrupt: Arc<Interrupt>,
    kicks: Vec<EventFd>,
}

impl Seat {
    /// What the guest kicks the device with, one for each queue.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// What the device waits for beside.
    pub fn source(&self) -> Option<std::os::fd::RawFd> {
        self.lock().source()
    }

    /// Lets the device serve `event`, for its turn.
    pub fn serve(&self, event: Event) {
        let work = self.lock().serve(event);
        if work == Work::More {
            match event {
                Event::Queue(number) => self.kick(number),
                // Its source stays readable, or it is told by a queue.
                Event::Source => self.kick(0),
            }
        }
    }

    fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // It fails when the counter is full, and then the kick is on its way.
            drop(kick.write(1));
        }
    }

    fn kick_all(&self) {
        for queue in 0..self.kicks.len() {
            self.kick(queue);
        }
    }

    fn lock(&self) -> MutexGuard<'_, dyn Slot + 'static> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All virtio devices of a machine.
#[derive(Default)]
pub struct Bus {
    seats: Vec<Arc<Seat>>,
}

impl Bus {
    /// Makes the devices of `config`, for a guest with `memory`.
    ///
    /// # Errors
    /// If there are too many, or one cannot be made.
    pub fn new(config: &DeviceConfig, memory: &GuestMemoryMmap) -> Result<Self, BusError> {
        Self::of(config.open()?, memory)
    }

    /// Makes devices around what is open already.
    ///
    /// # Errors
    /// If there are too many, or one cannot be made.
    pub fn of(devices: OpenDevices, memory: &GuestMemoryMmap) -> Result<Self, BusError> {
        let mut bus = Self::default();
        for OpenDisk { name, image } in devices.disks {
            bus.add(Block::new(&name, image)?, memory)?;
        }
        if let Some(dialer) = devices.vsock {
            bus.add(VsockDevice::new(dialer)?, memory)?;
        }
        if let Some(owner) = devices.balloon {
            bus.add(Balloon::new(owner), memory)?;
        }
        let count = bus.seats.len();
        if count > layout::VIRTIO_SLOTS {
            return Err(BusError::Many { asked: count });
        }
        Ok(bus)
    }

    fn add<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
        memory: &GuestMemoryMmap,
    ) -> Result<(), BusError> {
        let interrupt = Arc::new(Interrupt::new().map_err(BusError::Event)?);
        let kicks = D::QUEUES.iter().map(|_| EventFd::new(EFD_NONBLOCK));
        let seat = Seat {
            slot: Arc::new(Mutex::new(Transport::new(
                device,
                memory.clone(),
                Arc::clone(&interrupt),
            ))),
            interrupt,
            kicks: kicks.collect::<Result<_, _>>().map_err(BusError::Event)?,
        };
        self.seats.push(Arc::new(seat));
        Ok(())
    }

    /// Tells KVM which events are kicks and interrupts.
    ///
    /// # Errors
    /// If it refuses one.
    pub fn attach(&self, vm: &VmFd) -> Result<(), BusError> {
        for (number, seat) in self.seats.iter().enumerate() {
            vm.register_irqfd(seat.interrupt.line(), layout::virtio_gsi(number))
                .map_err(BusError::Kvm)?;
            let register = layout::virtio(number) + u64::from(mmio::VIRTIO_MMIO_QUEUE_NOTIFY);
            for (queue, kick) in (0_u32..).zip(&seat.kicks) {
                vm.register_ioevent(kick, &IoEventAddress::Mmio(register), queue)
                    .map_err(BusError::Kvm)?;
            }
        }
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The devices with their places.
    pub fn seats(&self) -> &[Arc<Seat>] {
        &self.seats
    }

    /// Lets device `number` serve `event`, for its turn.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn serve(&self, number: usize, event: Event) {
        self.seats[number].serve(event);
    }

    /// A guest reads `data` from `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((seat, offset)) = self.find(address) else {
            return;
        };
        if offset == u64::from(mmio::VIRTIO_MMIO_INTERRUPT_STATUS)
            && let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            // Not through the device, which may be at work.
            *data = seat.interrupt.reasons().to_le_bytes();
            return;
        }
        seat.lock().read(offset, data);
    }

    /// A guest writes `data` to `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some((seat, offset)) = self.find(address) else {
            return;
        };
        if let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) {
            if offset == u64::from(mmio::VIRTIO_MMIO_INTERRUPT_ACK) {
                return seat.interrupt.acknowledge(value);
            }
            // Where KVM does not take the kick itself.
            if offset == u64::from(mmio::VIRTIO_MMIO_QUEUE_NOTIFY) {
                return seat.kick(value as usize);
            }
        }
        if seat.lock().write(offset, data) == Kick::All {
            seat.kick_all();
        }
    }

    fn find(&self, address: u64) -> Option<(&Seat, u64)> {
        let offset = address.checked_sub(layout::VIRTIO)?;
        let number = usize::try_from(offset / layout::VIRTIO_SIZE).ok()?;
        let seat = self.seats.get(number)?;
        Some((seat, offset % layout::VIRTIO_SIZE))
    }

    /// What all devices remember. Each is at rest while it is asked.
    #[must_use]
    pub fn save(&self) -> Vec<SavedDevice> {
        (0..)
            .zip(&self.seats)
            .map(|(number, seat)| seat.lock().save(number))
            .collect()
    }

    /// Puts all devices into the states of `saved`.
    ///
    /// # Errors
    /// If one is missing in `saved`, or its state cannot be.
    pub fn restore(&self, saved: &[SavedDevice]) -> Result<(), StateError> {
        for (number, seat) in (0..).zip(&self.seats) {
            seat.lock().restore(saved, number)?;
            // A kick that came before the snapshot and was not served is not part of it.
            seat.kick_all();
        }
        Ok(())
    }

    /// What the guest did wrong, device by device.
    #[must_use]
    pub fn violations(&self) -> Vec<Violations> {
        self.seats
            .iter()
            .map(|seat| seat.lock().violations())
            .collect()
    }
}
