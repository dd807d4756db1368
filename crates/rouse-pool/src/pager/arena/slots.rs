//! One pool, and the memory of one process.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use super::{Blob, Counter};
use crate::pager::ranges::{Mapped, Ranges};
use crate::pager::source::Source;

const FREE: u32 = 0;
const USED: u32 = 1;

/// A pool, and where its pages come from.
#[repr(C)]
pub(crate) struct PoolSlot {
    state: AtomicU32,
    fd: AtomicI32,
    id: AtomicU64,
    pages: AtomicU64,
    /// Descriptor of a copy of its stored pieces in memory; 0 when there is none.
    compressed: AtomicI32,
    /// Not zero when it goes as soon as nobody maps it.
    leaving: AtomicU32,
    /// A [`Source`] of descriptors, encoded.
    source: Blob,
    /// What was done with it.
    pub done: PoolCounters,
}

/// What was done with a pool.
#[repr(C)]
pub(crate) struct PoolCounters {
    /// Faults on its pages.
    pub faults: Counter,
    /// Pages filled because somebody waited.
    pub demanded: Counter,
    /// Pages filled ahead.
    pub prefetched: Counter,
    /// Of both, pages that nothing had to be read for.
    pub synthesized: Counter,
    /// Bytes read from packs.
    pub read: Counter,
    /// Pages given back by eviction.
    pub evicted: Counter,
    /// Pieces refused, or not readable.
    pub damaged: Counter,
}

impl PoolCounters {
    fn all(&self) -> [&Counter; 7] {
        [
            &self.faults,
            &self.demanded,
            &self.prefetched,
            &self.synthesized,
            &self.read,
            &self.evicted,
            &self.damaged,
        ]
    }

    /// The pool goes: adds all to what was done with those that are gone.
    pub fn move_to(&self, gone: &Self) {
        for (counter, total) in self.all().into_iter().zip(gone.all()) {
            counter.move_to(total);
        }
    }
}

impl PoolSlot {
    pub fn is_used(&self) -> bool {
        self.state.load(Ordering::Acquire) == USED
    }

    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub fn fd(&self) -> i32 {
        self.fd.load(Ordering::Relaxed)
    }

    /// Descriptor of the copy of its stored pieces.
    pub fn compressed(&self) -> Option<i32> {
        Some(self.compressed.load(Ordering::Acquire)).filter(|fd| *fd > 0)
    }

    /// Returns the descriptor before.
    pub fn set_compressed(&self, fd: Option<i32>) -> Option<i32> {
        let before = self.compressed.swap(fd.unwrap_or(0), Ordering::AcqRel);
        Some(before).filter(|fd| *fd > 0)
    }

    /// Does it go as soon as nobody maps it?
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) != 0
    }

    pub fn set_leaving(&self) {
        self.leaving.store(1, Ordering::Relaxed);
    }

    /// The files that it is filled from. `None` when it cannot be understood.
    pub fn source(&self) -> Option<Source<RawFd>> {
        Source::<RawFd>::decode(&self.source.load())
    }

    /// All descriptors that belong to it.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.fd()];
        all.extend(self.compressed());
        all.extend(self.source().iter().flat_map(Source::files));
        all
    }

    /// Takes a free slot. `None` when the source is too long.
    pub fn occupy(&self, id: u64, fd: i32, pages: u64, source: &Source<RawFd>) -> Option<()> {
        self.source.store(&source.encode())?;
        self.id.store(id, Ordering::Relaxed);
        self.fd.store(fd, Ordering::Relaxed);
        self.pages.store(pages, Ordering::Relaxed);
        self.compressed.store(0, Ordering::Relaxed);
        self.leaving.store(0, Ordering::Relaxed);
        self.done.all().into_iter().for_each(Counter::reset);
        self.state.store(USED, Ordering::Release);
        Some(())
    }

    pub fn free(&self) {
        self.state.store(FREE, Ordering::Release);
    }
}

/// Mappings of one process that survive a pager. Of a process that has more, faults elsewhere are
/// answered by filling all, after the pager died; before that, nothing is different.
const MAX_RANGES: usize = 512;
/// Pools of one process that survive a pager: its own snapshot's, and its ancestors'.
pub(crate) const MAX_POOLS_OF_WATCH: usize = 16;

#[repr(C)]
struct RangeCell {
    address: AtomicU64,
    pages: AtomicU64,
    pool: AtomicU64,
    page: AtomicU64,
}

/// The watched memory of one process.
#[repr(C)]
pub(crate) struct WatchSlot {
    state: AtomicU32,
    fd: AtomicI32,
    /// Descriptor of the record of what it touches; 0 when there is none.
    record: AtomicI32,
    /// The registration that it belongs to: the instance's own, also for what it forked.
    token: AtomicU64,
    /// Not zero once the kernel has all registrations.
    registered: AtomicU32,
    /// Not zero when the instance has ended, as far as the daemon knows.
    ending: AtomicU32,
    /// Not zero for a child that the instance forked.
    child: AtomicU32,
    pools_len: AtomicU32,
    pools: [AtomicU32; MAX_POOLS_OF_WATCH],
    /// Odd while the ranges are being written.
    sequence: AtomicU32,
    ranges_len: AtomicU32,
    ranges: [RangeCell; MAX_RANGES],
}

impl WatchSlot {
    pub fn is_used(&self) -> bool {
        self.state.load(Ordering::Acquire) == USED
    }

    pub fn fd(&self) -> i32 {
        self.fd.load(Ordering::Relaxed)
    }

    pub fn token(&self) -> u64 {
        self.token.load(Ordering::Relaxed)
    }

    /// Descriptor of the record of what it touches.
    pub fn record(&self) -> Option<i32> {
        Some(self.record.load(Ordering::Relaxed)).filter(|fd| *fd > 0)
    }

    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire) != 0
    }

    pub fn set_registered(&self) {
        self.registered.store(1, Ordering::Release);
    }

    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed) != 0
    }

    pub fn set_ending(&self) {
        self.ending.store(1, Ordering::Relaxed);
    }

    pub fn is_child(&self) -> bool {
        self.child.load(Ordering::Relaxed) != 0
    }

    /// Takes a free slot. There must be at most [`MAX_POOLS_OF_WATCH`] pools.
    pub fn occupy(
        &self,
        fd: i32,
        record: Option<i32>,
        token: u64,
        child: bool,
        pools: &[u32],
        ranges: &Ranges,
    ) {
        self.fd.store(fd, Ordering::Relaxed);
        self.record.store(record.unwrap_or(0), Ordering::Relaxed);
        self.token.store(token, Ordering::Relaxed);
        self.registered.store(0, Ordering::Relaxed);
        self.ending.store(0, Ordering::Relaxed);
        self.child.store(u32::from(child), Ordering::Relaxed);
        for (cell, pool) in self.pools.iter().zip(pools) {
            cell.store(*pool, Ordering::Relaxed);
        }
        self.pools_len.store(
            pools.len().min(MAX_POOLS_OF_WATCH) as u32,
            Ordering::Relaxed,
        );
        self.write_ranges(ranges);
        self.state.store(USED, Ordering::Release);
    }

    pub fn free(&self) {
        self.state.store(FREE, Ordering::Release);
    }

    /// Every pool that this process has ever mapped.
    pub fn pools(&self) -> Vec<u32> {
        let len = self.pools_len.load(Ordering::Relaxed) as usize;
        self.pools[..len.min(MAX_POOLS_OF_WATCH)]
            .iter()
            .map(|cell| cell.load(Ordering::Relaxed))
            .collect()
    }

    pub fn write_ranges(&self, ranges: &Ranges) {
        let odd = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(odd, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut len = 0;
        for (cell, range) in self.ranges.iter().zip(ranges.iter()) {
            cell.address.store(range.address, Ordering::Relaxed);
            cell.pages.store(range.pages, Ordering::Relaxed);
            cell.pool.store(u64::from(range.pool), Ordering::Relaxed);
            cell.page.store(range.page, Ordering::Relaxed);
            len += 1;
        }
        self.ranges_len.store(len, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.sequence.store(odd + 1, Ordering::Release);
    }

    /// Empty when a pager died in the middle of writing them: then nothing is known.
    pub fn read_ranges(&self) -> Ranges {
        let mut ranges = Ranges::default();
        if !self.sequence.load(Ordering::Acquire).is_multiple_of(2) {
            return ranges;
        }
        let len = (self.ranges_len.load(Ordering::Relaxed) as usize).min(MAX_RANGES);
        for cell in &self.ranges[..len] {
            ranges.insert(Mapped {
                address: cell.address.load(Ordering::Relaxed),
                pages: cell.pages.load(Ordering::Relaxed),
                pool: cell.pool.load(Ordering::Relaxed) as u32,
                page: cell.page.load(Ordering::Relaxed),
            });
        }
        ranges
    }
}
