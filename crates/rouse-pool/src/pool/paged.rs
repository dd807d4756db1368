//! Pools whose pages come and go.
//!
//! ```text
//!  SparsePool --PagerHandle::add_pool--> PagedPool --.registered()--> RegisteredPool
//!  empty, ours alone                         |                        to be mapped and then
//!                                            |                        registered, before it is touched
//!                                            `------.pin()----------> PinnedPool
//!                                                                     everything is present, and stays
//! ```

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use super::huge::{self, SharedHuge};
use crate::keeper::{PagerError, PagerHandle};
use crate::pager::{protocol::Request, resident_pages};

/// Ranges that one packet to the pager holds with ease.
const RANGES_OF_PACKET: usize = 1024;

/// Names a pool of a node, as long as it lives. Chosen by the daemon, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A new memory file without any page, to which nobody else has access yet.
#[derive(Debug)]
pub struct SparsePool {
    file: OwnedFd,
    /// The same file, for reading and private mappings only.
    view: OwnedFd,
    pages: u64,
}

impl SparsePool {
    /// A pool of that many pages, at least one; `name` shows up in `/proc/PID/maps` as
    /// `/memfd:name`.
    ///
    /// # Errors
    /// What the kernel says, for instance about a name of more than 249 bytes.
    pub fn new(name: &str, pages: u64) -> io::Result<Self> {
        let bytes = (pages.checked_mul(PAGE_SIZE))
            .filter(|bytes| *bytes > 0 && i64::try_from(*bytes).is_ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&file, bytes)?;
        // Writing cannot be sealed: pages must still get in. So nobody is let in who could write:
        // instances get a view, and cannot open the file again through /proc.
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        rustix::fs::fchmod(&file, Mode::RUSR)?;
        let view = rustix::fs::open(
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { file, view, pages })
    }

    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// For the pager alone.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Once the pager has the file, nobody else needs to be able to write.
    pub(crate) fn into_paged(self, id: PoolId, pager: PagerHandle) -> PagedPool {
        PagedPool(Arc::new(Paged {
            id,
            view: self.view,
            pages: self.pages,
            pins: Mutex::new(0),
            wired: Mutex::default(),
            has_large: AtomicBool::new(false),
            pager,
        }))
    }
}

struct Paged {
    id: PoolId,
    view: OwnedFd,
    pages: u64,
    /// Held while pages are taken out, so that nothing is pinned meanwhile.
    pins: Mutex<u64>,
    /// Pages that are never taken out.
    wired: Mutex<Vec<Range<u64>>>,
    /// Some of its pages may be large ones, which are taken out as a whole.
    has_large: AtomicBool,
    pager: PagerHandle,
}

impl fmt::Debug for Paged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagedPool")
            .field("id", &self.id)
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

/// A pool that the pager fills and empties. Cheap to clone.
///
/// It stays with the pager until [`PagerHandle::remove_pool`].
#[derive(Debug, Clone)]
pub struct PagedPool(Arc<Paged>);

impl PagedPool {
    /// Its name.
    pub fn id(&self) -> PoolId {
        self.0.id
    }

    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.0.pages
    }

    /// Pages that it holds now.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn resident_pages(&self) -> io::Result<u64> {
        resident_pages(self.0.view.as_fd())
    }

    /// Which pages it holds now, in order.
    ///
    /// # Errors
    /// What `lseek` says.
    pub fn resident_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let (mut ranges, mut page) = (Vec::new(), 0);
        while page < self.0.pages {
            let start = match rustix::fs::seek(&self.0.view, SeekFrom::Data(page * PAGE_SIZE)) {
                Ok(start) => start / PAGE_SIZE,
                // Nothing is behind.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(&self.0.view, SeekFrom::Hole(start * PAGE_SIZE))?;
            page = hole / PAGE_SIZE;
            ranges.push(start..page);
        }
        Ok(ranges)
    }

    /// What instances map, and then register.
    pub fn registered(&self) -> RegisteredPool {
        RegisteredPool(self.clone())
    }

    /// Fills the pool, and keeps it filled as long as the result lives. Blocks for as long as
    /// reading everything takes.
    ///
    /// # Errors
    /// A piece that is damaged, no memory, no pager.
    pub fn pin(&self) -> Result<PinnedPool, PagerError> {
        // Counted before it is true: from here on nothing is taken out.
        *self.pins() += 1;
        let pinned = PinnedPool(self.clone());
        let pool = self.id().0;
        self.0.pager.call(&Request::FillAll { pool }, &[])?;
        Ok(pinned)
    }

    /// Fills some pages, and never takes them out again: for what is read from the pool as from a
    /// file, where an absent page would read as zeros. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn wire(&self, ranges: Vec<Range<u64>>) -> Result<(), PagerError> {
        self.wire_before_filling(&ranges);
        self.fill(&ranges)
    }

    /// Fills some pages, and keeps them as long as the result lives. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub(crate) fn keep(&self, pages: Range<u64>) -> Result<KeptPages, PagerError> {
        self.wire_before_filling(std::slice::from_ref(&pages));
        let kept = KeptPages {
            pool: self.clone(),
            pages,
        };
        self.fill(std::slice::from_ref(&kept.pages))?;
        Ok(kept)
    }

    /// What is just being taken out is out when this returns, so that whoever fills then finds out what is missing.
    fn wire_before_filling(&self, ranges: &[Range<u64>]) {
        let _nothing_goes = self.pins();
        lock(&self.0.wired).extend(ranges.iter().cloned());
    }

    /// Pages that are never taken out.
    pub fn wired_pages(&self) -> u64 {
        let wired = lock(&self.0.wired);
        wired.iter().map(|range| range.end - range.start).sum()
    }

    /// Fills some pages, which may be taken out again at any time. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// As [`pin`](Self::pin); and [`PagerError::Busy`] when pages were taken out meanwhile.
    pub fn fill(&self, ranges: &[Range<u64>]) -> Result<(), PagerError> {
        for ranges in ranges.chunks(RANGES_OF_PACKET) {
            let request = Request::Fill {
                pool: self.id().0,
                ranges: ranges.to_vec(),
            };
            self.0.pager.call(&request, &[])?;
        }
        Ok(())
    }

    /// Takes pages out; the next touch brings them in again. Returns by how many pages the pool
    /// became smaller. Blocks for a round trip, about half a microsecond for each page more.
    ///
    /// # Errors
    /// [`PagerError::Pinned`] when the pool is pinned.
    pub(crate) fn evict(&self, ranges: &[Range<u64>]) -> Result<u64, PagerError> {
        let pins = self.pins();
        if *pins > 0 {
            return Err(PagerError::Pinned(self.id()));
        }
        let mut ranges = without(ranges, &lock(&self.0.wired));
        // It may have made some by itself meanwhile. Once it could, it may have, whatever is set later.
        if SharedHuge::of_host() != SharedHuge::Never {
            self.may_have_large();
        }
        if self.0.has_large.load(Ordering::Relaxed) {
            ranges = huge::whole(ranges, self.0.pages);
        }
        let mut evicted = 0;
        for ranges in ranges.chunks(RANGES_OF_PACKET) {
            let request = Request::Evict {
                pool: self.id().0,
                ranges: ranges.to_vec(),
            };
            evicted += self.0.pager.call(&request, &[])?;
        }
        Ok(evicted)
    }

    /// From now on some of its pages may be large.
    pub(super) fn may_have_large(&self) {
        self.0.has_large.store(true, Ordering::Relaxed);
    }

    /// Is one of these pages never taken out?
    pub(super) fn is_wired(&self, pages: &Range<u64>) -> bool {
        let wired = lock(&self.0.wired);
        let meets = |range: &Range<u64>| range.start < pages.end && pages.start < range.end;
        wired.iter().any(meets)
    }

    fn pins(&self) -> MutexGuard<'_, u64> {
        lock(&self.0.pins)
    }
}

/// Pages that are present, and stay while this lives.
#[derive(Debug)]
pub(crate) struct KeptPages {
    pool: PagedPool,
    pages: Range<u64>,
}

impl Drop for KeptPages {
    fn drop(&mut self) {
        let mut wired = lock(&self.pool.0.wired);
        if let Some(at) = wired.iter().rposition(|range| *range == self.pages) {
            wired.remove(at);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of `ranges` is in none of `kept`.
fn without(ranges: &[Range<u64>], kept: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left: Vec<Range<u64>> = ranges.to_vec();
    for kept in kept {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = range.start..range.end.min(kept.start);
                let behind = range.start.max(kept.end)..range.end;
                [before, behind]
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

/// The view of a pool for processes that register what they map of it.
///
/// *Every* mapping must be registered ([`PagerHandle::register`]) before it is touched: absent
/// pages read as zeros otherwise.
#[derive(Debug, Clone)]
pub struct RegisteredPool(PagedPool);

impl RegisteredPool {
    /// The pool.
    pub fn pool(&self) -> &PagedPool {
        &self.0
    }
}

impl AsFd for RegisteredPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.view.as_fd()
    }
}

/// The view of a pool all of whose pages are present, and stay while this lives.
///
/// It must live as long as anything that maps it without registration.
#[derive(Debug)]
pub struct PinnedPool(PagedPool);

impl PinnedPool {
    /// The pool.
    pub fn pool(&self) -> &PagedPool {
        &self.0
    }
}

impl AsFd for PinnedPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.view.as_fd()
    }
}

impl Clone for PinnedPool {
    fn clone(&self) -> Self {
        *self.0.pins() += 1;
        Self(self.0.clone())
    }
}

impl Drop for PinnedPool {
    fn drop(&mut self) {
        *self.0.pins() -= 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_view_cannot_write() {
        let pool = SparsePool::new("test", 3).unwrap();
        assert!(rustix::io::pwrite(&pool.view, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&pool.file, 0).is_err());
        assert!(rustix::fs::ftruncate(&pool.file, 4 * PAGE_SIZE).is_err());
        assert_eq!(
            rustix::fs::fstat(&pool.view).unwrap().st_mode & 0o7777,
            0o400
        );
    }

    #[test]
    fn wired_pages_are_left_out() {
        assert_eq!(without(&[0..10, 11..12], &[]), [0..10, 11..12]);
        assert_eq!(
            without(&[0..10, 20..30], &[3..4, 8..22]),
            [0..3, 4..8, 22..30]
        );
        assert_eq!(without(&[5..6, 7..8], &[0..9, 10..11]), []);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert!(SparsePool::new("test", 0).is_err());
        assert!(SparsePool::new("test", u64::MAX).is_err());
        assert!(SparsePool::new("test", u64::MAX / PAGE_SIZE).is_err());
    }
}
