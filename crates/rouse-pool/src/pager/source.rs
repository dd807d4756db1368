//! Where the pages of a pool come from.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rouse_snapshot::page_map::{PackId, PageMap, PageMapError};

use super::wire::{Reader, Writer};
use crate::chunk::{Decoder, ParentPages};
use crate::codec::{Dictionaries, Dictionary};
use crate::key::DomainKeys;
use crate::packs::PackDir;
use crate::pool::{CompressedCopy, bases};

/// What is needed to fill a pool. Small: nothing is read before the first page is.
#[derive(Debug, Clone)]
pub struct PoolSource {
    /// The page map's file.
    pub page_map: PathBuf,
    /// [`PageMap::digest`] of its contents, from the authenticated manifest.
    pub digest: [u8; 32],
    /// Root of the store that has the packs.
    pub store: PathBuf,
    /// Files of the dictionaries that the page map names.
    pub dictionaries: Vec<PathBuf>,
    /// Keys of the snapshot's tenant.
    pub keys: DomainKeys,
}

impl PoolSource {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.path(&self.page_map);
        out.bytes(&self.digest);
        out.path(&self.store);
        out.u64(self.dictionaries.len() as u64);
        self.dictionaries.iter().for_each(|path| out.path(path));
        out.bytes(&self.keys.to_bytes());
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        let page_map = input.path()?;
        let digest = input.bytes()?.try_into().ok()?;
        let store = input.path()?;
        let count = input.u64()?;
        let dictionaries = (0..count).map(|_| input.path()).collect::<Option<_>>()?;
        let keys = DomainKeys::from_bytes(input.bytes()?.try_into().ok()?);
        Some(Self {
            page_map,
            digest,
            store,
            dictionaries,
            keys,
        })
    }
}

/// Why a pool's source cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("the page map {0} is damaged")]
    Map(PathBuf, #[source] PageMapError),
    #[error("the page map {0} is not the one that belongs to the snapshot")]
    Other(PathBuf),
    #[error("the page map {path} is of {found} pages, the pool of {expected}")]
    Pages {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
}

/// A source in use.
#[derive(Debug)]
pub(crate) struct OpenSource {
    pub map: Arc<PageMap>,
    pub decoder: Arc<Decoder>,
    dir: PackDir,
    packs: HashMap<PackId, Arc<File>>,
    /// What the packs hold of this pool, in memory.
    compressed: Option<(Arc<File>, HashMap<PackId, u64>)>,
}

/// Where the bytes of a pack are.
pub(crate) struct Place {
    pub file: Arc<File>,
    /// Where the pack begins in it.
    pub base: u64,
    pub is_memory: bool,
}

impl OpenSource {
    /// Reads the page map and the dictionaries, and opens the packs: what is opened stays readable when the snapshot is
    /// stored anew. A pack that cannot be opened now is missed when it is needed.
    pub fn open(source: &PoolSource, pages: u64) -> Result<Self, SourceError> {
        let path = &source.page_map;
        let bytes = read(path)?;
        let damaged = |error| SourceError::Map(path.clone(), error);
        if PageMap::digest(&bytes).map_err(damaged)? != source.digest {
            return Err(SourceError::Other(path.clone()));
        }
        let map = PageMap::decode(&bytes).map_err(damaged)?;
        if map.pages() != pages {
            return Err(SourceError::Pages {
                path: path.clone(),
                found: map.pages(),
                expected: pages,
            });
        }
        let dir = PackDir::open(&source.store);
        let mut dictionaries = Dictionaries::new();
        for path in &source.dictionaries {
            let unusable = |error| SourceError::Read(path.clone(), error);
            let bytes = read(path)?;
            if !map.dictionaries().contains(&Dictionary::id_of(&bytes)) {
                let why = "its bytes have changed";
                return Err(unusable(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            if ParentPages::is_one(&bytes) {
                let parent = ParentPages::new(bytes, dir.clone(), source.keys);
                dictionaries.add_parent(Arc::new(parent.map_err(unusable)?));
            } else {
                dictionaries.add(Arc::new(Dictionary::new(bytes).map_err(unusable)?));
            }
        }
        let mut open = Self {
            map: Arc::new(map),
            decoder: Arc::new(Decoder::new(source.keys, dictionaries)),
            dir,
            packs: HashMap::new(),
            compressed: None,
        };
        for pack in open.map.clone().packs() {
            let _ = open.pack(pack);
        }
        Ok(open)
    }

    /// Reads from a copy in memory from now on.
    pub fn hold(&mut self, copy: OwnedFd) {
        self.compressed = Some((Arc::new(copy.into()), bases(&self.map)));
    }

    /// Makes a copy in memory of what packs hold of this pool.
    pub fn copy(&self) -> io::Result<CompressedCopy> {
        CompressedCopy::read(&self.map, &self.dir)
    }

    /// Reads from packs again.
    pub fn let_go(&mut self) {
        self.compressed = None;
    }

    /// Where to read a pack's bytes.
    pub fn place_of(&mut self, pack: PackId) -> io::Result<Place> {
        if let Some((copy, bases)) = &self.compressed
            && let Some(base) = bases.get(&pack)
        {
            return Ok(Place {
                file: copy.clone(),
                base: *base,
                is_memory: true,
            });
        }
        Ok(Place {
            file: self.pack(pack)?,
            base: 0,
            is_memory: false,
        })
    }

    /// The file of a pack, for aligned reads past the page cache where the file system can.
    fn pack(&mut self, pack: PackId) -> io::Result<Arc<File>> {
        if let Some(file) = self.packs.get(&pack) {
            return Ok(file.clone());
        }
        let file = match self.dir.pack_direct(pack) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.dir.pack(pack)?,
            other => other?,
        };
        let file = Arc::new(file);
        self.packs.insert(pack, file.clone());
        Ok(file)
    }
}

/// Makes a copy in memory of what packs hold of a pool.
pub(crate) fn read_copy(source: &PoolSource, pages: u64) -> io::Result<CompressedCopy> {
    let open = OpenSource::open(source, pages).map_err(io::Error::other)?;
    open.copy()
}

fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    fs::read(path).map_err(|error| SourceError::Read(path.into(), error))
}
