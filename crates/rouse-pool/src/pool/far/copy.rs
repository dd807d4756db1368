//! The pages of a pool, in a file on far memory.
//!
//! ```text
//!  pool (memory file)   |....pppp......pppp|   a window at a time is brought in, verified, and kept
//!                           | pwrite
//!                           v
//!  file on far memory   |pppppppppppppppppp|   all pages; written back, read again and compared; then never changed
//!                        ^
//!                        `-- instances, MAP_PRIVATE: read in place on a DAX mount, copied when written
//! ```
//! Invariants:
//! - *All its pages are there before anybody maps it*, so nobody has to watch the mappings.
//! - *It is what was verified.* Writing is complete and reached the medium (`fsync`: a file system that fails to write a
//!   page may later show what was there before), and what is read back has the digest of what was written.
//! - *It does not change.* It has no name, and its descriptors elsewhere cannot write. Whether that holds is looked at
//!   before each use ([`FarPool::check`]): size and times of the file.
//!
//! What the medium loses afterwards is a `SIGBUS` for whoever touches it, never another byte.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::fs::Advice;

use super::directory::{file_error, read_only};
use super::{FarDirectory, FarError};
use crate::pool::PagedPool;
use crate::pool::sealed::write_all_at;

/// Pages that are copied at a time: what a copy takes of near memory.
const WINDOW: u64 = 2048;

/// All pages of a pool, on far memory.
#[derive(Debug)]
pub struct FarPool {
    directory: Arc<FarDirectory>,
    file: OwnedFd,
    pages: u64,
    digest: blake3::Hash,
    stamp: Stamp,
    is_lost: AtomicBool,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Stamp {
    fn of(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

impl FarPool {
    /// Copies all pages of a pool. Blocks for as long as reading and writing them takes.
    ///
    /// # Errors
    /// There is no room; the pages cannot be brought in; the directory is of no use any more, which it then knows.
    pub fn copy(directory: &Arc<FarDirectory>, pool: &PagedPool) -> Result<Self, FarError> {
        let view = pool.registered();
        Self::copy_with(directory, pool.pages(), |pages, bytes| {
            let kept = pool.keep(pages.clone())?;
            read_exact(view.as_fd(), bytes, pages.start * PAGE_SIZE).map_err(FarError::Pool)?;
            drop(kept);
            // Who has pinned the pool keeps it.
            let _ = pool.evict(&[pages]);
            Ok(())
        })
    }

    /// Copies pages that `read` gives.
    pub(crate) fn copy_with(
        directory: &Arc<FarDirectory>,
        pages: u64,
        mut read: impl FnMut(Range<u64>, &mut [u8]) -> Result<(), FarError>,
    ) -> Result<Self, FarError> {
        let copied = directory
            .check()
            .and_then(|()| Self::written(directory, pages, &mut read));
        let pool = copied.inspect_err(|error| directory.lose(error))?;
        Ok(pool)
    }

    fn written(
        directory: &Arc<FarDirectory>,
        pages: u64,
        read: &mut impl FnMut(Range<u64>, &mut [u8]) -> Result<(), FarError>,
    ) -> Result<Self, FarError> {
        let file = directory.new_file(pages * PAGE_SIZE)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; (WINDOW.min(pages) * PAGE_SIZE) as usize];
        for window in windows(pages) {
            let bytes = &mut buffer[..((window.end - window.start) * PAGE_SIZE) as usize];
            read(window.clone(), bytes)?;
            hasher.update(bytes);
            write_all_at(file.as_fd(), bytes, window.start * PAGE_SIZE).map_err(|source| {
                FarError::File {
                    path: directory.path().to_path_buf(),
                    what: "written",
                    source,
                }
            })?;
        }
        rustix::fs::fsync(&file).map_err(file_error(directory, "written back"))?;
        // What is compared is what the medium has. A mapping in place has nothing else anyway.
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
            .map_err(file_error(directory, "read"))?;
        let view = read_only(&file).map_err(|source| FarError::File {
            path: directory.path().to_path_buf(),
            what: "opened for reading",
            source,
        })?;
        drop(file);
        let stamp = Stamp::of(view.as_fd()).map_err(file_error(directory, "looked at"))?;
        directory
            .held
            .fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
        // Dropped, and not counted any more, when it is not what was written.
        let pool = Self {
            directory: directory.clone(),
            file: view,
            pages,
            digest: hasher.finalize(),
            stamp,
            is_lost: AtomicBool::new(false),
        };
        pool.verify()?;
        Ok(pool)
    }

    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Does an access reach the medium itself? Then page tables do not tell pages that were only read from others.
    pub fn is_dax(&self) -> bool {
        self.directory.is_dax()
    }

    /// Why it must not be used any more, in words.
    pub fn problem(&self) -> Option<String> {
        self.directory.problem()
    }

    /// Is it still as it was when it was complete? Takes a microsecond, and does not look at the bytes.
    ///
    /// # Errors
    /// It has changed, cannot be looked at, or was found to be lost before. The directory is of no use any more then.
    pub fn check(&self) -> Result<(), FarError> {
        let changed = || FarError::Changed(self.directory.path().to_path_buf());
        if self.is_lost.load(Ordering::Relaxed) {
            return Err(changed());
        }
        let stamp = Stamp::of(self.file.as_fd()).map_err(file_error(&self.directory, "looked at"));
        let sound = stamp.and_then(|stamp| match stamp == self.stamp {
            true => Ok(()),
            false => Err(changed()),
        });
        sound.inspect_err(|error| self.lose(error))
    }

    /// Reads all of it, and compares. To be called when somebody had trouble with it.
    ///
    /// # Errors
    /// As [`check`](Self::check), and when it cannot be read or holds other bytes.
    pub fn verify(&self) -> Result<(), FarError> {
        self.check()?;
        self.compare().inspect_err(|error| self.lose(error))
    }

    fn compare(&self) -> Result<(), FarError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; (WINDOW.min(self.pages) * PAGE_SIZE) as usize];
        for window in windows(self.pages) {
            let bytes = &mut buffer[..((window.end - window.start) * PAGE_SIZE) as usize];
            read_exact(self.file.as_fd(), bytes, window.start * PAGE_SIZE).map_err(|source| {
                FarError::File {
                    path: self.directory.path().to_path_buf(),
                    what: "read",
                    source,
                }
            })?;
            hasher.update(bytes);
        }
        match hasher.finalize() == self.digest {
            true => Ok(()),
            false => Err(FarError::Changed(self.directory.path().to_path_buf())),
        }
    }

    fn lose(&self, error: &FarError) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.directory.lose(error);
    }
}

impl AsFd for FarPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for FarPool {
    fn drop(&mut self) {
        let bytes = self.pages * PAGE_SIZE;
        self.directory.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn windows(pages: u64) -> impl Iterator<Item = Range<u64>> {
    (0..pages)
        .step_by(WINDOW as usize)
        .map(move |start| start..pages.min(start + WINDOW))
}

fn read_exact(file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut bytes[done..], at))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use super::*;

    const PAGES: u64 = WINDOW + 3;

    /// Such as a host has for shared memory; nothing else is sure to be there and to allow all that is needed.
    fn directory() -> Arc<FarDirectory> {
        Arc::new(FarDirectory::open(Path::new("/dev/shm")).unwrap())
    }

    fn numbered(pages: Range<u64>, bytes: &mut [u8]) -> Result<(), FarError> {
        for (page, bytes) in pages.zip(bytes.chunks_mut(PAGE_SIZE as usize)) {
            bytes.fill(page as u8);
            bytes[..8].copy_from_slice(&page.to_le_bytes());
        }
        Ok(())
    }

    fn writable(pool: &FarPool) -> std::fs::File {
        let path = format!("/proc/self/fd/{}", pool.as_fd().as_raw_fd());
        let mut options = std::fs::OpenOptions::new();
        options.write(true).open(path).unwrap()
    }

    #[test]
    fn all_pages_are_there_and_counted_while_it_lives() {
        let directory = directory();
        let pool = FarPool::copy_with(&directory, PAGES, numbered).unwrap();
        assert_eq!(directory.held.load(Ordering::Relaxed), PAGES * PAGE_SIZE);
        let mut page = [0; PAGE_SIZE as usize];
        for number in [0, WINDOW - 1, WINDOW, PAGES - 1] {
            read_exact(pool.as_fd(), &mut page, number * PAGE_SIZE).unwrap();
            assert_eq!(page[..8], number.to_le_bytes());
        }
        assert!(rustix::io::pwrite(&pool, b"x", 0).is_err());
        pool.verify().unwrap();
        drop(pool);
        assert_eq!(directory.held.load(Ordering::Relaxed), 0);
        assert_eq!(directory.problem(), None);
    }

    #[test]
    fn a_file_that_was_written_to_is_noticed() {
        let directory = directory();
        let pool = FarPool::copy_with(&directory, PAGES, numbered).unwrap();
        let file = writable(&pool);
        let write = || std::os::unix::fs::FileExt::write_all_at(&file, b"x", 9).unwrap();
        // The clock of a file system may stand still for some milliseconds.
        while pool.check().is_ok() {
            write();
        }
        assert!(matches!(pool.check(), Err(FarError::Changed(_))));
        assert!(directory.problem().unwrap().contains("/dev/shm"));
        // The first finding stands.
        assert!(matches!(pool.verify(), Err(FarError::Changed(_))));
    }

    #[test]
    fn a_file_that_lost_its_pages_is_noticed() {
        let directory = directory();
        let pool = FarPool::copy_with(&directory, PAGES, numbered).unwrap();
        writable(&pool).set_len(PAGE_SIZE).unwrap();
        assert!(pool.check().is_err() && pool.verify().is_err());
        assert!(directory.problem().is_some());
    }

    #[test]
    fn pages_that_cannot_be_brought_in_are_not_its_fault() {
        let directory = directory();
        let failed = FarPool::copy_with(&directory, PAGES, |pages, bytes| match pages.start {
            0 => numbered(pages, bytes),
            _ => Err(FarError::Pool(io::ErrorKind::UnexpectedEof.into())),
        });
        assert!(!failed.unwrap_err().is_loss());
        assert_eq!(directory.problem(), None);
        assert_eq!(directory.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let directory = directory();
        let failed = FarPool::copy_with(&directory, 1 << 40, numbered).unwrap_err();
        assert!(matches!(failed, FarError::Full { .. }), "{failed}");
        assert_eq!(directory.problem(), None);
    }
}
