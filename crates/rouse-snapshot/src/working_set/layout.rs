//! The bytes of a `working-set` file.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MAGIC: [u8; 8] = *b"ROUSEWKS";
/// Header flag: boots are not prepared with the set, because that did not pay.
pub(super) const OFF: u32 = 1;
/// [`Entry::order`] of pages whose first touch was not observed.
pub(super) const NO_ORDER: u32 = u32::MAX;

/// First bytes of the file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub format_version: U32,
    pub flags: U32,
    /// Counts the sets that were predicted.
    pub version: U64,
    /// Invocations that answered.
    pub invocations: U64,
    /// Observations since the last recording began.
    pub horizon: U32,
    /// Pages that an invocation touches although they were not predicted, on average.
    pub residual: U32,
    /// What the set saves an invocation on average, nanoseconds; negative when it costs more.
    pub gain_ns: I64,
    /// Number of entries.
    pub entries: U32,
    /// Zero.
    pub reserved: U32,
    /// Says which snapshot the addresses belong to.
    pub snapshot: [u8; 32],
    /// BLAKE3 of the entries.
    pub entries_digest: [u8; 32],
    /// BLAKE3 of the header up to here.
    pub header_digest: [u8; 32],
}

/// A run of pages.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    /// Address of the first page, divided by the page size.
    pub page: U64,
    pub pages: U32,
    /// Share of invocations that write the pages, in 1/65535.
    pub written: U16,
    /// Share of invocations that touch the pages, in 1/65535.
    pub touched: U16,
    /// Place of the first page in the order of first touches; the others follow it. Or [`NO_ORDER`].
    pub order: U32,
    /// 0 nothing, 1 mapped ahead, 2 copied ahead.
    pub treatment: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

// The format is what files on disk look like: a change here is a new format version.
const _: () = {
    assert!(size_of::<Header>() == 152);
    assert!(offset_of!(Header, format_version) == 8);
    assert!(offset_of!(Header, flags) == 12);
    assert!(offset_of!(Header, version) == 16);
    assert!(offset_of!(Header, invocations) == 24);
    assert!(offset_of!(Header, horizon) == 32);
    assert!(offset_of!(Header, residual) == 36);
    assert!(offset_of!(Header, gain_ns) == 40);
    assert!(offset_of!(Header, entries) == 48);
    assert!(offset_of!(Header, reserved) == 52);
    assert!(offset_of!(Header, snapshot) == 56);
    assert!(offset_of!(Header, entries_digest) == 88);
    assert!(offset_of!(Header, header_digest) == 120);
    assert!(size_of::<Entry>() == 24);
    assert!(offset_of!(Entry, pages) == 8);
    assert!(offset_of!(Entry, written) == 12);
    assert!(offset_of!(Entry, touched) == 14);
    assert!(offset_of!(Entry, order) == 16);
    assert!(offset_of!(Entry, treatment) == 20);
};

impl Header {
    /// What [`Header::header_digest`] must be.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.as_bytes()[..offset_of!(Header, header_digest)]).as_bytes()
    }
}
