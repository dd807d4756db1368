//! Mappings whose pages are touched to see how long that takes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::mm::{Advice, MapFlags, ProtFlags};

const PAGE: usize = PAGE_SIZE as usize;

/// Pages of a file, mapped.
pub(super) struct Mapping {
    base: *mut u8,
    pages: usize,
}

impl Mapping {
    /// A private mapping of pages of a file, in small pages.
    pub fn private(file: &OwnedFd, first: usize, pages: usize) -> io::Result<Self> {
        let mapping = Self::bare(file, first, pages)?;
        // Huge pages would hide what a page costs. Kernels without them know no such advice.
        let _ = mapping.advise(Advice::LinuxNoHugepage);
        Ok(mapping)
    }

    /// Without advice about huge pages.
    pub fn bare(file: &OwnedFd, first: usize, pages: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                protection,
                MapFlags::PRIVATE,
                file,
                (first * PAGE) as u64,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            pages,
        })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is this mapping; no reference into it exists, and none of the kinds of advice used here
        // changes what is read.
        unsafe { rustix::mm::madvise(self.base.cast(), self.pages * PAGE, advice) }?;
        Ok(())
    }

    pub fn read_each(&self, step: usize) {
        for place in scattered(self.pages / step) {
            self.read(place * step);
        }
    }

    pub fn read(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: inside of the mapping, which lives as long as `self`.
        std::hint::black_box(unsafe { self.base.add(page * PAGE).read_volatile() });
    }

    pub fn copy(&self, first: usize, out: &mut [u8]) {
        assert!((first * PAGE).saturating_add(out.len()) <= self.pages * PAGE);
        // SAFETY: inside of the mapping, as was just checked; `out` is elsewhere, and nobody writes to the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(first * PAGE), out.as_mut_ptr(), out.len());
        }
    }

    pub fn write_each(&self) {
        for page in scattered(self.pages) {
            self.write(page);
        }
    }

    pub fn write(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: inside of the mapping, which is writable and lives as long as `self`; nobody else has it.
        unsafe { self.base.add(page * PAGE).write_volatile(1) };
    }

    /// Reads all of it from where it is mapped from, as a restore does with pages that it copies.
    pub fn read_from(&self, file: &OwnedFd, first: usize) -> io::Result<()> {
        let len = self.pages * PAGE;
        // SAFETY: the range is this mapping, which is writable; nobody else has it.
        let result = unsafe {
            libc::pread(
                file.as_raw_fd(),
                self.base.cast(),
                len,
                (first * PAGE) as i64,
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.pages * PAGE) };
    }
}

/// All numbers below `count`, in an order in which nothing is fetched ahead.
pub(super) fn scattered(count: usize) -> impl Iterator<Item = usize> {
    // A prime, so that it visits each.
    (0..count).map(move |index| index * 7919 % count)
}
