//! Why a page map is refused.

/// Why bytes or pieces are not a page map that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageMapError {
    /// Shorter than its header.
    #[error("the page map ends after {found} bytes, in the middle of its header")]
    Short {
        /// Length of the input.
        found: usize,
    },
    /// The first bytes are not those of a page map.
    #[error("not a rouse page map")]
    Magic,
    /// Written by another version of rouse.
    #[error(
        "the page map has format version {found}; this rouse reads version {}",
        super::FORMAT_VERSION
    )]
    FormatVersion {
        /// Version in the header.
        found: u32,
    },
    /// The header is damaged.
    #[error("the checksum of the page map's header is wrong")]
    HeaderChecksum,
    /// Cut off, or with something behind it.
    #[error("the page map is {found} bytes long, its header says {expected}")]
    Length {
        /// Length that the header asks for.
        expected: u64,
        /// Length of the input.
        found: u64,
    },
    /// Something behind the header is damaged.
    #[error("the checksum of the page map is wrong")]
    BodyChecksum,
    /// More pages than a pool may have.
    #[error("the page map is of {pages} pages; there may be {}", super::MAX_PAGES)]
    TooLarge {
        /// Pages claimed.
        pages: u64,
    },
    /// The pieces have another sum than the header says.
    #[error("the pieces have {found} pages, the header says {expected}")]
    Pages {
        /// Pages in the header.
        expected: u64,
        /// Pages of all pieces.
        found: u64,
    },
    /// A header field that makes no sense.
    #[error("the page map's header: {why}")]
    Header {
        /// What is wrong.
        why: &'static str,
    },
    /// A piece that makes no sense.
    #[error("piece {index}: {why}")]
    Piece {
        /// Which one.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
}
