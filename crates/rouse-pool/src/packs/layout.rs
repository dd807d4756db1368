//! The fixed parts of a pack, as they lie in the file.
//!
//! ```text
//!  0        4096                       hot end           index offset
//!  +--------+----+----+----+-- ... --+-+----+----+-- ... --+-+--------------+---------+
//!  | header | working set, in order  |0| cold pieces       |0| dictionaries | entries |
//!  |   4096 |   of first touch       | |   in pool order   | |     8 each   | 48 each |
//!  +--------+------------------------+-+-------------------+-+--------------+---------+
//!            side by side, no padding   zeros up to a multiple of 4096
//! ```
//!
//! One read past the page cache, from 4096 to the hot end, gets a working set.

use std::mem::{offset_of, size_of};

use rouse_snapshot::page_map::PACK_ALIGN;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format that this crate writes and reads.
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const MAGIC: [u8; 8] = *b"ROUSEPAK";

/// First bytes of a pack; zeros follow up to [`PACK_ALIGN`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub format_version: U32,
    pub entries: U32,
    pub id: U64,
    /// Sharing domain, see `DomainKeys::label`.
    pub label: [u8; 32],
    /// Bytes; [`PACK_ALIGN`] without a working set.
    pub hot_end: U64,
    /// Bytes; a multiple of [`PACK_ALIGN`].
    pub index_offset: U64,
    pub dictionaries: U32,
    /// Zero.
    pub reserved: U32,
    /// BLAKE3 of all from the index on.
    pub index_digest: [u8; 32],
    /// BLAKE3 of the header up to here.
    pub header_digest: [u8; 32],
}

/// One chunk.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    pub id: [u8; 32],
    pub offset: U64,
    pub stored_len: U32,
    /// Index into the dictionaries plus one; 0 without one.
    pub dictionary: U16,
    pub pages: u8,
    pub codec: u8,
}

pub(super) const HEADER_LEN: usize = size_of::<Header>();

// The format is what files on disk look like: a change here is a new format version.
const _: () = {
    assert!(HEADER_LEN == 144);
    assert!(HEADER_LEN as u64 <= PACK_ALIGN);
    assert!(offset_of!(Header, id) == 16);
    assert!(offset_of!(Header, label) == 24);
    assert!(offset_of!(Header, hot_end) == 56);
    assert!(offset_of!(Header, index_offset) == 64);
    assert!(offset_of!(Header, index_digest) == 80);
    assert!(offset_of!(Header, header_digest) == 112);
    assert!(size_of::<Entry>() == 48);
};

impl Header {
    /// What [`Header::header_digest`] must be.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.as_bytes()[..offset_of!(Header, header_digest)]).as_bytes()
    }
}
