//! The fixed part of a manifest: header and section table, as they lie in the file.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 3;

pub(super) const MAGIC: [u8; 8] = *b"ROUSESNP";
/// `EM_X86_64` of ELF.
pub(super) const ARCHITECTURE: u32 = 62;
/// Sections start on multiples of this.
pub(super) const SECTION_ALIGN: u64 = 64;
/// A reader that does not know a section with this flag must refuse the manifest.
pub(super) const CRITICAL: u32 = 1;

/// First bytes of a manifest.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub format_version: U32,
    pub architecture: U32,
    pub sandbox_kind: U32,
    pub section_count: U32,
    /// Length of the file, bytes.
    pub total_len: U64,
    pub kernel: [u8; 32],
    pub vdso: [u8; 32],
    pub cpu: [u8; 32],
    /// BLAKE3 of the section table.
    pub table_digest: [u8; 32],
    /// BLAKE3 of the header up to here.
    pub header_digest: [u8; 32],
}

/// One entry of the section table.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SectionEntry {
    pub kind: U32,
    pub version: U32,
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
    /// From the start of the file, bytes.
    pub offset: U64,
    /// Without padding, bytes.
    pub length: U64,
    /// BLAKE3 of the section's bytes.
    pub digest: [u8; 32],
}

// The format is what files on disk look like: a change here is a new format version.
const _: () = {
    assert!(size_of::<Header>() == 192);
    assert!(offset_of!(Header, format_version) == 8);
    assert!(offset_of!(Header, architecture) == 12);
    assert!(offset_of!(Header, sandbox_kind) == 16);
    assert!(offset_of!(Header, section_count) == 20);
    assert!(offset_of!(Header, total_len) == 24);
    assert!(offset_of!(Header, kernel) == 32);
    assert!(offset_of!(Header, vdso) == 64);
    assert!(offset_of!(Header, cpu) == 96);
    assert!(offset_of!(Header, table_digest) == 128);
    assert!(offset_of!(Header, header_digest) == 160);
    assert!(size_of::<SectionEntry>() == 64);
    assert!(offset_of!(SectionEntry, flags) == 8);
    assert!(offset_of!(SectionEntry, offset) == 16);
    assert!(offset_of!(SectionEntry, length) == 24);
    assert!(offset_of!(SectionEntry, digest) == 32);
    // So that the first section needs no padding after the table.
    assert!((size_of::<Header>() as u64).is_multiple_of(SECTION_ALIGN));
    assert!((size_of::<SectionEntry>() as u64).is_multiple_of(SECTION_ALIGN));
};

impl Header {
    /// What [`Header::header_digest`] must be.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.as_bytes()[..offset_of!(Header, header_digest)]).as_bytes()
    }
}

/// The sections of this format version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Section {
    Host = 1,
    Process = 2,
    Threads = 3,
    Mappings = 4,
    Files = 5,
    Descriptions = 6,
    Descriptors = 7,
    Tmp = 8,
    Pool = 9,
    /// Only in the manifest of a snapshot that has parents.
    Parents = 10,
    // Of machines; these have 9 and 10 too.
    MachineHost = 11,
    Hardware = 12,
    Memory = 13,
    Vcpus = 14,
    Chips = 15,
    Devices = 16,
    /// Of memory images; these have 9 and 13 too.
    Image = 17,
}

impl Section {
    /// Version of each section's contents that this crate writes and reads.
    pub const VERSION: u32 = 1;

    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Process => "process",
            Self::Threads => "threads",
            Self::Mappings => "mappings",
            Self::Files => "files",
            Self::Descriptions => "descriptions",
            Self::Descriptors => "descriptors",
            Self::Tmp => "tmp",
            Self::Pool => "pool",
            Self::Parents => "parents",
            Self::MachineHost => "machine host",
            Self::Hardware => "hardware",
            Self::Memory => "memory",
            Self::Vcpus => "processors",
            Self::Chips => "chips",
            Self::Devices => "devices",
            Self::Image => "image",
        }
    }

    pub fn from_kind(kind: u32) -> Option<Self> {
        const ALL: [Section; 17] = [
            Section::Host,
            Section::Process,
            Section::Threads,
            Section::Mappings,
            Section::Files,
            Section::Descriptions,
            Section::Descriptors,
            Section::Tmp,
            Section::Pool,
            Section::Parents,
            Section::MachineHost,
            Section::Hardware,
            Section::Memory,
            Section::Vcpus,
            Section::Chips,
            Section::Devices,
            Section::Image,
        ];
        ALL.into_iter().find(|section| *section as u32 == kind)
    }
}
