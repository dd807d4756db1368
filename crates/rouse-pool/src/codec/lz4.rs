//! LZ4 blocks: the fastest to decode, for what a restore waits for.

use std::io;

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use rouse_snapshot::page_map::CodecId;

use super::{Codec, Dictionary, wrong_length};

/// LZ4 in Rust, with all bounds checked.
#[derive(Debug, Clone, Copy)]
pub struct Lz4;

impl Codec for Lz4 {
    fn id(&self) -> CodecId {
        CodecId::Lz4
    }

    fn encode(&self, plain: &[u8], _: Option<&Dictionary>, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.resize(get_maximum_output_size(plain.len()), 0);
        let len = compress_into(plain, out).map_err(io::Error::other)?;
        out.truncate(len);
        Ok(())
    }

    fn decode(&self, stored: &[u8], _: Option<&Dictionary>, out: &mut [u8]) -> io::Result<()> {
        match decompress_into(stored, out) {
            Ok(len) if len == out.len() => Ok(()),
            Ok(_) => Err(wrong_length()),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}
