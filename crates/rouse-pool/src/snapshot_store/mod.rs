//! Snapshots on disk.
//!
//! ```text
//! root/
//!   node.key                      secret of the node
//!   store.lock                    see `lock`
//!   packs/0123456789abcdef.pack   chunks, shared by snapshots
//!   dictionaries/ID.dict          for zstd
//!   snapshots/NAME/               NAME has one or two components
//!     manifest                    signed; names the page map by its digest
//!     pages-0123456789abcdef      the page map; names each chunk by its digest
//!   .tmp-...                      (anywhere) being written, or left by a process that was killed
//! ```
//!
//! Order of a write, each step for the sake of the one before:
//! - the dictionary, then the pack, are written and synced under a temporary name;
//! - page map and manifest are written and synced in a temporary directory, and the directory is synced;
//! - the pack gets its name: a full disk has been noticed by then, and left nothing;
//! - the temporary directory gets its name, never over another snapshot: readers see nothing or
//!   all of it, and what they see refers to packs that are on disk;
//! - the parent is synced: a snapshot that was reported as written survives a loss of power.
//!
//! Nothing counts references. What is needed is computed from the page maps of the snapshots that
//! exist, so that no crash can make a count wrong: see [`SnapshotStore::gc`].

mod compact;
mod dictionaries;
mod encode;
mod error;
mod fsck;
mod gc;
mod known;
mod layout;
mod lock;
mod parallel;
mod publish;
mod read;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rouse_snapshot::manifest::{AnySnapshot, Binding, Subject};
use rouse_snapshot::page_map::{DictionaryId, Domain, PageMap};

pub use encode::WriteOptions;
pub use error::StoreError;
pub use gc::GcOptions;
pub use known::MIN_HOT_RUN;
pub use layout::{MANIFEST_FILE, PAGE_MAP_PREFIX, SNAPSHOTS};
pub use read::StoredSnapshot;
pub use report::{CodecUse, Damage, FsckReport, GcReport, Orphan, WriteReport};

use dictionaries::DictionaryDir;
use encode::Encoder;
use error::Context;
use layout::{create_dir, snapshot_dir};
use lock::Lock;

use crate::chunk::{Base, Decoder, ParentPages};
use crate::codec::{Codecs, Dictionary, Zstd};
use crate::key::NodeKey;
use crate::packs::PackDir;
use crate::pager::PoolSource;
use crate::pool::Pool;

/// How often a snapshot is read again that was being stored anew meanwhile.
const READ_ATTEMPTS: usize = 16;
/// Level of zstd for templates: 20 MiB take 1.3 s of a processor, once for each node, and 5 % less room than at the usual
/// level. Level 19 would take 27 s for another 8 %.
const TEMPLATE_LEVEL: i32 = 9;

/// All snapshots of a node. Used by many threads, and by several processes, at once.
#[derive(Debug)]
pub struct SnapshotStore {
    root: PathBuf,
    key: NodeKey,
    packs: PackDir,
    dictionaries: DictionaryDir,
    codecs: Codecs,
}

impl SnapshotStore {
    /// The store in a directory that exists. Makes what is missing in it.
    ///
    /// # Errors
    /// What making directories says.
    pub fn open(root: &Path, key: NodeKey) -> Result<Self, StoreError> {
        Self::with_codecs(root, key, Codecs::software())
    }

    /// Like [`Self::open`], with other implementations of the codecs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_codecs(root: &Path, key: NodeKey, codecs: Codecs) -> Result<Self, StoreError> {
        let packs = PackDir::open(root);
        packs.create().context("make", packs.path())?;
        create_dir(&root.join(SNAPSHOTS))?;
        Ok(Self {
            root: root.into(),
            key,
            packs,
            dictionaries: DictionaryDir::open(root),
            codecs,
        })
    }

    /// The files that hold the chunks.
    pub fn packs(&self) -> &PackDir {
        &self.packs
    }

    /// Directory of a snapshot, whether it exists or not.
    ///
    /// # Errors
    /// A name that no snapshot can have.
    pub fn path_of(&self, name: &str) -> Result<PathBuf, StoreError> {
        snapshot_dir(&self.root, name)
    }

    /// Name of the snapshot whose directory this is.
    ///
    /// # Errors
    /// A directory in which no snapshot of this store can be.
    pub fn name_of(&self, dir: &Path) -> Result<String, StoreError> {
        let name = dir
            .strip_prefix(self.root.join(SNAPSHOTS))
            .ok()
            .and_then(Path::to_str)
            .ok_or_else(|| StoreError::BadName {
                name: dir.display().to_string(),
            })?;
        snapshot_dir(&self.root, name).map(|_| name.to_owned())
    }

    /// Names of all snapshots, sorted.
    ///
    /// # Errors
    /// What listing directories says.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let snapshots = layout::list(&self.root)?;
        Ok(snapshots.into_iter().map(|(name, _)| name).collect())
    }

    /// A dictionary that some snapshot was written with.
    ///
    /// # Errors
    /// One that is missing or damaged.
    pub fn dictionary(&self, id: DictionaryId) -> Result<Arc<Dictionary>, StoreError> {
        self.dictionaries.load(id)
    }

    /// The trained dictionary that a snapshot's pieces need, if they need one that can be read.
    pub fn dictionary_of(&self, map: &PageMap) -> Option<Arc<Dictionary>> {
        let mut named = map.dictionaries().into_iter();
        let trained = named.find(|id| !self.dictionaries.is_parent(*id))?;
        self.dictionary(trained).ok()
    }

    /// The pages of a template's snapshot, for its descendants to be stored beside them. `None` if others could not rely
    /// on them: they are not those of a template, or need something else to be read.
    ///
    /// # Errors
    /// As [`Self::open_snapshot`].
    pub fn parent_pages(&self, name: &str) -> Result<Option<Arc<ParentPages>>, StoreError> {
        let stored = self.open_as::<AnySnapshot>(name)?;
        if stored.binding.domain != Domain::Templates {
            return Ok(None);
        }
        let bytes = ParentPages::bytes_of(&stored.map);
        let keys = self.key.domain_keys("");
        let parent = ParentPages::new(bytes, keys, |id| match stored.packs.get(&id) {
            Some(pack) => pack.try_clone(),
            None => self.packs.pack(id),
        });
        Ok(parent.ok().map(Arc::new))
    }

    /// Writes a snapshot. It is on disk by then.
    ///
    /// # Errors
    /// Says which file could not be written and why; nothing is left behind then.
    pub fn write(
        &self,
        name: &str,
        snapshot: &impl Subject,
        pool: &Pool,
        options: &WriteOptions<'_>,
    ) -> Result<WriteReport, StoreError> {
        let target = self.path_of(name)?;
        snapshot.check()?;
        if snapshot.pool_pages() != pool.pages() {
            let (snapshot, pool) = (snapshot.pool_pages(), pool.pages());
            return Err(StoreError::PoolLength { snapshot, pool });
        }
        let _lock = Lock::shared(&self.root)?;
        if fs::symlink_metadata(&target).is_ok() {
            // Found before all the work; the rename at its end finds it again.
            return Err(StoreError::Exists { path: target });
        }
        let (map, pack, report) = self.encode(pool, options)?;
        let bytes = map.encode();
        let digest = digest_of(&bytes);
        let binding = Binding {
            page_map: digest,
            pool: digest,
            tenant: options.tenant.into(),
            domain: options.domain,
        };
        self.publish(&target, snapshot, &binding, &bytes, pack)?;
        Ok(report)
    }

    /// Stores the pages of a snapshot anew, in the order of another working set or with other
    /// codecs. Readers see the old or the new state. What the old one needed is collected later.
    ///
    /// Tenant and domain in `options` must be those of the snapshot; others are not looked at.
    ///
    /// # Errors
    /// As [`Self::open_snapshot`], [`StoredSnapshot::load`] and [`Self::write`]; [`StoreError::Exchanged`]. The old state
    /// stays then.
    pub fn rewrite(
        &self,
        name: &str,
        options: &WriteOptions<'_>,
    ) -> Result<WriteReport, StoreError> {
        let dir = self.path_of(name)?;
        let _turn = Lock::of_snapshot(&dir)?;
        let stored = self.open_as::<AnySnapshot>(name)?;
        let pool = stored.load()?;
        let options = WriteOptions {
            tenant: &stored.binding.tenant,
            domain: stored.binding.domain,
            // Else every chunk would be found where it is.
            deduplicate: false,
            ..options.clone()
        };
        let _lock = Lock::shared(&self.root)?;
        let (map, pack, report) = self.encode(&pool, &options)?;
        // A collection may have given it another page map since it was read, of the same pages.
        let (_, now) = read::read_manifest::<AnySnapshot>(&dir, &self.key.manifest_key())?;
        if now.pool != stored.binding.pool {
            return Err(StoreError::Exchanged { path: dir });
        }
        self.replace(&dir, &stored.snapshot, &now, &map, pack)?;
        Ok(report)
    }

    /// Reads a process's snapshot, all but its pages.
    ///
    /// # Errors
    /// As [`Self::open_as`].
    pub fn open_snapshot(&self, name: &str) -> Result<StoredSnapshot, StoreError> {
        self.open_as(name)
    }

    /// Reads a snapshot, all but its pages.
    ///
    /// # Errors
    /// Anything that is missing, damaged, unknown, does not belong together, was not written by this node, or is of
    /// another kind of sandbox.
    pub fn open_as<S: Subject>(&self, name: &str) -> Result<StoredSnapshot<S>, StoreError> {
        let dir = self.path_of(name)?;
        let _lock = Lock::shared(&self.root)?;
        self.read(name, &dir)
    }

    fn read<S: Subject>(&self, name: &str, dir: &Path) -> Result<StoredSnapshot<S>, StoreError> {
        let key = self.key.manifest_key();
        let mut attempts = READ_ATTEMPTS;
        let (snapshot, binding, (map, page_map)) = loop {
            let (snapshot, binding) = read::read_manifest::<S>(dir, &key)?;
            match read::read_page_map(dir, &binding) {
                Ok(read) => break (snapshot, binding, read),
                // It may have been stored anew between the two.
                Err(StoreError::Io { .. }) if attempts > 0 => attempts -= 1,
                Err(error) => return Err(error),
            }
        };
        if map.pages() != snapshot.pool_pages() {
            let path = dir.join(layout::page_map_file(&binding.page_map));
            return Err(StoreError::WrongPageMap { path });
        }
        let mut packs = std::collections::BTreeMap::new();
        for id in map.packs() {
            let file = self
                .packs
                .pack(id)
                .context("open", &self.packs.path_of(id))?;
            packs.insert(id, file);
        }
        let keys = self.key.domain_keys(&binding.tenant);
        let (mut dictionaries, mut parents) = (Vec::new(), Vec::new());
        for id in map.dictionaries() {
            // Pieces that need none can be read without those that are missing.
            let file = fs::File::open(self.dictionaries.path_of(id));
            dictionaries.extend(file.ok().map(|file| (id, file)));
            if self.dictionaries.is_parent(id) {
                parents.extend(self.dictionaries.parent(id, keys).ok());
            }
        }
        Ok(StoredSnapshot {
            decoder: self.decoder(&binding.tenant, &map),
            page_map,
            dictionaries,
            parents,
            pool_name: pool_name(name),
            snapshot,
            map,
            binding,
            packs,
        })
    }

    /// What the pager needs to fill the pool of a snapshot: files that stay readable whatever becomes of the snapshot.
    ///
    /// # Errors
    /// A dictionary that is missing; [`StoreError::Scattered`]; what opening files says.
    pub fn source<S: Sync>(&self, stored: &StoredSnapshot<S>) -> Result<PoolSource, StoreError> {
        stored.source(self.key.domain_keys(&stored.binding.tenant))
    }

    /// What decodes and verifies the pieces of a tenant's page map.
    pub fn decoder(&self, tenant: &str, map: &PageMap) -> Decoder {
        let keys = self.key.domain_keys(tenant);
        Decoder::with_codecs(
            keys,
            self.dictionaries.load_all(&map.dictionaries(), keys),
            self.codecs.clone(),
        )
    }

    /// Removes a snapshot. Pools that were loaded from it stay as they are; the chunks that only
    /// it needed go with the next [collection](Self::gc).
    ///
    /// A process killed in the middle leaves the whole snapshot, or what a collection removes.
    ///
    /// # Errors
    /// What renaming and removing says.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let dir = self.path_of(name)?;
        let _lock = Lock::shared(&self.root)?;
        publish::remove(&dir)
    }

    fn encode(
        &self,
        pool: &Pool,
        options: &WriteOptions<'_>,
    ) -> Result<(PageMap, Option<crate::packs::SealedPack>, WriteReport), StoreError> {
        let dictionary = match options.domain {
            Domain::Tenant => options.dictionary.as_deref(),
            Domain::Templates => None,
        };
        if let Some(dictionary) = dictionary {
            self.dictionaries.save(dictionary)?;
        }
        // Its packs may have been collected since it was looked up.
        let is_there = |base: &&Base| {
            let packs = base.parent.map().packs();
            packs.into_iter().all(|id| self.packs.pack(id).is_ok())
        };
        let base = options.base.as_ref().filter(is_there);
        if let Some(base) = base {
            self.dictionaries.save_parent(&base.parent)?;
        }
        let tenant = match options.domain {
            Domain::Tenant => options.tenant,
            Domain::Templates => "",
        };
        Encoder {
            packs: &self.packs,
            dictionaries: &self.dictionaries,
            codecs: &self.codecs,
            keys: self.key.domain_keys(tenant),
            base,
            dictionary,
            beside: Zstd::default(),
            dense: Zstd::at_level(TEMPLATE_LEVEL),
            options,
        }
        .encode(pool)
    }
}

fn digest_of(page_map: &[u8]) -> [u8; 32] {
    PageMap::digest(page_map).expect("an encoded page map has a header")
}

/// What `/proc/PID/maps` shows for the pool; the kernel takes at most 249 bytes and no NUL.
fn pool_name(name: &str) -> String {
    format!("rouse-{}", name.chars().take(50).collect::<String>())
}
