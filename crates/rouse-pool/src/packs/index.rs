//! What a pack says of itself: which chunks it holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rouse_snapshot::page_map::{
    ChunkId, CodecId, DictionaryId, MAX_PIECE_PAGES, PACK_ALIGN, PackId,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{Entry, FORMAT_VERSION, HEADER_LEN, Header, MAGIC};

/// Why a pack is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// It cannot be opened or read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The first bytes are not those of a pack.
    #[error("it is no pack")]
    Magic,
    /// Written by another version of rouse.
    #[error("it has format version {found}; this rouse reads version {FORMAT_VERSION}")]
    FormatVersion {
        /// Version in the header.
        found: u32,
    },
    /// A checksum, or a length that does not fit.
    #[error("{what} is damaged")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// Another pack under this name.
    #[error("it is pack {found}")]
    OtherPack {
        /// Id in the header.
        found: PackId,
    },
}

/// A chunk of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Name.
    pub id: ChunkId,
    /// Where in the pack, bytes.
    pub offset: u64,
    /// How many bytes.
    pub stored_len: u32,
    /// Plain length.
    pub pages: u32,
    /// How they are encoded.
    pub codec: CodecId,
    /// With which dictionary.
    pub dictionary: Option<DictionaryId>,
}

/// The chunks of a pack, in the order in which they lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    /// Name of the pack.
    pub id: PackId,
    /// Sharing domain, see [`DomainKeys::label`](crate::key::DomainKeys::label).
    pub label: [u8; 32],
    /// End of the working set, bytes; it begins at [`PACK_ALIGN`].
    pub hot_end: u64,
    /// End of the last chunk, rounded up, bytes.
    pub data_end: u64,
    /// Its chunks.
    pub entries: Vec<PackEntry>,
}

/// Reads only to which sharing domain a pack belongs, its header verified.
///
/// # Errors
/// A header that is damaged, of another version or of another pack.
pub(crate) fn read_label(file: &File, id: PackId) -> Result<[u8; 32], PackError> {
    read_header(file, id).map(|header| header.label)
}

/// Reads the index of a pack. The chunks themselves are not looked at.
///
/// # Errors
/// Anything in header or index that is damaged or contradicts itself.
pub fn read_index(file: &File, id: PackId) -> Result<PackIndex, PackError> {
    let header = read_header(file, id)?;
    let len = file.metadata().map_err(PackError::Read)?.len();
    let damaged = |what| PackError::Damaged { what };
    let (hot_end, data_end) = (header.hot_end.get(), header.index_offset.get());
    let aligned = hot_end.is_multiple_of(PACK_ALIGN) && data_end.is_multiple_of(PACK_ALIGN);
    if !aligned || hot_end < PACK_ALIGN || data_end < hot_end || header.reserved != 0 {
        return Err(damaged("the header"));
    }
    let tables = u64::from(header.dictionaries.get()) * size_of::<u64>() as u64;
    let entries = u64::from(header.entries.get()) * size_of::<Entry>() as u64;
    // Compared with the file's length before anything is allocated for it.
    if data_end.checked_add(tables + entries) != Some(len) {
        return Err(damaged("the length of the file"));
    }
    let mut index = vec![0; (tables + entries) as usize];
    file.read_exact_at(&mut index, data_end)
        .map_err(PackError::Read)?;
    if *blake3::hash(&index).as_bytes() != header.index_digest {
        return Err(damaged("the index"));
    }
    let (tables, entries) = index.split_at(tables as usize);
    let (dictionaries, _) = tables.as_chunks::<8>();
    let entries = entries
        .chunks_exact(size_of::<Entry>())
        .map(|bytes| {
            let entry = Entry::ref_from_bytes(bytes).ok()?;
            parse(entry, dictionaries, data_end)
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(damaged("the index"))?;
    Ok(PackIndex {
        id,
        label: header.label,
        hot_end,
        data_end,
        entries,
    })
}

fn read_header(file: &File, id: PackId) -> Result<Header, PackError> {
    let mut header = Header::new_zeroed();
    let mut bytes = [0; HEADER_LEN];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PackError::Damaged {
                what: "the length of the file",
            },
            _ => PackError::Read(error),
        })?;
    header.as_mut_bytes().copy_from_slice(&bytes);
    if header.magic != MAGIC {
        return Err(PackError::Magic);
    }
    if header.format_version != FORMAT_VERSION {
        let found = header.format_version.get();
        return Err(PackError::FormatVersion { found });
    }
    if header.header_digest != header.digest() {
        return Err(PackError::Damaged { what: "the header" });
    }
    let found = PackId(header.id.get());
    if found != id {
        return Err(PackError::OtherPack { found });
    }
    Ok(header)
}

fn parse(entry: &Entry, dictionaries: &[[u8; 8]], data_end: u64) -> Option<PackEntry> {
    let codec = CodecId::ALL
        .into_iter()
        .find(|codec| *codec as u8 == entry.codec)?;
    let dictionary = match entry.dictionary.get() {
        0 => None,
        index => Some(DictionaryId(u64::from_le_bytes(
            *dictionaries.get(usize::from(index) - 1)?,
        ))),
    };
    let (offset, stored_len) = (entry.offset.get(), entry.stored_len.get());
    let end = offset.checked_add(u64::from(stored_len))?;
    let pages = u32::from(entry.pages);
    let fits = (1..=MAX_PIECE_PAGES).contains(&pages) && offset >= PACK_ALIGN && end <= data_end;
    fits.then_some(PackEntry {
        id: ChunkId(entry.id),
        offset,
        stored_len,
        pages,
        codec,
        dictionary,
    })
}
