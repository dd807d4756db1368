//! What makes a list of pieces a page map.

use std::ops::Range;

use super::layout::unique;
use super::{
    Chunk, Class, CodecId, MAX_PAGES, MAX_PIECE_PAGES, PACK_ALIGN, PackId, PageMap, PageMapError,
    Piece, PieceKind,
};

pub(super) fn check(
    pieces: Vec<Piece>,
    hot: Option<(PackId, Range<u64>)>,
) -> Result<PageMap, PageMapError> {
    let mut pages = 0_u64;
    for (index, piece) in pieces.iter().enumerate() {
        check_piece(piece, pages).map_err(|why| PageMapError::Piece { index, why })?;
        pages += u64::from(piece.pages);
        if pages > MAX_PAGES {
            return Err(PageMapError::TooLarge { pages });
        }
    }
    let dictionaries = unique(pieces.iter().filter_map(|piece| piece.chunk()?.dictionary));
    if dictionaries.len() >= usize::from(u16::MAX) {
        let why = "there are too many dictionaries";
        return Err(PageMapError::Header { why });
    }
    if let Some((pack, extent)) = &hot {
        check_hot(&pieces, *pack, extent).map_err(|why| PageMapError::Header { why })?;
    }
    Ok(PageMap { pieces, pages, hot })
}

fn check_piece(piece: &Piece, expected: u64) -> Result<(), &'static str> {
    if piece.first_page != expected {
        return Err("it does not begin where the one before ends");
    }
    if !(1..=MAX_PIECE_PAGES).contains(&piece.pages) {
        return Err("its number of pages is out of range");
    }
    match piece.kind {
        PieceKind::Zero => Ok(()),
        PieceKind::Repeated(0) => Err("it repeats zero, but is not called zero"),
        PieceKind::Repeated(_) => Ok(()),
        PieceKind::Chunk(chunk) => check_chunk(piece, &chunk),
    }
}

fn check_chunk(piece: &Piece, chunk: &Chunk) -> Result<(), &'static str> {
    let stored = chunk.stored_len as usize;
    let fits = match chunk.codec {
        CodecId::None => stored == piece.len_bytes(),
        // What does not shrink is stored as it is.
        CodecId::Lz4 | CodecId::Zstd | CodecId::Deflate => (1..piece.len_bytes()).contains(&stored),
    };
    if !fits {
        return Err("its stored length does not fit its codec");
    }
    if chunk.dictionary.is_some() && chunk.codec != CodecId::Zstd {
        return Err("its codec has no dictionary");
    }
    let end = chunk.offset.checked_add(u64::from(chunk.stored_len));
    // The kernel counts in signed 64-bit bytes.
    if chunk.offset < PACK_ALIGN || end.is_none_or(|end| end > i64::MAX as u64) {
        return Err("its offset is out of range");
    }
    Ok(())
}

fn check_hot(pieces: &[Piece], pack: PackId, extent: &Range<u64>) -> Result<(), &'static str> {
    let aligned = extent.start.is_multiple_of(PACK_ALIGN) && extent.end.is_multiple_of(PACK_ALIGN);
    if !aligned || extent.start < PACK_ALIGN || extent.start >= extent.end {
        return Err("the hot extent is empty or not aligned");
    }
    let mut stored = 0_u64;
    for piece in pieces.iter().filter(|piece| piece.class == Class::Hot) {
        if let Some(chunk) = piece.chunk().filter(|chunk| chunk.pack == pack)
            && (extent.start..extent.end).contains(&chunk.offset)
        {
            stored += u64::from(chunk.stored_len);
        }
    }
    // A reader allocates the extent's length. Within an extent may lie what this snapshot does not
    // use, but never more than a pool can be.
    if stored == 0 || extent.end - extent.start > MAX_PAGES * crate::model::PAGE_SIZE {
        return Err("the hot extent holds no hot piece, or is too long");
    }
    Ok(())
}
