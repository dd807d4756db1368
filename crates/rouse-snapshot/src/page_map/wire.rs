//! A page map as bytes and back.

use std::collections::HashMap;
use std::hash::Hash;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    Entry, FORMAT_VERSION, HEADER_LEN, Header, KIND_CHUNK, KIND_REPEATED, KIND_ZERO, MAGIC, NO_PACK,
};
use super::{
    Chunk, ChunkId, Class, CodecId, DictionaryId, Domain, MAX_PAGES, PackId, PageMap, PageMapError,
    Piece, PieceKind,
};

pub(super) fn encode(map: &PageMap) -> Vec<u8> {
    let (packs, dictionaries) = (map.packs(), map.dictionaries());
    let pack_at = positions(&packs);
    let dictionary_at = positions(&dictionaries);
    let mut body = Vec::with_capacity(map.pieces.len() * size_of::<Entry>() + packs.len() * 8);
    for pack in &packs {
        body.extend_from_slice(&pack.0.to_le_bytes());
    }
    for dictionary in &dictionaries {
        body.extend_from_slice(&dictionary.0.to_le_bytes());
    }
    for piece in &map.pieces {
        body.extend_from_slice(entry(piece, &pack_at, &dictionary_at).as_bytes());
    }
    let hot = map.hot.as_ref();
    let mut header = Header {
        magic: MAGIC,
        format_version: U32::new(FORMAT_VERSION),
        pieces: U32::new(map.pieces.len() as u32),
        pages: U64::new(map.pages),
        packs: U32::new(packs.len() as u32),
        dictionaries: U32::new(dictionaries.len() as u32),
        hot_start: U64::new(hot.map_or(0, |(_, extent)| extent.start)),
        hot_end: U64::new(hot.map_or(0, |(_, extent)| extent.end)),
        hot_pack: U32::new(hot.map_or(NO_PACK, |(pack, _)| pack_at[pack])),
        reserved: U32::ZERO,
        body_digest: *blake3::hash(&body).as_bytes(),
        header_digest: [0; 32],
    };
    header.header_digest = header.digest();
    let mut out = header.as_bytes().to_vec();
    out.append(&mut body);
    out
}

fn positions<T: Copy + Eq + Hash>(items: &[T]) -> HashMap<T, u32> {
    items.iter().copied().zip(0..).collect()
}

fn entry(
    piece: &Piece,
    packs: &HashMap<PackId, u32>,
    dictionaries: &HashMap<DictionaryId, u32>,
) -> Entry {
    let mut entry = Entry {
        id: [0; 32],
        offset: U64::ZERO,
        pack: U32::ZERO,
        stored_len: U32::ZERO,
        dictionary: U16::ZERO,
        pages: piece.pages as u8,
        kind: KIND_ZERO,
        codec: 0,
        class: piece.class as u8,
        domain: 0,
        byte: 0,
    };
    match piece.kind {
        PieceKind::Zero => {}
        PieceKind::Repeated(byte) => {
            entry.kind = KIND_REPEATED;
            entry.byte = byte;
        }
        PieceKind::Chunk(chunk) => {
            entry.kind = KIND_CHUNK;
            entry.id = chunk.id.0;
            entry.offset = U64::new(chunk.offset);
            entry.pack = U32::new(packs[&chunk.pack]);
            entry.stored_len = U32::new(chunk.stored_len);
            entry.codec = chunk.codec as u8;
            entry.domain = chunk.domain as u8;
            if let Some(dictionary) = chunk.dictionary {
                entry.dictionary = U16::new(dictionaries[&dictionary] as u16 + 1);
            }
        }
    }
    entry
}

pub(super) fn digest(bytes: &[u8]) -> Result<[u8; 32], PageMapError> {
    let found = bytes.len();
    let (header, _) = Header::ref_from_prefix(bytes).map_err(|_| PageMapError::Short { found })?;
    Ok(header.header_digest)
}

pub(super) fn decode(bytes: &[u8]) -> Result<PageMap, PageMapError> {
    let found = bytes.len();
    let (header, body) =
        Header::ref_from_prefix(bytes).map_err(|_| PageMapError::Short { found })?;
    check_header(header)?;
    let (packs, dictionaries) = (header.packs.get(), header.dictionaries.get());
    let tables = (u64::from(packs) + u64::from(dictionaries)) * size_of::<u64>() as u64;
    let entries = u64::from(header.pieces.get()) * size_of::<Entry>() as u64;
    let expected = HEADER_LEN as u64 + tables + entries;
    if expected != found as u64 {
        let found = found as u64;
        return Err(PageMapError::Length { expected, found });
    }
    if *blake3::hash(body).as_bytes() != header.body_digest {
        return Err(PageMapError::BodyChecksum);
    }
    // Both lengths were compared with the length of the input.
    let (tables, entries) = body.split_at(tables as usize);
    let (tables, _) = tables.as_chunks::<8>();
    let (packs, dictionaries) = tables.split_at(packs as usize);
    let mut packs = Table::new(packs);
    let mut dictionaries = Table::new(dictionaries);

    let mut pieces = Vec::with_capacity(header.pieces.get() as usize);
    let mut first_page = 0;
    for (index, entry) in entries.chunks_exact(size_of::<Entry>()).enumerate() {
        let wrong = |why| PageMapError::Piece { index, why };
        let entry = Entry::ref_from_bytes(entry).map_err(|_| wrong("it is cut off"))?;
        let piece = piece(entry, first_page, &mut packs, &mut dictionaries).map_err(wrong)?;
        first_page += u64::from(piece.pages);
        pieces.push(piece);
    }
    // One map, one sequence of bytes: nothing may be in a table that no piece refers to.
    if !packs.is_used_up() || !dictionaries.is_used_up() {
        let why = "a table has an entry that is not used, or is there twice";
        return Err(PageMapError::Header { why });
    }
    let hot = hot(header, &packs).map_err(|why| PageMapError::Header { why })?;
    let map = PageMap::new(pieces, hot)?;
    if map.pages != header.pages.get() {
        let (expected, found) = (header.pages.get(), map.pages);
        return Err(PageMapError::Pages { expected, found });
    }
    Ok(map)
}

fn check_header(header: &Header) -> Result<(), PageMapError> {
    if header.magic != MAGIC {
        return Err(PageMapError::Magic);
    }
    if header.format_version != FORMAT_VERSION {
        return Err(PageMapError::FormatVersion {
            found: header.format_version.get(),
        });
    }
    if header.header_digest != header.digest() {
        return Err(PageMapError::HeaderChecksum);
    }
    let pages = header.pages.get();
    if pages > MAX_PAGES {
        return Err(PageMapError::TooLarge { pages });
    }
    if header.reserved != 0 {
        let why = "a reserved field is not zero";
        return Err(PageMapError::Header { why });
    }
    Ok(())
}

fn hot(
    header: &Header,
    packs: &Table<'_>,
) -> Result<Option<(PackId, std::ops::Range<u64>)>, &'static str> {
    let (start, end) = (header.hot_start.get(), header.hot_end.get());
    if header.hot_pack == NO_PACK {
        return match (start, end) {
            (0, 0) => Ok(None),
            _ => Err("a hot extent without a pack"),
        };
    }
    let pack = packs
        .get(header.hot_pack.get())
        .ok_or("the hot extent is in a pack that is not in the table")?;
    Ok(Some((PackId(pack), start..end)))
}

/// Ids that entries refer to by number. The encoding is canonical: numbers are given in the order
/// of first use.
struct Table<'a> {
    ids: &'a [[u8; 8]],
    used: usize,
    seen: std::collections::HashSet<u64>,
}

impl<'a> Table<'a> {
    fn new(ids: &'a [[u8; 8]]) -> Self {
        Self {
            ids,
            used: 0,
            seen: std::collections::HashSet::new(),
        }
    }

    fn get(&self, index: u32) -> Option<u64> {
        self.ids
            .get(index as usize)
            .map(|id| u64::from_le_bytes(*id))
    }

    fn refer(&mut self, index: u32) -> Option<u64> {
        let id = self.get(index)?;
        match (index as usize).cmp(&self.used) {
            std::cmp::Ordering::Less => Some(id),
            std::cmp::Ordering::Equal => {
                self.used += 1;
                self.seen.insert(id).then_some(id)
            }
            std::cmp::Ordering::Greater => None,
        }
    }

    fn is_used_up(&self) -> bool {
        self.used == self.ids.len()
    }
}

fn piece(
    entry: &Entry,
    first_page: u64,
    packs: &mut Table<'_>,
    dictionaries: &mut Table<'_>,
) -> Result<Piece, &'static str> {
    let class = match entry.class {
        0 => Class::Cold,
        1 => Class::Hot,
        _ => return Err("its class is unknown"),
    };
    let no_chunk = entry.id == [0; 32]
        && entry.offset == 0
        && entry.pack == 0
        && entry.stored_len == 0
        && entry.dictionary == 0
        && entry.codec == 0
        && entry.domain == 0;
    let kind = match entry.kind {
        KIND_ZERO if no_chunk && entry.byte == 0 => PieceKind::Zero,
        KIND_REPEATED if no_chunk => PieceKind::Repeated(entry.byte),
        KIND_ZERO | KIND_REPEATED => return Err("it has fields of another kind"),
        KIND_CHUNK if entry.byte == 0 => PieceKind::Chunk(chunk(entry, packs, dictionaries)?),
        KIND_CHUNK => return Err("it has fields of another kind"),
        _ => return Err("its kind is unknown"),
    };
    Ok(Piece {
        first_page,
        pages: u32::from(entry.pages),
        class,
        kind,
    })
}

fn chunk(
    entry: &Entry,
    packs: &mut Table<'_>,
    dictionaries: &mut Table<'_>,
) -> Result<Chunk, &'static str> {
    let codec = CodecId::ALL
        .into_iter()
        .find(|codec| *codec as u8 == entry.codec)
        .ok_or("its codec is unknown")?;
    let domain = match entry.domain {
        0 => Domain::Tenant,
        1 => Domain::Templates,
        _ => return Err("its sharing domain is unknown"),
    };
    let pack = packs
        .refer(entry.pack.get())
        .ok_or("its pack is not in the table, or out of order")?;
    let dictionary = match entry.dictionary.get() {
        0 => None,
        index => Some(DictionaryId(
            dictionaries
                .refer(u32::from(index) - 1)
                .ok_or("its dictionary is not in the table, or out of order")?,
        )),
    };
    Ok(Chunk {
        id: ChunkId(entry.id),
        domain,
        pack: PackId(pack),
        offset: entry.offset.get(),
        stored_len: entry.stored_len.get(),
        codec,
        dictionary,
    })
}
