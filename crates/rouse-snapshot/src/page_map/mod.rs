//! Where on disk each page of a pool is: the page map of a snapshot.
//!
//! ```text
//!  pool pages   0         16    20              36       40
//!               +---------+-----+---------------+--------+--- ... ---+
//!  pieces       | chunk   |zero | chunk         | 0xaa.. |           |   sorted, no gaps
//!               +---------+-----+---------------+--------+--- ... ---+
//!                    |               `--------- pack 2, offset 90112, 9120 bytes, zstd
//!                    `------------------------- pack 1, offset 4096, 31077 bytes, lz4
//! ```
//!
//! A [`Piece`] is what is stored, verified and filled as a whole: at most [`MAX_PIECE_PAGES`]
//! consecutive pool pages. Its bytes lie in a *pack*, a file of the chunk store that other
//! snapshots may refer to as well. Pieces of the working set ([`Class::Hot`]) that were stored for
//! this snapshot lie side by side in its own pack, so that one read gets them all: the
//! [hot extent](PageMap::hot_extent).
//!
//! The map is bound to its manifest by [`PageMap::digest`]; see `docs/snapshot-format.md`.

mod build;
mod error;
mod layout;
mod wire;

use std::fmt;
use std::ops::Range;

pub use error::PageMapError;
pub use layout::FORMAT_VERSION;

use crate::model::PAGE_SIZE;

/// The most pages that a piece has: 64 KiB, the granularity of compression and verification.
pub const MAX_PIECE_PAGES: u32 = 16;
/// The most pages that a pool has: 32 GiB. Bounds what a forged header can ask for.
pub const MAX_PAGES: u64 = 1 << 23;
/// Packs start their data on multiples of this, bytes: what `O_DIRECT` asks for.
pub const PACK_ALIGN: u64 = 4096;

/// Names a pack, a file of the chunk store. Random, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names a compression dictionary of the chunk store by its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DictionaryId(pub u64);

impl fmt::Display for DictionaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// BLAKE3 of a piece's plain bytes, keyed with the key of its sharing domain: proves the contents
/// to whoever has the key, and tells nothing to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// How a piece is encoded in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CodecId {
    /// As it is.
    None = 0,
    /// LZ4 block, without its length in front.
    Lz4 = 1,
    /// A zstd frame; a dictionary if the chunk names one.
    Zstd = 2,
    /// Raw DEFLATE with a window of 4 KiB.
    Deflate = 3,
}

impl CodecId {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Lz4, Self::Zstd, Self::Deflate];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
        }
    }
}

/// Whether a piece belongs to the working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Not expected to be touched.
    Cold = 0,
    /// Touched by the recorded invocations: prefetched.
    Hot = 1,
}

/// Whose key names a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Domain {
    /// The tenant that the snapshot belongs to.
    Tenant = 0,
    /// The operator's templates, which every tenant may share.
    Templates = 1,
}

/// The stored bytes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Keyed digest of the plain bytes.
    pub id: ChunkId,
    /// With whose key.
    pub domain: Domain,
    /// File that holds the bytes.
    pub pack: PackId,
    /// Where in the pack, bytes.
    pub offset: u64,
    /// How many bytes.
    pub stored_len: u32,
    /// How they are encoded.
    pub codec: CodecId,
    /// Dictionary of the codec.
    pub dictionary: Option<DictionaryId>,
}

/// What the pages of a piece hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Zeros.
    Zero,
    /// This byte, which is not zero, everywhere.
    Repeated(u8),
    /// What is stored.
    Chunk(Chunk),
}

/// A run of consecutive pool pages that is stored and filled as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First page in the pool.
    pub first_page: u64,
    /// How many, 1 to [`MAX_PIECE_PAGES`].
    pub pages: u32,
    /// Part of the working set or not.
    pub class: Class,
    /// Contents.
    pub kind: PieceKind,
}

impl Piece {
    /// Length of the plain bytes.
    pub fn len_bytes(&self) -> usize {
        self.pages as usize * PAGE_SIZE as usize
    }

    /// Page numbers in the pool.
    pub fn range(&self) -> Range<u64> {
        self.first_page..self.first_page + u64::from(self.pages)
    }

    /// Bytes in the pool.
    pub fn pool_bytes(&self) -> Range<u64> {
        let range = self.range();
        range.start * PAGE_SIZE..range.end * PAGE_SIZE
    }

    /// The chunk, if bytes are stored for this piece.
    pub fn chunk(&self) -> Option<&Chunk> {
        match &self.kind {
            PieceKind::Chunk(chunk) => Some(chunk),
            PieceKind::Zero | PieceKind::Repeated(_) => None,
        }
    }
}

/// Says of each page of a pool where it is stored. Valid by construction.
///
/// About 90 bytes for each piece: read from its file when it is needed and dropped afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMap {
    // Invariants: sorted by `first_page`, the first at 0, each begins where the one before ends;
    // chunks lie behind their pack's header and fit their codec; `hot` is aligned.
    pieces: Vec<Piece>,
    pages: u64,
    hot: Option<(PackId, Range<u64>)>,
}

impl PageMap {
    /// A map of these pieces, which must be sorted and without gaps from page 0 on.
    ///
    /// # Errors
    /// Says what is wrong with which piece.
    pub fn new(
        pieces: Vec<Piece>,
        hot: Option<(PackId, Range<u64>)>,
    ) -> Result<Self, PageMapError> {
        build::check(pieces, hot)
    }

    /// Length of the pool in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// All pieces, sorted by their first page, covering all pages.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The piece that holds a page, and its index.
    ///
    /// # Panics
    /// When the pool has no such page.
    pub fn piece_of(&self, page: u64) -> (usize, &Piece) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let index = self
            .pieces
            .partition_point(|piece| piece.range().end <= page);
        (index, &self.pieces[index])
    }

    /// The bytes of a pack that hold the stored pieces of the working set, in the order of their
    /// first use; start and end are multiples of [`PACK_ALIGN`]. Hot pieces that are shared with
    /// other packs do not lie in it. `None` without a working set.
    pub fn hot_extent(&self) -> Option<(PackId, Range<u64>)> {
        self.hot.clone()
    }

    /// Every pack that a piece lies in, each once, in the order of first use.
    pub fn packs(&self) -> Vec<PackId> {
        layout::unique(self.chunks().map(|chunk| chunk.pack))
    }

    /// Every dictionary that a piece needs, each once, in the order of first use.
    pub fn dictionaries(&self) -> Vec<DictionaryId> {
        layout::unique(self.chunks().filter_map(|chunk| chunk.dictionary))
    }

    /// All chunks, in the order of the pages.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.pieces.iter().filter_map(Piece::chunk)
    }

    /// The bytes of the map's file; the same map always gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads a map that [`PageMap::encode`] wrote.
    ///
    /// Allocates in proportion to its input.
    ///
    /// # Errors
    /// Anything that is damaged, unknown or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageMapError> {
        wire::decode(bytes)
    }

    /// What binds encoded bytes to a manifest: the digest of the header, which covers the rest.
    ///
    /// # Errors
    /// [`PageMapError::Short`] when there is no whole header. Checks nothing else.
    pub fn digest(bytes: &[u8]) -> Result<[u8; 32], PageMapError> {
        wire::digest(bytes)
    }
}
