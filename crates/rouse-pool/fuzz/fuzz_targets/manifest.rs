//! Any bytes as a manifest, with its checksums made right, so that the readers of sections are
//! reached: what is accepted gives the same bytes again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rouse_snapshot::manifest::{AnySnapshot, ManifestKey, Subject, sign, verify};

const HEADER: usize = 192;
const ENTRY: usize = 64;

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

/// Makes the checksums right as far as there are bytes for them.
fn repair(bytes: &mut [u8]) -> Option<()> {
    let count = u32::from_le_bytes(bytes.get(20..24)?.try_into().ok()?) as usize;
    let table_end = HEADER.checked_add(count.checked_mul(ENTRY)?)?;
    if table_end <= bytes.len() {
        for entry in (HEADER..table_end).step_by(ENTRY) {
            let (start, len) = (number(bytes, entry + 16)?, number(bytes, entry + 24)?);
            if let Some(section) = start.checked_add(len).and_then(|end| bytes.get(start..end)) {
                let digest = blake3::hash(section);
                bytes[entry + 32..entry + 64].copy_from_slice(digest.as_bytes());
            }
        }
        let digest = blake3::hash(&bytes[HEADER..table_end]);
        bytes[128..160].copy_from_slice(digest.as_bytes());
    }
    if bytes.len() >= HEADER {
        let digest = blake3::hash(&bytes[..160]);
        bytes[160..192].copy_from_slice(digest.as_bytes());
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let key = ManifestKey::new([7; 32]);
    assert!(verify(data, &key).is_err(), "nobody can guess a signature");
    let mut bytes = data.to_vec();
    let _ = repair(&mut bytes);
    if let Ok(manifest) = AnySnapshot::decode(&bytes) {
        let again = manifest.snapshot.encode(manifest.binding.as_ref());
        // Sections that are not known and not critical are skipped: they do not come back.
        let again = AnySnapshot::decode(&again).expect("what was accepted can be written");
        assert_eq!(again, manifest);
        assert!(verify(&sign(bytes, &key), &key).is_ok());
    }
});
