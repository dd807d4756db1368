//! From a pool to a pack and a page map.
//!
//! In this order, each step for the sake of the next:
//! - cut the pool, name the pieces: equal pieces are found by their names;
//! - look for stored pieces of the same names; drop those that would scatter the working set, and
//!   those that cannot be read;
//! - encode the rest in the order in which they will lie, the working set first.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{
    Chunk, ChunkId, Class, CodecId, DictionaryId, Domain, PACK_ALIGN, PackId, PageMap, Piece,
    PieceKind,
};

use super::dictionaries::DictionaryDir;
use super::error::Context;
use super::known::{Found, Known, bound_packs, bound_scatter};
use super::report::WriteReport;
use super::{StoreError, parallel};
use crate::chunk::Base;
use crate::chunk::cut::{Cut, cut};
use crate::codec::{Beside, Choice, Codec, Codecs, Coded, DefaultChoice, Dictionary, Zstd};
use crate::key::DomainKeys;
use crate::packs::{PackDir, PackEntry, PackWriter, SealedPack};
use crate::pool::Pool;

/// Pieces that are encoded before any of them is written: bounds the memory that writing takes.
const BATCH: usize = 128;

/// Where the working set lies, see [`PageMap::hot_extent`].
type HotExtent = (PackId, Range<u64>);

/// How a snapshot is stored.
#[derive(Clone)]
pub struct WriteOptions<'a> {
    /// Whose snapshot it is: only with this tenant's snapshots it shares chunks.
    pub tenant: &'a str,
    /// [`Domain::Templates`] for a template of the operator, which all tenants may share.
    pub domain: Domain,
    /// Pages of the working set, in the order of their first touch.
    pub hot: &'a [Range<u64>],
    /// Which codec a piece gets.
    pub choice: &'a dyn Choice,
    /// What zstd may use for a piece. Not looked at for a template, which must need nothing else to be read.
    pub dictionary: Option<Arc<Dictionary>>,
    /// The template of which it is a delta: what is cold is stored as what differs from its pages.
    pub base: Option<Base>,
    /// Whether chunks of other snapshots are referred to.
    pub deduplicate: bool,
}

impl WriteOptions<'_> {
    /// A tenant's snapshot without a working set.
    pub fn new(tenant: &str) -> WriteOptions<'_> {
        WriteOptions {
            tenant,
            domain: Domain::Tenant,
            hot: &[],
            choice: &DefaultChoice,
            dictionary: None,
            base: None,
            deduplicate: true,
        }
    }
}

pub(super) struct Encoder<'a> {
    pub packs: &'a PackDir,
    pub dictionaries: &'a DictionaryDir,
    pub codecs: &'a Codecs,
    pub keys: DomainKeys,
    pub base: Option<&'a Base>,
    pub dictionary: Option<&'a Dictionary>,
    pub beside: Zstd,
    /// For templates: they are stored once, and much of what all functions take together.
    pub dense: Zstd,
    pub options: &'a WriteOptions<'a>,
}

impl Encoder<'_> {
    /// The pack is on disk but has no name yet; there is none when nothing new had to be stored.
    pub fn encode(
        &self,
        pool: &Pool,
    ) -> Result<(PageMap, Option<SealedPack>, WriteReport), StoreError> {
        let cuts = cut(pool, self.options.hot).map_err(cannot_read)?;
        let mut report = WriteReport {
            pages: pool.pages(),
            ..WriteReport::default()
        };
        // Positions from here on are places in this order.
        let mut order: Vec<usize> = (0..cuts.len())
            .filter(|index| cuts[*index].byte.is_none())
            .collect();
        order.sort_by_key(|index| {
            let cut = &cuts[*index];
            (cut.class == Class::Cold, cut.rank, cut.first_page)
        });
        let (ids, mut found) = self.name_and_find(pool, &cuts, &order)?;
        for (_, chunk) in found.iter().flatten() {
            report.deduplicated_pieces += 1;
            debug_assert!(chunk.stored_len > 0);
        }
        let (pack, extent) = self.store(pool, &cuts, &order, &ids, &mut found, &mut report)?;

        let mut kinds: Vec<PieceKind> = cuts
            .iter()
            .map(|cut| match cut.byte {
                None | Some(0) => PieceKind::Zero,
                Some(byte) => PieceKind::Repeated(byte),
            })
            .collect();
        for (index, found) in order.iter().zip(&found) {
            // `store` has left none without a chunk.
            if let Some((_, chunk)) = found {
                kinds[*index] = PieceKind::Chunk(*chunk);
            }
        }
        let mut pieces = Vec::with_capacity(cuts.len());
        for (cut, kind) in cuts.iter().zip(kinds) {
            if cut.byte.is_some() {
                report.repeated_bytes += u64::from(cut.pages) * PAGE_SIZE;
            }
            pieces.push(piece_of(cut, kind));
        }
        let map = PageMap::new(pieces, extent).map_err(|source| StoreError::PageMap {
            path: "to be written".into(),
            source,
        })?;
        Ok((map, pack, report))
    }

    /// Names all pieces and finds stored ones that are fit to be referred to.
    fn name_and_find(
        &self,
        pool: &Pool,
        cuts: &[Cut],
        order: &[usize],
    ) -> Result<(Vec<ChunkId>, Vec<Found>), StoreError> {
        let domain = self.options.domain;
        let known = match self.options.deduplicate {
            true => Known::read(self.packs, &self.keys, domain)?,
            false => Known::default(),
        };
        let named = parallel::map(order.len(), Vec::new, |buffer, position| {
            let cut = &cuts[order[position]];
            let plain = read(pool, cut, buffer)?;
            let id = self.keys.id(domain, plain);
            let find = |id: &ChunkId, domain| known.find(id, domain, cut.pages);
            let found = find(&id, domain).or_else(|| {
                let shares = domain == Domain::Tenant && known.has_templates();
                let id = shares.then(|| self.keys.id(Domain::Templates, plain))?;
                find(&id, Domain::Templates)
            });
            let found = found.map(|chunk| (piece_of(cut, PieceKind::Zero), chunk));
            Ok::<_, StoreError>((id, found))
        })?;
        let (ids, mut found): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        bound_scatter(&mut found);
        bound_packs(&mut found);
        known.verify(&mut found, self.keys, self.dictionaries)?;
        Ok((ids, found))
    }

    /// Stores what was not found, and fills it in.
    fn store(
        &self,
        pool: &Pool,
        cuts: &[Cut],
        order: &[usize],
        ids: &[ChunkId],
        found: &mut [Found],
        report: &mut WriteReport,
    ) -> Result<(Option<SealedPack>, Option<HotExtent>), StoreError> {
        for (piece, _) in found.iter().flatten() {
            report.deduplicated_bytes += piece.len_bytes() as u64;
        }
        let in_pack = |result: std::io::Result<u64>| result.context("write", self.packs.path());
        let label = self.keys.label(self.options.domain);
        let mut pack =
            PackWriter::create(self.packs, label).context("make a pack in", self.packs.path())?;
        let hot = order.partition_point(|index| cuts[*index].class == Class::Hot);
        let mut own: HashMap<ChunkId, Chunk> = HashMap::new();
        let mut hot_end = None;
        for start in (0..order.len()).step_by(BATCH) {
            let positions = start..order.len().min(start + BATCH);
            let missing: Vec<usize> = positions.filter(|at| found[*at].is_none()).collect();
            let encoded = parallel::map(missing.len(), Vec::new, |buffer, item| {
                let cut = &cuts[order[missing[item]]];
                let plain = read(pool, cut, buffer)?;
                self.shrink(cut, plain)
            })?;
            for (position, (codec, dictionary, stored)) in missing.into_iter().zip(encoded) {
                let cut = &cuts[order[position]];
                if position >= hot && hot_end.is_none() {
                    hot_end = Some(own.len());
                    pack.end_hot().context("write", self.packs.path())?;
                }
                let id = ids[position];
                let plain_len = u64::from(cut.pages) * PAGE_SIZE;
                if let Some(chunk) = own.get(&id) {
                    // The same contents twice in this pool.
                    report.deduplicated_bytes += plain_len;
                    report.deduplicated_pieces += 1;
                    found[position] = Some((piece_of(cut, PieceKind::Zero), *chunk));
                    continue;
                }
                let entry = PackEntry {
                    id,
                    offset: 0,
                    stored_len: stored.len() as u32,
                    pages: cut.pages,
                    codec,
                    dictionary,
                };
                let offset = in_pack(pack.push(entry, &stored))?;
                let chunk = Chunk {
                    id,
                    domain: self.options.domain,
                    pack: pack.id(),
                    offset,
                    stored_len: entry.stored_len,
                    codec,
                    dictionary,
                };
                report.stored(codec, cut.class, plain_len, stored.len() as u64);
                own.insert(id, chunk);
                found[position] = Some((piece_of(cut, PieceKind::Zero), chunk));
            }
        }
        if hot_end.is_none() {
            pack.end_hot().context("write", self.packs.path())?;
        }
        let id = pack.id();
        let stored_hot = found[..hot]
            .iter()
            .flatten()
            .filter(|(_, chunk)| chunk.pack == id)
            .map(|(_, chunk)| chunk.offset + u64::from(chunk.stored_len))
            .max();
        let extent = stored_hot.map(|end| (id, PACK_ALIGN..end.next_multiple_of(PACK_ALIGN)));
        let sealed = pack.seal().context("write", self.packs.path())?;
        report.pack_bytes = sealed.as_ref().map_or(0, SealedPack::len_bytes);
        Ok((sealed, extent))
    }

    /// What the policy makes of a piece.
    fn shrink(&self, cut: &Cut, plain: &[u8]) -> Result<Stored, StoreError> {
        let (choice, class) = (self.options.choice, cut.class);
        let mut tried: Vec<(Beside, Stored)> = Vec::new();
        for codec in choice.candidates(class, plain.len()) {
            if *codec == CodecId::None || tried.iter().any(|(_, (tried, ..))| tried == codec) {
                continue;
            }
            let engine = match (codec, self.options.domain) {
                (CodecId::Zstd, Domain::Templates) => &self.dense,
                _ => self.codecs.get(*codec),
            };
            tried.push((Beside::Nothing, encoded(engine, plain, None)?));
            if *codec != CodecId::Zstd {
                continue;
            }
            if let Some(dictionary) = self.dictionary {
                let stored = encoded(engine, plain, Some(dictionary))?;
                tried.push((Beside::Dictionary, stored));
            }
            // What a restore waits for must not need other reads.
            if class == Class::Cold
                && let Some(stored) = self.beside_parent(cut, plain)?
            {
                tried.push((Beside::Template, stored));
            }
        }
        tried.retain(|(_, (_, _, stored))| stored.len() < plain.len());
        let candidates: Vec<Coded> = tried
            .iter()
            .map(|(beside, (codec, _, stored))| Coded {
                codec: *codec,
                beside: *beside,
                len: stored.len(),
            })
            .collect();
        Ok(match choice.choose(class, plain.len(), &candidates) {
            Some(chosen) => tried.swap_remove(chosen).1,
            None => (CodecId::None, None, plain.to_vec()),
        })
    }

    /// A piece as what differs from pages of the template, if it resembles any.
    fn beside_parent(&self, cut: &Cut, plain: &[u8]) -> Result<Option<Stored>, StoreError> {
        let Some(base) = self.base else {
            return Ok(None);
        };
        let first = cut.first_page as usize;
        let pages = base.pages.get(first..first + cut.pages as usize);
        let prepared = base.parent.prepare(pages.unwrap_or_default());
        let Some((mut stored, prefix)) = prepared.map_err(StoreError::Encode)? else {
            return Ok(None);
        };
        let encoded = self.beside.encode_beside(plain, &prefix, &mut stored);
        encoded.map_err(StoreError::Encode)?;
        Ok(Some((CodecId::Zstd, Some(base.parent.id()), stored)))
    }
}

/// How a piece is stored: codec, what that needs, bytes.
type Stored = (CodecId, Option<DictionaryId>, Vec<u8>);

/// What a codec makes of a piece.
fn encoded(
    engine: &dyn Codec,
    plain: &[u8],
    dictionary: Option<&Dictionary>,
) -> Result<Stored, StoreError> {
    let mut stored = Vec::new();
    engine
        .encode(plain, dictionary, &mut stored)
        .map_err(StoreError::Encode)?;
    Ok((engine.id(), dictionary.map(Dictionary::id), stored))
}

fn piece_of(cut: &Cut, kind: PieceKind) -> Piece {
    Piece {
        first_page: cut.first_page,
        pages: cut.pages,
        class: cut.class,
        kind,
    }
}

fn read<'a>(pool: &Pool, cut: &Cut, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], StoreError> {
    buffer.resize(cut.pages as usize * PAGE_SIZE as usize, 0);
    pool.read(cut.first_page, buffer).map_err(cannot_read)?;
    Ok(buffer)
}

fn cannot_read(source: std::io::Error) -> StoreError {
    StoreError::Memory {
        action: "read",
        source,
    }
}
