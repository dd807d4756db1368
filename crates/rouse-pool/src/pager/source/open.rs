//! A source in use: what was read from its files.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rouse_snapshot::page_map::{PackId, PageMap, PageMapError};
use rustix::io::Errno;

use super::{PoolSource, Source};
use crate::chunk::{Decoder, ParentPages};
use crate::codec::{Dictionaries, Dictionary};
use crate::packs::reopen;
use crate::pager::protocol::Failure;
use crate::pool::{CompressedCopy, bases};

/// Longer page maps and dictionaries are taken as damage, bytes.
const MAX_LEN: u64 = 512 << 20;

/// Why a pool's source cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("cannot read the {0}")]
    Read(&'static str, #[source] io::Error),
    #[error("the page map is damaged")]
    Map(#[source] PageMapError),
    #[error("the page map is not the one that belongs to the snapshot")]
    Other,
    #[error("the page map is of {found} pages, the pool of {expected}")]
    Pages { found: u64, expected: u64 },
    #[error("a dictionary cannot be used")]
    Dictionary(#[source] io::Error),
}

impl SourceError {
    /// Whose fault it is: that of the files, of the disk, or of a process that has too little of something at the moment.
    pub fn failure(&self) -> Failure {
        let (Self::Read(_, error) | Self::Dictionary(error)) = self else {
            return Failure::Damaged;
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOMEM | Errno::MFILE | Errno::NFILE) => Failure::Memory,
            Some(_) => Failure::Kernel,
            None => Failure::Damaged,
        }
    }
}

/// A source in use.
#[derive(Debug)]
pub(crate) struct OpenSource {
    pub map: Arc<PageMap>,
    pub decoder: Arc<Decoder>,
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
    /// Reads the page map and the dictionaries.
    pub fn open(source: &Source<BorrowedFd<'_>>, pages: u64) -> Result<Self, SourceError> {
        let bytes = read(source.page_map).map_err(|error| SourceError::Read("page map", error))?;
        if PageMap::digest(&bytes).map_err(SourceError::Map)? != source.digest {
            return Err(SourceError::Other);
        }
        let map = PageMap::decode(&bytes).map_err(SourceError::Map)?;
        if map.pages() != pages {
            return Err(SourceError::Pages {
                found: map.pages(),
                expected: pages,
            });
        }
        let mut dictionaries = Dictionaries::new();
        for file in &source.dictionaries {
            add_dictionary(&mut dictionaries, read(*file), &map, source)?;
        }
        let packs = source.packs.iter().map(|(id, file)| {
            let file = file.try_clone_to_owned()?;
            Ok((*id, Arc::new(File::from(file))))
        });
        Ok(Self {
            map: Arc::new(map),
            decoder: Arc::new(Decoder::new(source.keys, dictionaries)),
            packs: packs
                .collect::<io::Result<_>>()
                .map_err(|error| SourceError::Read("packs", error))?,
            compressed: None,
        })
    }

    /// Reads from a copy in memory from now on.
    pub fn hold(&mut self, copy: OwnedFd) {
        self.compressed = Some((Arc::new(copy.into()), bases(&self.map)));
    }

    /// Reads from packs again.
    pub fn let_go(&mut self) {
        self.compressed = None;
    }

    /// Where to read a pack's bytes.
    pub fn place_of(&self, pack: PackId) -> io::Result<Place> {
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
            file: self.packs.get(&pack).ok_or_else(is_missing)?.clone(),
            base: 0,
            is_memory: false,
        })
    }
}

fn add_dictionary(
    dictionaries: &mut Dictionaries,
    bytes: io::Result<Vec<u8>>,
    map: &PageMap,
    source: &Source<BorrowedFd<'_>>,
) -> Result<(), SourceError> {
    let bytes = bytes.map_err(|error| SourceError::Read("dictionary", error))?;
    if !map.dictionaries().contains(&Dictionary::id_of(&bytes)) {
        let why = "its bytes have changed";
        let error = io::Error::new(io::ErrorKind::InvalidData, why);
        return Err(SourceError::Dictionary(error));
    }
    if ParentPages::is_one(&bytes) {
        let open = |id| match source.packs.iter().find(|(other, _)| *other == id) {
            // Pieces of it are read wherever they begin.
            Some((_, file)) => reopen(*file, false),
            None => Err(is_missing()),
        };
        let parent = ParentPages::new(bytes, source.keys, open);
        dictionaries.add_parent(Arc::new(parent.map_err(SourceError::Dictionary)?));
    } else {
        let dictionary = Dictionary::new(bytes).map_err(SourceError::Dictionary)?;
        dictionaries.add(Arc::new(dictionary));
    }
    Ok(())
}

fn is_missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "this pack was not there")
}

/// Makes a copy in memory of what packs hold of a pool.
pub(crate) fn read_copy(source: &PoolSource, pages: u64) -> io::Result<CompressedCopy> {
    let source = source.borrow();
    let open = OpenSource::open(&source, pages).map_err(io::Error::other)?;
    CompressedCopy::read(&open.map, |pack| {
        let place = open.place_of(pack)?;
        reopen(std::os::fd::AsFd::as_fd(&*place.file), false)
    })
}

/// All of a file, wherever others have read it to.
fn read(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let file = File::from(file.try_clone_to_owned()?);
    let len = file.metadata()?.len();
    if len > MAX_LEN {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too large",
        ));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
