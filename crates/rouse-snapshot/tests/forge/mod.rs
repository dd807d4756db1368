//! Manifests that somebody has changed who knows how checksums are made.

use proptest::prelude::prop;

/// A manifest with all its checksums right, after `change` to the contents of one section.
pub fn forge(
    mut bytes: Vec<u8>,
    section: prop::sample::Index,
    change: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let number = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let count = u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
    let entry = 192 + 64 * section.index(count);
    let (start, len) = (number(&bytes, entry + 16), number(&bytes, entry + 24));
    change(&mut bytes[start..start + len]);
    let digest = blake3::hash(&bytes[start..start + len]);
    bytes[entry + 32..entry + 64].copy_from_slice(digest.as_bytes());
    let digest = blake3::hash(&bytes[192..192 + 64 * count]);
    bytes[128..160].copy_from_slice(digest.as_bytes());
    let digest = blake3::hash(&bytes[..160]);
    bytes[160..192].copy_from_slice(digest.as_bytes());
    bytes
}
