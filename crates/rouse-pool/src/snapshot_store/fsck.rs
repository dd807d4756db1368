//! Checking a whole store: what is damaged, and who is affected; what nobody needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use rouse_snapshot::manifest::AnySnapshot;
use rouse_snapshot::page_map::{DictionaryId, PackId, Piece};

use super::known::Buffers;
use super::lock::Lock;
use super::read::{StoredSnapshot, read_piece};
use super::report::{Damage, FsckReport, Orphan};
use super::{SnapshotStore, StoreError, layout, parallel};
use crate::packs::{PackIndex, read_index};
use crate::pager::batch::chain;

/// A damage, and the snapshots that it affects.
type Damages = BTreeMap<String, BTreeSet<String>>;

impl SnapshotStore {
    /// Reads, decodes and verifies everything. Changes nothing. Writers may go on meanwhile; what
    /// they are writing is not looked at.
    ///
    /// # Errors
    /// Only what keeps it from looking: damage is what it reports.
    pub fn fsck(&self) -> Result<FsckReport, StoreError> {
        // Against collecting, which would take packs away that were just found.
        let _lock = Lock::shared(&self.root)?;
        let mut damages = Damages::new();
        let mut report = FsckReport::default();
        let packs = self.check_packs(&mut damages, &mut report)?;
        let mut needed: BTreeSet<(PackId, u64)> = BTreeSet::new();
        let mut dictionaries = HashSet::new();
        let mut verified: BTreeMap<(PackId, u64), String> = BTreeMap::new();

        for (name, dir) in layout::list(&self.root)? {
            report.snapshots += 1;
            let stored = match self.read(&name, &dir) {
                Ok(stored) => stored,
                Err(error) => {
                    add(&mut damages, chain(&error), &name);
                    // What it refers to is not called orphaned: it may be mended.
                    for path in super::gc::page_maps(&dir)? {
                        if let Ok(map) = super::read::read_any_page_map(&path) {
                            needed.extend(map.chunks().map(|chunk| (chunk.pack, chunk.offset)));
                        }
                    }
                    continue;
                }
            };
            dictionaries.extend(stored.map.dictionaries());
            self.check_dictionaries(&name, &stored, &mut damages);
            for pack in stored.map.packs() {
                if let Some(Err(what)) = packs.get(&pack) {
                    add(&mut damages, what.clone(), &name);
                }
            }
            let chunks = || stored.map.chunks().map(|chunk| (chunk.pack, chunk.offset));
            let fresh: BTreeSet<_> = chunks().filter(|at| !needed.contains(at)).collect();
            needed.extend(&fresh);
            report.chunks += fresh.len() as u64;
            verified.extend(check_pieces(&stored, &fresh)?);
            for at in chunks() {
                if let Some(what) = verified.get(&at) {
                    add(&mut damages, what.clone(), &name);
                }
            }
        }
        for map in self.parents_of(&dictionaries) {
            // Whether they are intact is seen by whoever needs them.
            needed.extend(map.chunks().map(|chunk| (chunk.pack, chunk.offset)));
        }
        for (pack, index) in &packs {
            let Ok(index) = index else { continue };
            for entry in &index.entries {
                if !needed.contains(&(*pack, entry.offset)) {
                    report.orphans.push(Orphan {
                        pack: *pack,
                        offset: entry.offset,
                        stored_len: entry.stored_len,
                    });
                }
            }
        }
        report.leftovers = self
            .leftovers()?
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        report.damages = damages
            .into_iter()
            .map(|(what, snapshots)| Damage {
                what,
                snapshots: snapshots.into_iter().collect(),
            })
            .collect();
        Ok(report)
    }

    /// The index of each pack, or what is wrong with it. Packs that are damaged and belong to
    /// nobody are damaged all the same.
    fn check_packs(
        &self,
        damages: &mut Damages,
        report: &mut FsckReport,
    ) -> Result<BTreeMap<PackId, Result<PackIndex, String>>, StoreError> {
        use super::error::Context;
        let mut packs = BTreeMap::new();
        for id in self.packs.list().context("list", self.packs.path())? {
            report.packs += 1;
            let path = self.packs.path_of(id);
            let index = File::open(&path)
                .context("open", &path)
                .and_then(|file| {
                    read_index(&file, id).map_err(|source| StoreError::Pack {
                        path: path.clone(),
                        source,
                    })
                })
                .map_err(|error| chain(&error));
            if let Err(what) = &index {
                damages.entry(what.clone()).or_default();
            }
            packs.insert(id, index);
        }
        Ok(packs)
    }

    fn check_dictionaries(
        &self,
        name: &str,
        stored: &StoredSnapshot<AnySnapshot>,
        damages: &mut Damages,
    ) {
        for id in stored.map.dictionaries() {
            if let Err(what) = self.check_dictionary(id) {
                add(damages, what, name);
            }
        }
    }

    fn check_dictionary(&self, id: DictionaryId) -> Result<(), String> {
        let loaded = match self.dictionaries.is_parent(id) {
            true => self
                .dictionaries
                .parent(id, self.key.domain_keys(""))
                .map(drop),
            false => self.dictionaries.load(id).map(drop),
        };
        loaded.map_err(|error| chain(&error))
    }
}

/// Which of these chunks are damaged, and how.
fn check_pieces(
    stored: &StoredSnapshot<AnySnapshot>,
    fresh: &BTreeSet<(PackId, u64)>,
) -> Result<BTreeMap<(PackId, u64), String>, StoreError> {
    let mut pieces: Vec<(usize, &Piece)> = stored
        .map
        .pieces()
        .iter()
        .enumerate()
        .filter(|(_, piece)| {
            piece
                .chunk()
                .is_some_and(|chunk| fresh.contains(&(chunk.pack, chunk.offset)))
        })
        .collect();
    // In the order of the disk; two pieces of one pool may share a chunk.
    let place = |piece: &Piece| piece.chunk().map(|chunk| (chunk.pack, chunk.offset));
    pieces.sort_by_key(|(_, piece)| place(piece));
    pieces.dedup_by_key(|(_, piece)| place(piece));
    let damaged = Mutex::new(BTreeMap::new());
    parallel::for_each(pieces.len(), Buffers::default, |buffers, item| {
        let (index, piece) = pieces[item];
        let Some(at) = place(piece) else {
            return Ok(());
        };
        let plain = buffers.plain(piece.len_bytes());
        let pack = &stored.packs[&at.0];
        if let Err(error) = read_piece(&stored.decoder, pack, index, piece, plain) {
            let what = format!("{:#}", Chunk(at, &error));
            damaged
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(at, what);
        }
        Ok::<_, StoreError>(())
    })?;
    Ok(damaged.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A damaged chunk, named by its place: several snapshots may refer to it under other numbers.
struct Chunk<'a>((PackId, u64), &'a StoreError);

impl std::fmt::Display for Chunk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self((pack, offset), error) = self;
        write!(
            f,
            "the chunk at byte {offset} of pack {pack} cannot be used"
        )?;
        match error.source() {
            Some(source) => write!(f, ": {}", chain(source)),
            None => Ok(()),
        }
    }
}

fn add(damages: &mut Damages, what: String, snapshot: &str) {
    damages.entry(what).or_default().insert(snapshot.to_owned());
}
