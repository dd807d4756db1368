//! What writing, collecting and checking have done.

use std::fmt;

use rouse_snapshot::page_map::{Class, CodecId, PackId};

/// How much one codec was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodecUse {
    /// Pieces encoded with it.
    pub pieces: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
}

/// What was written for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteReport {
    /// Pages of its pool.
    pub pages: u64,
    /// Plain bytes of pages that hold one repeated byte: nothing is stored of them.
    pub repeated_bytes: u64,
    /// Plain bytes that were stored before, by this or another snapshot.
    pub deduplicated_bytes: u64,
    /// In so many pieces.
    pub deduplicated_pieces: u64,
    /// Stored bytes of the working set.
    pub hot_stored_bytes: u64,
    /// Length of the new pack, with its index; 0 when there is none.
    pub pack_bytes: u64,
    /// By codec, in the order of [`CodecId::ALL`].
    pub codecs: [CodecUse; CodecId::ALL.len()],
}

impl WriteReport {
    /// Bytes of the whole pool.
    pub fn plain_bytes(&self) -> u64 {
        self.pages * rouse_snapshot::model::PAGE_SIZE
    }

    /// Bytes of all new chunks.
    pub fn stored_bytes(&self) -> u64 {
        self.codecs.iter().map(|codec| codec.stored_bytes).sum()
    }

    pub(super) fn stored(&mut self, codec: CodecId, class: Class, plain: u64, stored: u64) {
        let codec = &mut self.codecs[codec as usize];
        codec.pieces += 1;
        codec.plain_bytes += plain;
        codec.stored_bytes += stored;
        if class == Class::Hot {
            self.hot_stored_bytes += stored;
        }
    }
}

/// What a collection has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Packs to which nothing referred.
    pub removed_packs: u64,
    /// Packs that were mostly unused and written anew without that.
    pub rewritten_packs: u64,
    /// Dictionaries that nothing needs.
    pub removed_dictionaries: u64,
    /// Files and directories that killed processes have left.
    pub removed_leftovers: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Snapshots whose page maps cannot be read. While there are any, no pack is removed: it may
    /// be needed when they can be read again.
    pub unreadable: Vec<String>,
}

impl fmt::Display for GcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packs removed, {} rewritten; {} dictionaries and {} leftovers removed; {} bytes freed",
            self.removed_packs,
            self.rewritten_packs,
            self.removed_dictionaries,
            self.removed_leftovers,
            self.freed_bytes
        )
    }
}

/// Something that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What it is and what is wrong with it, with all causes.
    pub what: String,
    /// Snapshots that cannot be used because of it.
    pub snapshots: Vec<String>,
}

/// A stored chunk that no snapshot refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// File that holds it.
    pub pack: PackId,
    /// Where in the pack, bytes.
    pub offset: u64,
    /// How many bytes.
    pub stored_len: u32,
}

/// What a check of a whole store has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsckReport {
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// Packs that were looked at.
    pub packs: u64,
    /// Chunks that were read, decoded and verified.
    pub chunks: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// What is not needed: collecting removes it, in time.
    pub orphans: Vec<Orphan>,
    /// Files and directories that belong to nothing.
    pub leftovers: Vec<String>,
}

impl FsckReport {
    /// Is every snapshot whole?
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty()
    }

    /// Snapshots that cannot be used, each once, sorted.
    pub fn affected(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .damages
            .iter()
            .flat_map(|damage| damage.snapshots.iter().map(String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
