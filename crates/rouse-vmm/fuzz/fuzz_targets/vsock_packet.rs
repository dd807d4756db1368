//! Any bytes as the header of a packet: its data is there, and it means what it is written as.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rouse_vmm::devices::virtio::vsock::{GUEST, HEADER, Operation, Packet};

fuzz_target!(|input: ([u8; HEADER], u64)| {
    let (bytes, room) = input;
    let Ok(packet) = Packet::parse(bytes, GUEST, room) else {
        return;
    };
    if let Operation::Data(length) = packet.operation {
        assert!(length > 0 && u64::from(length) <= room);
    }
    // From the host it is the same with its ends turned round.
    let mut back = packet.to_guest(GUEST);
    back[..16].rotate_left(8);
    back[16..24].rotate_left(4);
    assert_eq!(Packet::parse(back, GUEST, room), Ok(packet));
});
