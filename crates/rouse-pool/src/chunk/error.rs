//! Why a piece cannot be filled.

use std::io;

use rouse_snapshot::page_map::{CodecId, DictionaryId};

/// Why the bytes of a piece are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PieceError {
    /// The caller's buffer does not fit.
    #[error("the piece has {expected} bytes, the buffer {found}")]
    Buffer {
        /// Plain length, bytes.
        expected: usize,
        /// Length given, bytes.
        found: usize,
    },
    /// Not as many stored bytes as the page map says.
    #[error("{expected} bytes are stored, {found} were given")]
    Stored {
        /// Stored length, bytes.
        expected: usize,
        /// Length given, bytes.
        found: usize,
    },
    /// It was encoded with a dictionary that is not there.
    #[error("dictionary {id} is missing")]
    Dictionary {
        /// Which one.
        id: DictionaryId,
    },
    /// The stored bytes are no output of the codec.
    #[error("the stored bytes are not {}", codec.name())]
    Codec {
        /// Which codec.
        codec: CodecId,
        /// What it says.
        source: io::Error,
    },
    /// The plain bytes are not those that the page map names.
    #[error("the bytes are not those that were stored")]
    Digest,
}
