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
//! - *Every page of a finished [`Pool`] is present, or was said to be zeros.* Absent pages of a memfd read as zeros without
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

    /// Appends pages of zeros, for which no memory is needed, and returns the page number of the first.
    ///
    /// # Errors
    /// What `ftruncate` says; then nothing was appended.
    pub fn append_zeros(&mut self, pages: u64) -> io::Result<u64> {
        let first = self.pages;
        let start = first * PAGE_SIZE;
        // What a failed append has left there is cut off first.
        rustix::fs::ftruncate(&self.file, start)?;
        rustix::fs::ftruncate(&self.file, start + pages * PAGE_SIZE)?;
        self.pages += pages;
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
        seal(self.file.as_fd())?;
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

/// Makes a memory file immutable: neither its bytes nor its length can change any more, whoever has it.
///
/// While anything in the kernel holds a reference to one of its pages (memory being moved together,
/// for instance) this cannot be done. The kernel waits for about 0.15 s, which is too short on a machine whose processors are
/// taken; so it is asked to wait again, for some seconds in all.
///
/// # Errors
/// What `fcntl(F_ADD_SEALS)` says: `ResourceBusy` if the file is mapped to be written.
pub fn seal(file: BorrowedFd<'_>) -> io::Result<()> {
    const TRIES: u32 = 40;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let mut tries = 0;
    loop {
        tries += 1;
        match rustix::fs::fcntl_add_seals(file, seals) {
            Err(rustix::io::Errno::BUSY) if tries < TRIES => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            sealed => return Ok(sealed?),
        }
    }
}

/// A finished pool: every page is present and immutable.
#[derive(Debug)]
pub struct Pool {
    file: OwnedFd,
    pages: u64,
}

impl Pool {
    /// A pool that another process has made. Whatever that process does, its pages cannot change any more.
    ///
    /// # Errors
    /// If it is no memory file, is not sealed as a finished pool is, or is empty or not of whole pages.
    pub fn adopt(file: OwnedFd) -> io::Result<Self> {
        let wanted = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        let len = rustix::fs::fstat(&file)?.st_size as u64;
        if !rustix::fs::fcntl_get_seals(&file)?.contains(wanted)
            || len == 0
            || !len.is_multiple_of(PAGE_SIZE)
        {
            let why = "not a finished pool";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let pages = len / PAGE_SIZE;
        Ok(Self { file, pages })
    }

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
    use rustix::mm::{MapFlags, ProtFlags};

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
    fn only_finished_pools_are_adopted() {
        let mut builder = PoolBuilder::new("test").unwrap();
        builder.append(&[1; PAGE]).unwrap();
        let open = builder.file.try_clone().unwrap();
        assert!(Pool::adopt(open.try_clone().unwrap()).is_err());
        builder.finish().unwrap();
        assert_eq!(Pool::adopt(open).unwrap().pages(), 1);
        assert!(Pool::adopt(rustix::pipe::pipe().unwrap().0).is_err());
    }

    #[test]
    fn zeros_take_no_memory() {
        let mut builder = PoolBuilder::new("test").unwrap();
        builder.append(&[1; PAGE]).unwrap();
        assert_eq!(builder.append_zeros(1000).unwrap(), 1);
        assert_eq!(builder.append(&[2; PAGE]).unwrap(), 1001);
        assert_eq!(builder.append_zeros(2).unwrap(), 1002);
        let pool = builder.finish().unwrap();
        assert_eq!(pool.pages(), 1004);
        assert_eq!(rustix::fs::fstat(&pool).unwrap().st_blocks * 512, 2 * 4096);
        let mut buffer = [7; 4 * PAGE];
        pool.read(1000, &mut buffer).unwrap();
        let first_bytes = buffer.chunks(PAGE).map(|page| page[0]);
        assert_eq!(first_bytes.collect::<Vec<_>>(), [0, 2, 0, 0]);
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

    /// It is mapped to be written when it is to be sealed, and a moment later no more.
    #[test]
    fn who_still_holds_a_page_is_waited_for() {
        let mut builder = PoolBuilder::new("test").unwrap();
        builder.append(&[1; PAGE]).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let anywhere = std::ptr::null_mut();
        // SAFETY: a new mapping, through which nothing is read or written.
        let mapped =
            unsafe { rustix::mm::mmap(anywhere, PAGE, protection, flags, &builder.file, 0) };
        let mapped = mapped.unwrap() as usize;
        let holder = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            // SAFETY: it is the mapping made above, which nothing else uses.
            unsafe { rustix::mm::munmap(mapped as *mut _, PAGE) }.unwrap();
        });
        assert!(builder.finish().is_ok());
        holder.join().unwrap();
    }
}
