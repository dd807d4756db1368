//! Codecs: how the bytes of a piece are made smaller.
//!
//! A [`Codec`] turns at most 64 KiB into fewer bytes and back, on its own: no piece needs
//! another one to be read. Which codec a piece gets is a policy ([`Choice`]); which code runs it
//! is decided by [`Codecs`], so that a hardware engine that decodes DEFLATE is one more
//! implementation of [`Codec`] put in the place of the one here.
//!
//! Decoders see bytes from a disk: they may be wrong, but never do more than fail. What they
//! return is verified by [`chunk::Decoder`](crate::chunk::Decoder), not here.

mod choice;
mod contexts;
mod deflate;
mod dictionary;
mod lz4;
mod samples;
mod zstandard;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use rouse_snapshot::page_map::CodecId;

pub use choice::{Beside, Choice, Coded, DefaultChoice, Single};
pub use deflate::{DEFLATE_WINDOW_BITS, Deflate};
pub use dictionary::{Dictionaries, Dictionary, MAX_DICTIONARY_LEN, TrainError, train};
pub use lz4::Lz4;
pub use samples::samples;
pub use zstandard::{ZSTD_LEVEL, Zstd};

/// Compresses pieces and decompresses them.
///
/// One value is used by many threads at once.
pub trait Codec: Send + Sync + fmt::Debug {
    /// What is written into page maps.
    fn id(&self) -> CodecId;

    /// Replaces the contents of `out` by the encoded bytes. They may be more than `plain` has.
    ///
    /// # Errors
    /// What the library says; there is nothing in a piece that cannot be encoded.
    fn encode(
        &self,
        plain: &[u8],
        dictionary: Option<&Dictionary>,
        out: &mut Vec<u8>,
    ) -> io::Result<()>;

    /// Fills all of `out`, whose length is that of the plain bytes.
    ///
    /// # Errors
    /// Stored bytes that cannot be decoded, or decode to another length. `out` holds anything then.
    fn decode(
        &self,
        stored: &[u8],
        dictionary: Option<&Dictionary>,
        out: &mut [u8],
    ) -> io::Result<()>;
}

/// The codec behind each [`CodecId`].
#[derive(Debug, Clone)]
pub struct Codecs {
    by_id: [Arc<dyn Codec>; CodecId::ALL.len()],
}

impl Codecs {
    /// Those that run on the processor.
    pub fn software() -> Self {
        // In the order of `CodecId`.
        let by_id: [Arc<dyn Codec>; CodecId::ALL.len()] = [
            Arc::new(Plain),
            Arc::new(Lz4),
            Arc::new(Zstd::default()),
            Arc::new(Deflate::default()),
        ];
        Self { by_id }
    }

    /// The same, with another implementation of one of them.
    #[must_use]
    pub fn with(mut self, codec: Arc<dyn Codec>) -> Self {
        let at = codec.id() as usize;
        self.by_id[at] = codec;
        self
    }

    /// The implementation to be used.
    pub fn get(&self, id: CodecId) -> &dyn Codec {
        &*self.by_id[id as usize]
    }
}

impl Default for Codecs {
    fn default() -> Self {
        Self::software()
    }
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    fn id(&self) -> CodecId {
        CodecId::None
    }

    fn encode(&self, plain: &[u8], _: Option<&Dictionary>, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.extend_from_slice(plain);
        Ok(())
    }

    fn decode(&self, stored: &[u8], _: Option<&Dictionary>, out: &mut [u8]) -> io::Result<()> {
        if stored.len() != out.len() {
            return Err(wrong_length());
        }
        out.copy_from_slice(stored);
        Ok(())
    }
}

fn wrong_length() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it decodes to another length")
}

#[cfg(test)]
mod tests;
