//! Any bytes as the header of a request: what is to be read lies on the disk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rouse_vmm::devices::virtio::block::{HEADER, Request};

fuzz_target!(|input: ([u8; HEADER], u64, u64, u64)| {
    let (header, more, room, sectors) = input;
    let sectors = sectors >> 9;
    if let Ok(Request::Read { offset, length }) = Request::parse(header, more, room, sectors) {
        assert!(length > 0 && length <= room && offset + length <= sectors << 9);
    }
});
