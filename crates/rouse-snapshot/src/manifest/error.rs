//! Why a manifest is refused.

use crate::validate::Invalid;

/// Why bytes are not a manifest that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Shorter than the header and the section table.
    #[error("the manifest ends after {found} bytes, in the middle of its header or section table")]
    Short {
        /// Length of the input.
        found: usize,
    },
    /// The first bytes are not those of a manifest.
    #[error("not a rouse manifest")]
    Magic,
    /// Written by another version of rouse.
    #[error(
        "the manifest has format version {found}; this rouse reads version {}",
        super::FORMAT_VERSION
    )]
    FormatVersion {
        /// Version in the header.
        found: u32,
    },
    /// The header is damaged.
    #[error("the checksum of the header is wrong")]
    HeaderChecksum,
    /// Of another architecture.
    #[error("the manifest is of ELF machine {found}, not of x86-64")]
    Architecture {
        /// ELF machine number in the header.
        found: u32,
    },
    /// Of a kind of sandbox that this version does not know.
    #[error("the manifest is of sandbox kind {found}, which is unknown")]
    SandboxKind {
        /// Kind in the header.
        found: u32,
    },
    /// Of another kind of sandbox than the one asked for: the one cannot be restored as the other.
    #[error("the manifest is of {found}, not of {expected}")]
    OtherKind {
        /// Kind in the header.
        found: super::SnapshotKind,
        /// Kind that was asked for.
        expected: super::SnapshotKind,
    },
    /// Cut off, or with something behind it.
    #[error("the manifest is {found} bytes long, its header says {expected}")]
    Length {
        /// Length in the header.
        expected: u64,
        /// Length of the input.
        found: u64,
    },
    /// The section table is damaged.
    #[error("the checksum of the section table is wrong")]
    TableChecksum,
    /// A section that this version does not know but may not ignore.
    #[error("unknown critical section of type {kind}")]
    UnknownCritical {
        /// Type of the section.
        kind: u32,
    },
    /// A section entry with flags or reserved fields that have no meaning.
    #[error("the entry of section type {kind} has unknown flags")]
    UnknownFlags {
        /// Type of the section.
        kind: u32,
    },
    /// A section whose contents are of another version.
    #[error("section `{section}` has version {found}, which is unknown")]
    SectionVersion {
        /// Name of the section.
        section: &'static str,
        /// Version in the table.
        found: u32,
    },
    /// The same section twice.
    #[error("section type {kind} is there twice")]
    Duplicate {
        /// Type of the section.
        kind: u32,
    },
    /// A list of parents that is empty, which is written as no list.
    #[error("the list of parents is empty")]
    NoParents,
    /// A section that must be there is not.
    #[error("section `{section}` is missing")]
    Missing {
        /// Name of the section.
        section: &'static str,
    },
    /// A section reaches beyond the end.
    #[error("section type {kind} reaches beyond the end of the manifest")]
    OutOfRange {
        /// Type of the section.
        kind: u32,
    },
    /// A section starts before the end of what lies in front of it.
    #[error("section type {kind} overlaps what lies before it")]
    Overlap {
        /// Type of the section.
        kind: u32,
    },
    /// A section does not start where the one before it ends, or something follows the last one.
    #[error("bytes {from} to {to} belong to no section")]
    Gap {
        /// First byte.
        from: u64,
        /// One past the last byte.
        to: u64,
    },
    /// Padding that is not zero.
    #[error("the padding before section type {kind} is not zero")]
    Padding {
        /// Type of the section.
        kind: u32,
    },
    /// A section is damaged.
    #[error("the checksum of section type {kind} is wrong")]
    SectionChecksum {
        /// Type of the section.
        kind: u32,
    },
    /// A section's contents cannot be read.
    #[error("cannot read section `{section}`")]
    Section {
        /// Name of the section.
        section: &'static str,
        /// What is wrong with it.
        source: WireError,
    },
    /// Nobody has signed it.
    #[error("the manifest is not signed")]
    Unsigned,
    /// Another node has signed it, or this one has lost its key.
    #[error("the manifest is signed with the key of another node")]
    OtherKey,
    /// Changed, and not by damage: its checksums are right.
    #[error("the signature of the manifest is wrong")]
    Signature,
    /// Header and host section tell of different hosts.
    #[error("the header's digests are not those of the host section")]
    HostDigest,
    /// The contents can be read but make no sense.
    #[error("the manifest contradicts itself")]
    Invalid(#[from] Invalid),
}

/// What is wrong inside of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The section ends too early.
    #[error("it ends in the middle of a value")]
    Short,
    /// A list claims more elements than can follow.
    #[error("it holds a list of {count} elements, more than fit into it")]
    Count {
        /// Number of elements claimed.
        count: u64,
    },
    /// A tag that stands for no variant.
    #[error("tag {tag} is no variant of {of}")]
    Tag {
        /// The tag.
        tag: u8,
        /// What it should have been.
        of: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("it holds text that is not UTF-8")]
    Text,
    /// Bytes behind the last value.
    #[error("{count} bytes follow its last value")]
    Trailing {
        /// Number of bytes.
        count: usize,
    },
}
