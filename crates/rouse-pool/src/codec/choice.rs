//! Which codec a piece gets.

use rouse_snapshot::page_map::{Class, CodecId};

/// What is needed to decode a piece, besides its stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// A trained dictionary, which is in memory.
    Dictionary,
    /// Pages of a template, which are read and decoded first.
    Template,
}

/// A way in which a piece can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coded {
    /// By which codec.
    pub codec: CodecId,
    /// With what.
    pub beside: Beside,
    /// Bytes that it takes.
    pub len: usize,
}

impl Coded {
    /// Without anything beside it.
    pub fn alone(codec: CodecId, len: usize) -> Self {
        Self {
            codec,
            beside: Beside::Nothing,
            len,
        }
    }
}

/// Chooses among codecs when a snapshot is written. A cost model implements this.
pub trait Choice: Send + Sync {
    /// Codecs that a piece of this class and plain length (bytes) is encoded with for trial.
    /// [`CodecId::None`] needs not be named: it is always there.
    fn candidates(&self, class: Class, plain_len: usize) -> &[CodecId];

    /// Index of one of `encoded`, which holds what each candidate makes of the piece; `None`: it is
    /// stored as it is. What does not shrink is not in it. A codec may be there several times, with different things beside it.
    fn choose(&self, class: Class, plain_len: usize, encoded: &[Coded]) -> Option<usize>;
}

/// Hot pieces LZ4, cold ones zstd; as they are where that saves less than an eighth.
///
/// An eighth: below that, reading fewer bytes from a disk of some 2 GB/s gains less than
/// even LZ4 takes to decode the piece.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultChoice;

impl Choice for DefaultChoice {
    fn candidates(&self, class: Class, _: usize) -> &[CodecId] {
        match class {
            Class::Hot => &[CodecId::Lz4],
            Class::Cold => &[CodecId::Zstd],
        }
    }

    fn choose(&self, _: Class, plain_len: usize, encoded: &[Coded]) -> Option<usize> {
        smallest(encoded).filter(|index| encoded[*index].len <= plain_len - plain_len / 8)
    }
}

/// The same codec for every piece that it makes smaller.
#[derive(Debug, Clone, Copy)]
pub struct Single(pub CodecId);

impl Choice for Single {
    fn candidates(&self, _: Class, _: usize) -> &[CodecId] {
        std::slice::from_ref(&self.0)
    }

    fn choose(&self, _: Class, _: usize, encoded: &[Coded]) -> Option<usize> {
        smallest(encoded)
    }
}

/// The first of those that take the fewest bytes.
fn smallest(encoded: &[Coded]) -> Option<usize> {
    (0..encoded.len()).min_by_key(|index| encoded[*index].len)
}
