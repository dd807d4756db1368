//! The disk.

use std::io::Write;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{DATA, Driver, Ring, readable, writable};
use crate::devices::virtio::{DeviceConfig, Disk, Event};

const SECTORS: u64 = 16;
const BUFFER: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x100;

pub fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file can be made");
    for sector in 0..u8::try_from(SECTORS).expect("a small number") {
        file.write_all(&[sector; 512]).expect("it can be written");
    }
    file
}

fn driver(image: &NamedTempFile, name: &str) -> Driver {
    Driver::new(&DeviceConfig {
        disks: vec![Disk {
            name: name.to_owned(),
            image: image.path().to_owned(),
        }],
        balloon: None,
        ..DeviceConfig::default()
    })
}

/// Asks for something, and returns the status and how many bytes were written.
fn ask(driver: &Driver, ring: &mut Ring, kind: u32, sector: u64, length: u32) -> (u8, u32) {
    let put = |bytes: &[u8], at| {
        let written = driver.memory.write_slice(bytes, GuestAddress(at));
        written.expect("it lies in memory");
    };
    put(&kind.to_le_bytes(), DATA);
    put(&[0; 4], DATA + 4);
    put(&sector.to_le_bytes(), DATA + 8);
    put(&[0xee], STATUS);
    // The data in two pieces.
    let half = length / 2;
    ring.add(&[
        readable(DATA, 16),
        writable(BUFFER, half),
        writable(BUFFER + u64::from(half), length - half),
        writable(STATUS, 1),
    ]);
    driver.serve(0, Event::Queue(0));
    let status = driver.memory.read_obj(GuestAddress(STATUS));
    let used = ring.used();
    assert_eq!(used.len(), 1);
    (status.expect("it lies in memory"), used[0])
}

#[test]
fn what_is_read_is_what_lies_on_the_disk() {
    let image = image();
    let driver = driver(&image, "/");
    let mut ring = driver.start(0, 1).remove(0);
    assert_eq!(driver.read(0, 0x100), 16);
    assert_eq!(ask(&driver, &mut ring, 0, 3, 1024), (0, 1025));
    let mut found = [0; 1024];
    driver
        .memory
        .read_slice(&mut found, GuestAddress(BUFFER))
        .expect("it lies in memory");
    assert!(found[..512] == [3; 512] && found[512..] == [4; 512]);
    // Its interrupt, until the driver has seen it.
    assert_eq!(driver.read(0, 0x60), 1);
    driver.write(0, 0x64, 1);
    assert_eq!(driver.read(0, 0x60), 0);
    // Its name.
    assert_eq!(ask(&driver, &mut ring, 8, 0, 20), (0, 21));
    let mut name = [0xee; 20];
    driver
        .memory
        .read_slice(&mut name, GuestAddress(BUFFER))
        .expect("it lies in memory");
    assert!(name[0] == b'/' && name[1..] == [0; 19]);
    assert_eq!(driver.violations(0), 0);
}

#[test]
fn what_cannot_be_served_is_refused_and_the_next_request_is_not() {
    let image = image();
    let driver = driver(&image, "/");
    let mut ring = driver.start(0, 1).remove(0);
    let wrong = [
        (0, SECTORS, 512, 1), // behind the end
        (0, 15, 1024, 1),     // over the end
        (0, u64::MAX, 512, 1),
        (0, 0, 100, 1),  // no sector
        (0, 0, 0, 1),    // nothing
        (1, 0, 512, 1),  // to write
        (77, 0, 512, 2), // something else
    ];
    for (kind, sector, length, status) in wrong {
        assert_eq!(
            ask(&driver, &mut ring, kind, sector, length),
            (status, 1),
            "{kind} {sector} {length}"
        );
    }
    assert_eq!(driver.violations(0), wrong.len() as u64);
    assert_eq!(ask(&driver, &mut ring, 0, 0, 512), (0, 513));
}

#[test]
fn a_disk_goes_on_where_it_was_and_is_not_mistaken_for_another() {
    let image = image();
    let before = driver(&image, "/");
    let mut ring = before.start(0, 1).remove(0);
    assert_eq!(ask(&before, &mut ring, 0, 1, 512), (0, 513));
    // Asked for, and not yet served.
    ring.add(&[
        readable(DATA, 16),
        writable(BUFFER, 512),
        writable(STATUS, 1),
    ]);
    let saved = before.bus.save();

    let after = driver(&image, "/");
    let mut memory = vec![0; super::driver::MEMORY];
    before
        .memory
        .read_slice(&mut memory, GuestAddress(0))
        .expect("all of it");
    after
        .memory
        .write_slice(&memory, GuestAddress(0))
        .expect("all of it");
    after.bus.restore(&saved).expect("it was saved");
    ring.memory = after.memory.clone();
    after.serve(0, Event::Queue(0));
    assert_eq!(ring.used(), [513]);
    // It was raised when the machine was saved, and not acknowledged.
    assert_eq!(after.read(0, 0x60), 1);
    assert_eq!(saved.len(), 1);

    let error = driver(&image, "/var/task")
        .bus
        .restore(&saved)
        .expect_err("another disk");
    assert!(error.to_string().contains("another disk"), "{error}");
}

#[test]
fn what_no_driver_has_may_be_another_disk() {
    let first = image();
    let before = driver(&first, "/var/task");
    let mut ring = before.start(0, 1).remove(0);
    assert_eq!(ask(&before, &mut ring, 0, 1, 512), (0, 513));
    let in_use = before.bus.save();
    // As Linux lets go of a device.
    for status in [0, 1] {
        before.write(0, 0x70, status);
    }
    let saved = before.bus.save();

    let mut longer = image();
    longer.write_all(&[77; 512]).expect("it can be written");
    let after = driver(&longer, "/var/task");
    after
        .bus
        .restore(&in_use)
        .expect_err("a driver knows the other");
    after.bus.restore(&saved).expect("no driver has it");
    let mut ring = after.start(0, 1).remove(0);
    assert_eq!(ask(&after, &mut ring, 0, SECTORS, 512), (0, 513));
    let found = after.memory.read_obj::<u8>(GuestAddress(BUFFER));
    assert_eq!(found.expect("it lies in memory"), 77);
    assert_eq!(after.violations(0), 0);

    let error = driver(&longer, "/var/runtime").bus.restore(&saved);
    let error = error.expect_err("it belongs elsewhere");
    assert!(error.to_string().contains("another disk"), "{error}");
}
