//! Pages of 2 MiB for pools that are in memory as a whole.
//!
//! ```text
//!  memory file    |ssssssss|LLLLLLLLLLLLLLLL|LLLLLLLLLLLLLLLL|sss|     s small pages, L one of 2 MiB
//!                           ^                                           made of small ones by the kernel (`MADV_COLLAPSE`)
//!  instance                 `-- mapped by one entry, if its address lies as the page does; a write copies 4 KiB
//! ```
//! Two ways to a wrong byte, and why they are closed:
//! - To make a large page the kernel fills what is absent with zeros. So it is done for pinned pools only, whose pages are
//!   all present.
//! - When a part of a large page is taken out, the kernel first writes zeros there, then splits the page; if somebody uses
//!   it at that moment it cannot, and the zeros stay, to be read. So large pages are only taken out as a whole, and none is
//!   made where some pages have to stay.
//!
//! The kernel makes them by itself where `shmem_enabled` says so, in memory files of anybody. With `always`, `within_size` and
//! `force` it may do so at a moment when a mapping is not registered yet, so that a node does not start ([`SharedHuge`]).
//! With `advise` a function can ask for it by `MADV_HUGEPAGE`: all pools are treated as those that have some.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;

use rouse_snapshot::model::PAGE_SIZE;
use rustix::mm::{MapFlags, ProtFlags};

use super::PinnedPool;

/// Pages in a large page.
pub const HUGE_PAGES: u64 = 512;
/// So often the kernel is asked for one, while it says that this cannot be done just now.
const TRIES: usize = 8;
/// Bytes of it.
const HUGE: usize = (HUGE_PAGES * PAGE_SIZE) as usize;

impl PinnedPool {
    /// Makes large pages of what lies so that it can be one. Returns how many there are. Blocks for some milliseconds for
    /// each.
    ///
    /// # Errors
    /// The kernel knows no such thing, or could make none. Those that cannot be had beside others are left out.
    pub fn enlarge(&self) -> io::Result<u64> {
        let count = self.pool().pages() / HUGE_PAGES;
        if count == 0 {
            return Ok(0);
        }
        // Before the first one is there.
        self.pool().may_have_large();
        let room = Room::reserve((count as usize + 1) * HUGE)?;
        let begin = room.base.next_multiple_of(HUGE);
        // SAFETY: the range lies in the room, which is this function's own and of which nothing refers to anything.
        unsafe {
            rustix::mm::mmap(
                begin as *mut _,
                count as usize * HUGE,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                self.as_fd(),
                0,
            )
        }?;
        let (mut made, mut refused) = (0, None);
        for index in 0..count as usize {
            let first = index as u64 * HUGE_PAGES;
            if self.pool().is_wired(&(first..first + HUGE_PAGES)) {
                continue;
            }
            // Some may be in use in a way that does not allow it now.
            match collapse(begin + index * HUGE) {
                Ok(()) => made += 1,
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if made == 0 => Err(error),
            _ => Ok(made),
        }
    }
}

/// Has one large page hold the contents of the [`HUGE`] bytes that are mapped at `at`.
fn collapse(at: usize) -> io::Result<()> {
    let mut error = io::Error::from(io::ErrorKind::WouldBlock);
    for _ in 0..TRIES {
        // SAFETY: the range is mapped by the caller; which page holds its contents changes nothing of them.
        if unsafe { libc::madvise(at as *mut _, HUGE, libc::MADV_COLLAPSE) } == 0 {
            return Ok(());
        }
        error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            break;
        }
        // Somebody holds one of the pages: a processor that has just made it, as a rule.
        std::thread::yield_now();
    }
    Err(error)
}

/// When the kernel makes large pages of shared memory by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SharedHuge {
    /// Never.
    Never,
    /// Where a process has asked for it.
    Advised,
    /// Anywhere.
    Anywhere,
}

impl SharedHuge {
    /// As the host is set now.
    pub fn of_host() -> Self {
        Self::below(Path::new("/sys/kernel/mm/transparent_hugepage"))
    }

    /// The worse of both files: the one of all sizes, and that of 2 MiB, which takes its place unless it says `inherit`.
    fn below(directory: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
        let files = ["shmem_enabled", "hugepages-2048kB/shmem_enabled"];
        let settings = files.map(|name| Self::parse(&read(name)));
        settings.into_iter().max().unwrap_or(Self::Never)
    }

    /// `always within_size advise [never] deny force`. A kernel without the file makes none.
    fn parse(text: &str) -> Self {
        let chosen = text.split_whitespace().find(|word| word.starts_with('['));
        match chosen {
            None | Some("[never]" | "[deny]" | "[inherit]") => Self::Never,
            Some("[advise]") => Self::Advised,
            // What is not known is not trusted.
            Some(_) => Self::Anywhere,
        }
    }
}

/// What of these ranges of a pool may be taken out: large pages as a whole, and what is behind the last of them.
pub(super) fn whole(ranges: Vec<Range<u64>>, pages: u64) -> Vec<Range<u64>> {
    let rest = pages / HUGE_PAGES * HUGE_PAGES;
    let inside = |range: Range<u64>| {
        let start = match range.start < rest {
            true => range.start.next_multiple_of(HUGE_PAGES),
            false => range.start,
        };
        let end = match range.end < rest {
            true => range.end / HUGE_PAGES * HUGE_PAGES,
            false => range.end,
        };
        start..end
    };
    let ranges = ranges.into_iter().map(inside);
    ranges.filter(|range| range.start < range.end).collect()
}

/// Address space for mappings.
struct Room {
    base: usize,
    bytes: usize,
}

impl Room {
    fn reserve(bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::empty(), flags)
        }?;
        Ok(Self {
            base: base as usize,
            bytes,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the room is this value's own, with whatever was mapped there; nothing refers to it any more.
        let result = unsafe { rustix::mm::munmap(self.base as *mut _, self.bytes) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_kernel_are_understood() {
        for (text, expected) in [
            (
                "always within_size advise [never] deny force\n",
                SharedHuge::Never,
            ),
            (
                "always within_size advise never [deny] force\n",
                SharedHuge::Never,
            ),
            (
                "always within_size [advise] never deny force\n",
                SharedHuge::Advised,
            ),
            (
                "[always] within_size advise never deny force\n",
                SharedHuge::Anywhere,
            ),
            (
                "always [within_size] advise never deny force\n",
                SharedHuge::Anywhere,
            ),
            (
                "always within_size advise never deny [force]\n",
                SharedHuge::Anywhere,
            ),
            ("never [sometimes]\n", SharedHuge::Anywhere),
            ("", SharedHuge::Never),
        ] {
            assert_eq!(SharedHuge::parse(text), expected, "{text}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(SharedHuge::below(dir.path()), SharedHuge::Never);
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        };
        let size = "hugepages-2048kB/shmem_enabled";
        write(
            "shmem_enabled",
            "always within_size [advise] never deny force\n",
        );
        write(size, "always [inherit] within_size advise never\n");
        assert_eq!(SharedHuge::below(dir.path()), SharedHuge::Advised);
        write(size, "[always] inherit within_size advise never\n");
        assert_eq!(SharedHuge::below(dir.path()), SharedHuge::Anywhere);
    }

    #[test]
    fn large_pages_are_left_whole() {
        let ranges = vec![0..5, 100..1100, 1024..1536, 1500..2100, 2060..2100];
        let found = whole(ranges, 2100);
        assert_eq!(found, [512..1024, 1024..1536, 1536..2100, 2060..2100]);
        assert_eq!(whole(vec![3..7, 9..10], 100), [3..7, 9..10]);
    }
}
