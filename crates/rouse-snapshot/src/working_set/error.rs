//! Why a stored working set is not used.

/// Why bytes are not a working set that can be used with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetError {
    /// Shorter than its header.
    #[error("it ends after {found} bytes, in the middle of its header")]
    Short {
        /// Length of the input.
        found: usize,
    },
    /// The first bytes are not those of a working set.
    #[error("it is not a working set")]
    Magic,
    /// Written by another version of rouse.
    #[error(
        "it has format version {found}; this rouse reads version {}",
        super::FORMAT_VERSION
    )]
    FormatVersion {
        /// Version in the header.
        found: u32,
    },
    /// The header is damaged.
    #[error("the checksum of its header is wrong")]
    HeaderChecksum,
    /// A flag or a reserved field that has no meaning.
    #[error("its header has unknown flags")]
    UnknownFlags,
    /// Cut off, or with something behind it.
    #[error("it is {found} bytes long, its header says {expected}")]
    Length {
        /// Length that the number of entries asks for.
        expected: u64,
        /// Length of the input.
        found: u64,
    },
    /// The entries are damaged.
    #[error("the checksum of its entries is wrong")]
    EntriesChecksum,
    /// An entry that makes no sense.
    #[error("entry {index} makes no sense: {why}")]
    Entry {
        /// Number of the entry.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It was learnt from another snapshot.
    #[error("it belongs to another snapshot")]
    OtherSnapshot,
    /// A run that the snapshot has no place for.
    #[error("the pages at {address:#x} lie in no mapping that can be prepared")]
    NoSuchPages {
        /// Address of the first page of the run.
        address: u64,
    },
}
