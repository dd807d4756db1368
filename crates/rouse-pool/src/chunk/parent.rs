//! Pages of a template, to which pages of its descendants are compared when they are stored.
//!
//! ```text
//!  page of a function    |TTTTTTTTTTTTxTTTTTTTTTTTTyyTTTTT|    most bytes are the template's at the same address
//!  stored                 a zstd frame that says "from the template" three times, x and yy
//! ```
//! What an init changes of a page is some words here and there: a count, a pointer, a version. zstd finds the rest in
//! the template's pages, which are put in front of the piece: 230 KB become 30.
//!
//! The template's pages are found by its page map, a copy of which is kept like a dictionary and named by its contents. So
//! a descendant can be read whatever becomes of the template's snapshot, and its packs stay as long as they are needed.
//! A template's pieces need no other pieces: there is never more than one step back.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{DictionaryId, Domain, MAX_PIECE_PAGES, PackId, PageMap};

use super::Decoder;
use crate::codec::{Dictionaries, Dictionary};
use crate::key::DomainKeys;

const MAGIC: &[u8; 8] = b"ROUSEPAR";
const PAGE: usize = PAGE_SIZE as usize;
/// Longer ones are taken as damage, bytes: some 70,000 pieces.
pub(crate) const MAX_PARENT_LEN: usize = 4 << 20;
/// Pieces that are kept decoded. A descendant's pages lie in the order of its template's, so what is needed next is
/// mostly what was needed last.
const KEPT: usize = 16;
/// What stands in front of a frame for each page of its piece, bytes.
const NUMBER: usize = size_of::<u32>();
/// zstd takes contents that begin like this for a dictionary of its own making.
const ZSTD_DICTIONARY: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();

/// The pages of a template, read when they are needed.
#[derive(Debug)]
pub struct ParentPages {
    id: DictionaryId,
    bytes: Vec<u8>,
    map: PageMap,
    /// Open, so that they stay readable.
    packs: HashMap<PackId, File>,
    decoder: Decoder,
    /// Pieces that were decoded last.
    kept: Mutex<Kept>,
}

type Kept = VecDeque<(usize, Arc<Vec<u8>>)>;

/// Which page of the template each page of a pool resembles.
#[derive(Debug, Clone)]
pub struct Base {
    /// The template.
    pub parent: Arc<ParentPages>,
    /// For each page of the pool the number of the template's page, plus one; zero if there is none.
    pub pages: Vec<u32>,
}

impl ParentPages {
    /// The bytes of the file that stands for a template with this page map.
    pub(crate) fn bytes_of(map: &PageMap) -> Vec<u8> {
        [MAGIC, &map.encode()[..]].concat()
    }

    /// Whether a file of the dictionaries is one of these.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads what [`Self::bytes_of`] wrote, and opens its packs with `open`. One that is missing is missed when it is needed.
    pub(crate) fn new(
        bytes: Vec<u8>,
        keys: DomainKeys,
        open: impl Fn(PackId) -> io::Result<File>,
    ) -> io::Result<Self> {
        let map = bytes.strip_prefix(MAGIC);
        let map = map.ok_or_else(|| invalid("it stands for no template"))?;
        let map =
            PageMap::decode(map).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let stands_alone = map
            .chunks()
            .all(|chunk| chunk.dictionary.is_none() && chunk.domain == Domain::Templates);
        if !stands_alone {
            return Err(invalid("its pieces need something else to be read"));
        }
        let mut packs = HashMap::new();
        for id in map.packs() {
            match open(id) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => drop(packs.insert(id, file?)),
            }
        }
        Ok(Self {
            id: Dictionary::id_of(&bytes),
            bytes,
            map,
            packs,
            decoder: Decoder::new(keys, Dictionaries::new()),
            kept: Mutex::default(),
        })
    }

    /// Its name among the dictionaries.
    pub fn id(&self) -> DictionaryId {
        self.id
    }

    /// Its file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The packs in which its pages lie.
    pub(crate) fn packs(&self) -> &HashMap<PackId, File> {
        &self.packs
    }

    /// Where its pages lie.
    pub(crate) fn map(&self) -> &PageMap {
        &self.map
    }

    /// What stands in front of a frame, and what zstd is given for a piece of which these are the template's pages
    /// (numbers plus one, zero for none). `None` when that would be nothing, or cannot be used.
    pub(crate) fn prepare(&self, pages: &[u32]) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let prefix = self.prefix(pages)?;
        if prefix.is_empty() || prefix.starts_with(&ZSTD_DICTIONARY) {
            return Ok(None);
        }
        let numbers = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        Ok(Some((numbers, prefix)))
    }

    /// The frame of a stored piece of so many pages, and what zstd has to be given for it.
    pub(super) fn resolve<'a>(
        &self,
        stored: &'a [u8],
        pages: usize,
    ) -> io::Result<(&'a [u8], Vec<u8>)> {
        let (numbers, frame) = stored
            .split_at_checked(pages * NUMBER)
            .ok_or_else(|| invalid("its list of pages is cut off"))?;
        let numbers: Vec<u32> = numbers
            .as_chunks::<NUMBER>()
            .0
            .iter()
            .copied()
            .map(u32::from_le_bytes)
            .collect();
        let prefix = self.prefix(&numbers)?;
        if prefix.is_empty() || prefix.starts_with(&ZSTD_DICTIONARY) {
            return Err(invalid("its list of pages cannot be right"));
        }
        Ok((frame, prefix))
    }

    fn prefix(&self, pages: &[u32]) -> io::Result<Vec<u8>> {
        let mut prefix = Vec::with_capacity(pages.len() * PAGE);
        for page in pages.iter().filter_map(|page| page.checked_sub(1)) {
            let page = u64::from(page);
            if page >= self.map.pages() {
                return Err(invalid("its template has no such page"));
            }
            let (index, piece) = self.map.piece_of(page);
            let plain = self.piece(index)?;
            let at = (page - piece.first_page) as usize * PAGE;
            prefix.extend_from_slice(&plain[at..at + PAGE]);
        }
        Ok(prefix)
    }

    /// The bytes of a piece, verified.
    fn piece(&self, index: usize) -> io::Result<Arc<Vec<u8>>> {
        let found = |kept: &Kept| {
            let found = kept.iter().find(|(at, _)| *at == index);
            found.map(|(_, plain)| plain.clone())
        };
        if let Some(plain) = found(&self.kept()) {
            return Ok(plain);
        }
        let piece = &self.map.pieces()[index];
        let mut stored = Vec::new();
        if let Some(chunk) = piece.chunk() {
            let missing = || io::Error::new(io::ErrorKind::NotFound, "its pack was not there");
            let pack = self.packs.get(&chunk.pack).ok_or_else(missing)?;
            stored.resize(chunk.stored_len as usize, 0);
            pack.read_exact_at(&mut stored, chunk.offset)?;
        }
        let mut plain = vec![0; piece.len_bytes()];
        self.decoder
            .decode(piece, &stored, &mut plain)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let plain = Arc::new(plain);
        let mut kept = self.kept();
        if found(&kept).is_none() {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back((index, plain.clone()));
        }
        Ok(plain)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

// What is kept is at most 1 MiB for each template in use.
const _: () = assert!(KEPT * MAX_PIECE_PAGES as usize * PAGE <= 1 << 20);
