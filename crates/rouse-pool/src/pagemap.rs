//! Which pages of a mapping are there, and whether they are the process's own: the `PAGEMAP_SCAN` ioctl (kernel 6.7)
//! on `/proc/PID/pagemap`, or the entries of that file where the ioctl is missing.
//!
//! Of a private mapping of a pool it tells what was written (a page of the process's own) from what was only read (a page of
//! the pool), without a single fault event. For guests of KVM it holds as well: KVM maps what the process has mapped.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

const PAGE: u64 = 4096;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_GUARD: u64 = 1 << 8;

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArguments>() == 96 && size_of::<PageRegion>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = (3 << 30) | (96 << 16) | (0x66 << 8) | 16;

/// What the kernel knows about the pages of a process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// What opening the file says.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(|file| Self { file })
    }

    /// Of the calling process.
    ///
    /// # Errors
    /// What opening the file says.
    pub fn own() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(|file| Self { file })
    }

    /// Ranges of pages that belong to the process alone and may hold something: present or swapped out, no page of a
    /// file, not the zero page.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn private_pages(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let arguments = ScanArguments {
            category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_FILE,
            ..ScanArguments::default()
        };
        match self.scan(range, arguments) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.private_entries(range)
            }
            other => other,
        }
    }

    /// Ranges of pages that are mapped and belong to a file or to a pool: read, but not written.
    ///
    /// # Errors
    /// What the kernel says; it must know the ioctl.
    pub fn file_pages(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let arguments = ScanArguments {
            category_mask: PAGE_IS_FILE | PAGE_IS_PRESENT,
            return_mask: PAGE_IS_FILE,
            ..ScanArguments::default()
        };
        self.scan(range, arguments)
    }

    /// Ranges of guard pages (`MADV_GUARD_INSTALL`, kernel 6.13). Kernels before 6.15 do not tell; none are reported there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn guard_pages(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let arguments = ScanArguments {
            category_mask: PAGE_IS_GUARD,
            return_mask: PAGE_IS_GUARD,
            ..ScanArguments::default()
        };
        match self.scan(range, arguments) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    fn scan(
        &self,
        range: &Range<u64>,
        mut arguments: ScanArguments,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut regions = [PageRegion::default(); 128];
        let mut found: Vec<Range<u64>> = Vec::new();
        arguments.size = size_of::<ScanArguments>() as u64;
        arguments.start = range.start;
        arguments.end = range.end;
        arguments.vec = regions.as_mut_ptr() as u64;
        arguments.vec_len = regions.len() as u64;
        while arguments.start < range.end {
            // SAFETY: the arguments name a vector of `vec_len` regions that lives across the call, and are
            // themselves of the size that the request number and their first field say.
            let count =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            for region in regions.iter().take(count as usize) {
                push_merged(&mut found, region.start..region.end);
            }
            if arguments.walk_end <= arguments.start {
                break;
            }
            arguments.start = arguments.walk_end;
        }
        Ok(found)
    }

    /// The same from the entries, 8 bytes a page. They do not tell the zero page; its zeros are found when it is read.
    fn private_entries(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        const FILE_OR_SHARED: u64 = 1 << 61;
        const SWAPPED: u64 = 1 << 62;
        const PRESENT: u64 = 1 << 63;
        let mut found = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        let mut address = range.start;
        while address < range.end {
            let len = buffer
                .len()
                .min(((range.end - address) / PAGE * 8) as usize);
            self.file
                .read_exact_at(&mut buffer[..len], address / PAGE * 8)?;
            for entry in buffer[..len].as_chunks::<8>().0 {
                let entry = u64::from_le_bytes(*entry);
                if entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0 {
                    push_merged(&mut found, address..address + PAGE);
                }
                address += PAGE;
            }
        }
        Ok(found)
    }
}

fn push_merged(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    /// Sixteen anonymous pages of this process, of which it has written the second to fourth and the tenth, and read the last.
    #[test]
    fn the_ioctl_and_the_entries_agree() {
        let memory = rustix_mmap(16);
        for page in [1, 2, 3, 9] {
            // SAFETY: the page lies inside of the mapping of 16 pages, which is writable and known to nobody else.
            unsafe { (memory as *mut u8).add(page * 4096).write_volatile(1) };
        }
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let base = memory;
        let range = base..base + 16 * PAGE;
        let expected = vec![
            base + PAGE..base + 4 * PAGE,
            base + 9 * PAGE..base + 10 * PAGE,
        ];
        assert_eq!(map.private_pages(&range).unwrap(), expected);
        assert_eq!(map.private_entries(&range).unwrap(), expected);
        assert_eq!(map.guard_pages(&range).unwrap(), vec![]);
    }

    fn rustix_mmap(pages: usize) -> u64 {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        // SAFETY: a new mapping at an address of the kernel's choice; the advice keeps single pages single.
        unsafe {
            let memory = mmap_anonymous(
                std::ptr::null_mut(),
                pages * 4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .unwrap();
            madvise(memory, pages * 4096, Advice::LinuxNoHugepage).unwrap();
            memory as u64
        }
    }
}
