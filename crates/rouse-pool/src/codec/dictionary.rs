//! Dictionaries for zstd: what pieces of one runtime have in common.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rouse_snapshot::page_map::DictionaryId;
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::{CDict, DDict};

use super::ZSTD_LEVEL;
use crate::chunk::ParentPages;

/// The most bytes that a dictionary has. More is rarely better for 64 KiB of plain bytes, and
/// every process that decodes holds it in memory.
pub const MAX_DICTIONARY_LEN: usize = 112 << 10;

/// Fewer samples than this make no dictionary that is worth its length.
const MIN_SAMPLES: usize = 16;

/// A dictionary, prepared for use.
pub struct Dictionary {
    id: DictionaryId,
    bytes: Vec<u8>,
    decoder: DecoderDictionary<'static>,
    /// Made when the first piece is encoded: most processes only decode.
    encoder: OnceLock<EncoderDictionary<'static>>,
}

impl Dictionary {
    /// Prepares the bytes of a dictionary.
    ///
    /// # Errors
    /// Bytes that are too many, or that zstd does not take.
    pub fn new(bytes: Vec<u8>) -> io::Result<Self> {
        if bytes.is_empty() || bytes.len() > MAX_DICTIONARY_LEN {
            let why = "a dictionary of this length cannot be used";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self {
            id: Self::id_of(&bytes),
            decoder: DecoderDictionary::try_copy(&bytes)?,
            encoder: OnceLock::new(),
            bytes,
        })
    }

    /// The name of a dictionary with these bytes: the start of their BLAKE3.
    ///
    /// Short, because nothing rests on it: a wrong dictionary gives wrong bytes, which are noticed.
    pub fn id_of(bytes: &[u8]) -> DictionaryId {
        let digest = blake3::hash(bytes);
        let mut id = [0; 8];
        id.copy_from_slice(&digest.as_bytes()[..8]);
        DictionaryId(u64::from_le_bytes(id))
    }

    /// Its name.
    pub fn id(&self) -> DictionaryId {
        self.id
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn decoder(&self) -> &DDict<'static> {
        self.decoder.as_ddict()
    }

    pub(super) fn encoder(&self) -> io::Result<&CDict<'static>> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder.as_cdict());
        }
        let made = EncoderDictionary::try_copy(&self.bytes, ZSTD_LEVEL)?;
        Ok(self.encoder.get_or_init(|| made).as_cdict())
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dictionary({}, {} bytes)", self.id, self.bytes.len())
    }
}

/// The dictionaries that a decoder knows.
#[derive(Debug, Clone, Default)]
pub struct Dictionaries {
    by_id: HashMap<DictionaryId, Arc<Dictionary>>,
    parents: HashMap<DictionaryId, Arc<ParentPages>>,
}

impl Dictionaries {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn add(&mut self, dictionary: Arc<Dictionary>) {
        self.by_id.insert(dictionary.id(), dictionary);
    }

    /// Adds a template's pages.
    pub fn add_parent(&mut self, parent: Arc<ParentPages>) {
        self.parents.insert(parent.id(), parent);
    }

    /// The template's pages of this name.
    pub fn parent(&self, id: DictionaryId) -> Option<&Arc<ParentPages>> {
        self.parents.get(&id)
    }

    /// The one of this name.
    pub fn get(&self, id: DictionaryId) -> Option<&Arc<Dictionary>> {
        self.by_id.get(&id)
    }
}

impl FromIterator<Arc<Dictionary>> for Dictionaries {
    fn from_iter<I: IntoIterator<Item = Arc<Dictionary>>>(items: I) -> Self {
        let mut dictionaries = Self::new();
        items.into_iter().for_each(|item| dictionaries.add(item));
        dictionaries
    }
}

/// Why there is no dictionary.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Too little to learn from.
    #[error("{found} samples are too few for a dictionary")]
    TooFew {
        /// Samples given.
        found: usize,
    },
    /// zstd found nothing in common, or took no part in it.
    #[error("no dictionary can be made of these samples")]
    Zstd(#[source] io::Error),
}

/// Trains a dictionary on samples: pieces of snapshots of one runtime.
///
/// The result holds parts of the samples: train on what may be shared (the operator's templates)
/// or use it inside of one tenant only.
///
/// # Errors
/// Samples that are too few or have nothing in common.
pub fn train<S: AsRef<[u8]>>(samples: &[S]) -> Result<Dictionary, TrainError> {
    if samples.len() < MIN_SAMPLES {
        let found = samples.len();
        return Err(TrainError::TooFew { found });
    }
    zstd::dict::from_samples(samples, MAX_DICTIONARY_LEN)
        .and_then(Dictionary::new)
        .map_err(TrainError::Zstd)
}
