//! From disk to memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rouse_snapshot::manifest::{self, Binding, Manifest, ManifestError, ManifestKey, Subject};
use rouse_snapshot::model::{PAGE_SIZE, ProcessSnapshot};
use rouse_snapshot::page_map::{DictionaryId, PackId, PageMap, PageMapError, Piece};

use super::error::Context;
use super::layout::{MANIFEST_FILE, page_map_file, read_bounded, read_open};
use super::{StoreError, parallel};
use crate::chunk::{Decoder, ParentPages};
use crate::key::DomainKeys;
use crate::packs::reopen;
use crate::pager::PoolSource;
use crate::pool::{Pool, PoolBuilder, write_all_at};

/// Larger manifests are taken as damage, bytes. A thread needs about 3 KB and a mapping 100 bytes;
/// what is in pipes and sockets is the only thing that can be large.
const MAX_MANIFEST_LEN: u64 = 256 << 20;
/// Larger page maps are taken as damage, bytes: every page of the largest pool a piece of its own.
const MAX_PAGE_MAP_LEN: u64 = 512 << 20;
/// Stored bytes that are read in one go, when they lie side by side.
const READ_LEN: u64 = 1 << 20;

/// A snapshot that was read, all but its pages. All that it needs is open, so that it can be used until
/// it is dropped, whatever is stored anew, removed or collected meanwhile.
#[derive(Debug)]
pub struct StoredSnapshot<S = ProcessSnapshot> {
    /// The process or machine.
    pub snapshot: S,
    /// Where its pages are.
    pub map: PageMap,
    /// What ties both together, and to a tenant.
    pub binding: Binding,
    pub(super) page_map: File,
    pub(super) packs: BTreeMap<PackId, File>,
    /// Those that there are, and the templates among them.
    pub(super) dictionaries: Vec<(DictionaryId, File)>,
    pub(super) parents: Vec<Arc<ParentPages>>,
    pub(super) decoder: Decoder,
    pub(super) pool_name: String,
}

impl<S: Sync> StoredSnapshot<S> {
    /// Decodes and verifies the pieces of [`Self::map`].
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The open packs that the page map refers to.
    pub fn packs(&self) -> &BTreeMap<PackId, File> {
        &self.packs
    }

    /// Name of the pool, as `/proc/PID/maps` shows it.
    pub fn pool_name(&self) -> &str {
        &self.pool_name
    }

    /// The files that the pager fills the snapshot's pool from, with the keys of its tenant.
    pub(super) fn source(&self, keys: DomainKeys) -> Result<PoolSource, StoreError> {
        let again = |file: BorrowedFd<'_>, past_the_cache| {
            reopen(file, past_the_cache).map_err(|source| StoreError::Reopen { source })
        };
        let dictionaries = self.map.dictionaries().into_iter().map(|id| {
            let found = self.dictionaries.iter().find(|(other, _)| *other == id);
            let (_, file) = found.ok_or(StoreError::NoDictionary { id })?;
            again(file.as_fd(), false)
        });
        let of_parents = self.parents.iter().flat_map(|parent| parent.packs());
        let packs: BTreeMap<_, _> = self.packs.iter().chain(of_parents).collect();
        let packs = packs
            .into_iter()
            .map(|(id, file)| Ok((*id, again(file.as_fd(), true)?)));
        let source = PoolSource {
            digest: self.binding.page_map,
            keys,
            page_map: again(self.page_map.as_fd(), false)?,
            dictionaries: dictionaries.collect::<Result<_, _>>()?,
            packs: packs.collect::<Result<_, StoreError>>()?,
        };
        match source.fits() {
            true => Ok(source),
            false => Err(StoreError::Scattered {
                files: source.files().count(),
            }),
        }
    }

    /// Reads all pages into a new pool, every byte verified.
    ///
    /// # Errors
    /// The first piece that is missing or damaged.
    pub fn load(&self) -> Result<Pool, StoreError> {
        let batches = batches(&self.map);
        let memory = |source| StoreError::Memory {
            action: "fill",
            source,
        };
        PoolBuilder::fill_with(&self.pool_name, self.map.pages(), |pool| {
            parallel::for_each(batches.len(), Buffers::default, |buffers, batch| {
                self.fill(&batches[batch], pool, buffers)
                    .map_err(Wrapped::Store)
            })
        })
        .map_err(|error| match error {
            Wrapped::Store(error) => error,
            Wrapped::Memory(source) => memory(source),
        })
    }

    /// Reads, decodes and verifies one piece of [`Self::map`].
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn read_piece(&self, index: usize) -> Result<Vec<u8>, StoreError> {
        let piece = &self.map.pieces()[index];
        let mut plain = vec![0; piece.len_bytes()];
        match piece.chunk() {
            Some(chunk) => {
                read_piece(
                    &self.decoder,
                    &self.packs[&chunk.pack],
                    index,
                    piece,
                    &mut plain,
                )?;
            }
            None => (self.decoder.decode(piece, &[], &mut plain))
                .map_err(|source| piece_error(index, piece, source))?,
        }
        Ok(plain)
    }

    fn fill(
        &self,
        batch: &Batch<'_>,
        pool: BorrowedFd<'_>,
        buffers: &mut Buffers,
    ) -> Result<(), StoreError> {
        let stored = match batch.pack {
            None => &[][..],
            Some(pack) => {
                let len = (batch.end - batch.start) as usize;
                if buffers.stored.len() < len {
                    buffers.stored.resize(len, 0);
                }
                let stored = &mut buffers.stored[..len];
                self.packs[&pack]
                    .read_exact_at(stored, batch.start)
                    .map_err(|source| self.cannot_read(pack, source))?;
                stored
            }
        };
        buffers.plain.resize(MAX_PIECE_LEN, 0);
        for (index, piece) in &batch.pieces {
            let bytes = match piece.chunk() {
                None => &[][..],
                Some(chunk) => {
                    let start = (chunk.offset - batch.start) as usize;
                    &stored[start..start + chunk.stored_len as usize]
                }
            };
            let plain = &mut buffers.plain[..piece.len_bytes()];
            self.decoder
                .decode(piece, bytes, plain)
                .map_err(|source| piece_error(*index, piece, source))?;
            write_all_at(pool, plain, piece.pool_bytes().start).map_err(|source| {
                StoreError::Memory {
                    action: "fill",
                    source,
                }
            })?;
        }
        Ok(())
    }

    fn cannot_read(&self, pack: PackId, source: std::io::Error) -> StoreError {
        StoreError::Pack {
            path: format!("{pack}.pack").into(),
            source: crate::packs::PackError::Read(source),
        }
    }
}

const MAX_PIECE_LEN: usize =
    rouse_snapshot::page_map::MAX_PIECE_PAGES as usize * PAGE_SIZE as usize;

#[derive(Debug, Default)]
struct Buffers {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

/// [`PoolBuilder::fill_with`] wants to hand over errors of its own.
enum Wrapped {
    Store(StoreError),
    Memory(std::io::Error),
}

impl From<std::io::Error> for Wrapped {
    fn from(error: std::io::Error) -> Self {
        Self::Memory(error)
    }
}

/// Pieces whose stored bytes are read together.
struct Batch<'a> {
    /// `None` for pieces without stored bytes.
    pack: Option<PackId>,
    start: u64,
    end: u64,
    pieces: Vec<(usize, &'a Piece)>,
}

/// All pieces, in the order in which they lie on the disk.
fn batches(map: &PageMap) -> Vec<Batch<'_>> {
    let place = |piece: &Piece| piece.chunk().map(|chunk| (chunk.pack, chunk.offset));
    let mut pieces: Vec<(usize, &Piece)> = map.pieces().iter().enumerate().collect();
    pieces.sort_by_key(|(_, piece)| place(piece));
    let mut batches: Vec<Batch<'_>> = Vec::new();
    for (index, piece) in pieces {
        let (pack, start, end) = match piece.chunk() {
            None => (None, 0, 0),
            Some(chunk) => (
                Some(chunk.pack),
                chunk.offset,
                chunk.offset + u64::from(chunk.stored_len),
            ),
        };
        match batches.last_mut() {
            Some(batch)
                if batch.pack == pack
                    && start <= batch.end
                    && end - batch.start <= READ_LEN
                    && batch.pieces.len() < 64 =>
            {
                batch.end = batch.end.max(end);
                batch.pieces.push((index, piece));
            }
            _ => batches.push(Batch {
                pack,
                start,
                end,
                pieces: vec![(index, piece)],
            }),
        }
    }
    batches
}

/// Reads, decodes and verifies one piece.
pub(super) fn read_piece(
    decoder: &Decoder,
    pack: &File,
    index: usize,
    piece: &Piece,
    plain: &mut [u8],
) -> Result<Vec<u8>, StoreError> {
    let Some(chunk) = piece.chunk() else {
        return decoder
            .decode(piece, &[], plain)
            .map(|()| Vec::new())
            .map_err(|source| piece_error(index, piece, source));
    };
    let mut stored = vec![0; chunk.stored_len as usize];
    pack.read_exact_at(&mut stored, chunk.offset)
        .map_err(|source| StoreError::Pack {
            path: format!("{}.pack", chunk.pack).into(),
            source: crate::packs::PackError::Read(source),
        })?;
    decoder
        .decode(piece, &stored, plain)
        .map_err(|source| piece_error(index, piece, source))?;
    Ok(stored)
}

pub(super) fn piece_error(
    index: usize,
    piece: &Piece,
    source: crate::chunk::PieceError,
) -> StoreError {
    let chunk = piece.chunk();
    StoreError::Piece {
        index,
        first_page: piece.range().start,
        end_page: piece.range().end,
        pack: chunk.map_or(PackId(0), |chunk| chunk.pack),
        offset: chunk.map_or(0, |chunk| chunk.offset),
        source,
    }
}

/// Reads and verifies the manifest in a snapshot's directory.
pub(super) fn read_manifest<S: Subject>(
    dir: &Path,
    key: &ManifestKey,
) -> Result<(S, Binding), StoreError> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = read_bounded(&path, MAX_MANIFEST_LEN)?;
    let in_manifest = |source: ManifestError| StoreError::Manifest {
        path: path.clone(),
        source,
    };
    let signed = manifest::verify(&bytes, key).map_err(in_manifest)?;
    let Manifest { snapshot, binding } = S::decode(signed).map_err(in_manifest)?;
    match binding {
        Some(binding) => Ok((snapshot, binding)),
        None => Err(StoreError::Unbound { path }),
    }
}

/// Opens and reads the page map that a manifest names, and checks that it is that one.
pub(super) fn read_page_map(dir: &Path, binding: &Binding) -> Result<(PageMap, File), StoreError> {
    let path = dir.join(page_map_file(&binding.page_map));
    let file = File::open(&path).context("open", &path)?;
    let bytes = read_open(&file, &path, MAX_PAGE_MAP_LEN)?;
    let in_map = |source: PageMapError| StoreError::PageMap {
        path: path.clone(),
        source,
    };
    let digest = PageMap::digest(&bytes).map_err(in_map)?;
    let map = PageMap::decode(&bytes).map_err(in_map)?;
    if digest != binding.page_map {
        return Err(StoreError::WrongPageMap { path });
    }
    Ok((map, file))
}

/// Reads a page map that no manifest vouches for: enough to know which packs it refers to.
pub(super) fn read_any_page_map(path: &Path) -> Result<PageMap, StoreError> {
    let bytes = read_bounded(path, MAX_PAGE_MAP_LEN)?;
    PageMap::decode(&bytes).map_err(|source| StoreError::PageMap {
        path: path.into(),
        source,
    })
}
