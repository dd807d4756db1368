//! The memory tier: pages in a memfd.
//!
//! ```text
//!  page     0        1        2                      pages
//!           +--------+--------+--------+--- ... ---+
//!  memfd    | filled | filled | filled |           |  sealed: no write, no growing, no shrinking
//!           +--------+--------+--------+--- ... ---+
//!               ^        ^
//!               |        +-- instance B, MAP_PRIVATE: reads the same physical page
//!               +-- instance A, MAP_PRIVATE: gets its own copy when it writes
//! ```
//!
//! Invariants:
//! - *A page enters the pool whole.* Only `pwrite` fills pages: the folio stays locked until it is
//!   complete, so that nobody can see it half filled. (Filling through a shared mapping was
//!   tried and rejected: other instances read torn pages.)
//! - *Every page of a finished [`Pool`] is present.* Absent pages of a memfd read as zeros without
//!   any error, so that a page forgotten would be a silently wrong byte.
//! - *A finished pool never changes.* The kernel enforces it by seals, against ourselves too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::fs::{MemfdFlags, SealFlags};

/// A pool under construction: pages are appended whole and never change afterwards.
#[derive(Debug)]
pub struct PoolBuilder {
    file: OwnedFd,
    /// Pages below are complete; what lies behind them in the file is left of a failed append.
    pages: u64,
}

impl PoolBuilder {
    /// An empty pool; `name` shows up in `/proc/PID/maps` as `/memfd:name`.
    ///
    /// # Errors
    /// What `memfd_create` says, for instance about a name of more than 249 bytes.
    pub fn new(name: &str) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        Ok(Self { file, pages: 0 })
    }

    /// Appends whole pages and returns the page number of the first.
    ///
    /// # Errors
    /// `InvalidInput` when `bytes.len()` is not a multiple of the page size; what `pwrite` says,
    /// and then nothing was appended.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if !(bytes.len() as u64).is_multiple_of(PAGE_SIZE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a whole number of pages",
            ));
        }
        let first = self.pages;
        write_all_at(self.file.as_fd(), bytes, first * PAGE_SIZE)?;
        self.pages += bytes.len() as u64 / PAGE_SIZE;
        Ok(first)
    }

    /// Pages appended so far.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Seals the pool against any later change.
    ///
    /// # Errors
    /// What `ftruncate` and `fcntl(F_ADD_SEALS)` say.
    pub fn finish(self) -> io::Result<Pool> {
        rustix::fs::ftruncate(&self.file, self.pages * PAGE_SIZE)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.file, seals)?;
        Ok(Pool {
            file: self.file,
            pages: self.pages,
        })
    }

    /// Fills a pool of known length from several threads at once.
    ///
    /// `fill` must write each of the pages through the descriptor it is given, whole, or fail.
    pub(crate) fn fill_with<E: From<io::Error>>(
        name: &str,
        pages: u64,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<Pool, E> {
        let mut builder = Self::new(name)?;
        fill(builder.file.as_fd())?;
        builder.pages = pages;
        Ok(builder.finish()?)
    }
}

/// A finished pool: every page is present and immutable.
#[derive(Debug)]
pub struct Pool {
    file: OwnedFd,
    pages: u64,
}

impl Pool {
    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Reads bytes from the start of page `first` on; `buffer` may have any length.
    ///
    /// # Errors
    /// `UnexpectedEof` when the pool ends before the buffer is full.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = first
            .checked_mul(PAGE_SIZE)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = start + done as u64;
            match rustix::io::retry_on_intr(|| {
                rustix::io::pread(&self.file, &mut buffer[done..], at)
            })? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes all bytes at an offset, whatever the kernel takes at a time.
pub(crate) fn write_all_at(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::retry_on_intr(|| {
            rustix::io::pwrite(file, &bytes[done..], offset + done as u64)
        })?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const PAGE: usize = PAGE_SIZE as usize;

    #[test]
    fn pages_are_read_as_they_were_appended() {
        let mut builder = PoolBuilder::new("test").unwrap();
        assert_eq!(builder.append(&[1; 2 * PAGE]).unwrap(), 0);
        assert_eq!(builder.append(&[2; PAGE]).unwrap(), 2);
        assert_eq!(builder.append(&[]).unwrap(), 3);
        let pool = builder.finish().unwrap();
        assert_eq!(pool.pages(), 3);
        let mut buffer = [0; PAGE + 5];
        pool.read(1, &mut buffer).unwrap();
        assert!(buffer[..PAGE].iter().all(|byte| *byte == 1));
        assert_eq!(buffer[PAGE..], [2; 5]);
        assert_eq!(
            pool.read(2, &mut buffer).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(pool.read(u64::MAX, &mut buffer).is_err());
    }

    #[test]
    fn part_of_a_page_is_refused() {
        let mut builder = PoolBuilder::new("test").unwrap();
        let error = builder.append(&[1; PAGE + 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(builder.pages(), 0);
    }

    #[test]
    fn the_kernel_keeps_a_finished_pool_as_it_is() {
        let mut builder = PoolBuilder::new("test").unwrap();
        builder.append(&[1; PAGE]).unwrap();
        let pool = builder.finish().unwrap();
        assert!(write_all_at(pool.as_fd(), &[2; PAGE], 0).is_err());
        assert!(write_all_at(pool.as_fd(), &[2; PAGE], PAGE_SIZE).is_err());
        assert!(rustix::fs::ftruncate(&pool, 0).is_err());
        assert!(rustix::fs::ftruncate(&pool, 2 * PAGE_SIZE).is_err());
        assert!(rustix::fs::fcntl_add_seals(&pool, SealFlags::FUTURE_WRITE).is_err());
    }
}
