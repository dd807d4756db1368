//! Which codec a piece gets.

use rouse_snapshot::page_map::{Class, CodecId};

/// Chooses among codecs when a snapshot is written. A cost model implements this.
pub trait Choice: Send + Sync {
    /// Codecs that a piece of this class and plain length (bytes) is encoded with for trial.
    /// [`CodecId::None`] needs not be named: it is always there.
    fn candidates(&self, class: Class, plain_len: usize) -> &[CodecId];

    /// One of `encoded`, which holds what each candidate makes of the piece (bytes), or
    /// [`CodecId::None`]. What does not shrink is not in it.
    fn choose(&self, class: Class, plain_len: usize, encoded: &[(CodecId, usize)]) -> CodecId;
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

    fn choose(&self, _: Class, plain_len: usize, encoded: &[(CodecId, usize)]) -> CodecId {
        smallest(encoded)
            .filter(|(_, len)| *len <= plain_len - plain_len / 8)
            .map_or(CodecId::None, |(codec, _)| codec)
    }
}

/// The same codec for every piece that it makes smaller.
#[derive(Debug, Clone, Copy)]
pub struct Single(pub CodecId);

impl Choice for Single {
    fn candidates(&self, _: Class, _: usize) -> &[CodecId] {
        std::slice::from_ref(&self.0)
    }

    fn choose(&self, _: Class, _: usize, encoded: &[(CodecId, usize)]) -> CodecId {
        smallest(encoded).map_or(CodecId::None, |(codec, _)| codec)
    }
}

fn smallest(encoded: &[(CodecId, usize)]) -> Option<(CodecId, usize)> {
    encoded.iter().copied().min_by_key(|(_, len)| *len)
}
