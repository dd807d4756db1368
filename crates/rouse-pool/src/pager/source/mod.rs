//! Where the pages of a pool come from: files that are open, never paths.
//!
//! ```text
//!  daemon    Source<File>    opened together, while nobody could collect what a page map needs
//!    |  names and descriptors over the socket
//!  slot      Source<RawFd>   in the table that keeper and pager share: outlives a pager
//!    |  borrowed
//!  pager     OpenSource      page map decoded, dictionaries prepared
//! ```
//! A snapshot may be stored anew or removed while instances run on the pages of before, and a pager may have to be
//! started meanwhile. What it needs then has no name any more; but a file that is open stays readable.

mod open;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rouse_snapshot::page_map::PackId;

use super::arena::Blob;
use super::wire::{Reader, Writer};
use crate::key::DomainKeys;

pub(crate) use open::{OpenSource, read_copy};

/// The most packs of one pool: its own, those that it shares, and those of a template beside whose pages it is stored.
pub const MAX_PACKS: usize = 96;
/// The most dictionaries of one pool.
const MAX_DICTIONARIES: usize = 8;
/// The most descriptors of a source.
pub(crate) const MAX_FILES: usize = 1 + MAX_DICTIONARIES + MAX_PACKS;

/// What is needed to fill a pool; `F` stands for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source<F> {
    /// [`PageMap::digest`](rouse_snapshot::page_map::PageMap::digest) of the page map, from the authenticated manifest.
    pub digest: [u8; 32],
    /// Keys of the snapshot's tenant.
    pub keys: DomainKeys,
    /// The page map.
    pub page_map: F,
    /// The dictionaries that the page map names.
    pub dictionaries: Vec<F>,
    /// All packs that are read for its pieces, those of the templates beside whose pages they are stored included. For
    /// reads past the page cache, where the file system can.
    pub packs: Vec<(PackId, F)>,
}

/// The open files of a snapshot that its pool is filled from. Nothing is read before the first page is.
pub type PoolSource = Source<File>;

/// What is said of a source beside its descriptors.
pub(crate) type Names = Source<()>;

impl<F> Source<F> {
    /// The same of something else, in the order in which descriptors are sent.
    pub(crate) fn map<'a, G>(&'a self, mut each: impl FnMut(&'a F) -> G) -> Source<G> {
        Source {
            digest: self.digest,
            keys: self.keys,
            page_map: each(&self.page_map),
            dictionaries: self.dictionaries.iter().map(&mut each).collect(),
            packs: (self.packs.iter())
                .map(|(id, file)| (*id, each(file)))
                .collect(),
        }
    }

    /// All files, in the order in which descriptors are sent.
    pub(crate) fn files(&self) -> impl Iterator<Item = &F> {
        let packs = self.packs.iter().map(|(_, file)| file);
        std::iter::once(&self.page_map)
            .chain(&self.dictionaries)
            .chain(packs)
    }

    /// The files alone.
    pub(crate) fn into_files(self) -> impl Iterator<Item = F> {
        let packs = self.packs.into_iter().map(|(_, file)| file);
        std::iter::once(self.page_map)
            .chain(self.dictionaries)
            .chain(packs)
    }

    /// Without the files.
    pub(crate) fn names(&self) -> Names {
        self.map(|_| ())
    }

    /// Are there few enough files for a slot?
    pub(crate) fn fits(&self) -> bool {
        self.dictionaries.len() <= MAX_DICTIONARIES && self.packs.len() <= MAX_PACKS
    }
}

impl PoolSource {
    pub(crate) fn borrow(&self) -> Source<BorrowedFd<'_>> {
        self.map(|file| file.as_fd())
    }
}

impl Names {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.put(&mut out);
        out.finish()
    }

    fn put(&self, out: &mut Writer) {
        out.bytes(&self.digest);
        out.bytes(&self.keys.to_bytes());
        out.words(&[self.dictionaries.len() as u64, self.packs.len() as u64]);
        self.packs.iter().for_each(|(id, ())| out.u64(id.0));
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        Self::take(&mut Reader::new(bytes))
    }

    fn take(input: &mut Reader<'_>) -> Option<Self> {
        let digest = input.bytes()?.try_into().ok()?;
        let keys = DomainKeys::from_bytes(input.bytes()?.try_into().ok()?);
        let (dictionaries, packs) = (input.u64()?, input.u64()?);
        if dictionaries > MAX_DICTIONARIES as u64 || packs > MAX_PACKS as u64 {
            return None;
        }
        let packs = (0..packs).map(|_| Some((PackId(input.u64()?), ())));
        Some(Self {
            digest,
            keys,
            page_map: (),
            packs: packs.collect::<Option<_>>()?,
            dictionaries: vec![(); dictionaries as usize],
        })
    }

    /// With these files, which must be as many as there are names.
    pub(crate) fn with<F>(&self, files: impl IntoIterator<Item = F>) -> Option<Source<F>> {
        let mut files = files.into_iter();
        let source = self.map(|()| files.next()).whole()?;
        files.next().is_none().then_some(source)
    }
}

impl<F> Source<Option<F>> {
    fn whole(self) -> Option<Source<F>> {
        let packs = self
            .packs
            .into_iter()
            .map(|(id, file)| Some((id, file?)))
            .collect::<Option<_>>()?;
        Some(Source {
            digest: self.digest,
            keys: self.keys,
            page_map: self.page_map?,
            dictionaries: self.dictionaries.into_iter().collect::<Option<_>>()?,
            packs,
        })
    }
}

/// A source whose descriptors are those of a slot.
impl Source<RawFd> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.names().put(&mut out);
        self.files().for_each(|fd| out.u64(*fd as u64));
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        let names = Names::take(&mut input)?;
        let fds = names.files().map(|()| input.u64().map(|fd| fd as RawFd));
        names.with(fds.collect::<Option<Vec<_>>>()?)
    }
}

/// Bytes of an encoded source: two lengths, digest, keys, two counts, and a word for each number.
const LONGEST: usize = (2 + 2 + 32 / 8 + 64 / 8 + MAX_PACKS + MAX_FILES) * 8;
const _: () = assert!(LONGEST <= Blob::CAPACITY, "any source fits into a slot");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NodeKey;

    fn names(dictionaries: usize, packs: u64) -> Names {
        Names {
            digest: [3; 32],
            keys: NodeKey::new([9; 32]).domain_keys("tenant"),
            page_map: (),
            dictionaries: vec![(); dictionaries],
            packs: (0..packs).map(|id| (PackId(id * 7), ())).collect(),
        }
    }

    #[test]
    fn sources_come_back_as_they_were() {
        for (dictionaries, packs) in [(0, 0), (1, 3), (MAX_DICTIONARIES, MAX_PACKS as u64)] {
            let names = names(dictionaries, packs);
            assert!(names.fits());
            assert_eq!(Names::decode(&names.encode()).as_ref(), Some(&names));
            let count = 1 + dictionaries + packs as usize;
            let fds = 10..10 + count as RawFd;
            let held = names.with(fds.clone()).expect("as many as there are names");
            assert!(held.files().copied().eq(fds));
            let bytes = held.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(Source::<RawFd>::decode(&bytes), Some(held));
            assert!(Source::<RawFd>::decode(&bytes[..bytes.len() - 1]).is_none());
            assert!(names.with(0..count - 1).is_none());
            assert!(names.with(0..count + 1).is_none());
        }
    }

    #[test]
    fn more_files_than_a_slot_holds_are_refused() {
        for names in [
            names(MAX_DICTIONARIES + 1, 1),
            names(1, MAX_PACKS as u64 + 1),
        ] {
            assert!(!names.fits());
            assert!(Names::decode(&names.encode()).is_none());
        }
    }
}
