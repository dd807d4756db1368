//! The guest's side of devices: a driver that does what it should, and gives access to what it should not.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_mmio as mmio;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::devices::virtio::{Bus, DeviceConfig, Event};
use crate::layout;

pub const MEMORY: usize = 16 << 20;
const RINGS: u64 = 0x10_0000;
/// Where tests may put what they like.
pub const DATA: u64 = 0x20_0000;
pub const ENTRIES: u16 = 8;

/// A machine's bus, its memory, and its rings.
pub struct Driver {
    pub bus: Bus,
    pub memory: GuestMemoryMmap,
}

impl Driver {
    pub fn new(config: &DeviceConfig) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .expect("there is so much memory");
        let bus = Bus::new(config, &memory).expect("the devices can be made");
        Self { bus, memory }
    }

    pub fn write(&self, device: usize, register: u32, value: u32) {
        let address = layout::virtio(device) + u64::from(register);
        self.bus.write(address, &value.to_le_bytes());
    }

    pub fn read(&self, device: usize, register: u32) -> u32 {
        let mut data = [0; 4];
        let address = layout::virtio(device) + u64::from(register);
        self.bus.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets `device` up as Linux does, with so many queues, and returns their rings.
    pub fn start(&self, device: usize, queues: u16) -> Vec<Ring> {
        assert_eq!(
            self.read(device, mmio::VIRTIO_MMIO_MAGIC_VALUE),
            0x7472_6976
        );
        for status in [0, 1, 3] {
            self.write(device, mmio::VIRTIO_MMIO_STATUS, status);
        }
        for half in [0, 1] {
            self.write(device, mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let features = self.read(device, mmio::VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(device, mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(device, mmio::VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        self.write(device, mmio::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.read(device, mmio::VIRTIO_MMIO_STATUS), 11);
        let rings = (0..queues).map(|queue| {
            let ring = Ring::new(self.memory.clone(), device, queue);
            self.write(device, mmio::VIRTIO_MMIO_QUEUE_SEL, queue.into());
            assert_eq!(self.read(device, mmio::VIRTIO_MMIO_QUEUE_READY), 0);
            self.write(device, mmio::VIRTIO_MMIO_QUEUE_NUM, ENTRIES.into());
            for (register, place) in [
                (mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors()),
                (mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available()),
                (mmio::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used_ring()),
            ] {
                let low = u32::try_from(place).expect("below 4 GiB");
                self.write(device, register, low);
                self.write(device, register + 4, 0);
            }
            self.write(device, mmio::VIRTIO_MMIO_QUEUE_READY, 1);
            ring
        });
        let rings = rings.collect();
        self.write(device, mmio::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.read(device, mmio::VIRTIO_MMIO_STATUS), 15);
        rings
    }

    /// Lets `device` do its work, until it has none.
    pub fn serve(&self, device: usize, event: Event) {
        self.bus.serve(device, event);
        let seat = Arc::clone(&self.bus.seats()[device]);
        for _ in 0..1000 {
            let mut again = false;
            for (queue, kick) in seat.kicks().iter().enumerate() {
                if kick.read().is_ok() {
                    again = true;
                    seat.serve(Event::Queue(queue));
                }
            }
            if !again {
                return;
            }
        }
        panic!("device {device} never comes to rest");
    }

    /// How many rules were broken with `device`.
    pub fn violations(&self, device: usize) -> u64 {
        self.bus.violations()[device].count()
    }
}

/// A part of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

pub fn readable(address: u64, length: u32) -> Part {
    Part {
        address,
        length,
        writable: false,
    }
}

pub fn writable(address: u64, length: u32) -> Part {
    Part {
        address,
        length,
        writable: true,
    }
}

/// One queue, as the driver sees it.
pub struct Ring {
    pub memory: GuestMemoryMmap,
    base: u64,
    next: u16,
    descriptor: u16,
    seen: u16,
}

impl Ring {
    fn new(memory: GuestMemoryMmap, device: usize, queue: u16) -> Self {
        let base = RINGS + device as u64 * 0x1_0000 + u64::from(queue) * 0x3000;
        for page in 0..3_u64 {
            memory
                .write_slice(&[0; 0x1000], GuestAddress(base + page * 0x1000))
                .expect("it lies in memory");
        }
        Self {
            memory,
            base,
            next: 0,
            descriptor: 0,
            seen: 0,
        }
    }

    /// The same ring in a copy of its memory.
    pub fn in_memory(&self, memory: GuestMemoryMmap) -> Self {
        Self { memory, ..*self }
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn available(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("it lies in memory");
    }

    /// Writes one descriptor, whatever it says.
    pub fn describe(&self, index: u16, part: Part, flags: u32, next: u16) {
        let flags = flags | if part.writable { VRING_DESC_F_WRITE } else { 0 };
        let place = self.descriptors() + u64::from(index % ENTRIES) * 16;
        self.put(place, part.address);
        self.put(place + 8, part.length);
        self.put(place + 12, u16::try_from(flags).expect("small numbers"));
        self.put(place + 14, next);
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&mut self, head: u16) {
        let place = self.available() + 4 + u64::from(self.next % ENTRIES) * 2;
        self.put(place, head);
        self.next = self.next.wrapping_add(1);
        self.put(self.available() + 2, self.next);
    }

    /// Makes a chain of `parts` available.
    pub fn add(&mut self, parts: &[Part]) {
        let head = self.descriptor % ENTRIES;
        for (number, part) in parts.iter().enumerate() {
            let index = self.descriptor % ENTRIES;
            self.descriptor = self.descriptor.wrapping_add(1);
            let more = number + 1 < parts.len();
            let flags = if more { VRING_DESC_F_NEXT } else { 0 };
            self.describe(index, *part, flags, self.descriptor % ENTRIES);
        }
        self.offer(head);
    }

    /// What was given back since the last call: how many bytes were written of each.
    pub fn used(&mut self) -> Vec<u32> {
        let get = |address| -> u32 {
            self.memory
                .read_obj(GuestAddress(address))
                .expect("it lies in memory")
        };
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.used_ring() + 2))
            .expect("it lies in memory");
        let mut all = Vec::new();
        while self.seen != index {
            let place = self.used_ring() + 4 + u64::from(self.seen % ENTRIES) * 8;
            all.push(get(place + 4));
            self.seen = self.seen.wrapping_add(1);
        }
        all
    }
}
