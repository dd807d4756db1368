//! A guest that writes whatever it likes, wherever it likes.

use proptest::prelude::*;
use rouse_snapshot::model::DeviceState;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{DATA, Driver, ENTRIES, MEMORY, Part, Ring, readable, writable};
use crate::devices::virtio::{DeviceConfig, Disk, Event, Vsock};
use crate::layout;

const DEVICES: usize = 3;
const QUEUES: [u16; DEVICES] = [1, 3, 3];

/// What such a guest does.
#[derive(Debug, Clone)]
enum Act {
    /// To a register, or beside it.
    Register {
        device: usize,
        offset: u64,
        value: Vec<u8>,
        write: bool,
    },
    /// To memory: rings, descriptors, packets.
    Memory { address: u64, value: Vec<u8> },
    /// A descriptor that is nearly right.
    Describe {
        queue: usize,
        index: u16,
        part: Part,
        flags: u32,
        next: u16,
    },
    /// Makes a chain available.
    Offer { queue: usize, head: u16 },
    /// A kick.
    Serve { device: usize, event: Event },
}

fn act() -> impl Strategy<Value = Act> {
    let register = (
        0..=DEVICES,
        prop_oneof![
            (0_u64..0x44).prop_map(|n| n * 4),
            0_u64..layout::VIRTIO_SIZE
        ],
        prop_oneof![
            (0_u32..16).prop_map(|value| value.to_le_bytes().to_vec()),
            any::<[u8; 4]>().prop_map(Vec::from),
            prop::collection::vec(any::<u8>(), 0..9),
        ],
        any::<bool>(),
    )
        .prop_map(|(device, offset, value, write)| Act::Register {
            device,
            offset,
            value,
            write,
        });
    let memory = (
        prop_oneof![0x10_0000_u64..0x13_0000, DATA..DATA + 64],
        prop::collection::vec(any::<u8>(), 1..48),
    )
        .prop_map(|(address, value)| Act::Memory { address, value });
    let part = (
        prop_oneof![DATA..DATA + 4096, 0_u64..MEMORY as u64 + 4096, any::<u64>()],
        prop_oneof![0_u32..100, 0_u32..10_000, any::<u32>()],
        any::<bool>(),
    )
        .prop_map(|(address, length, write)| {
            if write {
                writable(address, length)
            } else {
                readable(address, length)
            }
        });
    let describe = (0..7_usize, 0..ENTRIES, part, 0_u32..8, 0..ENTRIES + 2).prop_map(
        |(queue, index, part, flags, next)| Act::Describe {
            queue,
            index,
            part,
            flags,
            next,
        },
    );
    let offer = (0..7_usize, 0..ENTRIES + 2).prop_map(|(queue, head)| Act::Offer { queue, head });
    let event = prop_oneof![(0..3_usize).prop_map(Event::Queue), Just(Event::Source)];
    let serve = (0..DEVICES, event).prop_map(|(device, event)| Act::Serve { device, event });
    prop_oneof![1 => register, 1 => memory, 4 => describe, 4 => offer, 4 => serve]
}

fn driver(directory: &std::path::Path) -> Driver {
    let image = directory.join("image");
    std::fs::write(&image, [7; 8192]).expect("it can be written");
    Driver::new(&DeviceConfig {
        disks: vec![Disk {
            name: "/".to_owned(),
            image,
        }],
        vsock: Some(Vsock {
            directory: directory.to_owned(),
        }),
        ..DeviceConfig::default()
    })
}

fn perform(driver: &Driver, rings: &mut [Ring], act: Act) {
    match act {
        Act::Register {
            device,
            offset,
            mut value,
            write,
        } => {
            let address = layout::VIRTIO + device as u64 * layout::VIRTIO_SIZE + offset;
            if write {
                driver.bus.write(address, &value);
            } else {
                driver.bus.read(address, &mut value);
            }
        }
        Act::Memory { address, value } => driver
            .memory
            .write_slice(&value, GuestAddress(address))
            .expect("it lies in memory"),
        Act::Describe {
            queue,
            index,
            part,
            flags,
            next,
        } => {
            rings[queue].describe(index, part, flags, next);
        }
        Act::Offer { queue, head } => rings[queue].offer(head),
        Act::Serve { device, event } => {
            let queues = usize::from(QUEUES[device]);
            match event {
                Event::Queue(queue) => driver.bus.serve(device, Event::Queue(queue % queues)),
                Event::Source => driver.bus.serve(device, Event::Source),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_a_guest_does_leaves_its_devices(
        acts in prop::collection::vec(act(), 1..60),
        started in any::<[bool; DEVICES]>(),
    ) {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let driver = driver(directory.path());
        let mut rings: Vec<Ring> = Vec::new();
        for (device, (queues, started)) in QUEUES.into_iter().zip(started).enumerate() {
            rings.extend(driver.start(device, queues));
            if !started {
                driver.write(device, 0x70, 0);
            }
        }
        for act in acts {
            perform(&driver, &mut rings, act);
        }
        // Whatever happened, each device works again after a reset, and can be saved and restored.
        let saved = driver.bus.save();
        let states: Vec<DeviceState> = saved.iter().cloned().map(Into::into).collect();
        rouse_snapshot::validate_devices(&states).expect("a snapshot may have them");
        let same = driver.bus.restore(&saved);
        prop_assert!(same.is_ok() || driver.bus.violations().iter().any(|one| one.count() > 0), "{same:?}");
        for (device, queues) in QUEUES.into_iter().enumerate() {
            driver.start(device, queues);
        }
    }
}

#[test]
fn a_broken_ring_stops_its_device_until_it_is_reset() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let driver = driver(directory.path());
    let mut rings = driver.start(0, 1);
    // A buffer outside of memory.
    rings[0].add(&[readable(MEMORY as u64 - 8, 16)]);
    driver.serve(0, Event::Queue(0));
    assert_eq!(driver.read(0, 0x70), 15 | 64, "it needs a reset");
    assert_eq!(driver.read(0, 0x60), 2);
    let violations = driver.bus.violations();
    assert_eq!(
        (violations[0].device(), violations[0].count()),
        ("block", 1)
    );
    let said = violations[0].last().expect("there was one");
    assert!(said.contains("does not lie in memory"), "{said}");
    driver.serve(0, Event::Queue(0));
    assert!(rings[0].used().is_empty());
    assert_eq!(driver.start(0, 1).len(), 1);
    assert_eq!(driver.read(0, 0x70), 15);
}
