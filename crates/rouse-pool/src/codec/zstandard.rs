//! Zstandard: dense, for what is not expected to be touched. A dictionary makes up for the small
//! size of the pieces, within which little repeats.

use std::io;

use rouse_snapshot::page_map::CodecId;
use zstd::zstd_safe::{CCtx, DCtx, compress_bound, get_error_name};

use super::contexts::Contexts;
use super::{Codec, Dictionary, wrong_length};

/// Level of compression. Higher ones gain little on 64 KiB and take much longer.
pub const ZSTD_LEVEL: i32 = 3;

/// The reference library.
#[derive(Debug)]
pub struct Zstd {
    level: i32,
    encoders: Contexts<CCtx<'static>>,
    decoders: Contexts<DCtx<'static>>,
}

impl Zstd {
    /// With another level of compression, where no dictionary is used. It is decoded as fast.
    pub fn at_level(level: i32) -> Self {
        Self {
            level,
            encoders: Contexts::default(),
            decoders: Contexts::default(),
        }
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self::at_level(ZSTD_LEVEL)
    }
}

impl Codec for Zstd {
    fn id(&self) -> CodecId {
        CodecId::Zstd
    }

    fn encode(
        &self,
        plain: &[u8],
        dictionary: Option<&Dictionary>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        out.clear();
        out.resize(compress_bound(plain.len()), 0);
        let len = self
            .encoders
            .with(CCtx::create, |context| match dictionary {
                Some(dictionary) => {
                    { context.compress_using_cdict(&mut out[..], plain, dictionary.encoder()?) }
                        .map_err(describe)
                }
                None => context
                    .compress(&mut out[..], plain, self.level)
                    .map_err(describe),
            })?;
        out.truncate(len);
        Ok(())
    }

    fn decode(
        &self,
        stored: &[u8],
        dictionary: Option<&Dictionary>,
        out: &mut [u8],
    ) -> io::Result<()> {
        let len = self
            .decoders
            .with(DCtx::create, |context| match dictionary {
                Some(dictionary) => {
                    context.decompress_using_ddict(&mut *out, stored, dictionary.decoder())
                }
                None => context.decompress(&mut *out, stored),
            });
        match len {
            Ok(len) if len == out.len() => Ok(()),
            Ok(_) => Err(wrong_length()),
            Err(code) => Err(describe(code)),
        }
    }
}

impl Zstd {
    /// Encodes what `plain` has that `prefix` has not. The prefix must not begin like a dictionary of zstd's making.
    pub(crate) fn encode_beside(
        &self,
        plain: &[u8],
        prefix: &[u8],
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let start = out.len();
        out.resize(start + compress_bound(plain.len()), 0);
        let len = self.encoders.with(CCtx::create, |context| {
            context
                .compress_using_dict(&mut out[start..], plain, prefix, ZSTD_LEVEL)
                .map_err(describe)
        })?;
        out.truncate(start + len);
        Ok(())
    }

    /// Undoes [`Self::encode_beside`].
    pub(crate) fn decode_beside(
        &self,
        stored: &[u8],
        prefix: &[u8],
        out: &mut [u8],
    ) -> io::Result<()> {
        let len = self.decoders.with(DCtx::create, |context| {
            context.decompress_using_dict(&mut *out, stored, prefix)
        });
        match len {
            Ok(len) if len == out.len() => Ok(()),
            Ok(_) => Err(wrong_length()),
            Err(code) => Err(describe(code)),
        }
    }
}

fn describe(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, get_error_name(code))
}
