//! Raw DEFLATE with a window of 4 KiB, which is as far back as Intel's In-Memory Analytics
//! Accelerator can look. Here it is decoded by the processor.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rouse_snapshot::page_map::CodecId;

use super::contexts::Contexts;
use super::{Codec, Dictionary, wrong_length};

/// Binary logarithm of the window's length in bytes.
pub const DEFLATE_WINDOW_BITS: u8 = 12;

/// zlib in Rust.
#[derive(Debug, Default)]
pub struct Deflate {
    encoders: Contexts<Compress>,
    decoders: Contexts<Decompress>,
}

impl Codec for Deflate {
    fn id(&self) -> CodecId {
        CodecId::Deflate
    }

    fn encode(&self, plain: &[u8], _: Option<&Dictionary>, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        // zlib's own bound for windows that are not the default is about an eighth more.
        out.resize(plain.len() + plain.len() / 4 + 64, 0);
        let make =
            || Compress::new_with_window_bits(Compression::new(6), false, DEFLATE_WINDOW_BITS);
        let len = self.encoders.with(make, |context| {
            context.reset();
            match context.compress(plain, out, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => Ok(context.total_out() as usize),
                Ok(_) => Err(wrong_length()),
                Err(error) => Err(io::Error::other(error)),
            }
        })?;
        out.truncate(len);
        Ok(())
    }

    fn decode(&self, stored: &[u8], _: Option<&Dictionary>, out: &mut [u8]) -> io::Result<()> {
        let make = || Decompress::new_with_window_bits(false, DEFLATE_WINDOW_BITS);
        self.decoders.with(make, |context| {
            context.reset(false);
            let expected = out.len() as u64;
            match context.decompress(stored, out, FlushDecompress::Finish) {
                Ok(Status::StreamEnd) if context.total_out() == expected => Ok(()),
                Ok(_) => Err(wrong_length()),
                Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        })
    }
}
