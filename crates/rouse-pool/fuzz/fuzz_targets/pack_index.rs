//! Any bytes as a pack, with its checksums made right: what is accepted lies inside of the file.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use rouse_pool::packs::read_index;
use rouse_snapshot::page_map::PackId;

const HEADER: usize = 144;

/// Makes the checksums right; the id is zero.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    bytes[16..24].fill(0);
    let at = bytes[64..72].try_into().map(u64::from_le_bytes);
    if let Some(index) = at
        .ok()
        .and_then(|at| usize::try_from(at).ok())
        .and_then(|at| bytes.get(at..))
    {
        let digest = blake3::hash(index);
        bytes[80..112].copy_from_slice(digest.as_bytes());
    }
    let digest = blake3::hash(&bytes[..112]);
    bytes[112..144].copy_from_slice(digest.as_bytes());
}

fuzz_target!(|data: &[u8]| {
    // The data region is of no interest: one byte says how many pages of zeros it has.
    let Some((pages, rest)) = data.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if bytes.len() > HEADER {
        let index = bytes.split_off(HEADER);
        bytes.resize((1 + usize::from(*pages % 4)) * 4096, 0);
        bytes.extend(index);
    }
    repair(&mut bytes);
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(&bytes)
        .expect("a temporary file can be written");
    if let Ok(index) = read_index(&file, PackId(0)) {
        for entry in &index.entries {
            assert!(entry.offset + u64::from(entry.stored_len) <= index.data_end);
        }
        assert!(index.data_end <= bytes.len() as u64);
    }
});
