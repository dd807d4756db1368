//! The fixed parts of a page map, as they lie in the file.

use std::collections::HashSet;
use std::hash::Hash;
use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;
pub(super) const MAGIC: [u8; 8] = *b"ROUSEMAP";
/// [`Header::hot_pack`] of a map without a working set.
pub(super) const NO_PACK: u32 = u32::MAX;

/// First bytes of a page map. Behind it: pack ids, dictionary ids (8 bytes each), entries.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub format_version: U32,
    pub pieces: U32,
    pub pages: U64,
    pub packs: U32,
    pub dictionaries: U32,
    /// Bytes in the hot pack; zero without one.
    pub hot_start: U64,
    pub hot_end: U64,
    /// Index into the packs, or [`NO_PACK`].
    pub hot_pack: U32,
    /// Zero.
    pub reserved: U32,
    /// BLAKE3 of all that follows the header.
    pub body_digest: [u8; 32],
    /// BLAKE3 of the header up to here.
    pub header_digest: [u8; 32],
}

/// One piece.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    pub id: [u8; 32],
    pub offset: U64,
    /// Index into the packs.
    pub pack: U32,
    pub stored_len: U32,
    /// Index into the dictionaries plus one; 0 without one.
    pub dictionary: U16,
    pub pages: u8,
    pub kind: u8,
    pub codec: u8,
    pub class: u8,
    pub domain: u8,
    /// Of a repeated byte.
    pub byte: u8,
}

pub(super) const KIND_ZERO: u8 = 0;
pub(super) const KIND_REPEATED: u8 = 1;
pub(super) const KIND_CHUNK: u8 = 2;

pub(super) const HEADER_LEN: usize = size_of::<Header>();

// The format is what files on disk look like: a change here is a new format version.
const _: () = {
    assert!(HEADER_LEN == 120);
    assert!(offset_of!(Header, pieces) == 12);
    assert!(offset_of!(Header, pages) == 16);
    assert!(offset_of!(Header, packs) == 24);
    assert!(offset_of!(Header, hot_start) == 32);
    assert!(offset_of!(Header, hot_pack) == 48);
    assert!(offset_of!(Header, body_digest) == 56);
    assert!(offset_of!(Header, header_digest) == 88);
    assert!(size_of::<Entry>() == 56);
    assert!(offset_of!(Entry, offset) == 32);
    assert!(offset_of!(Entry, pack) == 40);
    assert!(offset_of!(Entry, dictionary) == 48);
    assert!(offset_of!(Entry, pages) == 50);
    assert!(offset_of!(Entry, byte) == 55);
    assert!(super::MAX_PIECE_PAGES <= u8::MAX as u32);
};

impl Header {
    /// What [`Header::header_digest`] must be.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.as_bytes()[..offset_of!(Header, header_digest)]).as_bytes()
    }
}

/// The elements, each once, in the order of their first appearance.
pub(super) fn unique<T: Copy + Eq + Hash>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(*item)).collect()
}
