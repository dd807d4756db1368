//! The stored pieces of a pool, in memory: the `compressed` tier.
//!
//! ```text
//!  memory file   0          pack A, offset o          1 TiB       pack B
//!                |...........[piece][piece]............|......[piece]....      the rest are holes
//! ```
//! Each piece lies where it lies in its pack, behind the place at which that pack begins; so the pager reads from here
//! as from packs, and verifies what it reads as always.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{PackId, PageMap};
use rustix::fs::MemfdFlags;

use super::sealed::write_all_at;

/// Room for one pack in the memory file; no pack is so long.
const PACK_ROOM: u64 = 1 << 40;
/// Bytes that are copied although no piece needs them, rather than reading twice.
const MAX_GAP: u64 = 16 * 1024;
/// Bytes copied at a time.
const COPY_LEN: u64 = 1 << 20;

/// A copy of what packs hold of one pool.
#[derive(Debug)]
pub struct CompressedCopy {
    file: OwnedFd,
}

impl CompressedCopy {
    /// Reads the stored pieces of a page map from packs that `open` opens for reads at any place. Nothing is verified here: that is done when a page is filled.
    ///
    /// # Errors
    /// What reading packs and writing to memory say.
    pub(crate) fn read(
        map: &PageMap,
        open: impl Fn(PackId) -> io::Result<File>,
    ) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("rouse-compressed", MemfdFlags::CLOEXEC)?;
        let bases = bases(map);
        let mut buffer = Vec::new();
        for (pack, extents) in extents(map) {
            let source = open(pack)?;
            let base = bases.get(&pack).copied().unwrap_or_default();
            for extent in extents {
                let mut at = extent.start;
                while at < extent.end {
                    buffer.resize((extent.end - at).min(COPY_LEN) as usize, 0);
                    source.read_exact_at(&mut buffer, at)?;
                    write_all_at(file.as_fd(), &buffer, base + at)?;
                    at += buffer.len() as u64;
                }
            }
            // It is in memory once already.
            let _ = rustix::fs::fadvise(&source, 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(Self { file })
    }

    /// For the pager.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        // Of a file of our own, which cannot fail.
        crate::pager::resident_pages(self.file.as_fd()).map_or(0, |pages| pages * PAGE_SIZE)
    }
}

/// Where each pack of a page map begins in the memory file.
pub(crate) fn bases(map: &PageMap) -> HashMap<PackId, u64> {
    (0..)
        .map(|index: u64| index * PACK_ROOM)
        .zip(map.packs())
        .map(|(base, pack)| (pack, base))
        .collect()
}

/// What is needed of each pack, in order.
fn extents(map: &PageMap) -> HashMap<PackId, Vec<Range<u64>>> {
    let mut extents: HashMap<PackId, Vec<Range<u64>>> = HashMap::new();
    for chunk in map.chunks() {
        let bytes = chunk.offset..chunk.offset + u64::from(chunk.stored_len);
        extents.entry(chunk.pack).or_default().push(bytes);
    }
    for ranges in extents.values_mut() {
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let joins = next.start <= range.end + MAX_GAP;
            if joins {
                range.end = range.end.max(next.end);
            }
            joins
        });
    }
    extents
}
