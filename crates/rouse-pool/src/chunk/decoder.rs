//! From stored bytes to verified pages.

use std::io;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{Chunk, Piece, PieceKind};

use super::{ParentPages, PieceError};
use crate::codec::{Codecs, Dictionaries, Zstd};
use crate::key::DomainKeys;

/// Decodes and verifies pieces of one tenant's snapshots. Used by many threads at once.
#[derive(Debug)]
pub struct Decoder {
    keys: DomainKeys,
    dictionaries: Dictionaries,
    codecs: Codecs,
    /// For pieces that were stored beside a template's.
    beside: Zstd,
}

impl Decoder {
    /// A decoder that runs on the processor.
    pub fn new(keys: DomainKeys, dictionaries: Dictionaries) -> Self {
        Self::with_codecs(keys, dictionaries, Codecs::software())
    }

    /// A decoder that uses these implementations.
    pub fn with_codecs(keys: DomainKeys, dictionaries: Dictionaries, codecs: Codecs) -> Self {
        Self {
            keys,
            dictionaries,
            codecs,
            beside: Zstd::default(),
        }
    }

    /// Fills `out` with the plain bytes of a piece, and verifies them.
    ///
    /// `stored` are the [`stored_len`](rouse_snapshot::page_map::Chunk::stored_len) bytes from the
    /// pack, empty for a piece that has no chunk; `out` has [`Piece::len_bytes`] bytes.
    ///
    /// # Errors
    /// Anything by which these bytes are not the right ones. `out` must not be used then.
    pub fn decode(&self, piece: &Piece, stored: &[u8], out: &mut [u8]) -> Result<(), PieceError> {
        if out.len() != piece.len_bytes() {
            let (expected, found) = (piece.len_bytes(), out.len());
            return Err(PieceError::Buffer { expected, found });
        }
        let expected = piece.chunk().map_or(0, |chunk| chunk.stored_len as usize);
        if stored.len() != expected {
            let found = stored.len();
            return Err(PieceError::Stored { expected, found });
        }
        let chunk = match &piece.kind {
            PieceKind::Zero => {
                out.fill(0);
                return Ok(());
            }
            PieceKind::Repeated(byte) => {
                out.fill(*byte);
                return Ok(());
            }
            PieceKind::Chunk(chunk) => chunk,
        };
        let parent = chunk.dictionary.and_then(|id| self.dictionaries.parent(id));
        if let Some(parent) = parent {
            self.decode_beside(parent, stored, out)
                .map_err(|source| PieceError::Codec {
                    codec: chunk.codec,
                    source,
                })?;
            return self.verify(chunk, out);
        }
        let dictionary = match chunk.dictionary {
            None => None,
            Some(id) => Some(
                self.dictionaries
                    .get(id)
                    .ok_or(PieceError::Dictionary { id })?,
            ),
        };
        let codec = chunk.codec;
        self.codecs
            .get(codec)
            .decode(stored, dictionary.map(|arc| &**arc), out)
            .map_err(|source| PieceError::Codec { codec, source })?;
        self.verify(chunk, out)
    }

    /// A piece that was stored as what differs from pages of a template.
    fn decode_beside(&self, parent: &ParentPages, stored: &[u8], out: &mut [u8]) -> io::Result<()> {
        let (frame, prefix) = parent.resolve(stored, out.len() / PAGE_SIZE as usize)?;
        self.beside.decode_beside(frame, &prefix, out)
    }

    fn verify(&self, chunk: &Chunk, plain: &[u8]) -> Result<(), PieceError> {
        match self.keys.id(chunk.domain, plain) == chunk.id {
            true => Ok(()),
            false => Err(PieceError::Digest),
        }
    }
}
