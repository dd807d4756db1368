//! Dictionaries on disk: `dictionaries/ID.dict`, named by their contents.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rouse_snapshot::page_map::DictionaryId;
use rustix::fs::{CWD, renameat};

use super::StoreError;
use super::error::Context;
use super::layout::{children, create_dir, read_bounded, sync_dir, write_new};
use crate::chunk::ParentPages;
use crate::chunk::parent::MAX_PARENT_LEN;
use crate::codec::{Dictionaries, Dictionary, MAX_DICTIONARY_LEN};
use crate::key::DomainKeys;
use crate::packs::PackDir;

const DIRECTORY: &str = "dictionaries";

/// The dictionaries of a store. Those in use are in memory once.
#[derive(Debug)]
pub(super) struct DictionaryDir {
    path: PathBuf,
    loaded: Mutex<HashMap<DictionaryId, Weak<Dictionary>>>,
    parents: Mutex<HashMap<DictionaryId, Weak<ParentPages>>>,
    packs: PackDir,
}

impl DictionaryDir {
    pub fn open(root: &Path) -> Self {
        Self {
            path: root.join(DIRECTORY),
            loaded: Mutex::default(),
            parents: Mutex::default(),
            packs: PackDir::open(root),
        }
    }

    pub fn path_of(&self, id: DictionaryId) -> PathBuf {
        self.path.join(format!("{id}.dict"))
    }

    /// Those of the list that can be loaded. A piece that needs another one says so when it is
    /// decoded; the rest of the snapshot can still be read.
    pub fn load_all(&self, ids: &[DictionaryId], keys: DomainKeys) -> Dictionaries {
        let mut dictionaries = Dictionaries::new();
        for id in ids {
            let added = match self.is_parent(*id) {
                true => (self.parent(*id, keys)).map(|parent| dictionaries.add_parent(parent)),
                false => (self.load(*id)).map(|dictionary| dictionaries.add(dictionary)),
            };
            if let Err(error) = added {
                tracing::warn!(dictionary = %id, %error, "cannot be loaded");
            }
        }
        dictionaries
    }

    /// Whether a file of this name stands for a template's pages.
    pub fn is_parent(&self, id: DictionaryId) -> bool {
        let mut start = [0; 8];
        let file = File::open(self.path_of(id));
        file.and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
            && ParentPages::is_one(&start)
    }

    /// The pages of a template, which `keys` must be able to verify.
    pub fn parent(
        &self,
        id: DictionaryId,
        keys: DomainKeys,
    ) -> Result<Arc<ParentPages>, StoreError> {
        let known = |parents: &HashMap<_, Weak<_>>| parents.get(&id).and_then(Weak::upgrade);
        if let Some(parent) = known(&self.lock_parents()) {
            return Ok(parent);
        }
        let path = self.path_of(id);
        let bytes = read_bounded(&path, MAX_PARENT_LEN as u64)?;
        if Dictionary::id_of(&bytes) != id {
            let error = io::Error::new(io::ErrorKind::InvalidData, "its bytes have changed");
            return Err(error).context("use", &path);
        }
        let open = |id| self.packs.pack(id);
        let parent = ParentPages::new(bytes, keys, open).context("use", &path)?;
        let parent = Arc::new(parent);
        self.lock_parents().insert(id, Arc::downgrade(&parent));
        Ok(parent)
    }

    /// Stores what stands for a template's pages, unless it is there and intact.
    pub fn save_parent(&self, parent: &ParentPages) -> Result<(), StoreError> {
        let path = self.path_of(parent.id());
        match read_bounded(&path, MAX_PARENT_LEN as u64) {
            Ok(bytes) if bytes == parent.bytes() => Ok(()),
            _ => self.put(parent.id(), parent.bytes()),
        }
    }

    pub fn load(&self, id: DictionaryId) -> Result<Arc<Dictionary>, StoreError> {
        if let Some(dictionary) = self.lock().get(&id).and_then(Weak::upgrade) {
            return Ok(dictionary);
        }
        let path = self.path_of(id);
        let bytes = read_bounded(&path, MAX_DICTIONARY_LEN as u64)?;
        if Dictionary::id_of(&bytes) != id {
            let error = io::Error::new(io::ErrorKind::InvalidData, "its bytes have changed");
            return Err(error).context("use", &path);
        }
        let dictionary = Arc::new(Dictionary::new(bytes).context("use", &path)?);
        self.lock().insert(id, Arc::downgrade(&dictionary));
        Ok(dictionary)
    }

    /// Stores one, unless it is there and intact. It is on disk afterwards.
    pub fn save(&self, dictionary: &Dictionary) -> Result<(), StoreError> {
        // What is in memory proves nothing: its file goes when no snapshot needs it.
        let path = self.path_of(dictionary.id());
        match read_bounded(&path, MAX_DICTIONARY_LEN as u64) {
            Ok(bytes) if bytes == dictionary.bytes() => Ok(()),
            _ => self.put(dictionary.id(), dictionary.bytes()),
        }
    }

    fn put(&self, id: DictionaryId, bytes: &[u8]) -> Result<(), StoreError> {
        create_dir(&self.path)?;
        let temporary = tempfile::Builder::new()
            .prefix(super::layout::TEMPORARY_PREFIX)
            .tempdir_in(&self.path)
            .context("make a temporary directory in", &self.path)?;
        let new = temporary.path().join("new");
        write_new(&new, bytes)?;
        // Over a damaged one, too.
        let path = self.path_of(id);
        renameat(CWD, &new, CWD, &path).context("create", &path)?;
        sync_dir(&self.path)
    }

    /// Files of all dictionaries that are not in `used`, those with temporary names included.
    pub fn unused(&self, used: &[DictionaryId]) -> Result<Vec<PathBuf>, StoreError> {
        let used: Vec<PathBuf> = used.iter().map(|id| self.path_of(*id)).collect();
        let mut found = children(&self.path)?;
        found.retain(|path| !used.contains(path));
        Ok(found)
    }

    fn lock_parents(&self) -> std::sync::MutexGuard<'_, HashMap<DictionaryId, Weak<ParentPages>>> {
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        parents.retain(|_, parent| parent.strong_count() > 0);
        parents
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DictionaryId, Weak<Dictionary>>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|_, dictionary| dictionary.strong_count() > 0);
        loaded
    }
}

/// Removes a file or directory, whichever it is.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}
