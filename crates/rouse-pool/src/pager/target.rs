//! Putting pages into a pool, and taking them out.
//!
//! ```text
//!  pager      shared mapping, registered with the pager's own userfaultfd, never read
//!                  | UFFDIO_COPY: the kernel makes a page, copies, and only then lets it be seen
//!                  v
//!  memory file  [ ][x][x][ ] ...  <--- private mappings of instances
//! ```
//!
//! `pwrite` was used for this at first. It copies into a page that is in the memory file already,
//! locked. But when the kernel cannot read the source at that moment (it was swapped out, or is
//! being migrated to another node) it ends the copy early, and marks the page as complete, with
//! zeros for the rest, before it tries again. An instance that looks meanwhile reads wrong bytes.
//! `UFFDIO_COPY` takes as long, has no such state, and never touches a page that is there already.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::MAX_PIECE_PAGES;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::reserve::Ballast;
use crate::uffd::{Neighbours, Userfaultfd};

/// What all targets of a pager share.
#[derive(Debug)]
pub(crate) struct Own {
    /// Watches the shared mappings of pools; enabled without events.
    pub uffd: OwnedFd,
    pub ballast: Ballast,
}

/// The pager's access to a pool. Used by many threads at once.
#[derive(Debug)]
pub(crate) struct Target {
    /// A descriptor of its own: the slot's may be closed while a decoder still works.
    file: OwnedFd,
    own: Arc<Own>,
    /// Start of a shared mapping of the whole pool, which is registered with `own.uffd`.
    base: usize,
    pages: u64,
}

impl Target {
    /// Maps a pool.
    pub fn map(pool: BorrowedFd<'_>, pages: u64, own: Arc<Own>) -> io::Result<Self> {
        let file = rustix::io::fcntl_dupfd_cloexec(pool, 3)?;
        let bytes = pages * PAGE_SIZE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }? as usize;
        // Dropped, and so unmapped, when registration fails.
        let target = Self {
            file,
            own,
            base,
            pages,
        };
        Userfaultfd::new(target.own.uffd.as_fd()).register(
            base as u64,
            bytes,
            Neighbours::Mapped,
        )?;
        Ok(target)
    }

    /// Puts whole pages in, where they are absent. Returns how many that were. To be followed by [`Self::unmap`], some
    /// time.
    ///
    /// # Errors
    /// `OutOfMemory`, or what else the kernel says.
    pub fn fill(&self, page: u64, bytes: &[u8]) -> io::Result<u64> {
        let count = bytes.len() as u64 / PAGE_SIZE;
        debug_assert!((bytes.len() as u64).is_multiple_of(PAGE_SIZE) && page + count <= self.pages);
        let address = self.base as u64 + page * PAGE_SIZE;
        if !self.own.ballast.secure() {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let uffd = Userfaultfd::new(self.own.uffd.as_fd());
        let result = uffd.copy(address, bytes);
        if let Err(error) = &result
            && error.raw_os_error() == Some(libc::ENOMEM)
        {
            self.own.ballast.release();
        }
        result
    }

    /// Takes what lies in this range out of the pager's own mapping, which would count all pools as its memory, and each
    /// page as mapped once more. Costs about the same for one page as for hundreds: other processors are interrupted.
    pub fn unmap(&self, pages: Range<u64>) {
        debug_assert!(pages.end <= self.pages);
        let address = self.base + (pages.start * PAGE_SIZE) as usize;
        let len = ((pages.end - pages.start) * PAGE_SIZE) as usize;
        // SAFETY: the range is part of the mapping, which is shared: its pages stay in the memory
        // file. No reference to it exists.
        let result = unsafe { rustix::mm::madvise(address as *mut _, len, Advice::LinuxDontNeed) };
        debug_assert!(result.is_ok(), "{result:?}");
    }

    /// Whether all these pages are present.
    ///
    /// The memory file itself is asked, so that no record can be out of date. Looking for a hole goes on behind the
    /// range, up to the next one: asked for each piece of a pool that is nearly full, that was the most expensive thing
    /// that a pager did. So a short range is looked at page by page first. That says nothing of pages that were
    /// swapped out: only its yes counts.
    pub fn is_present(&self, pages: Range<u64>) -> bool {
        if pages.end - pages.start <= u64::from(MAX_PIECE_PAGES) && self.is_in_core(pages.clone()) {
            return true;
        }
        let start = SeekFrom::Hole(pages.start * PAGE_SIZE);
        rustix::fs::seek(&self.file, start).is_ok_and(|hole| hole >= pages.end * PAGE_SIZE)
    }

    /// Which pages are present, in order; `None` if they lie in so many places that it is cheaper to ask for single ones.
    pub fn present(&self) -> Option<Vec<Range<u64>>> {
        const MOST: usize = 256;
        let (mut ranges, mut page) = (Vec::new(), 0);
        while page < self.pages {
            let data = rustix::fs::seek(&self.file, SeekFrom::Data(page * PAGE_SIZE));
            let start = match data {
                Ok(start) => start / PAGE_SIZE,
                // Nothing is behind.
                Err(Errno::NXIO) => break,
                Err(_) => return None,
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(start * PAGE_SIZE)).ok()?;
            page = hole.div_ceil(PAGE_SIZE);
            ranges.push(start..page);
            if ranges.len() > MOST {
                return None;
            }
        }
        Some(ranges)
    }

    /// Whether all these pages, at most a piece, are in memory at this moment.
    fn is_in_core(&self, pages: Range<u64>) -> bool {
        if pages.end > self.pages {
            return false;
        }
        let mut state = [0_u8; MAX_PIECE_PAGES as usize];
        let len = (pages.end - pages.start) as usize;
        let address = self.base + (pages.start * PAGE_SIZE) as usize;
        // SAFETY: the range lies in the mapping, which is not read; `state` has a byte for each of its pages.
        let result = unsafe {
            libc::mincore(
                address as *mut _,
                len * PAGE_SIZE as usize,
                state.as_mut_ptr(),
            )
        };
        result == 0 && state[..len].iter().all(|page| page & 1 == 1)
    }

    /// Takes pages out, and returns by how many the pool became smaller.
    ///
    /// Instances keep the private copies that they have.
    pub fn evict(&self, pages: Range<u64>) -> io::Result<u64> {
        let pages = pages.start..pages.end.min(self.pages);
        if pages.is_empty() {
            return Ok(0);
        }
        let before = resident_pages(self.file.as_fd())?;
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            pages.start * PAGE_SIZE,
            (pages.end - pages.start) * PAGE_SIZE,
        )?;
        Ok(before.saturating_sub(resident_pages(self.file.as_fd())?))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let len = (self.pages * PAGE_SIZE) as usize;
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let result = unsafe { rustix::mm::munmap(self.base as *mut _, len) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

/// Pages that a memory file holds, wherever they are (memory or swap).
pub(crate) fn resident_pages(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_blocks as u64 * 512 / PAGE_SIZE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;
    use crate::uffd::{Device, Events};

    const PAGE: usize = PAGE_SIZE as usize;

    fn target(pages: u64) -> (Target, OwnedFd) {
        let file = rustix::fs::memfd_create("target", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, pages * PAGE_SIZE).unwrap();
        let uffd = Device::open().unwrap().create().unwrap();
        Userfaultfd::new(uffd.as_fd()).enable(Events::None).unwrap();
        let ballast = Ballast::new().unwrap();
        let own = Arc::new(Own { uffd, ballast });
        (Target::map(file.as_fd(), pages, own).unwrap(), file)
    }

    #[test]
    fn only_absent_pages_are_filled() {
        let (target, file) = target(8);
        assert!(!target.is_present(0..1));
        assert_eq!(target.fill(2, &[2; PAGE]).unwrap(), 1);
        // Page 2 is there: it stays as it is.
        assert_eq!(target.fill(1, &[1; 4 * PAGE]).unwrap(), 3);
        assert!(target.is_present(1..5));
        assert!(!target.is_present(1..6) && !target.is_present(0..2));
        let mut bytes = [0; 5 * PAGE];
        rustix::io::pread(&file, &mut bytes, 0).unwrap();
        for (page, expected) in [0, 1, 2, 1, 1].into_iter().enumerate() {
            assert!(
                bytes[page * PAGE..(page + 1) * PAGE]
                    .iter()
                    .all(|b| *b == expected)
            );
        }
        assert_eq!(resident_pages(file.as_fd()).unwrap(), 4);
        assert_eq!(target.present().unwrap(), std::slice::from_ref(&(1..5)));
        target.unmap(0..8);
        assert_eq!(target.present().unwrap(), std::slice::from_ref(&(1..5)));
    }

    #[test]
    fn evicted_pages_are_absent() {
        let (target, file) = target(8);
        target.fill(0, &[7; 8 * PAGE]).unwrap();
        assert!(target.is_present(0..8));
        assert_eq!(target.evict(2..100).unwrap(), 6);
        assert!(target.is_present(0..2) && !target.is_present(2..3));
        assert_eq!(target.evict(9..10).unwrap(), 0);
        assert_eq!(resident_pages(file.as_fd()).unwrap(), 2);
        assert_eq!(target.fill(4, &[9; PAGE]).unwrap(), 1);
    }
}
