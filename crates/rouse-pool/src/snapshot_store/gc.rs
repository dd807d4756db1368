//! Collecting what no snapshot needs.
//!
//! What is needed is read from the page maps of all snapshots, while nobody writes. A pack without
//! a needed chunk is unlinked; a pack that is mostly not needed is written anew without that, and the snapshots
//! that refer to it get new page maps. A crash at any point leaves snapshots that are whole:
//! - between two unlinks there is nothing half done;
//! - a new pack that no page map names yet is collected the next time;
//! - a snapshot has its old or its new manifest, and both packs are there until all snapshots have the new one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use rouse_snapshot::manifest::AnySnapshot;
use rouse_snapshot::page_map::{DictionaryId, PackId, PageMap};

use super::dictionaries::remove_any;
use super::error::Context;
use super::layout::{self, PAGE_MAP_PREFIX, SNAPSHOTS, children, is_temporary};
use super::lock::Lock;
use super::read::read_any_page_map;
use super::report::GcReport;
use super::{SnapshotStore, StoreError};

/// When a pack is written anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GcOptions {
    /// Only when at least this part of its stored bytes is not needed.
    pub min_unused_part: f64,
    /// And at least so many bytes: small packs are not worth the writing.
    pub min_unused_bytes: u64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            min_unused_part: 0.5,
            min_unused_bytes: 1 << 20,
        }
    }
}

/// What snapshots refer to.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// Of each pack, the offsets of needed chunks.
    pub chunks: HashMap<PackId, HashSet<u64>>,
    pub dictionaries: HashSet<DictionaryId>,
    /// Packs that are referred to by what cannot be written anew: it is named by its contents.
    pub fixed: HashSet<PackId>,
    /// Snapshots of which it is not known.
    pub unreadable: Vec<String>,
}

impl Needed {
    fn add(&mut self, map: &PageMap) {
        for chunk in map.chunks() {
            self.chunks
                .entry(chunk.pack)
                .or_default()
                .insert(chunk.offset);
            self.dictionaries.extend(chunk.dictionary);
        }
    }
}

impl SnapshotStore {
    /// Removes packs, dictionaries and leftovers that nothing needs. Waits for writers.
    ///
    /// Packs that are open stay readable until they are closed.
    ///
    /// # Errors
    /// What reading and removing says. What was removed by then was not needed.
    pub fn gc(&self, options: GcOptions) -> Result<GcReport, StoreError> {
        let _lock = Lock::exclusive(&self.root)?;
        let mut report = GcReport::default();
        self.remove_leftovers(&mut report)?;
        let needed = self.needed()?;
        report.unreadable.clone_from(&needed.unreadable);
        if !needed.unreadable.is_empty() {
            return Ok(report);
        }
        // First what gives room back, then what takes some for a while.
        for id in self.packs.list().context("list", self.packs.path())? {
            if !needed.chunks.contains_key(&id) {
                let path = self.packs.path_of(id);
                let len = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                fs::remove_file(&path).context("remove", &path)?;
                report.removed_packs += 1;
                report.freed_bytes += len;
            }
        }
        let used: Vec<DictionaryId> = needed.dictionaries.iter().copied().collect();
        for path in self.dictionaries.unused(&used)? {
            remove_any(&path).context("remove", &path)?;
            report.removed_dictionaries += 1;
        }
        self.compact(&needed, options, &mut report)?;
        Ok(report)
    }

    /// What is needed, by all page maps that lie in directories of snapshots.
    ///
    /// The page map decides, not the manifest: a snapshot whose manifest is damaged, or whose key is
    /// missing, may be mended.
    pub(super) fn needed(&self) -> Result<Needed, StoreError> {
        let mut needed = Needed::default();
        for (name, dir) in layout::list(&self.root)? {
            for path in page_maps(&dir)? {
                match read_any_page_map(&path) {
                    Ok(map) => needed.add(&map),
                    Err(StoreError::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        tracing::warn!(snapshot = name, %error, "a page map cannot be read");
                        needed.unreadable.push(name.clone());
                    }
                }
            }
        }
        needed.unreadable.dedup();
        for map in self.parents_of(&needed.dictionaries) {
            needed.fixed.extend(map.packs());
            needed.add(&map);
        }
        Ok(needed)
    }

    /// Page maps of templates beside whose pages others are stored. One that is damaged is of no use to anybody.
    pub(super) fn parents_of(&self, dictionaries: &HashSet<DictionaryId>) -> Vec<PageMap> {
        let keys = self.key.domain_keys("");
        let parents = dictionaries
            .iter()
            .filter(|id| self.dictionaries.is_parent(**id));
        parents
            .filter_map(|id| self.dictionaries.parent(*id, keys).ok())
            .map(|parent| parent.map().clone())
            .collect()
    }

    /// Only while nobody writes: it cannot tell whose they are.
    fn remove_leftovers(&self, report: &mut GcReport) -> Result<(), StoreError> {
        for path in self.leftovers()? {
            remove_any(&path).context("remove", &path)?;
            report.removed_leftovers += 1;
        }
        Ok(())
    }

    /// What writers that were killed have left, or what those at work are writing.
    pub(super) fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        let snapshots = self.root.join(SNAPSHOTS);
        let mut places = vec![self.packs.path().to_owned(), snapshots.clone()];
        let visible = |path: &PathBuf| path.is_dir() && !path.file_name().is_some_and(is_temporary);
        for dir in children(&snapshots)?.into_iter().filter(visible) {
            places.extend(children(&dir)?.into_iter().filter(visible));
            places.push(dir);
        }
        let mut found = Vec::new();
        for place in places {
            let mut leftovers = children(&place)?;
            leftovers.retain(|path| path.file_name().is_some_and(is_temporary));
            found.append(&mut leftovers);
        }
        found.extend(self.outdated_page_maps()?);
        Ok(found)
    }

    /// Page maps that another one has taken the place of.
    fn outdated_page_maps(&self) -> Result<Vec<PathBuf>, StoreError> {
        let key = self.key.manifest_key();
        let mut found = Vec::new();
        for (_, dir) in layout::list(&self.root)? {
            let maps = page_maps(&dir)?;
            if maps.len() < 2 {
                continue;
            }
            // Whether the manifest is right decides the reader; here it only matters which map it names.
            if let Ok((_, binding)) = super::read::read_manifest::<AnySnapshot>(&dir, &key) {
                let current = dir.join(layout::page_map_file(&binding.page_map));
                found.extend(maps.into_iter().filter(|map| *map != current));
            }
        }
        Ok(found)
    }
}

/// Page maps in a snapshot's directory: one, or two after a crash.
pub(super) fn page_maps(dir: &std::path::Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut maps = children(dir)?;
    maps.retain(|path| {
        path.file_name().is_some_and(|name| {
            name.as_encoded_bytes()
                .starts_with(PAGE_MAP_PREFIX.as_bytes())
        })
    });
    Ok(maps)
}
