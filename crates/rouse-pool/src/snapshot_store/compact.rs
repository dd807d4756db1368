//! Packs that are mostly not needed, written anew without what nobody needs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rouse_snapshot::manifest::AnySnapshot;
use rouse_snapshot::page_map::{Class, PACK_ALIGN, PackId, PageMap, Piece, PieceKind};

use super::error::Context;
use super::gc::Needed;
use super::layout;
use super::report::GcReport;
use super::{GcOptions, SnapshotStore, StoreError, read};
use crate::packs::{PackError, PackIndex, PackWriter, SealedPack, read_index};

/// Where the chunks of a pack are now.
struct Moved {
    to: PackId,
    offsets: HashMap<u64, u64>,
}

impl SnapshotStore {
    /// Needs the exclusive lock. Packs that are damaged are left to [`Self::fsck`].
    pub(super) fn compact(
        &self,
        needed: &Needed,
        options: GcOptions,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let mut moved: BTreeMap<PackId, Moved> = BTreeMap::new();
        let movable = |id: &&PackId| !needed.fixed.contains(id);
        for id in needed.chunks.keys().filter(movable) {
            let offsets = &needed.chunks[id];
            let Ok(file) = self.packs.pack(*id) else {
                continue;
            };
            let Ok(index) = read_index(&file, *id) else {
                continue;
            };
            if is_worth_it(&index, offsets, options) {
                let (pack, to) = self.copy(&file, &index, offsets)?;
                let before = file.metadata().map_or(0, |metadata| metadata.len());
                report.freed_bytes += before.saturating_sub(pack.len_bytes());
                pack.publish(&self.packs)
                    .context("create a pack in", self.packs.path())?;
                moved.insert(*id, to);
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let key = self.key.manifest_key();
        let mut kept = HashSet::new();
        for (name, dir) in layout::list(&self.root)? {
            // A snapshot that cannot be read keeps what it refers to.
            let stored = read::read_manifest::<AnySnapshot>(&dir, &key)
                .and_then(|(s, binding)| Ok((s, read::read_page_map(&dir, &binding)?.0, binding)));
            match stored {
                Ok((snapshot, map, binding)) => {
                    if let Some(new) = follow(&map, &moved) {
                        self.replace(&dir, &snapshot, &binding, &new, None)?;
                    }
                }
                Err(error) => {
                    tracing::warn!(snapshot = name, %error, "its packs are kept");
                    for path in super::gc::page_maps(&dir)? {
                        kept.extend(read::read_any_page_map(&path)?.packs());
                    }
                }
            }
        }
        for id in moved.keys().filter(|id| !kept.contains(id)) {
            let path = self.packs.path_of(*id);
            fs::remove_file(&path).context("remove", &path)?;
            report.rewritten_packs += 1;
        }
        Ok(())
    }

    /// The stored bytes are copied as they are: what is damaged stays damaged, and is noticed by
    /// whoever fills it, as before.
    fn copy(
        &self,
        file: &File,
        index: &PackIndex,
        needed: &HashSet<u64>,
    ) -> Result<(SealedPack, Moved), StoreError> {
        let path = self.packs.path_of(index.id);
        let broken = |source| StoreError::Pack {
            path: path.clone(),
            source,
        };
        let mut writer = PackWriter::create(&self.packs, index.label)
            .context("make a pack in", self.packs.path())?;
        let to = writer.id();
        let mut offsets = HashMap::new();
        let mut hot = true;
        let mut bytes = Vec::new();
        for entry in &index.entries {
            if hot && entry.offset >= index.hot_end {
                hot = false;
                writer.end_hot().context("write", self.packs.path())?;
            }
            if !needed.contains(&entry.offset) {
                continue;
            }
            bytes.resize(entry.stored_len as usize, 0);
            file.read_exact_at(&mut bytes, entry.offset)
                .map_err(|source| broken(PackError::Read(source)))?;
            let offset = writer
                .push(*entry, &bytes)
                .context("write", self.packs.path())?;
            offsets.insert(entry.offset, offset);
        }
        if hot {
            writer.end_hot().context("write", self.packs.path())?;
        }
        if needed.iter().any(|offset| !offsets.contains_key(offset)) {
            // A page map refers to what the index does not have.
            return Err(broken(PackError::Damaged { what: "the index" }));
        }
        let sealed = writer.seal().context("write", self.packs.path())?;
        let sealed = sealed.ok_or_else(|| broken(PackError::Damaged { what: "the index" }))?;
        Ok((sealed, Moved { to, offsets }))
    }
}

fn is_worth_it(index: &PackIndex, needed: &HashSet<u64>, options: GcOptions) -> bool {
    let all: u64 = index
        .entries
        .iter()
        .map(|entry| u64::from(entry.stored_len))
        .sum();
    let unused: u64 = index
        .entries
        .iter()
        .filter(|entry| !needed.contains(&entry.offset))
        .map(|entry| u64::from(entry.stored_len))
        .sum();
    unused > 0
        && unused >= options.min_unused_bytes
        && unused as f64 >= all as f64 * options.min_unused_part
}

/// The same map with the new places; `None` when it refers to nothing that has moved.
fn follow(map: &PageMap, moved: &BTreeMap<PackId, Moved>) -> Option<PageMap> {
    if !map.packs().iter().any(|pack| moved.contains_key(pack)) {
        return None;
    }
    let mut pieces: Vec<Piece> = map.pieces().to_vec();
    for piece in &mut pieces {
        if let PieceKind::Chunk(chunk) = &mut piece.kind
            && let Some(moved) = moved.get(&chunk.pack)
        {
            chunk.offset = *moved.offsets.get(&chunk.offset)?;
            chunk.pack = moved.to;
        }
    }
    // Hot pieces of the extent lie at the front of the new pack, in the same order.
    let hot = map.hot_extent().and_then(|(pack, extent)| {
        let Some(moved) = moved.get(&pack) else {
            return Some((pack, extent));
        };
        let end = map
            .pieces()
            .iter()
            .zip(&pieces)
            .filter(|(old, _)| {
                old.class == Class::Hot
                    && old
                        .chunk()
                        .is_some_and(|chunk| chunk.pack == pack && extent.contains(&chunk.offset))
            })
            .filter_map(|(_, new)| new.chunk())
            .map(|chunk| chunk.offset + u64::from(chunk.stored_len))
            .max()?;
        Some((moved.to, PACK_ALIGN..end.next_multiple_of(PACK_ALIGN)))
    });
    // What was valid stays valid.
    PageMap::new(pieces, hot).ok()
}
