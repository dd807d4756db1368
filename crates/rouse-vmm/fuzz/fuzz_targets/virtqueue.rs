//! Any bytes as the rings and buffers of a device: nothing leaves it.
//!
//! The first byte chooses the device, the next ones are offers (a descriptor's number), the rest is memory: descriptors of all
//! queues, then buffers.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use rouse_vmm::devices::virtio::{BASE, Bus, DeviceConfig, Disk, Event, SIZE, Vsock};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 1 << 20;
const QUEUES: [u16; 3] = [1, 3, 3];
const ENTRIES: u16 = 8;
const OFFERS: usize = 6;
/// Descriptors of the queues, one after the other; then the other rings; then buffers.
const DESCRIPTORS: u64 = 0x1000;
const RINGS: u64 = 0x2000;

struct Machine {
    bus: Bus,
    memory: GuestMemoryMmap,
    _directory: TempDir,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory can be made");
        let image = directory.path().join("image");
        std::fs::write(&image, [7; 8192]).expect("it can be written");
        let config = DeviceConfig {
            disks: vec![Disk {
                name: "/".to_owned(),
                image,
            }],
            vsock: Some(Vsock {
                directory: directory.path().to_owned(),
            }),
            ..DeviceConfig::default()
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("there is memory");
        let bus = Bus::new(&config, &memory).expect("the devices can be made");
        Self {
            bus,
            memory,
            _directory: directory,
        }
    }

    fn register(&self, device: usize, offset: u64, value: u32) {
        let address = BASE + device as u64 * SIZE + offset;
        self.bus.write(address, &value.to_le_bytes());
    }

    fn start(&self, device: usize) {
        for status in [0, 1, 3] {
            self.register(device, 0x70, status);
        }
        self.register(device, 0x24, 1);
        self.register(device, 0x20, 1);
        self.register(device, 0x70, 11);
        for queue in 0..QUEUES[device] {
            self.register(device, 0x30, queue.into());
            self.register(device, 0x38, ENTRIES.into());
            let place = |base: u64, step: u64| {
                u32::try_from(base + u64::from(queue) * step).expect("below 4 GiB")
            };
            self.register(device, 0x80, place(DESCRIPTORS, 128));
            self.register(device, 0x90, place(RINGS, 512));
            self.register(device, 0xa0, place(RINGS + 256, 512));
            self.register(device, 0x44, 1);
        }
        self.register(device, 0x70, 15);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("it lies in memory");
    }
}

fuzz_target!(|data: &[u8]| {
    let [device, rest @ ..] = data else { return };
    let device = usize::from(*device) % QUEUES.len();
    if rest.len() < OFFERS {
        return;
    }
    let (offers, content) = rest.split_at(OFFERS);
    let content = &content[..content.len().min(MEMORY - 0x4000)];
    MACHINE.with_borrow(|machine| {
        machine.put(0, &[0; 0x4000]);
        let (descriptors, buffers) = content.split_at(content.len().min(3 * 128));
        machine.put(DESCRIPTORS, descriptors);
        machine.put(0x4000, buffers);
        for queue in 0..3_u64 {
            let ring = RINGS + queue * 512;
            machine.put(ring + 2, &u16::try_from(OFFERS).expect("small").to_le_bytes());
            for (slot, offer) in (0..).zip(offers) {
                machine.put(ring + 4 + slot * 2, &[*offer % 10, 0]);
            }
        }
        machine.start(device);
        for queue in 0..usize::from(QUEUES[device]) {
            machine.bus.serve(device, Event::Queue(queue));
        }
        machine.bus.serve(device, Event::Source);
        machine.bus.restore(&machine.bus.save()).expect("what a device remembers can be put back");
    });
});
