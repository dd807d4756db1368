//! Looks up what each page of this machine's memory belongs to, once the function is stopped.
//!
//! ```text
//!  /proc/kpageflags      for each page: free, a slab, a page table, mapped, ...     a first guess
//!  /proc/PID/maps        for each process of the function: its mappings             what kind of mapping it is
//!  /proc/PID/pagemap     for each page of such a mapping: which page it is          corrects the guess
//! ```

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rouse_guest::owners::{MOST_PAGES, Owner, Owners};

const PAGE: u64 = 4096;
/// Numbers that are read at once.
const PIECE: usize = 8192;
/// So many pages of a process's mappings are looked at: a runtime may reserve far more than it uses.
const MOST_VIRTUAL: u64 = 4 << 20;

/// Bits of `/proc/kpageflags`.
mod flag {
    pub const LRU: u64 = 1 << 5;
    pub const SLAB: u64 = 1 << 7;
    pub const BUDDY: u64 = 1 << 10;
    pub const MMAP: u64 = 1 << 11;
    pub const ANON: u64 = 1 << 12;
    pub const NO_PAGE: u64 = 1 << 20;
    pub const ZERO_PAGE: u64 = 1 << 24;
    pub const PAGE_TABLE: u64 = 1 << 26;
}

/// Bits of `/proc/PID/pagemap`.
mod entry {
    pub const PRESENT: u64 = 1 << 63;
    /// It is a file's, or shared; a private copy is not.
    pub const FILE: u64 = 1 << 61;
    pub const PAGE: u64 = (1 << 55) - 1;
}

/// Looks. `group` is the control group of the function's processes.
pub fn owners(group: &Path) -> io::Result<Owners> {
    let mut pages = Vec::new();
    numbers(
        &File::open("/proc/kpageflags")?,
        0..MOST_PAGES,
        |_, flags| {
            pages.push(by_flags(flags));
        },
    )?;
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        processes_pages(&Path::new("/proc").join(pid), &mut pages)?;
    }
    Ok(Owners::of(&pages))
}

fn processes_pages(process: &Path, pages: &mut [Owner]) -> io::Result<()> {
    let maps = fs::read(process.join("maps"))?;
    let pagemap = File::open(process.join("pagemap"))?;
    let mut budget = MOST_VIRTUAL;
    for line in String::from_utf8_lossy(&maps).lines() {
        let Some((range, mapping)) = mapping(line) else {
            continue;
        };
        let range = range.start..range.end.min(range.start + budget);
        budget -= range.end - range.start;
        numbers(&pagemap, range, |_, entry| {
            if entry & entry::PRESENT == 0 {
                return;
            }
            let index = usize::try_from(entry & entry::PAGE).unwrap_or(usize::MAX);
            // The kernel's page of zeros, for one, may be mapped and stays the kernel's.
            if let Some(owner @ (Owner::Other | Owner::PageCache)) = pages.get_mut(index) {
                *owner = mapping.owner(entry & entry::FILE != 0);
            }
        })?;
    }
    Ok(())
}

/// What the kernel says of a page.
fn by_flags(flags: u64) -> Owner {
    let any = |wanted: u64| flags & wanted != 0;
    if any(flag::NO_PAGE) {
        Owner::Unknown
    } else if any(flag::BUDDY) {
        Owner::Free
    } else if any(flag::PAGE_TABLE) {
        Owner::PageTable
    } else if any(flag::SLAB | flag::ZERO_PAGE) {
        Owner::Kernel
    } else if any(flag::MMAP | flag::ANON) {
        Owner::Other
    } else if any(flag::LRU) {
        Owner::PageCache
    } else {
        Owner::Kernel
    }
}

/// A kind of mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Program,
    File,
    Heap,
    Stack,
    Anonymous,
}

impl Mapping {
    /// Of one of its pages, which is a file's or not.
    fn owner(self, file: bool) -> Owner {
        match (self, file) {
            (Self::Program, true) => Owner::Code,
            (Self::File, true) => Owner::File,
            (Self::Program | Self::File, false) => Owner::Data,
            (Self::Heap, _) => Owner::Heap,
            (Self::Stack, _) => Owner::Stack,
            (Self::Anonymous, _) => Owner::Anonymous,
        }
    }
}

/// A line of `/proc/PID/maps`: page numbers and the kind. `None` for what cannot be accessed or is the kernel's.
fn mapping(line: &str) -> Option<(Range<u64>, Mapping)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let page = |address| Some(u64::from_str_radix(address, 16).ok()? / PAGE);
    let range = page(start)?..page(end)?;
    let protection = words.next()?;
    if range.is_empty() || protection.starts_with("---") {
        return None;
    }
    let inode = words.nth(2)?;
    let kind = match words.next() {
        Some("[heap]") => Mapping::Heap,
        Some("[stack]") => Mapping::Stack,
        Some(name) if name.starts_with("[v") => return None,
        _ if inode == "0" => Mapping::Anonymous,
        _ if protection.as_bytes().get(2) == Some(&b'x') => Mapping::Program,
        _ => Mapping::File,
    };
    Some((range, kind))
}

/// Reads numbers of eight bytes by their index, as far as there are any.
fn numbers(file: &File, range: Range<u64>, mut take: impl FnMut(u64, u64)) -> io::Result<()> {
    let mut bytes = vec![0; PIECE * 8];
    let mut at = range.start;
    while at < range.end {
        let wanted = (range.end - at).min(PIECE as u64) as usize * 8;
        let read = file.read_at(&mut bytes[..wanted], at * 8)?;
        let found = bytes[..read].as_chunks().0;
        if found.is_empty() {
            break;
        }
        for number in found {
            take(at, u64::from_ne_bytes(*number));
            at += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_known_by_its_line() {
        for (line, wanted) in [
            (
                "1000-3000 r-xp 00000000 fe:00 12  /usr/bin/python3",
                Some((1..3, Mapping::Program)),
            ),
            (
                "1000-3000 rw-p 00000000 fe:00 12  /lib/a b",
                Some((1..3, Mapping::File)),
            ),
            (
                "1000-2000 rw-p 00000000 00:00 0  [heap]",
                Some((1..2, Mapping::Heap)),
            ),
            (
                "7000-8000 rw-p 00000000 00:00 0  [stack]",
                Some((7..8, Mapping::Stack)),
            ),
            (
                "7000-8000 rw-p 00000000 00:00 0 ",
                Some((7..8, Mapping::Anonymous)),
            ),
            (
                "7000-8000 rw-p 00000000 00:00 0  [anon:x]",
                Some((7..8, Mapping::Anonymous)),
            ),
            ("7000-8000 ---p 00000000 00:00 0", None),
            ("7000-8000 r-xp 00000000 00:00 0  [vdso]", None),
            ("8000-7000 rw-p 00000000 00:00 0", None),
            ("7000-800g rw-p 00000000 00:00 0", None),
            ("7000-8000", None),
            ("", None),
        ] {
            assert_eq!(mapping(line), wanted, "{line}");
        }
    }

    #[test]
    fn a_private_copy_of_a_file_is_data() {
        assert_eq!(Mapping::Program.owner(true), Owner::Code);
        assert_eq!(Mapping::File.owner(true), Owner::File);
        assert_eq!(Mapping::File.owner(false), Owner::Data);
    }

    #[test]
    fn the_pages_of_a_process_are_found_by_its_own_page_table() {
        // What this may not see, as page numbers, reads as 0: only the way there is tested.
        let file = File::open("/proc/self/pagemap").expect("every process has one");
        let value = Box::new([1_u8; 3 * PAGE as usize]);
        let first = value.as_ptr() as u64 / PAGE + 1;
        let mut seen = Vec::new();
        numbers(&file, first..first + 2, |page, entry| {
            seen.push((page, entry & entry::PRESENT != 0, entry & entry::FILE != 0));
        })
        .expect("it can be read");
        assert_eq!(seen, [(first, true, false), (first + 1, true, false)]);
    }

    #[test]
    fn what_is_free_is_free_whatever_else_it_was() {
        assert_eq!(by_flags(flag::BUDDY), Owner::Free);
        assert_eq!(by_flags(flag::NO_PAGE), Owner::Unknown);
        assert_eq!(by_flags(flag::PAGE_TABLE), Owner::PageTable);
        assert_eq!(by_flags(flag::SLAB | flag::LRU), Owner::Kernel);
        assert_eq!(by_flags(flag::MMAP | flag::ANON | flag::LRU), Owner::Other);
        assert_eq!(by_flags(flag::LRU), Owner::PageCache);
        assert_eq!(by_flags(0), Owner::Kernel);
    }
}
