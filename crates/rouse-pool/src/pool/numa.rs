//! Pools on far memory: a NUMA node without processors, which is how Linux shows a CXL expander.
//!
//! ```text
//!  policy of the memory file:   far node         near node (working set)        far node
//!                               |----------------|------------------------------|-----------|
//!  instances map all of it as always: a far page is read in place, only slower
//! ```
//! The policy belongs to the file, not to whoever fills it: the pager's pages come to lie where it says. What is there
//! already is moved by the kernel while instances have it mapped. Only pinned pools are moved: to move a page it has to
//! be mapped here, and mapping an absent page would put zeros into the pool.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{PagedPool, PinnedPool};

/// Number of a NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumaNode(pub u32);

/// The most nodes that a mask holds here; more than kernels are built for.
const MAX_NODES: u32 = 1024;
/// Pages that are moved with one call: bounds what is mapped here at a time.
const AT_A_TIME: u64 = 16 * 1024;

impl NumaNode {
    /// Is there such a node, and does it have memory?
    pub fn has_memory(self) -> bool {
        let path = "/sys/devices/system/node/has_memory";
        let text = std::fs::read_to_string(path).unwrap_or_default();
        self.0 < MAX_NODES && listed(&text).any(|range| range.contains(&self.0))
    }

    /// Bytes of memory that it has.
    pub fn bytes(self) -> u64 {
        let path = format!("/sys/devices/system/node/node{}/meminfo", self.0);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let total = text
            .lines()
            .find_map(|line| line.split_once("MemTotal:"))
            .and_then(|(_, rest)| rest.trim().split(' ').next()?.parse::<u64>().ok());
        total.map_or(0, |kib| kib * 1024)
    }

    /// The first node that has processors.
    pub fn near() -> Self {
        let path = "/sys/devices/system/node/has_cpu";
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let first = listed(&text).next();
        Self(first.map_or(0, |range| *range.start()))
    }
}

/// Lets pages of a memory file that come in from now on come to lie on a node.
pub(crate) fn prefer(file: BorrowedFd<'_>, pages: u64, node: NumaNode) -> io::Result<()> {
    Mapping::of(file, 0..pages)?.bind(node, false)
}

/// Parses `0-1,3`.
fn listed(text: &str) -> impl Iterator<Item = std::ops::RangeInclusive<u32>> {
    text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    })
}

impl PagedPool {
    /// Pages that come in from now on come to lie on that node, as far as there is room.
    ///
    /// # Errors
    /// What `mbind` says, for instance that there is no such node.
    pub fn prefer(&self, node: NumaNode) -> io::Result<()> {
        Mapping::of(self.registered().as_fd(), 0..self.pages())?.bind(node, false)
    }
}

impl PinnedPool {
    /// Moves pages to a node, while they are in use. Those that it has no room for stay where they are.
    /// Blocks for about a microsecond a page.
    ///
    /// # Errors
    /// What `mbind` says, for instance that there is no such node.
    pub fn move_to(&self, node: NumaNode, ranges: &[Range<u64>]) -> io::Result<()> {
        for pages in parts(ranges, self.pool().pages()) {
            let mapping = Mapping::of(self.as_fd(), pages)?;
            mapping.populate()?;
            mapping.bind(node, true)?;
        }
        Ok(())
    }

    /// How many pages lie on a node.
    ///
    /// # Errors
    /// What `move_pages` says.
    pub fn pages_on(&self, node: NumaNode) -> io::Result<u64> {
        let mut count = 0;
        let all = 0..self.pool().pages();
        for pages in parts(std::slice::from_ref(&all), self.pool().pages()) {
            let mapping = Mapping::of(self.as_fd(), pages)?;
            mapping.populate()?;
            let nodes = mapping.nodes()?;
            count += nodes.iter().filter(|on| **on == node.0 as i32).count() as u64;
        }
        Ok(count)
    }
}

fn parts(ranges: &[Range<u64>], pages: u64) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    for range in ranges {
        let end = range.end.min(pages);
        let starts = (range.start..end).step_by(AT_A_TIME as usize);
        parts.extend(starts.map(|start| start..end.min(start + AT_A_TIME)));
    }
    parts
}

/// Pages of a memory file, mapped shared and readable.
struct Mapping {
    base: usize,
    bytes: usize,
}

impl Mapping {
    fn of(file: BorrowedFd<'_>, pages: Range<u64>) -> io::Result<Self> {
        let bytes = ((pages.end - pages.start) * PAGE_SIZE) as usize;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                pages.start * PAGE_SIZE,
            )
        }?;
        Ok(Self {
            base: base as usize,
            bytes,
        })
    }

    /// Maps every page. They must all be present.
    fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping, and nothing is changed by mapping pages that are there.
        unsafe { rustix::mm::madvise(self.base as *mut _, self.bytes, Advice::LinuxPopulateRead) }?;
        Ok(())
    }

    fn bind(&self, node: NumaNode, moves: bool) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_ulong = 1;
        const MPOL_MF_MOVE_ALL: libc::c_ulong = 4;
        if node.0 >= MAX_NODES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut mask = [0_u64; MAX_NODES as usize / 64];
        mask[node.0 as usize / 64] |= 1 << (node.0 % 64);
        let flags = if moves { MPOL_MF_MOVE_ALL } else { 0 };
        // SAFETY: the range is this mapping; the mask is as long as is said (the kernel does not look at the last bit)
        // and outlives the call, which only changes where pages lie.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base,
                self.bytes,
                MPOL_PREFERRED,
                mask.as_ptr(),
                u64::from(MAX_NODES) + 1,
                flags,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The node of each page; negative for one that is not mapped.
    fn nodes(&self) -> io::Result<Vec<i32>> {
        let pages: Vec<usize> = (self.base..self.base + self.bytes)
            .step_by(PAGE_SIZE as usize)
            .collect();
        let mut nodes = vec![-1_i32; pages.len()];
        // SAFETY: both arrays have as many elements as is said; without nodes to move to, pages are only looked at.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                pages.len(),
                pages.as_ptr(),
                std::ptr::null::<i32>(),
                nodes.as_mut_ptr(),
                0,
            )
        };
        match result {
            0 => Ok(nodes),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let result = unsafe { rustix::mm::munmap(self.base as *mut _, self.bytes) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_are_understood() {
        let nodes: Vec<u32> = listed("0-1,3\n").flatten().collect();
        assert_eq!(nodes, [0, 1, 3]);
        assert_eq!(listed("\n").count(), 0);
        assert!(!NumaNode(MAX_NODES).has_memory());
    }

    #[test]
    fn ranges_are_cut_to_what_is_moved_at_a_time() {
        let all = 0..AT_A_TIME * 2 + 5;
        let cut = parts(std::slice::from_ref(&all), AT_A_TIME * 2 + 3);
        assert_eq!(cut.len(), 3);
        assert_eq!(cut[2], AT_A_TIME * 2..AT_A_TIME * 2 + 3);
    }
}
