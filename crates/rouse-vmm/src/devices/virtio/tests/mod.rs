//! Devices as their drivers see them: through registers and rings, without a machine.

mod block;
mod driver;
mod hostile;
mod vsock;

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::balloon::{Forget, FreePages, FreeRange};
use super::{DeviceConfig, Event};
use driver::{DATA, Driver, readable, writable};

/// Remembers what was given back, and gives it back.
#[derive(Default)]
struct Remember(Mutex<Vec<(u64, u64)>>);

impl FreePages for Remember {
    fn give_back(&self, memory: &GuestMemoryMmap, range: FreeRange) -> std::io::Result<()> {
        let mut all = self.0.lock().expect("no test panicked");
        all.push((range.address.0, range.length));
        Forget.give_back(memory, range)
    }
}

#[test]
fn free_pages_are_forgotten() {
    let owner = Arc::new(Remember::default());
    let driver = Driver::new(&DeviceConfig {
        balloon: Some(Arc::clone(&owner) as Arc<dyn FreePages>),
        ..DeviceConfig::default()
    });
    let mut rings = driver.start(0, 3);
    let page = GuestAddress(DATA + 0x1000);
    let neighbour = GuestAddress(DATA + 0x3000);
    for place in [page, neighbour] {
        driver
            .memory
            .write_obj(7_u8, place)
            .expect("it lies in memory");
    }
    // A report that begins and ends inside of pages.
    rings[2].add(&[writable(DATA + 0xfff, 0x2002)]);
    driver.serve(0, Event::Queue(2));
    assert_eq!(rings[2].used().len(), 1);
    // And pages by their numbers.
    let number = u32::try_from(DATA / 0x1000 + 16).expect("a small number");
    driver
        .memory
        .write_obj(number, GuestAddress(DATA))
        .expect("it lies in memory");
    rings[0].add(&[readable(DATA, 4)]);
    driver.serve(0, Event::Queue(0));
    let given = owner.0.lock().expect("no test panicked").clone();
    assert_eq!(given, [(page.0, 0x2000), (DATA + 0x1_0000, 0x1000)]);
    let value = |place| {
        driver
            .memory
            .read_obj::<u8>(place)
            .expect("it lies in memory")
    };
    assert_eq!((value(page), value(neighbour)), (0, 7));
    assert_eq!(driver.violations(0), 0);
}
