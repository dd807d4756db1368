//! Chunks that are stored already, and which of them a new snapshot may refer to.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{
    Chunk, ChunkId, Class, DictionaryId, Domain, PackId, Piece, PieceKind,
};

use super::StoreError;
use super::dictionaries::DictionaryDir;
use super::error::Context;
use super::parallel;
use super::read::read_piece;
use crate::chunk::Decoder;
use crate::key::DomainKeys;
use crate::packs::{PackDir, PackEntry, read_index, read_label};

/// Hot pieces refer to a pack of another snapshot only in runs of at least so many plain bytes, which lie
/// side by side there: each run costs a read of its own before the function can answer, and
/// reading 256 KiB takes about as long as another read takes to begin.
pub const MIN_HOT_RUN: u64 = 256 << 10;

/// Packs that are searched for equal chunks, of each domain. Bounds what writing costs on a node
/// with many snapshots.
const MAX_PACKS: usize = 512;

/// Packs of others that a snapshot refers to: it needs as many open files. With those of a template, which has as many, and
/// its own they are not more than [`MAX_PACKS`](crate::pager::MAX_PACKS).
const MAX_PACKS_OF_SNAPSHOT: usize = 40;
const _: () = assert!(2 * (MAX_PACKS_OF_SNAPSHOT + 1) <= crate::pager::MAX_PACKS);

/// A piece and the stored chunk that it may refer to, if there is one.
pub(super) type Found = Option<(Piece, Chunk)>;

/// The chunks of one domain, and of templates.
#[derive(Debug, Default)]
pub(super) struct Known {
    own: HashMap<ChunkId, (PackId, PackEntry)>,
    templates: HashMap<ChunkId, (PackId, PackEntry)>,
    packs: BTreeMap<PackId, File>,
}

impl Known {
    /// Reads the indices of all packs that snapshots of this domain may refer to. Damaged packs
    /// hold nothing that could be referred to.
    pub fn read(dir: &PackDir, keys: &DomainKeys, domain: Domain) -> Result<Self, StoreError> {
        let mut known = Self::default();
        let mut counts = [0; 2];
        let (own, templates) = (keys.label(domain), keys.label(Domain::Templates));
        for id in dir.list().context("list", dir.path())? {
            let Ok(file) = dir.pack(id) else { continue };
            let Ok(label) = read_label(&file, id) else {
                continue;
            };
            let (chunks, count) = if label == own {
                (&mut known.own, &mut counts[0])
            } else if label == templates {
                (&mut known.templates, &mut counts[1])
            } else {
                continue;
            };
            *count += 1;
            if *count > MAX_PACKS {
                continue;
            }
            let Ok(index) = read_index(&file, id) else {
                continue;
            };
            for entry in index.entries {
                chunks.entry(entry.id).or_insert((id, entry));
            }
            known.packs.insert(id, file);
        }
        Ok(known)
    }

    pub fn has_templates(&self) -> bool {
        !self.templates.is_empty()
    }

    /// The stored chunk of this name; `pages` guards against a chunk of another length.
    pub fn find(&self, id: &ChunkId, domain: Domain, pages: u32) -> Option<Chunk> {
        let (chunks, domain) = match domain {
            // The operator's own snapshots are in `own`, as those of any other domain.
            Domain::Templates if self.own.contains_key(id) => (&self.own, domain),
            Domain::Templates => (&self.templates, domain),
            Domain::Tenant => (&self.own, domain),
        };
        let (pack, entry) = chunks.get(id)?;
        (entry.pages == pages).then_some(Chunk {
            id: *id,
            domain,
            pack: *pack,
            offset: entry.offset,
            stored_len: entry.stored_len,
            codec: entry.codec,
            dictionary: entry.dictionary,
        })
    }

    /// Drops what cannot be decoded. Without this, a damaged chunk would get into every snapshot
    /// that is made anew because of it.
    pub fn verify(
        &self,
        found: &mut [Found],
        keys: DomainKeys,
        dictionaries: &DictionaryDir,
    ) -> Result<(), StoreError> {
        let mut needed: Vec<DictionaryId> = found
            .iter()
            .filter_map(|found| found.as_ref()?.1.dictionary)
            .collect();
        needed.sort_unstable();
        needed.dedup();
        let decoder = Decoder::new(keys, dictionaries.load_all(&needed, keys));
        let intact = parallel::map(found.len(), Buffers::default, |buffers, index| {
            let Some((piece, chunk)) = &found[index] else {
                return Ok(false);
            };
            let piece = Piece {
                kind: PieceKind::Chunk(*chunk),
                ..*piece
            };
            let Some(file) = self.packs.get(&chunk.pack) else {
                return Ok(false);
            };
            let plain = buffers.plain(piece.len_bytes());
            Ok::<_, StoreError>(read_piece(&decoder, file, index, &piece, plain).is_ok())
        })?;
        for (found, intact) in found.iter_mut().zip(intact) {
            if !intact {
                *found = None;
            }
        }
        Ok(())
    }
}

/// Drops hot pieces that lie in packs of other snapshots by themselves. `found` is in the order in
/// which the pieces are read when the working set is fetched.
pub(super) fn bound_scatter(found: &mut [Found]) {
    let mut start = 0;
    while start < found.len() {
        let mut end = start + 1;
        while end < found.len() && continues(&found[end - 1], &found[end]) {
            end += 1;
        }
        let run = &mut found[start..end];
        let plain: u64 = run
            .iter()
            .flatten()
            .map(|(piece, _)| u64::from(piece.pages) * PAGE_SIZE)
            .sum();
        let scattered = run.iter().flatten().any(|(piece, chunk)| {
            piece.class == Class::Hot && chunk.domain == Domain::Tenant && plain < MIN_HOT_RUN
        });
        if scattered {
            run.fill(None);
        }
        start = end;
    }
}

/// Drops what lies in more packs than a snapshot may refer to: those that spare least are given up.
pub(super) fn bound_packs(found: &mut [Found]) {
    let mut spared: BTreeMap<PackId, u64> = BTreeMap::new();
    for (_, chunk) in found.iter().flatten() {
        *spared.entry(chunk.pack).or_default() += u64::from(chunk.stored_len);
    }
    let mut packs: Vec<(PackId, u64)> = spared.into_iter().collect();
    packs.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let dropped: Vec<PackId> = packs
        .iter()
        .skip(MAX_PACKS_OF_SNAPSHOT)
        .map(|(id, _)| *id)
        .collect();
    for one in found {
        if one
            .as_ref()
            .is_some_and(|(_, chunk)| dropped.contains(&chunk.pack))
        {
            *one = None;
        }
    }
}

fn continues(one: &Found, next: &Found) -> bool {
    let (Some((piece, chunk)), Some((next_piece, next))) = (one, next) else {
        return false;
    };
    piece.class == next_piece.class
        && chunk.pack == next.pack
        && chunk.offset + u64::from(chunk.stored_len) == next.offset
}

/// Memory that a thread uses for one piece after the other.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    plain: Vec<u8>,
}

impl Buffers {
    pub fn plain(&mut self, len: usize) -> &mut [u8] {
        if self.plain.len() < len {
            self.plain.resize(len, 0);
        }
        &mut self.plain[..len]
    }
}
