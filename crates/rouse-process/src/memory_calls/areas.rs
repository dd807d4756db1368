//! The mappings of another process around an address.
//!
//! Asked one by one with the `PROCMAP_QUERY` ioctl (kernel 6.11): a process has hundreds, and a
//! call is about one or a few. Older kernels list them all as text.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use super::pools::FileKey;

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    pub range: Range<u64>,
    pub shared: bool,
    /// The file and the offset in it where the mapping starts, bytes.
    pub file: Option<(FileKey, u64)>,
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug, Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Query>() == 104);

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = (3 << 30) | (104 << 16) | (0x66 << 8) | 17;
const COVERING_OR_NEXT: u64 = 0x10;
const SHARED: u64 = 0x08;

/// The mappings that overlap `range`, in address order.
pub(super) fn overlapping(tid: i32, range: &Range<u64>) -> io::Result<Vec<Area>> {
    let maps = File::open(format!("/proc/{tid}/maps"))?;
    match query_all(&maps, range) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => listed(maps, range),
        other => other,
    }
}

fn query_all(maps: &File, range: &Range<u64>) -> io::Result<Vec<Area>> {
    let mut found = Vec::new();
    let mut address = range.start;
    while address < range.end {
        let mut query = Query {
            size: size_of::<Query>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: address,
            ..Query::default()
        };
        // SAFETY: the request is defined for this structure, which lives across the call and asks
        // for no name and no build id, so nothing else is written.
        let result = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // No mapping there or behind it.
            if error.raw_os_error() == Some(libc::ENOENT) {
                break;
            }
            return Err(error);
        }
        if query.vma_start >= range.end {
            break;
        }
        let key = FileKey {
            major: query.dev_major,
            minor: query.dev_minor,
            inode: query.inode,
        };
        found.push(Area {
            range: query.vma_start..query.vma_end,
            shared: query.vma_flags & SHARED != 0,
            file: (query.inode != 0).then_some((key, query.vma_offset)),
        });
        address = query.vma_end;
    }
    Ok(found)
}

fn listed(mut maps: File, range: &Range<u64>) -> io::Result<Vec<Area>> {
    let mut text = Vec::new();
    maps.read_to_end(&mut text)?;
    // Names are arbitrary bytes; everything before them is ASCII.
    let text = String::from_utf8_lossy(&text);
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "unreadable list of mappings");
    let mut found = Vec::new();
    for line in text.lines() {
        let area = parse(line).ok_or_else(unreadable)?;
        if area.range.start < range.end && range.start < area.range.end {
            found.push(area);
        }
    }
    Ok(found)
}

/// `start-end perms offset major:minor inode name`
fn parse(line: &str) -> Option<Area> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let key = FileKey {
        major: hex(major)? as u32,
        minor: hex(minor)? as u32,
        inode,
    };
    Some(Area {
        range: hex(start)?..hex(end)?,
        shared: permissions.ends_with('s'),
        file: (inode != 0).then_some((key, offset)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_query_and_the_list_agree() {
        let maps = || File::open("/proc/self/maps").unwrap();
        // The mappings of the program itself: those of other threads of the test come and go.
        let here = the_query_and_the_list_agree as *const () as u64;
        let range = here..here + (1 << 22);
        let inside = |area: &Area| area.file.is_some();
        let mut listed = listed(maps(), &range).unwrap();
        listed.retain(inside);
        assert!(!listed.is_empty());
        match query_all(&maps(), &range) {
            Ok(mut queried) => {
                queried.retain(inside);
                assert_eq!(queried, listed);
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }
    }
}
